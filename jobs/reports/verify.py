"""Checks that a table is intact, by reading alone: its log, data files, rows and counts.

earmark verify TABLE
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from audio_ops.schemas import SOUND
from jobs.clips import clip_ids
from jobs.console import one_line, printable
from jobs.reports.arguments import add_table_arguments, refused, table_of
from jobs.reports.prints import Prints
from jobs.spilling import NoScratch, spilling
from jobs.table.lease import NOTE
from jobs.table.schema import ADDED_LATER, IDENTITY, OUTCOME, RUN, in_schema
from jobs.table.shards import DamagedShards, read_shards
from jobs.table.table import DATA_FILE, Table

PROGRESS_EVERY_S = 10.0
BATCH_ROWS = 16_384
NEVER_NULL = ("clip_id", "source", "source_version", "offset_s", "status", *RUN.names)
# Operations of delta-rs that change no row.
CHANGES_NO_ROW = {"CREATE TABLE", "OPTIMIZE", "ADD COLUMN", "UPDATE TABLE METADATA"}
CHANGES_NO_ROW |= {"SET TBLPROPERTIES", "VACUUM START", "VACUUM END"}
REPAIR = "deltalake.DeltaTable(TABLE).repair() takes it out of the log, and the next run labels its clips again"
LABEL_AGAIN = "move the table away and label its clips again, or restore an older version of it"


@dataclass
class Report:
    """How much of the table was read, and the findings.

    `faults` has a line for each: expected, found, what to do. `leftovers` are data files of a
    killed run that the log does not name: the next run removes them, but until then a plain Parquet
    reader counts their rows. `notes` are findings that are no faults.
    """

    version: int = 0
    files: int = 0
    rows: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)  # data files that were not found

    @property
    def is_intact(self) -> bool:
        return not self.faults and not self.leftovers


def verify(table: Table, progress: Callable[[str], None] = lambda _: None) -> Report:
    """The findings on a table, of which every column of every data file is read, one file at a time.

    `progress` is called with a line of text, often.
    """
    while True:
        report = _verify(table, progress)
        newest = set(table.log.names())
        # Unless another run has compacted the table in the meantime:
        if report.missing <= newest and newest.isdisjoint(report.leftovers):
            return report


def _verify(table: Table, progress: Callable[[str], None]) -> Report:
    report = Report(version=table.version)
    is_held = _check_holder(table, report)
    prints = Prints(table.settings())
    with spilling(stored=True) as database:
        database.execute(_ROWS)
        _check_unnamed_files(table, is_held, report)
        _read_files(table, prints, database, report, progress)
        progress("comparing the rows")
        _check_rows(database, report)
        _check_runs(table, database, prints, report)
    _note_older_rows(prints.older, report)
    _check_shards(table, report)
    table.refresh()
    if table.version != report.version:
        report.notes.append(
            f"the table has reached version {table.version} in the meantime: "
            "faults may be changes that a run was just making"
        )
    return report


_ROWS = """
    CREATE TABLE rows (
        clip_id VARCHAR, source VARCHAR, member VARCHAR, source_version VARCHAR, offset_s DOUBLE,
        channel INTEGER, channels INTEGER,
        status VARCHAR, run_id VARCHAR,
        has_null BOOLEAN, other_id BOOLEAN, wrong_outcome BOOLEAN
    )
