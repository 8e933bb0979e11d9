"""What reports add up: sums over rows of a table, which can be added to those of other rows.

Files of a table never change, so that the sums of each may be kept (`jobs.reports.kept_totals`).
"""

from __future__ import annotations

import math
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from jobs.fingerprints import fingerprint_of, run_of
from jobs.reports.columns import TaskColumns, task_columns
from jobs.spilling import spilling
from jobs.table.rows import rows_by_number
from jobs.table.table import Table

ROWS_AT_ONCE = 8192  # from a file; and those that are summed up at once:
ROWS_OF_A_PIECE = 131_072
ROWS_OF_A_GROUP = 131_072  # at least: files with fewer rows are summed up together
WORST = 20

# The types of a task's columns that are summed up, by their names in reports.
TYPES = {
    "label": pa.string(),
    "score": pa.float64(),
    "suspect": pa.list_(pa.string()),
    "error": pa.string(),
    "wer": pa.float64(),
    "cer": pa.float64(),
    "compared_by": pa.string(),
    "edits": pa.struct(
        [(n, pa.int64()) for n in ("words", "word_edits", "characters", "character_edits")]
    ),
    "reference_error": pa.string(),
    "loss": pa.float64(),
    "correct": pa.bool_(),
    "reference_label": pa.string(),
}
OF_TASK = ("print", "run", "spoken_words", "has_reference")
OF_ROW = ("clip_id", "duration_s", "error_stage")
# Sums over rows in SQL, null without a value.
SUMS = {
    "clips": "count(*)",
    "failed": "count(*) FILTER (error IS NOT NULL OR error_stage IN ('read', 'decode'))",
    "score": "sum(score) FILTER (isfinite(score))",  # else one NaN would be the mean
    "scores": "count(*) FILTER (isfinite(score))",
    "spoken_words": "sum(spoken_words)::BIGINT",
    "spoken_s": "sum(duration_s) FILTER (spoken_words IS NOT NULL)",
}
COMPARED = {
    "recognition": {
        "compared": "count(wer)",
        "without_spaces": "count(wer) FILTER (compared_by = 'characters')",
        "wer": "sum(wer)",
        "cer": "sum(cer)",
        "cers": "count(cer)",
        "words": "sum(edits.words)::BIGINT",
        "word_edits": "sum(edits.word_edits)::BIGINT",
        "characters": "sum(edits.characters)::BIGINT",
        "character_edits": "sum(edits.character_edits)::BIGINT",
    },
    "classification": {
        "compared": "count(loss)",
        "loss": "sum(loss)",
        "correct": "sum(CAST(correct AS INT))::BIGINT",
        "corrects": "count(correct)",
    },
}
# What is compared with the reference, how much it differs, and what a reference is that cannot be.
MEASURE = {"recognition": "wer", "classification": "loss"}
DIFFERENCE = {
    "recognition": "CASE compared_by WHEN 'characters' THEN cer ELSE wer END",
    "classification": "loss",
}
NO_USE = {"recognition": "bad_reference", "classification": "unknown_reference"}


class Place(NamedTuple):
    """A row by its number in a data file, and how much its label differs from the reference."""

    difference: float
    clip_id: str
    file: str
    row: int

    @property
    def rank(self) -> tuple[float, str]:
        """Lower for a row that differs more."""
        return -math.inf if math.isnan(self.difference) else -self.difference, self.clip_id


@dataclass
class Totals:
    """Sums over rows of a task. Those of `SUMS` and `COMPARED` are absent where no row has a value.

    pairs: the rows by true and predicted label. worst: those that differ most from the reference.
    """

    sums: dict[str, float] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    suspects: Counter[str] = field(default_factory=Counter)
    not_compared: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    worst: list[Place] = field(default_factory=list)

    def add(self, other: Totals) -> None:
        """Add those of other rows."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0) + value
        for name in ("labels", "suspects", "not_compared", "pairs"):
            getattr(self, name).update(getattr(other, name))
        self.worst = sorted([*self.worst, *other.worst], key=lambda place: place.rank)[:WORST]


@dataclass
class FilesTotals:
    """The sums of some data files.

    runs: those whose labels are in the files. prints: the number of rows by the fingerprints of all
    tasks. tasks: by task and fingerprint (None: no label) its sums.
    """

    files: Sequence[str]
    runs: set[str] = field(default_factory=set)
    prints: Counter[tuple[str | None, ...]] = field(default_factory=Counter)
    tasks: dict[str, dict[str | None, Totals]] = field(default_factory=dict)

    def add(self, other: FilesTotals) -> None:
        """Add those of other files, whose names are not kept."""
        self.runs |= other.runs
        self.prints.update(other.prints)
        for task, prints in other.tasks.items():
            for print_, totals in prints.items():
                self.of(task, print_).add(totals)

    def of(self, task: str, print_: str | None) -> Totals:
        """The sums of a task's rows with a fingerprint."""
        return self.tasks.setdefault(task, {}).setdefault(print_, Totals())


