"""The clips, or segments of them, that are exported: by DuckDB, from the table's committed rows.

Order, names and parts follow from the rows alone, so that the same table gives the same export,
however its files are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.export.options import BadExport, Options, part_names
from jobs.reports.columns import task_columns
from jobs.reports.labels import connected, quoted
from jobs.table.table import Table, reading

ROWS_AT_ONCE = 8192
OF_A_FILE = "reading the stream"  # in what DuckDB says if Arrow fails to read the table
MAX_PARTS = 1000
EXTRA = "column:"  # begins the names of columns that are carried along
BYTES_PER_SAMPLE = 2
ALL = "all"  # the part of an export that is not split
NAME = "coalesce(regexp_replace(member, '(^| )[0-9][0-9.e+-]* s$', ''), '')"  # without a length
PLACE = f"source || chr(0) || {NAME}"


@dataclass(frozen=True)
class Shape:
    """What the exported task has in a table."""

    task: str
    kind: str  # `text` or `label`, the name of `value` in the export
    of: Mapping[str, str]  # the task's columns in the table, by the names that reports use
    segment_fields: frozenset[str]

    @property
    def value(self) -> str:
        return self.of[self.kind]


@dataclass(frozen=True)
class Selection:
    """The exported items, in order, in a Parquet file.

    parts: how many shards each has; `cuts` has a shard's first row and that behind its last one.
    left_out: how many clips, or segments, were not selected, by the reason.
    """

    path: Path
    digest: str
    parts: Mapping[str, int]
    cuts: Sequence[tuple[str, int, int, int]]  # part, number in it, start, stop
    left_out: Mapping[str, int]
    columns: Mapping[str, pa.DataType]  # carried along, by the names they get
    has_speaker: bool  # of any item

    @property
    def items(self) -> int:
        return self.cuts[-1][3] if self.cuts else 0

    def sizes(self) -> dict[str, int]:
        """How many items each part has."""
        sizes = dict.fromkeys(self.parts, 0)
        for part, _, start, stop in self.cuts:
            sizes[part] += stop - start
        return sizes

    def shards(self) -> Iterator[tuple[str, int, pa.Table]]:
        """The part, the number in it and the rows of each shard, in order."""
        batches = self.batches()
        have = next(batches, None)
        at = 0
        for part, number, start, stop in self.cuts:
            rows = []
            while start < stop:
                assert have is not None
                piece = have.slice(start - at, stop - start)
                rows.append(piece)
                start += len(piece)
                if start == at + len(have):
                    at, have = start, next(batches, None)
            yield part, number, pa.Table.from_batches(rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(ROWS_AT_ONCE)


def shape_of(table: Table, task: str | None) -> Shape:
    """The columns of the task that is exported. Raises BadExport if it is not clear which."""
    tasks = table.settings()["tasks"]
    if task is None and len(tasks) == 1:
        [task] = tasks
    if task is None or task not in tasks:
        found = "none" if task is None else repr(task)
        raise BadExport(f"--task: expected one of the table's ({', '.join(tasks)}), found {found}")
    of = task_columns(task, tasks[task], table.log.fields()).of
    kind = next((kind for kind in ("text", "label") if kind in of), None)
    if kind is None:
        raise BadExport(f"--task: expected a task with a text or label in the table, found {task}")
    fields: frozenset[str] = frozenset()
    if "segments" in of:
        fields = frozenset(f.name for f in table.schema().field(of["segments"]).type.value_type)
    return Shape(task, kind, of, fields)


def select(table: Table, shape: Shape, options: Options, scratch: Path) -> Selection:
    """Select what is exported, into a file in `scratch`. Raises BadExport and UnreadableTable."""
    import duckdb

    with reading(table.path, duckdb.Error):
        return table.newest(lambda: _select(table, shape, options, scratch))


def _select(table: Table, shape: Shape, options: Options, scratch: Path) -> Selection:
    with connected(table) as database:
        names = [row[0] for row in database.execute("DESCRIBE labels").fetchall()]
        _check_columns(options, names)
        _check_where(database, options, shape, names)
        _view(database, shape, options, names)
        path = scratch / "items.parquet"
        with _fitting(options, names):  # a cast fails only where a value does not fit
            left_out = _left_out(database, options)
            parts = _parts(database, options)
            _write(database, shape, options, names, path)
        digest, has_speaker = _digest(database, path)
    columns = pq.read_schema(path)
    extra = {f.name[len(EXTRA) :]: f.type for f in columns if f.name.startswith(EXTRA)}
    cuts, shards = _cuts(path, options, parts)
    return Selection(path, digest, shards, cuts, left_out, extra, has_speaker)


def _check_columns(options: Options, names: Sequence[str]) -> None:
    wanted = {
        "--split": [options.split] if isinstance(options.split, str) else [],
        "--group-by": [options.group_by] if options.group_by else [],
        "--speaker": [options.speaker] if options.speaker else [],
        "--columns": list(options.columns or ()),
    }
    for option, columns in wanted.items():
        for column in columns:
            if column not in names:
                raise BadExport(
                    f"{option}: expected a column of the table ({', '.join(names)}), "
                    f"found {column!r}"
                )


def _check_where(database: Any, options: Options, shape: Shape, names: Sequence[str]) -> None:
    """Raise BadExport, with DuckDB's message, if the condition is none on the table's rows."""
    import duckdb

    if options.where is None:
        return
    with _fitting(options, names):
        statements = duckdb.extract_statements(f"SELECT 1 WHERE ({options.where}\n)")
        if len(statements) != 1:
            raise BadExport(f"--where: expected one condition, found {options.where!r}")
        database.execute(
            f"EXPLAIN SELECT * FROM ({_rows(shape, options)}) WHERE ({options.where}\n)"
        )


@contextmanager
def _fitting(options: Options, names: Sequence[str]) -> Iterator[None]:
    """Raise BadExport, with DuckDB's message and the columns, for a condition that fails."""
    import duckdb

    try:
        yield
    except (duckdb.DataError, duckdb.NotSupportedError, duckdb.ProgrammingError) as error:
        if options.where is None or OF_A_FILE in str(error):
            raise
        has = [*names, *(["segment"] if options.cut else [])]
        raise BadExport(f"--where: {error}\nthe columns are: {', '.join(has)}") from None