"""


def _read_files(
    table: Table,
    prints: Prints,
    database: Any,
    report: Report,
    progress: Callable[[str], None],
) -> None:
    """Read the data files that the log names into `rows` of the database, and check their sizes and
    numbers of rows."""
    sizes, files = table.storage.sizes(), table.files()
    for name, file in files.items():
        progress(f"{report.files:,}/{len(files):,} files · {report.rows:,} rows")
        report.files += 1
        if name not in sizes:
            report.missing.add(name)
            report.faults.append(f"{name}: expected a file, found none: {REPAIR}")
        elif sizes[name] != file["size_bytes"]:
            report.faults.append(
                f"{name}: expected {file['size_bytes']:,} bytes, found {sizes[name]:,}: "
                f"remove it, then {REPAIR}"
            )
        else:
            _read_file(table, name, file["num_records"], prints, database=database, report=report)


def _read_file(
    table: Table, name: str, expected: int, prints: Prints, *, database: Any, report: Report
) -> None:
    """Read a data file into `rows` of the database, and check that it has the `expected` rows."""
    found = 0
    try:
        for rows in _batches(table, name):
            found += len(rows)
            missing = [column for column in _READ.names if column not in rows.column_names]
            if set(missing) - set(ADDED_LATER):
                raise ValueError(f"expected a column {missing[0]}, found none")
            prints.add(rows)
            database.register("batch", _checked(rows, prints.tasks))
            database.execute("INSERT INTO rows SELECT * FROM batch")
    except (OSError, ValueError, pa.ArrowException) as error:  # ArrowInvalid is a ValueError
        if isinstance(error, FileNotFoundError):
            report.missing.add(name)
        report.faults.append(
            f"{name}: expected a Parquet file that can be read, found: {one_line(error)}: "
            f"remove it, then {REPAIR}"
        )
    else:
        if found != expected:
            report.faults.append(
                f"{name}: expected {expected} rows by the log, found {found}: "
                f"remove it, then {REPAIR}"
            )
    report.rows += found


def _check_unnamed_files(table: Table, is_held: bool, report: Report) -> None:
    """Find empty versions of the log, leftovers, and Parquet files that are not the table's."""
    report.faults += [  # delta-rs takes an empty one for a version that changed nothing
        f"_delta_log/{name}: expected a version of the table, found an empty file: {LABEL_AGAIN}"
        for name, size in table.storage.sizes("_delta_log").items()
        if not size
    ]
    unnamed = table.storage.sizes().keys() - table.files().keys()
    leftovers = table.leftovers(unnamed, _retain_h(table))
    if kept := len(list(filter(DATA_FILE.fullmatch, unnamed))) - len(leftovers):
        report.notes.append(f"{kept} data files of earlier versions are kept (output.retain_h)")
    if is_held and leftovers:
        report.notes.append(f"{len(leftovers)} data files are not committed yet, or no longer")
    else:
        report.leftovers = leftovers
    report.faults += [
        f"{name}: expected no Parquet file but those that the log names, found one, whose rows "
        "plain readers count as well: move it elsewhere"
        for name in sorted(name for name in unnamed if not DATA_FILE.fullmatch(name))
        if name.endswith(".parquet") and not name.startswith((".", "_"))
    ]


def _retain_h(table: Table) -> float:
    """`output.retain_h` of the last run."""
    notes = (entry["note"] for entry in table.history())
    return next((note.get("retain_h", 0.0) for note in notes if note.get("what") == "hold"), 0.0)


_READ = pa.schema([*IDENTITY, SOUND.field("channels"), *OUTCOME, *RUN])


def _batches(table: Table, name: str) -> Iterator[pa.Table]:
    """A data file's rows with all their columns, at most BATCH_ROWS at a time."""
    with table.storage.open(name) as opened, pq.ParquetFile(opened) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def _checked(rows: pa.Table, tasks: Sequence[str]) -> pa.Table:
    """The columns of `_ROWS` for some rows of a data file: their identity, and each one's faults."""

    def any_of(conditions: Sequence[Any]) -> Any:
        result = pa.chunked_array([pa.repeat(False, len(rows))])
        for condition in conditions:
            result = pc.or_(result, pc.fill_null(condition, True))
        return result

    failures = [f"{task}_error" for task in tasks if f"{task}_error" in rows.column_names]
    task_failed = any_of([pc.is_valid(rows[name]) for name in failures])
    rows = in_schema(rows, _READ)  # delta-rs writes string_view, which lacks kernels
    has_reason = pc.and_(pc.is_valid(rows["error_kind"]), pc.is_valid(rows["error_stage"]))
    is_ok = pc.equal(rows["status"], "ok")
    has_any = any_of([task_failed, *(pc.is_valid(rows[name]) for name in OUTCOME.names[1:])])
    return pa.table(
        {
            **{name: rows[name] for name in (*IDENTITY.names, "channels")},
            **{name: rows[name] for name in ("status", "run_id")},
            "has_null": any_of([pc.is_null(rows[name]) for name in NEVER_NULL]),
            "other_id": pc.not_equal(rows["clip_id"], clip_ids(rows)),
            "wrong_outcome": any_of(
                [
                    pc.invert(pc.is_in(rows["status"], pa.array(["ok", "partial", "error"]))),
                    pc.and_(is_ok, has_any),
                    pc.and_(pc.invert(is_ok), pc.invert(has_reason)),
                    pc.and_(pc.equal(rows["status"], "partial"), pc.invert(task_failed)),
                ]
            ),
        }
    )