@dataclass(frozen=True)
class Question:
    """What is summed up of each row: the tasks' columns, and their references."""

    settings: Mapping[str, Any]
    names: Sequence[str]  # the table's columns
    tasks: Mapping[str, TaskColumns]
    references: Mapping[str, str]

    @classmethod
    def of(cls, table: Table) -> Question:
        """All that reports add up of a table. Raises ValueError for a task that this version lacks."""
        settings, names = table.settings(), table.schema().names
        options = settings.get("tasks", {})
        tasks = {name: task_columns(name, options[name], names) for name in options}
        given = {name: options[name].get("reference") for name in options}
        return cls(settings, names, tasks, {name: one for name, one in given.items() if one})

    def columns(self) -> dict[str, pc.Expression]:
        """The columns of a scan of the table, those of each task behind its number."""
        found = {name: pc.field(name) for name in OF_ROW}
        for number, (task, columns) in enumerate(self.tasks.items()):
            mine = {
                name: pc.field(columns.of[name]) if name in columns.of else _null(type_)
                for name, type_ in TYPES.items()
            }
            reference = self.references.get(task)
            mine |= {
                "print": fingerprint_of(task, self.settings, self.names),
                "run": run_of(task, self.names),
                "spoken_words": _words(columns.of.get("text")),
                "has_reference": pc.is_valid(pc.field(reference))
                if reference in self.names
                else pc.scalar(False),
            }
            found |= {_column(number, name): column for name, column in mine.items()}
        return found


def totals_of(
    table: Table, question: Question, groups: Sequence[Sequence[str]], run_id: str = ""
) -> Iterator[tuple[FilesTotals, FilesTotals]]:
    """For each group of data files the sums of the labels that the run `run_id` has made, and of all
    others."""
    dataset = table.dataset()
    fragments = {posixpath.basename(one.path): one for one in dataset.get_fragments()}
    columns = question.columns()
    with spilling() as database:
        for files in groups:
            both = FilesTotals(files), FilesTotals(files)
            scans = (_scan(fragments[name], dataset.schema, columns) for name in files)
            for piece in _pieces(zip(files, scans, strict=True)):
                _add_up(database, piece, question, run_id, both)
            yield both