def _rows(shape: Shape, options: Options) -> str:
    """The table's rows or, of an export of segments, one for each with the column `segment`."""
    if not options.cut:
        return "SELECT * FROM labels"
    if "segments" not in shape.of:
        raise BadExport(
            f"--cut segments: expected a task with segments in the table, found {shape.task}"
        )
    segments = quoted(shape.of["segments"])
    return (
        f"SELECT COLUMNS(lambda name: lower(name) <> 'segment'), unnest({segments}) AS segment, "
        f"generate_subscripts({segments}, 1) AS export_number FROM labels"
    )


def _view(database: Any, shape: Shape, options: Options, names: Sequence[str]) -> None:
    """Make the view `candidates`: rows that meet the condition, each with the reason why it is left
    out, if it is."""
    value = quoted(shape.value)
    reasons = {
        "no labels": f"status = 'error' OR {value} IS NULL",
        "no sound": "duration_s IS NULL OR duration_s <= 0 OR sample_rate IS NULL",
    }
    start, end = "0", "duration_s"
    if cut := options.cut:
        value = f"segment.{quoted(shape.kind)}"
        begins = "greatest(coalesce(segment.start_s, 0), 0)"
        ends = "least(coalesce(segment.end_s, duration_s), duration_s)"
        start = f"greatest({begins} - {cut.pad_s!r}, 0)"
        end = f"least({ends} + {cut.pad_s!r}, duration_s)"
        reasons |= {
            "segments without text": f"{value} IS NULL OR trim({value}) = ''",
            "segments of no length": f"{begins} >= {ends}",
            "segments under --min-s": f"{end} - {start} < {cut.min_s!r}",
            "segments over --max-s": f"{end} - {start} > {cut.max_s!r}::DOUBLE"
            if np.isfinite(cut.max_s)
            else "false",
        }
    case = " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in reasons.items())
    where = f"WHERE ({options.where}\n)" if options.where is not None else ""
    database.execute(
        f"CREATE TEMP VIEW candidates AS SELECT *, {value} AS export_value, {start} AS export_start, "
        f"{end} AS export_end, CASE {case} END AS export_reason, {_part(options, names)} AS export_part "
        f"FROM ({_rows(shape, options)}) {where}"
    )


