"""Which run made which task's labels, with which settings: what `verify` checks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from jobs.fingerprints import fingerprint_of, fingerprints, run_of, taken_over
from jobs.table.schema import columns_by_task, fingerprint_column, run_column

# By run, from the log: the fingerprints of its tasks; of earlier versions one for all, as "".
Logged = Mapping[str, Mapping[str, str]]


class Prints:
    """The fingerprints in a table's rows, which are added batch by batch."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.current = fingerprints(settings)
        self.tasks = [*settings.get("tasks", {}), *settings.get("left", {})]
        self.found: dict[tuple[str, str], set[str]] = {}  # by task and run
        self.older = 0  # rows that do not have the labels of all tasks with the current settings
        self.unmade = 0  # labels that no run has made

    def add(self, rows: pa.Table) -> None:
        """Some rows of a data file. Raises ValueError if a column is missing."""
        names = rows.column_names
        has_labels = [task for task in self.tasks if f"{task}_error" in names]
        for task in has_labels:
            if fingerprint_column(task) not in names and "fingerprint" not in names:
                raise ValueError(f"expected a column {fingerprint_column(task)}, found none")
        columns, _ = columns_by_task(names, self.tasks, ())
        is_older = pa.repeat(self.current.keys() - has_labels != set(), len(rows))
        for task in has_labels:
            made = (fingerprint_column(task), run_column(task))
            labels = [rows[name].is_valid() for name in columns[task] if name not in made]
            prints, runs = self._of(task, rows)
            self._note(task, runs, prints)
            if task in self.current:
                is_this = pc.fill_null(pc.equal(prints, self.current[task]), False)
                is_older = pc.or_(is_older, pc.invert(is_this))
            is_unmade = prints.is_null()
            if "fingerprint" in names:  # of settings that are not known any more
                is_unmade = pc.and_(is_unmade, rows["fingerprint"].is_null())
            for has_label in labels:
                self.unmade += pc.sum(pc.and_(is_unmade, has_label)).as_py() or 0
        self.older += pc.sum(is_older).as_py() or 0

    def _of(self, task: str, rows: pa.Table) -> tuple[pa.Array, pa.Array]:
        given = ("fingerprint", "run_id", fingerprint_column(task), run_column(task))
        names = [name for name in given if name in rows.column_names]
        texts = pa.table({name: rows[name].cast(pa.string()) for name in names})
        columns = {"print": fingerprint_of(task, self.settings, names), "run": run_of(task, names)}
        found = ds.dataset(texts).to_table(columns=columns).combine_chunks()
        return found["print"].combine_chunks(), found["run"].combine_chunks()

    def _note(self, task: str, runs: pa.Array, prints: pa.Array) -> None:
        pairs = pa.table([runs, prints], ["run", "print"]).filter(prints.is_valid())
        for pair in pairs.group_by(["run", "print"]).aggregate([]).to_pylist():
            self.found.setdefault((task, pair["run"]), set()).add(pair["print"])

    def faults(self, logged: Logged) -> Iterator[str]:
        """A line, without advice, for each fault."""
        several = [run for (_, run), prints in self.found.items() if len(prints) > 1]
        if several:
            yield (
                f"expected one fingerprint for each task and run, found {len(several):,} runs with "
                f"several, e.g. {several[0]}"
            )
        if self.unmade:
            yield f"expected a fingerprint beside each label, found {self.unmade:,} without one"
        for (task, run), prints in self.found.items():
            if len(prints) == 1 and run in logged:
                [found] = prints
                of_all = taken_over(self.settings).get(logged[run].get("", ""), {})
                expected = logged[run].get(task) or of_all.get(task)
                if expected != found:
                    yield f"run {run}: expected fingerprint {expected} of {task} by the log, found {found}"