# Rows of places that have several: counting different values in each place would take twice the time.
_SEVERAL = """
    CREATE TEMP TABLE places AS
        SELECT source, member, offset_s FROM rows GROUP BY ALL HAVING count(*) > 1;
    CREATE TEMP VIEW several AS
        SELECT rows.* FROM rows JOIN places ON rows.source = places.source
        AND rows.member IS NOT DISTINCT FROM places.member
        AND rows.offset_s IS NOT DISTINCT FROM places.offset_s
"""
# For each check of the rows: what is expected, what was found instead, and the query that finds an example of each.
_ROW_CHECKS = (
    (
        "each clip_id once",
        "more than once",
        "SELECT any_value(source) FROM rows GROUP BY clip_id HAVING count(*) > 1",
    ),
    (
        "one row for each place (source, member, offset_s), or one for each of its channels",
        "with several clip_ids",
        "SELECT source FROM several GROUP BY source, member, offset_s "
        "HAVING count(DISTINCT clip_id) > greatest(1, count(DISTINCT channel)) "
        "OR (count(DISTINCT clip_id) > 1 AND (bool_or(channel IS NULL) "
        "OR count(DISTINCT source_version) > 1))",
    ),
    (
        "a row for each channel of a recording whose channels are labelled one by one",
        "recordings without some of them",
        "SELECT source FROM several GROUP BY source, member, offset_s "
        "HAVING count(DISTINCT channel) > 1 AND count(DISTINCT channel) < max(channels)",
    ),
    (
        f"a value in {', '.join(NEVER_NULL)}",
        "rows with a null",
        "SELECT source FROM rows WHERE has_null",
    ),
    (
        "clip_id to be the hash of its place and version",
        "rows where it is not",
        "SELECT source FROM rows WHERE other_id",
    ),
    (
        "ok rows without an error, partial and error rows with one",
        "rows that are otherwise",
        "SELECT source FROM rows WHERE wrong_outcome",
    ),
)


def _check_rows(database: Any, report: Report) -> None:
    """Find clips and places with several rows, and rows that are incomplete or contradict themselves."""
    database.execute(_SEVERAL)
    for expected, found, query in _ROW_CHECKS:
        [(count, example)] = database.execute(
            f"SELECT count(*), min(example) FROM ({query}) AS found(example)"
        ).fetchall()
        if count:
            report.faults.append(
                f"expected {expected}, found {count:,} {found}, e.g. {example}: {LABEL_AGAIN}"
            )


def _check_runs(table: Table, database: Any, prints: Prints, report: Report) -> None:
    """Compare each run's rows and labels with the log: those that it wrote less those replaced since."""
    found = dict(database.execute("SELECT run_id, count(*) FROM rows GROUP BY run_id").fetchall())
    report.runs = len(found)
    if report.faults:  # rows that could not be read are missing here as well
        return
    logged = _runs_in_log(table, report.version)
    for run, rows in logged.rows.items():
        if rows != found.get(run, 0):
            report.faults.append(
                f"run {run}: expected {rows:,} rows by the log, found {found.get(run, 0):,}: "
                f"{LABEL_AGAIN}"
            )
    report.faults += [f"{fault}: {LABEL_AGAIN}" for fault in prints.faults(logged.fingerprints)]
    unlogged = found.keys() - logged.rows.keys()
    if unlogged and logged.gap:
        report.notes.append(f"the rows of {len(unlogged):,} runs were not counted: {logged.gap}")
    elif unlogged:
        report.faults.append(
            f"expected rows of runs that the log knows, found {found[min(unlogged)]:,} of run "
            f"{min(unlogged)}: {LABEL_AGAIN}"
        )


