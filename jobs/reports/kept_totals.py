"""The sums that a table keeps of its data files, so that the end of a run reads new files alone.

They are facts about files that never change, and belong to no version of the table: a lost or old
`totals.parquet` costs reading files again, and gives no other figures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.fingerprints import taken_over
from jobs.reports.totals import FilesTotals, Place, Question, Totals, grouped, totals_of
from jobs.table.table import Table

TOTALS_FILE = "_earmark/totals.parquet"
TOTALS_VERSION = 1  # to be raised when `jobs.reports.totals` adds up something else
ENTRIES_AT_ONCE = 16

COUNTS = ("labels", "suspects", "not_compared")  # of `Totals`
_COUNTS = pa.map_(pa.string(), pa.int64())
_PAIR = pa.struct([("reference", pa.string()), ("label", pa.string()), ("rows", pa.int64())])
_PLACE = pa.struct(
    [
        ("difference", pa.float64()),
        ("clip_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
    ]
)
_TOTALS = pa.struct(
    [
        ("task", pa.string()),
        ("print", pa.string()),
        ("sums", pa.map_(pa.string(), pa.float64())),
        ("labels", _COUNTS),
        ("suspects", _COUNTS),
        ("not_compared", _COUNTS),
        ("pairs", pa.list_(_PAIR)),
        ("worst", pa.list_(_PLACE)),
    ]
)
_PRINTS = pa.struct([("prints", pa.list_(pa.string())), ("rows", pa.int64())])
# The columns of the file, which has a row for each group of data files.
ENTRY = pa.schema(
    [
        ("question", pa.string()),
        ("files", pa.list_(pa.string())),
        ("runs", pa.list_(pa.string())),
        ("prints", pa.list_(_PRINTS)),
        ("tasks", pa.list_(_TOTALS)),
    ]
)


class RunTotals(NamedTuple):
    """The sums of the labels that a run has made, and of all others in the table.

    version, rows: of the table.
    """

    question: Question
    version: int
    rows: int
    mine: FilesTotals
    others: FilesTotals

    def of(self, task: str) -> Totals:
        """A task's sums over all rows."""
        whole = Totals()
        for side in (self.mine, self.others):
            for totals in side.tasks.get(task, {}).values():
                whole.add(totals)
        return whole


class TooManyRows(Exception):
    """More rows would have to be read than there is time for."""


def run_totals(
    table: Table, run_id: str = "", *, keep: bool = False, read: float = math.inf
) -> RunTotals:
    """The sums of a table. With `keep` those that it keeps stand for their files, and those of the
    others are kept from now on. Raises TooManyRows if more than `read` rows are in these."""
    return table.newest(lambda: _run_totals(table, run_id, keep, read))


def _run_totals(table: Table, run_id: str, keep: bool, read: float) -> RunTotals:
    question = Question.of(table)
    files = {name: file["num_records"] for name, file in table.files().items()}
    found = RunTotals(
        question, table.version, sum(files.values()), FilesTotals([]), FilesTotals([])
    )
    left = dict(files)
    stay: list[pa.RecordBatch] = []
    for batch in _kept(table, question) if keep else ():
        entry = _entry(batch.to_pylist()[0])
        # One with labels of this run, by another that looked on meanwhile, does not tell which.
        if left.keys() >= set(entry.files) and run_id not in entry.runs:
            found.others.add(entry)
            stay.append(batch)
            for name in entry.files:
                del left[name]
    if (rows := sum(left.values())) > read:
        raise TooManyRows(f"expected at most {read:,} rows to read, found {rows:,}")
    new = []
    for mine, others in totals_of(table, question, list(grouped(left)), run_id):
        found.mine.add(mine)
        found.others.add(others)
        others.add(mine)
        new.append(_row(question, others))
    if new and keep:
        _keep(table, [*stay, *(pa.RecordBatch.from_pylist([row], schema=ENTRY) for row in new)])
    return found


def _kept(table: Table, question: Question) -> Iterator[pa.RecordBatch]:
    """What the table keeps for this question, each group of files by itself; nothing if that is missing
    or damaged."""
    try:
        with table.storage.open(TOTALS_FILE) as opened, pq.ParquetFile(opened) as file:
            if not file.schema_arrow.equals(ENTRY):
                return
            for batch in file.iter_batches(ENTRIES_AT_ONCE):
                questions = batch["question"].to_pylist()
                for at in range(len(batch)):
                    if questions[at] == _digest(question):
                        yield batch.slice(at, 1)
    except (OSError, pa.ArrowException):
        return


def _keep(table: Table, entries: list[pa.RecordBatch]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches(entries), sink, compression="zstd")
    table.storage.write(TOTALS_FILE, sink.getvalue())


def _digest(question: Question) -> str:
    """What tells a question, and the way in which it is answered, from others."""
    tasks = {
        name: [task.kind, dict(task.of), question.references.get(name)]
        for name, task in question.tasks.items()
    }
    asked = [TOTALS_VERSION, tasks, taken_over(question.settings)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _row(question: Question, entry: FilesTotals) -> dict[str, Any]:
    return {
        "question": _digest(question),
        "files": list(entry.files),
        "runs": sorted(entry.runs),
        "prints": [{"prints": prints, "rows": rows} for prints, rows in entry.prints.items()],
        "tasks": [
            {
                "task": task,
                "print": print_,
                **{name: list(getattr(totals, name).items()) for name in ("sums", *COUNTS)},
                "pairs": [
                    {"reference": reference, "label": label, "rows": rows}
                    for (reference, label), rows in totals.pairs.items()
                ],
                "worst": [place._asdict() for place in totals.worst],
            }
            for task, prints in entry.tasks.items()
            for print_, totals in prints.items()
        ],
    }


def _entry(row: dict[str, Any]) -> FilesTotals:
    entry = FilesTotals(row["files"], set(row["runs"]))
    entry.prints.update({tuple(one["prints"]): one["rows"] for one in row["prints"]})
    for one in row["tasks"]:
        totals = entry.of(one["task"], one["print"])
        totals.sums.update(dict(one["sums"]))
        for name in COUNTS:
            getattr(totals, name).update(dict(one[name]))
        totals.pairs.update({(p["reference"], p["label"]): p["rows"] for p in one["pairs"]})
        totals.worst += [Place(**place) for place in one["worst"]]
    return entry
