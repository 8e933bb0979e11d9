"""A run without Ray and models, in a process of its own that dies where it is told to.

`run` does with the real plan, `write_rows` and `Table` what `jobs/label.py` does. The number of a
clip, its version and the settings say which label it gets, so that every row that should be there
is known beforehand.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from deltalake.table import TableAlterer, TableOptimizer
from tables import existing

import jobs.table.table
import jobs.table.write
from audio_ops.label import is_due, put
from audio_ops.schemas import ERROR, SOUND
from audio_ops.tasks.audio_classification import Options
from jobs.planning.committed import RowSettings, committed
from jobs.planning.due import Wanted
from jobs.planning.plan import Plan, plan
from jobs.reports.kept_totals import run_totals
from jobs.reports.verify import verify
from jobs.sources import NO_COLUMNS, PLACE, Listing
from jobs.table.lease import Lease, TableInUse
from jobs.table.log import Transactions
from jobs.table.rewrite import Rewriter
from jobs.table.schema import (
    CHANGE,
    IDENTITY,
    SHARD_END,
    label_columns,
    labels_left,
    table_schema,
)
from jobs.table.storage import Storage, delta_options
from jobs.table.table import Table, hold
from jobs.workers.kept import KeptRows, kept_settings, without_kept

TASK = "audio-classification"
PATIENCE_S = 300
HERE = str(Path(__file__).parent)
IN_USE = 75
context = multiprocessing.get_context("forkserver")


class Signal(NamedTuple):
    """A signal that a run sends itself before or after the `nth` time that it gets to a point."""

    point: str
    after: bool = False
    nth: int = 1
    number: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.point} {self.nth}"


@dataclass(frozen=True)
class Work:
    """The input of a run: `clips` clips, of which the first `changed` have been written anew; and the
    settings of its tasks: of `mood`, which reads the label of `kind`, 0 if there is none."""

    path: str
    storage_options: dict[str, Any] = field(default_factory=dict)
    clips: int = 90
    changed: int = 0
    setting: int = 1
    mood: int = 0
    drop: tuple[str, ...] = ()
    per_file: int = 10
    files_per_commit: int = 2

    @property
    def tasks(self) -> dict[str, Options]:
        names = ("kind", "mood") if self.mood else ("kind",)
        return {name: Options(task=TASK, model="x") for name in names}

    @property
    def schema(self) -> pa.Schema:
        return table_schema(self.tasks, NO_COLUMNS)

    @property
    def settings(self) -> dict[str, Any]:
        tasks: dict[str, Any] = {"kind": {"task": TASK, "setting": self.setting}}
        if self.mood:
            tasks["mood"] = {"task": TASK, "setting": self.mood, "when": "kind_label <> ''"}
        return {"label_version": 1, "tasks": tasks}

    @property
    def wanted(self) -> Wanted:
        return Wanted.of(self.settings)

    def found(self) -> Listing:
        numbers = range(self.clips)
        columns = {
            "source": [f"/audio/{n:06}.wav" for n in numbers],
            "member": pa.nulls(self.clips, pa.string()),
            "source_version": ["2-2" if n < self.changed else "1-1" for n in numbers],
            "offset_s": [0.0] * self.clips,
        }
        return Listing(pa.table(columns, schema=PLACE))

    def labels(self, task: str, sources: Iterable[str], versions: Iterable[str]) -> list[str]:
        """What a task says of clips: all that its labels depend on."""
        by = f"{self.setting}" if task == "kind" else f"{self.mood} on {self.setting}"
        return [f"{s} of {v} by {by}" for s, v in zip(sources, versions, strict=True)]

    def expected(self) -> dict[str, list[str]]:
        """The columns that there have to be, by source."""
        columns = self.found().clips.select(["source", "source_version"]).to_pydict()
        expected: dict[str, list[str]] = {"source": columns["source"]}
        for task, made_with in self.wanted.fingerprints.items():
            expected[f"{task}_label"] = self.labels(task, *columns.values())
            expected[f"{task}_fingerprint"] = [made_with] * self.clips
        return expected

    def rows(self) -> pa.Table:
        """The rows that a reader of the table sees, by source."""
        options = delta_options(self.storage_options) if self.storage_options else None
        return DeltaTable(self.path, storage_options=options).to_pyarrow_table().sort_by("source")

    def table(self) -> Table | None:
        return Table.open(Storage(self.path, self.storage_options))

    def plain_rows(self) -> int:
        """How many rows a plain Parquet reader counts."""
        import pyarrow.dataset

        fs = Storage(self.path, self.storage_options).fs
        root = self.path.removeprefix("s3://")
        files = [name for name in fs.ls(root, detail=False, refresh=True) if _is_plain(name)]
        count: int = pyarrow.dataset.dataset(files, filesystem=fs, format="parquet").count_rows()
        return count


def _is_plain(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return not name.startswith((".", "_"))


def run(work: Work, send: Signal | None = None, gate: Any = None) -> int:
    """A run, as `jobs.label.run` goes about it; returns the exit code.

    At the gate runs wait for each other, so that they try to take the table at once.
    """
    before = work.table()
    if send:
        rig(send)
    if gate:
        gate.wait(PATIENCE_S)
    is_done = _left(before, work).is_empty and not work.drop
    if is_done and (before is None or before.is_tidy()):
        return 0
    run_id = f"{time.time_ns()}-{uuid.uuid4().hex[:6]}"
    storage, seen = Storage(work.path, work.storage_options), before.settings() if before else {}
    try:
        table = hold(storage, run_id, work.schema, work.settings, seen)
        try:
            if work.drop:
                table.drop(work.drop, ())
            todo = _left(table, work)
            files: list[dict[str, Any]] = []
            for start in range(0, len(todo.todo), work.per_file):
                labelled = _label(todo, todo.todo.slice(start, work.per_file), work, table)
                files += _write(labelled, table, work, run_id, todo).to_pylist()
                if len(files) == work.files_per_commit:
                    table.commit(files)
                    files = []
            if files:
                table.commit(files)
            table.tidy()
        finally:
            table.release()
            run_totals(table, run_id, keep=True)
    except TableInUse:
        return IN_USE
    return 0


def _left(table: Table | None, work: Work) -> Plan:
    return plan(work.found(), committed(table, work.wanted))


def _label(todo: Plan, clips: pa.Table, work: Work, table: Table) -> pa.Table:
    """Clips as the last model returns them."""
    places = [clips[name].to_pylist() for name in ("source", "source_version")]
    kept, clips = clips, without_kept(clips)
    names = ("clip_id", *PLACE.names, "supersedes", "replaces_labels", "_keeps")
    given = {name: clips[name] for name in names}
    given["duration_s"] = pa.array([0.5] * len(clips))
    fields = [*IDENTITY, *SOUND, *ERROR, *CHANGE, pa.field("shard_end", SHARD_END)]
    empty = {f.name: pa.nulls(len(clips), f.type) for f in fields}
    clips = pa.table({**empty, **given}, schema=pa.schema(fields))
    if todo.keeps:
        rows = RowSettings.of(table, todo.files, work.wanted)
        settings = kept_settings(rows, work.tasks, ())
        clips = KeptRows(kept, settings).beside(clips)
    for bit, task in enumerate(work.tasks):
        if todo.due >> bit & 1:
            labels = pa.array(work.labels(task, *places))
            clips = put(clips, f"{task}_label", labels, is_due(clips, bit))
    return clips


def _write(labelled: pa.Table, table: Table, work: Work, run_id: str, todo: Plan) -> pa.Table:
    prints = work.wanted.fingerprints
    left = labels_left(table.schema().names, table.settings(), work.tasks, ())
    return jobs.table.write.write_rows(
        labelled,
        jobs.table.write.WriteSettings(
            schema=table.schema(),
            tasks={**label_columns(work.schema, work.tasks), **left},
            path=work.path,
            storage_options=work.storage_options,
            run_id=run_id,
            fingerprints={name: prints[name] for name in work.wanted.names(todo.due)},
            bits={name: bit for bit, name in enumerate(prints)},
        ),
    )


# Where a run can be made to die: what it calls there, and which of the calls are meant.
POINTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "creating": (jobs.table.table, "create_log", lambda *_: True),
    "taking": (Transactions, "append", lambda _, actions, what, *__: what == "hold"),
    "saying who": (Lease, "write", lambda *_: True),
    "changing settings": (TableAlterer, "set_table_description", lambda *_: True),
    "writing": (jobs.table.write, "write_rows", lambda *_, **__: True),
    "naming": (os, "replace", lambda _, path: "part-" in path),  # on a local disk alone
    "commit": (DeltaTable, "create_write_transaction", lambda _, actions, *__: actions),
    "rewriting": (Rewriter, "rewritten", lambda *_: True),
    "dropping": (Transactions, "replace", lambda *_: True),
    "compaction": (TableOptimizer, "compact", lambda *_: True),
    "listing": (Storage, "names", lambda *_: True),
    "removal": (Storage, "remove", lambda _, name: "part-" in name),
    "letting go": (Storage, "remove", lambda _, name: name.endswith("holder.json")),
}


def rig(send: Signal) -> None:
    """Make this process send itself the signal at that point. For good: it is made to die."""
    place, name, is_meant = POINTS[send.point]
    real = getattr(place, name)
    calls = 0

    def rigged(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        meant = bool(is_meant(*args))
        calls += meant
        is_now = meant and calls == send.nth
        if is_now and not send.after:
            os.kill(os.getpid(), send.number)
        result = real(*args, **kwargs)
        if is_now and send.after:
            os.kill(os.getpid(), send.number)
        return result

    setattr(place, name, rigged)


def _child(work: Work, send: Signal | None, gate: Any) -> None:
    os._exit(run(work, send, gate))


def start(work: Work, send: Signal | None = None, gate: Any = None) -> ForkServerProcess:
    """`run` in a process of its own, whose `exitcode` is the run's or less than 0."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if HERE not in paths:  # the server that the processes are forked from preloads nothing else
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, *paths]))
    context.set_forkserver_preload(["faults", "s3fs"])
    process = context.Process(target=_child, args=(work, send, gate), daemon=True)
    process.start()
    return process