class _LoggedRuns(NamedTuple):
    """Runs by the log: how many rows the table should have of each, and its fingerprints. If
    something in the log has no counts, `gap` says what, and runs that began before it are missing."""

    rows: dict[str, int]
    fingerprints: dict[str, dict[str, str]]
    gap: str


def _runs_in_log(table: Table, version: int) -> _LoggedRuns:
    """The runs of the log up to a version."""
    rows: Counter[str] = Counter()
    fingerprints: dict[str, dict[str, str]] = {}
    gap = ""
    history = [e for e in table.history() if e["version"] <= version]
    if history[-1]["version"] > 0:
        gap = "the log no longer goes back to its beginning"
    for entry in reversed(history):
        note = entry["note"]
        if note.get("what") == "hold" and note.keys() & {"fingerprint", "fingerprints"}:
            rows[note["run_id"]] += 0
            of_all = {"": note.get("fingerprint", "")}  # as earlier versions had
            fingerprints[note["run_id"]] = note.get("fingerprints", of_all)
        elif "rows" in note:
            rows[note["run_id"]] += note["rows"]
            rows.subtract(note.get("replaced", {}))
        elif note.get("what") != "hold" and entry["operation"] not in CHANGES_NO_ROW:
            gap = f"version {entry['version']} ({entry['operation']}) has no counts"
            rows.clear()
            fingerprints.clear()
    known = {run: count for run, count in rows.items() if run in fingerprints}
    return _LoggedRuns(known, fingerprints, gap)


def _note_older_rows(older: int, report: Report) -> None:
    if older:
        report.notes.append(
            f"{older:,} rows were labelled with earlier settings of the table, or not by all of its "
            "tasks: either a run is not finished (the same command continues), or their files have "
            "vanished"
        )


def _check_shards(table: Table, report: Report) -> None:
    try:
        read_shards(table.storage, strict=True)
    except DamagedShards as error:
        report.faults.append(
            f"{table.path}/{error.name}: expected how many clips each shard holds, found: {one_line(error)}: "
            "remove it: the next run then reads its shards again, and writes it anew"
        )


def _check_holder(table: Table, report: Report) -> bool:
    """Whether a run holds the table. A run that does, or that died before its release, is noted."""
    holder = table.holder()
    if holder is None:
        if table.storage.exists(NOTE):
            report.notes.append("holder.json cannot be read: the next run takes the table")
        return False
    report.notes.append(
        f"{holder} has held the table since {holder.since}"
        if holder.is_alive
        else f"{holder} died while it held the table: the next run takes it over"
    )
    return holder.is_alive


def lines(report: Report) -> Iterator[str]:
    """The report as text."""
    yield (
        f"version {report.version}: {report.files:,} files, {report.rows:,} rows "
        f"of {report.runs:,} runs"
    )
    yield from (f"note: {note}" for note in report.notes)
    yield from (f"fault: {fault}" for fault in report.faults)
    yield from (
        f"fault: {name}: expected only data files that the log names, found this one of a killed "
        "run: the next run removes it"
        for name in report.leftovers
    )
    count = len(report.faults) + len(report.leftovers)
    yield f"{count:,} fault{'s' * (count > 1)} found" if count else "the table is intact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark verify`."""
    add_table_arguments(parser)


def run_from(args: argparse.Namespace) -> int:
    """Print the report; returns the exit code: 0, 1 for faults, 2 if there is no table."""
    printed_s = time.monotonic()

    def progress(text: str) -> None:
        nonlocal printed_s
        if time.monotonic() - printed_s >= PROGRESS_EVERY_S:
            printed_s = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    try:
        report = verify(table_of(args), progress)
    except ValueError as error:
        return refused(error)
    except NoScratch as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (DeltaError, OSError) as error:
        print(f"fault: {args.table}: expected a log that can be read, found: {one_line(error)}")
        return 1
    for line in lines(report):
        print(printable(line))  # the texts in a table may come from anybody
    return 0 if report.is_intact else 1
