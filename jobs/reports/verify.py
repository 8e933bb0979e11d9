"""Whether a table is whole, from outside and reading only: log, data files, rows, counts.

earmark verify TABLE
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from jobs.console import printable
from jobs.plan import clip_ids, fingerprint
from jobs.reports.arguments import add_table_arguments, open_table
from jobs.table.lease import NOTE
from jobs.table.schema import IDENTITY, OUTCOME, RUN
from jobs.table.table import DATA_FILE, SHARDS_FILE, Table

SAY_EVERY_S = 10.0
BATCH_ROWS = 16_384
MEMORY = "1GB"  # of what DuckDB groups by; beyond it, it uses a temporary folder
NEVER_NULL = ("clip_id", "source", "source_version", "offset_s", "status", *RUN.names)
# What delta-rs writes of its own accord, or for us, and what changes no row.
CHANGES_NO_ROW = {"CREATE TABLE", "OPTIMIZE", "ADD COLUMN", "UPDATE TABLE METADATA"}
CHANGES_NO_ROW |= {"SET TBLPROPERTIES", "VACUUM START", "VACUUM END"}
TAKE_OUT = "deltalake.DeltaTable(TABLE).repair() takes it out of the log, and the next run labels its clips again"
LABEL_AGAIN = "move the table away and label its clips again, or restore an older version of it"


@dataclass
class Report:
    """What was read, and what came of it: `wrong` has a line per thing that is not as it should be.

    `leftovers` are data files that no log entry names, as a run that was killed leaves them: the
    next run removes them, but until then a plain Parquet reader counts their rows. `notes` is what
    is worth knowing and right.
    """

    version: int = 0
    files: int = 0
    rows: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not self.wrong and not self.leftovers


def verify(table: Table, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Read all of a table and check it. Every column of every data file is read, one by one."""
    import duckdb

    report = Report(version=table.version)
    held = _holder(table, report)
    settings = table.settings()
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(f"{scratch}/rows") as database:
        database.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = '{scratch}'")
        database.execute(_ROWS)
        _files(table, list(settings.get("tasks", {})), database, report, progress, held)
        progress("comparing the rows")
        _rows(database, report)
        _runs(table, database, report)
        _older(database, fingerprint(settings), report)
    _shards(table, report)
    table.refresh()
    if table.version != report.version:
        report.notes.append(
            f"the table has moved on to version {table.version} in the meantime: "
            "what seems wrong may be what a run was just doing"
        )
    return report


_ROWS = """
    CREATE TABLE rows (
        clip_id VARCHAR, source VARCHAR, member VARCHAR, source_version VARCHAR, offset_s DOUBLE,
        status VARCHAR, run_id VARCHAR, fingerprint VARCHAR,
        has_null BOOLEAN, other_id BOOLEAN, wrong_outcome BOOLEAN
    )
"""


def _files(
    table: Table,
    tasks: Sequence[str],
    database: Any,
    report: Report,
    progress: Callable[[str], None],
    held: bool,
) -> None:
    """Log and folder agree; every data file can be read and has the size and rows on record."""
    there, files = table.storage.sizes(), table.files()
    for name, file in files.items():
        size = file["size_bytes"]
        progress(f"{report.files:,}/{len(files):,} files · {report.rows:,} rows")
        report.files += 1
        if name not in there:
            report.wrong.append(f"{name}: expected a file, found none: {TAKE_OUT}")
            continue
        if there[name] != size:
            report.wrong.append(
                f"{name}: expected {size:,} bytes, found {there[name]:,}: remove it, then "
                f"{TAKE_OUT}"
            )
            continue
        before = report.rows
        try:
            for rows in _batches(table, name):
                report.rows += len(rows)
                lacking = [column for column in _READ.names if column not in rows.column_names]
                if lacking:
                    raise ValueError(f"expected a column {lacking[0]}, found none")
                database.register("batch", _checked(rows, tasks))
                database.execute("INSERT INTO rows SELECT * FROM batch")
        except (OSError, ValueError, pa.ArrowException) as error:  # ArrowInvalid is a ValueError
            report.wrong.append(
                f"{name}: expected a Parquet file that can be read, found: "
                f"{_first_line(error)}: remove it, then {TAKE_OUT}"
            )
            continue
        if report.rows - before != file["num_records"]:
            report.wrong.append(
                f"{name}: expected {file['num_records']} rows by the log, found "
                f"{report.rows - before}: remove it, then {TAKE_OUT}"
            )
    report.wrong += [  # which delta-rs takes for a version that changed nothing
        f"_delta_log/{name}: expected a version of the table, found an empty file: {LABEL_AGAIN}"
        for name, size in table.storage.sizes("_delta_log").items()
        if not size
    ]
    strangers = there.keys() - files.keys()
    leftovers = sorted(filter(DATA_FILE.fullmatch, strangers))
    if held and leftovers:
        report.notes.append(f"{len(leftovers)} data files are not committed yet, or not any more")
    else:
        report.leftovers = leftovers
    report.wrong += [
        f"{name}: expected no Parquet file but those that the log names, found one, whose rows "
        "plain readers count as well: move it elsewhere"
        for name in sorted(strangers - set(leftovers))
        if name.endswith(".parquet") and not name.startswith((".", "_"))
    ]