def rows_at(table: Table, places: Sequence[Place], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Those of some columns that a table has, of the rows at these places."""
    schema = pa.schema([field for field in table.schema() if field.name in columns])
    rows: dict[Place, dict[str, Any]] = {}
    for name in sorted({place.file for place in places}):
        here = sorted((place for place in places if place.file == name), key=lambda one: one.row)
        parts = rows_by_number(table.storage, name, [place.row for place in here], schema)
        found = [row for part in parts for row in part.to_pylist()]
        rows.update(zip(here, found, strict=True))
    return [rows[place] for place in places]


def ratio(sums: Mapping[str, float], one: str, other: str) -> float | None:
    """One sum divided by another; None if one is missing, or the latter 0."""
    return sums[one] / sums[other] if one in sums and sums.get(other) else None


def ranked(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    """What was counted, and how often, the most frequent first."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def grouped(files: Mapping[str, int]) -> Iterator[list[str]]:
    """The names of files with so many rows in groups of at least ROWS_OF_A_GROUP rows, but the last."""
    group: list[str] = []
    rows = 0
    for name, count in files.items():
        group.append(name)
        rows += count
        if rows >= ROWS_OF_A_GROUP:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _scan(
    fragment: Any, schema: pa.Schema, columns: Mapping[str, pc.Expression]
) -> Iterator[pa.Table]:
    """The columns of a data file in small batches, as Arrow by default reads far ahead."""
    scanner = fragment.scanner(
        schema=schema, columns=dict(columns), batch_size=ROWS_AT_ONCE, batch_readahead=4
    )
    for batch in scanner.to_batches():
        yield pa.Table.from_batches([batch])


def _pieces(scans: Iterable[tuple[str, Iterator[pa.Table]]]) -> Iterator[pa.Table]:
    """Rows of several files together, each with the `file` and the number of its `row`."""
    piece: list[pa.Table] = []
    for name, batches in scans:
        at = 0
        for batch in batches:
            numbers = pa.array(np.arange(at, at + len(batch)))
            batch = batch.append_column("row", numbers)
            piece.append(batch.append_column("file", pa.repeat(name, len(batch))))
            at += len(batch)
            if sum(map(len, piece)) >= ROWS_OF_A_PIECE:
                yield pa.concat_tables(piece)
                piece = []
    if piece:
        yield pa.concat_tables(piece)


def _add_up(
    database: Any,
    piece: pa.Table,
    question: Question,
    run_id: str,
    both: tuple[FilesTotals, FilesTotals],
) -> None:
    """Add some rows: to the first those whose labels the run has made, to the second the others."""
    mine, others = both
    names = [_column(number, "print") for number in range(len(question.tasks))]
    counted = piece.select(names).group_by(names).aggregate([([], "count_all")]).to_pylist()
    for row in counted:
        others.prints[tuple(row[name] for name in names)] += row["count_all"]
    for number, (task, columns) in enumerate(question.tasks.items()):
        taken = {name: piece[_column(number, name)] for name in (*TYPES, *OF_TASK)}
        rows = pa.table({**taken, **{name: piece[name] for name in (*OF_ROW, "file", "row")}})
        rows = rows.append_column("mine", pc.fill_null(pc.equal(rows["run"], run_id), False))
        database.register("task", rows)
        kind = columns.kind if task in question.references else None
        for (is_mine, print_), totals in _of_task(database, kind).items():
            (mine if is_mine else others).of(task, print_).add(totals)
        runs = database.execute("SELECT DISTINCT run FROM task WHERE print IS NOT NULL").fetchall()
        others.runs.update(run for (run,) in runs)


def _column(number: int, name: str) -> str:
    """The name of a column of the nth task in a scan."""
    return f"{number} {name}"


def _of_task(database: Any, kind: str | None) -> dict[tuple[bool, str | None], Totals]:
    """The sums of the rows in the view `task` by `mine` and fingerprint; with those of the comparison
    if the task has a reference and is of this kind."""
    found: dict[tuple[bool, str | None], Totals] = defaultdict(Totals)

    def counted(what: str, of: str = "task", where: str = "true") -> Iterator[tuple[Any, ...]]:
        query = f"SELECT mine, print, {what} FROM {of} WHERE {where} GROUP BY ALL"
        for mine, print_, *values in database.execute(query).fetchall():
            yield found[mine, print_], *values

    sums = SUMS | (COMPARED[kind] if kind else {})
    for totals, *values in counted(", ".join(sums.values())):
        pairs = zip(sums, values, strict=True)
        totals.sums = {name: value for name, value in pairs if value is not None}
    for totals, label, rows in counted("label, count(*)", where="label IS NOT NULL"):
        totals.labels[label] = rows
    reasons = "(SELECT mine, print, unnest(suspect) AS reason FROM task)"
    for totals, reason, rows in counted("reason, count(*)", reasons, "reason IS NOT NULL"):
        totals.suspects[reason] = rows
    if kind is None:
        return found
    without = f"{MEASURE[kind]} IS NULL"
    for totals, reason, rows in counted(f"{_reason(kind)}, count(*)", where=without):
        totals.not_compared[reason] = rows
    known = "reference_label IS NOT NULL AND label IS NOT NULL"
    for totals, reference, label, rows in counted("reference_label, label, count(*)", where=known):
        totals.pairs[reference, label] = rows
    differ = DIFFERENCE[kind]
    for mine, print_, *place in database.execute(
        f"SELECT mine, print, {differ}, clip_id, file, row FROM task WHERE {differ} > 0 "
        f"ORDER BY {differ} DESC, clip_id LIMIT {WORST}"
    ).fetchall():
        found[mine, print_].worst.append(Place(*place))
    return found


def _reason(kind: str) -> str:
    """Why a row was not compared, in SQL: the first reason that applies."""
    return (
        "CASE WHEN NOT has_reference THEN 'no_reference' "
        "WHEN error IS NOT NULL OR error_stage IN ('read', 'decode') THEN 'failed' "
        f"WHEN reference_error IS NOT NULL THEN '{NO_USE[kind]}' ELSE 'not_run' END"
    )


def _null(type_: pa.DataType) -> pc.Expression:
    return pc.scalar(pa.scalar(None, type_))


def _words(text: str | None) -> pc.Expression:
    """The number of words of a text: a quarter of the time of counting them by a regular expression."""
    if text is None:
        return _null(pa.int32())
    trimmed = pc.ascii_trim_whitespace(pc.field(text))
    words = pc.list_value_length(pc.ascii_split_whitespace(trimmed))
    return pc.if_else(trimmed == "", pa.scalar(0, pa.int32()), words)