def end(process: ForkServerProcess) -> int:
    """Wait for the end of a run; returns how it ended."""
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"waited {PATIENCE_S} s for the end of a run")
    return process.exitcode


def assert_unchanged(before: pa.Table, after: pa.Table) -> None:
    """Labels that a reader has seen stay as they were, to the last value, with their fingerprint and
    run.

    Of rows that another has taken the place of since there is nothing to say but that it has; nor of
    a task's labels that it has made anew.
    """
    assert len(set(after["source"].to_pylist())) == len(after)
    assert not set(before["source"].to_pylist()) - set(after["source"].to_pylist())
    for task in ("kind", "mood"):
        made = f"{task}_fingerprint"
        if made not in before.column_names or made not in after.column_names:
            continue
        columns = [name for name in before.column_names if name.startswith(f"{task}_")]
        old, new = (rows.filter(rows[made].is_valid()) for rows in (before, after))
        still = old.filter(pc.is_in(_label_ids(old, made), _label_ids(new, made)))
        kept = new.filter(pc.is_in(_label_ids(new, made), _label_ids(old, made)))
        names = ["clip_id", "source", *columns]
        assert still.select(names).equals(kept.select(names))


def _label_ids(rows: pa.Table, made: str) -> pa.Array:
    return pc.binary_join_element_wise(rows["clip_id"], rows[made], "-").combine_chunks()


def assert_exact(work: Work) -> None:
    """Every row that should be there once and no other, by both readers; and the table is whole."""
    expected = work.expected()
    assert work.rows().select(list(expected)).to_pydict() == expected
    assert work.plain_rows() == work.clips
    report = verify(existing(work.path, work.storage_options))
    assert report.is_intact, (report.faults, report.leftovers)
    assert report.rows == work.clips
    assert_totals_are_those_of_a_scan(existing(work.path, work.storage_options))


def assert_totals_are_those_of_a_scan(table: Table) -> None:
    """The sums that the table keeps, and what is not in them yet, are those of all its files."""
    kept, scanned = run_totals(table, keep=True), run_totals(table)
    assert kept.rows == scanned.rows
    assert kept.others.prints == scanned.others.prints and kept.others.runs >= scanned.others.runs
    for task in scanned.question.tasks:
        one, other = kept.of(task), scanned.of(task)
        assert one.sums == pytest.approx(other.sums)
        one.sums = other.sums
        assert one == other