_READ = pa.schema([*IDENTITY, *OUTCOME, *RUN])


def _batches(table: Table, name: str) -> Iterator[pa.Table]:
    """A data file's rows, bit by bit, with all their columns."""
    with (
        table.storage.open(name) as opened,
        pq.ParquetFile(opened) as file,
    ):
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def _checked(rows: pa.Table, tasks: Sequence[str]) -> pa.Table:
    """Some rows as `_ROWS` has them: what identifies them, and what each one shows by itself."""

    def any_of(conditions: Sequence[Any]) -> Any:
        result = pa.chunked_array([pa.repeat(False, len(rows))])
        for condition in conditions:
            result = pc.or_(result, pc.fill_null(condition, True))
        return result

    failures = [f"{task}_error" for task in tasks if f"{task}_error" in rows.column_names]
    task_failed = any_of([pc.is_valid(rows[name]) for name in failures])
    rows = rows.select(_READ.names).cast(_READ)  # delta-rs writes string_view, which lacks kernels
    has_reason = pc.and_(pc.is_valid(rows["error_kind"]), pc.is_valid(rows["error_stage"]))
    is_ok = pc.equal(rows["status"], "ok")
    has_any = any_of([task_failed, *(pc.is_valid(rows[name]) for name in OUTCOME.names[1:])])
    return pa.table(
        {
            **{name: rows[name] for name in IDENTITY.names},
            **{name: rows[name] for name in ("status", "run_id", "fingerprint")},
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


def _rows(database: Any, report: Report) -> None:
    """Each clip once, each place once, each row complete and of one mind."""
    for expected, found, query in (
        (
            "each clip_id once",
            "more than once",
            "SELECT any_value(source) FROM rows GROUP BY clip_id HAVING count(*) > 1",
        ),
        (
            "one row for each place (source, member, offset_s)",
            "with several clip_ids",
            "SELECT source FROM rows GROUP BY source, member, offset_s "
            "HAVING count(DISTINCT clip_id) > 1",
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
        (
            "one fingerprint for each run",
            "runs with several",
            "SELECT run_id FROM rows GROUP BY run_id HAVING count(DISTINCT fingerprint) > 1",
        ),
    ):
        [(count, example)] = database.execute(
            f"SELECT count(*), min(example) FROM ({query}) AS found(example)"
        ).fetchall()
        if count:
            report.wrong.append(
                f"expected {expected}, found {count:,} {found}, e.g. {example}: {LABEL_AGAIN}"
            )


def _runs(table: Table, database: Any, report: Report) -> None:
    """Every run has as many rows as the log says it wrote, less those that later ones replaced."""
    found = dict(database.execute("SELECT run_id, count(*) FROM rows GROUP BY run_id").fetchall())
    report.runs = len(found)
    if report.wrong:  # rows that could not be read are missing here as well
        return
    prints = dict(database.execute("SELECT DISTINCT run_id, fingerprint FROM rows").fetchall())
    expected, made_with, unknown = _told(table, report)
    for run, rows in expected.items():
        if rows != found.get(run, 0):
            report.wrong.append(
                f"run {run}: expected {rows:,} rows by the log, found {found.get(run, 0):,}: "
                f"{LABEL_AGAIN}"
            )
        if run in prints and prints[run] != made_with[run]:
            report.wrong.append(
                f"run {run}: expected fingerprint {made_with[run]} by the log, found "
                f"{prints[run]}: {LABEL_AGAIN}"
            )
    strangers = found.keys() - expected.keys()
    if strangers and unknown:
        report.notes.append(f"the rows of {len(strangers):,} runs were not counted: {unknown}")
    elif strangers:
        report.wrong.append(
            f"expected rows of runs that the log knows, found {found[min(strangers)]:,} of run "
            f"{min(strangers)}: {LABEL_AGAIN}"
        )


def _told(table: Table, report: Report) -> tuple[dict[str, int], dict[str, str], str]:
    """By run, how many rows the log says that the table has of it, and its fingerprint.

    Of runs that began before something in the log that tells no counts there are none; what that
    was comes third.
    """
    expected: Counter[str] = Counter()
    made_with: dict[str, str] = {}
    unknown = ""
    history = [e for e in table.history() if e["version"] <= report.version]
    if history[-1]["version"] > 0:
        unknown = "the log no longer goes back to its beginning"
    for entry in reversed(history):
        note = entry["note"]
        if note.get("what") == "hold" and "fingerprint" in note:
            expected[note["run_id"]] += 0
            made_with[note["run_id"]] = note["fingerprint"]
        elif "rows" in note:
            expected[note["run_id"]] += note["rows"]
            expected.subtract(note.get("replaced", {}))
        elif note.get("what") != "hold" and entry["operation"] not in CHANGES_NO_ROW:
            unknown = f"version {entry['version']} ({entry['operation']}) tells no counts"
            expected.clear()
            made_with.clear()
    return {run: rows for run, rows in expected.items() if run in made_with}, made_with, unknown


def _older(database: Any, current: str, report: Report) -> None:
    [(older,)] = database.execute(
        "SELECT count(*) FROM rows WHERE fingerprint <> ?", [current]
    ).fetchall()
    if older:
        report.notes.append(
            f"{older:,} rows were labelled with settings that the table had before: either a "
            "relabelling is not finished (the same command goes on), or their files have vanished"
        )


def _shards(table: Table, report: Report) -> None:
    try:
        table.shards(strict=True)
    except (OSError, KeyError, pa.ArrowException) as error:
        report.wrong.append(
            f"shards.parquet: expected how many clips each shard holds, found: "
            f"{_first_line(error)}: remove {table.path}/{SHARDS_FILE}: runs then read their shards again, and it is "
            "written anew"
        )


def _holder(table: Table, report: Report) -> bool:
    """Whether a run holds the table; a note if one does, or left without letting go."""
    holder = table.holder()
    if holder is None:
        if table.storage.exists(NOTE):
            report.notes.append("holder.json says nothing: the next run takes the table")
        return False
    report.notes.append(
        f"{holder} holds the table since {holder.since}"
        if holder.is_alive
        else f"{holder} died while it held the table: the next run takes it over"
    )
    return holder.is_alive


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    yield (
        f"version {report.version}: {report.files:,} files, {report.rows:,} rows "
        f"of {report.runs:,} runs"
    )
    yield from (f"note: {note}" for note in report.notes)
    yield from (f"wrong: {line}" for line in report.wrong)
    yield from (
        f"wrong: {name}: expected only data files that the log names, found this one, which a "
        "run that was killed has left: the next run removes it"
        for name in report.leftovers
    )
    yield (
        "the table is whole"
        if report.is_whole
        else (f"{len(report.wrong) + len(report.leftovers):,} things are wrong")
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark verify`."""
    add_table_arguments(parser)


def run_from(args: argparse.Namespace) -> int:
    """Print the report; returns the exit code: 0, 1 if something is wrong, 2 if there is no table."""
    said_s = time.monotonic()

    def progress(text: str) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    try:
        report = verify(open_table(args), progress)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DeltaError, OSError) as error:
        print(f"wrong: {args.table}: expected a log that can be read, found: {_first_line(error)}")
        return 1
    for line in lines(report):
        print(printable(line))  # what is found in a table may have come from anybody
    return 0 if report.is_whole else 1