def _part(options: Options, names: Sequence[str]) -> str:
    """The part of an item, in SQL: by a column, or by a hash, so that a clip is always in the same
    one. All stretches and channels of a recording, or all clips of a group, are together."""
    if options.split is None:
        return f"'{ALL}'"
    if isinstance(options.split, str):
        return f"{quoted(options.split)}::VARCHAR"
    key = PLACE
    if options.group_by:
        key = f"coalesce('group' || chr(0) || {quoted(options.group_by)}::VARCHAR, {PLACE})"
    # 52 bits of MD5, from 0 to 1.
    hashed = f"(('0x' || substr(md5({key}), 1, 13))::BIGINT / {float(1 << 52)!r})"
    total, cases = 0.0, []
    for name, share in options.split.items():
        total += share
        cases.append(f"WHEN {hashed} < {total!r} THEN '{name}'")
    return f"CASE {' '.join(cases[:-1])} ELSE '{list(options.split)[-1]}' END"


def _left_out(database: Any, options: Options) -> dict[str, int]:
    """How many rows are left out, by reason. Raises BadExport if none is left."""
    counts = dict(
        database.execute(
            "SELECT export_reason, count(*) FROM candidates GROUP BY export_reason ORDER BY 1"
        ).fetchall()
    )
    if not counts.pop(None, 0):
        [(rows,)] = database.execute("SELECT count(*) FROM labels").fetchall()
        why = "".join(f", {count:,} with {reason}" for reason, count in counts.items())
        condition = f" that meets {options.where!r}" if options.where is not None else ""
        raise BadExport(f"expected a labelled clip{condition}, found none of {rows:,} rows{why}")
    return counts


def _parts(database: Any, options: Options) -> list[str]:
    """The names of the parts, in order. The table `parts` has them by what `export_part` is."""
    if not isinstance(options.split, str):
        names: dict[str | None, str] = {name: name for name in options.split or [ALL]}
    else:
        values = database.execute(
            "SELECT DISTINCT export_part FROM candidates WHERE export_reason IS NULL "
            f"ORDER BY 1 NULLS LAST LIMIT {MAX_PARTS + 1}"
        ).fetchall()
        if len(values) > MAX_PARTS:
            raise BadExport(
                f"--split: expected at most {MAX_PARTS:,} values in the column {options.split}, "
                "found more"
            )
        names = part_names([value for (value,) in values])
    rows = [(value, name, number) for number, (value, name) in enumerate(names.items())]
    database.execute("CREATE TEMP TABLE parts (value VARCHAR, name VARCHAR, number INTEGER)")
    database.executemany("INSERT INTO parts VALUES (?, ?, ?)", rows)
    return list(names.values())


def _write(database: Any, shape: Shape, options: Options, names: Sequence[str], path: Path) -> None:
    """Write the items in their order: by part and place, so that a source is read in one go."""
    language = quoted(shape.of["language"]) if "language" in shape.of else "NULL"
    score = quoted(shape.of["score"]) if "score" in shape.of else "NULL"
    speaker = quoted(options.speaker) if options.speaker else "NULL"
    segments, number = "NULL", "NULL"
    if "segments" in shape.of:
        one = "export_segment"  # which no column is called
        fields = f"start_s: {one}.start_s, end_s: {one}.end_s, text: {one}.{quoted(shape.kind)}"
        segments = f"[{{{fields}}} FOR {one} IN {quoted(shape.of['segments'])}]"
    if options.cut:
        score, number, segments = "segment.score", "export_number", "NULL"
        if "language" in shape.segment_fields:
            language = f"coalesce(segment.language, {language})"
        if "speaker" in shape.segment_fields and not options.speaker:
            speaker = "segment.speaker"
    place = (
        "source || chr(0) || coalesce(member, '') || chr(0) || offset_s::VARCHAR || chr(0) "
        "|| coalesce(channel::VARCHAR, '')"
    )
    extra = [
        f"{quoted(column)} AS {quoted(EXTRA + name)}"
        for column, name in (options.columns or {}).items()
    ]
    selected = [
        *("parts.name AS part", "clip_id", "source", "member", "source_version", "offset_s"),
        *("channel", "channels", "sample_rate", "format", "duration_s AS clip_s"),
        f"substr(md5({place}), 1, 16) AS hash",
        f"{number}::INTEGER AS number",
        "export_start::DOUBLE AS start_s",
        "(export_end - export_start)::DOUBLE AS duration_s",
        "export_value AS value",
        f"{score}::VARCHAR::DOUBLE AS score",  # 0.3 and not 0.30000001
        f"{language}::VARCHAR AS language",
        f"{speaker}::VARCHAR AS speaker",
        f"{segments}::STRUCT(start_s DOUBLE, end_s DOUBLE, text VARCHAR)[] AS segments",
        *extra,
    ]
    database.execute(
        f"COPY (SELECT {', '.join(selected)} FROM candidates JOIN parts "
        "ON candidates.export_part IS NOT DISTINCT FROM parts.value WHERE export_reason IS NULL "
        f"ORDER BY parts.number, source, try_cast(member AS BIGINT), {NAME}, offset_s, member, "
        f"channel NULLS FIRST, number, clip_id) TO '{str(path).replace(chr(39), chr(39) * 2)}' "
        f"(FORMAT parquet, ROW_GROUP_SIZE {ROWS_AT_ONCE})"
    )


def _digest(database: Any, path: Path) -> tuple[str, bool]:
    """What tells one selection from another, whose order follows from its rows; whether any item has
    a speaker."""
    [(count, digest, speakers)] = database.execute(
        "SELECT count(*), bit_xor(hash(items)), count(speaker) FROM read_parquet(?) AS items",
        [str(path)],
    ).fetchall()
    return f"{count}-{digest:x}", speakers > 0


def _cuts(
    path: Path, options: Options, parts: Sequence[str]
) -> tuple[list[tuple[str, int, int, int]], dict[str, int]]:
    """The shards: so many clips, or so many bytes of 16-bit sound, whichever comes first."""
    cuts: list[tuple[str, int, int, int]] = []
    shards: dict[str, int] = {}
    part, start, at, size = None, 0, 0, 0.0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            columns = ("part", "duration_s", "sample_rate", "channels")
            for own, duration_s, rate, channels in zip(
                *(batch[name].to_pylist() for name in columns), strict=True
            ):
                is_copy = options.audio == "copy" and not options.cut
                rate = rate if is_copy else options.sample_rate or rate
                more = duration_s * rate * BYTES_PER_SAMPLE * (channels or 1 if is_copy else 1)
                is_full = at - start >= options.shard_clips or (
                    at > start and size + more > options.shard_mb << 20
                )
                if at and (own != part or is_full):
                    cuts.append((part or "", shards.setdefault(part or "", 0), start, at))
                    shards[part or ""] += 1
                    start, size = at, 0.0
                part, size, at = own, size + more, at + 1
    cuts.append((part or "", shards.setdefault(part or "", 0), start, at))
    shards[part or ""] += 1
    return cuts, {name: shards[name] for name in parts if name in shards}
