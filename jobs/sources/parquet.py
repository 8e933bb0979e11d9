"""Parquet files, one clip per row: a binary column, Hugging Face's structs, or paths; Delta tables.

Row groups are the unit of work, and columns that are not kept are never read. `split=train/` in a
path gives a column `split`. Extension types are read as their storage types, because creating their
objects may run code, as with Ray's pickled ones.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, PROBLEM, BadInput, Clip, Listing, NoSuchColumn
from jobs.sources._arrow_types import (
    as_stored,
    holds_sound,
    is_of_tables,
    is_text,
    storage_type,
    table_type,
)
from jobs.sources._decoded import decoded_sound
from jobs.sources._entries import allowed, base_of
from jobs.sources._lakes import live_files
from jobs.sources._parquet_pages import PageWatcher
from jobs.sources._paths import Found, open_file, resolve
from jobs.sources._unpack import refuse_pointer
from jobs.sources._walk import Search, find_files

SHARDED = False
OPTIONS = ("columns.audio", "audio_root", "audio_allow", "max_clip_bytes")
PATH_COLUMNS = ("audio", "path", "audio_path", "audio_filepath", "file", "file_name", "file_path")

FIELDS = ("bytes", "path", "array", "sampling_rate")  # of Hugging Face's structs
ROWS_AT_ONCE = 4  # a small page may hold one large value that is copied into each row
READ_BYTES = 8 << 20  # of a column in one request, if the file is on a store
FOOTERS_AT_ONCE = 16
LOOKED_INTO = 100  # files at most, spread over all, for a column that the first one does not have


def suffixes(input: Input) -> tuple[str, ...]:
    return (".parquet",)


def columns(input: Input, names: list[str]) -> pa.Schema:
    """The columns, with Delta's types, each of the first file that has it. Files that cannot be opened,
    or have no rows and often no types either, are passed over."""
    search = _search(input, lambda _: None)
    files = live_files(find_files(input.paths, search), input).files
    offered: dict[str, pa.DataType] = {}
    for found in files[:: max(1, len(files) // LOOKED_INTO)]:
        try:
            with opened(found.source, found.version, input) as (file, _):
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except ClipError:
            continue
        if not rows:
            continue
        if not offered:
            _check_audio_column(schema, found.source, input)
        offered = {name: pa.string() for name in _partitions(found.source)} | offered
        offered = {field.name: table_type(field.type) for field in schema} | offered
        if offered.keys() >= set(names):
            break
    for name in names:
        if offered and name not in offered:
            raise NoSuchColumn(name, ", ".join(offered))
        if offered and not is_of_tables(offered[name]):
            raise BadInput(
                f"output.keep: expected columns of types that Delta tables have, found {name!r}: "
                f"{offered[name]}: write it as text or numbers"
            )
    return pa.schema([(name, offered.get(name, pa.string())) for name in names])


def _check_audio_column(schema: pa.Schema, source: str, input: Input) -> None:
    try:
        _audio_column(schema, input)
    except ValueError as error:
        raise BadInput(f"{error} in {source}") from None


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each row of every file, and one for a file whose footer can't be read."""

    def row_group_sizes(found: Found) -> list[int] | ClipError:
        try:
            return _row_group_sizes(found, input, warn, kept)
        except ClipError as error:
            return error

    search = _search(input, warn)
    files, left = live_files(find_files(input.paths, search), input)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(row_group_sizes, files))
    complete = {
        file.source for file, rows in zip(files, footers, strict=True) if isinstance(rows, list)
    }
    clips = _listed(files, footers)
    if left:
        clips = clips.filter(pa.array(_is_left(files, footers, left)))
    return Listing(clips, complete, passed_over=search.passed_over)


def _is_left(
    files: Sequence[Found],
    footers: Sequence[list[int] | ClipError],
    left: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Whether each row of the listing of all rows is one that its table has not deleted."""
    masks = []
    for file, footer in zip(files, footers, strict=True):
        mask = np.ones(sum(footer) if isinstance(footer, list) else 1, bool)
        own = left.get(file.source, mask)[: len(mask)]
        mask[: len(own)] = own
        masks.append(mask)
    return np.concatenate(masks)


def _row_group_sizes(
    found: Found, input: Input, warn: Callable[[str], None], kept: pa.Schema
) -> list[int]:
    """The number of rows of each row group, from the file's footer. Raises ClipError."""
    with opened(found.source, found.version, input) as (file, _):
        absent = set(kept.names) - set(file.schema_arrow.names) - {*_partitions(found.source)}
        if absent:
            warn(f"{found.source} has no column {', '.join(sorted(absent))}: null there")
        footer = file.metadata
        rows = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
    # The listing has a row for each of them: a false count would fill the memory.
    if sum(rows) > (found.size_bytes or 0) or min(rows, default=0) < 0:
        raise ClipError("damaged", f"the footer says {sum(rows)} rows in {found.size_bytes} bytes")
    return rows


def _listed(files: Sequence[Found], footers: Sequence[list[int] | ClipError]) -> pa.Table:
    """A row for each row of each file, or one row with the error of a file's footer."""
    members: list[np.ndarray] = []
    units: list[np.ndarray] = []
    units_before = 0
    for footer in footers:
        rows = footer if isinstance(footer, list) else [1]
        members.append(np.arange(sum(rows)))
        units.append(np.repeat(np.arange(len(rows)) + units_before, rows))
        units_before += len(rows)
    of_file = np.repeat(np.arange(len(files)), [len(rows) for rows in members])
    problems = [
        {"kind": footer.kind, "message": footer.message} if isinstance(footer, ClipError) else None
        for footer in footers
    ]
    problem = pa.array(problems, PROBLEM).take(of_file)
    member = pa.array(np.concatenate([[], *members]).astype(np.int64)).cast(pa.string())
    return pa.table(
        {
            "source": pa.array([file.source for file in files], pa.string()).take(of_file),
            "member": pa.compute.if_else(problem.is_valid(), None, member),
            "source_version": pa.array([file.version for file in files], pa.string()).take(of_file),
            "offset_s": np.zeros(len(of_file)),
            "_unit": np.concatenate([[], *units]).astype(np.int64),
            "_problem": problem,
        }
    )


def clips(
    plan: pa.Table,
    input: Input,
    kept: pa.Schema = NO_COLUMNS,
    passed_over: Counter[str] | None = None,
) -> Iterator[Clip]:
    """Each row and its sound. Only the necessary columns of its row group are read."""
    for (source, version), group in groupby(
        plan.to_pylist(), key=lambda row: (row["source"], row["source_version"])
    ):
        rows = list(group)
        if problem := rows[0]["_problem"]:
            yield rows[0], ClipError(problem["kind"], problem["message"])
            continue
        try:
            with opened(source, version, input) as (file, pages):
                yield from _file_clips(file, pages, rows, input, kept)
        except ClipError as error:
            yield from ((row, error) for row in rows)


def _file_clips(
    file: pq.ParquetFile,
    pages: PageWatcher,
    rows: list[dict[str, Any]],
    input: Input,
    kept: pa.Schema,
) -> Iterator[Clip]:
    """The clips of some rows of a file. Any ClipError is raised before the first clip."""
    try:
        wanted = _Wanted.of(file.schema_arrow, rows[0]["source"], input, kept)
    except ValueError as error:
        raise ClipError("unreadable", f"no column of sound: {error}") from None
    by_number = {int(row["member"]): row for row in rows}
    start = 0
    for number in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(number).num_rows
        left = {at - start: row for at, row in by_number.items() if start <= at < stop}
        start = stop
        if not left:
            continue
        pages.watch(file.metadata.row_group(number), wanted.columns)
        try:
            yield from _row_group_clips(file, number, left, wanted)
        except ClipError as error:
            yield from ((row, error) for row in left.values())
        except MemoryError:
            failure = ClipError("memory", f"row group {number} does not fit into memory")
            yield from ((row, failure) for row in left.values())
        except (OSError, pa.ArrowException) as error:
            failure = ClipError("damaged", f"row group {number} can't be read: {error}")
            yield from ((row, failure) for row in left.values())


@dataclass(frozen=True)
class _Wanted:
    """The columns of a file that are read."""

    source: str
    audio: str  # the column with the sound
    columns: Sequence[str]  # all that are read, in Parquet's names
    kept: pa.Schema  # of the kept columns that the file has
    constant: Mapping[str, str | None]  # the other kept columns: from the file's path, or null
    input: Input

    @classmethod
    def of(cls, schema: pa.Schema, source: str, input: Input, kept: pa.Schema) -> _Wanted:
        """The columns to read. Raises ValueError if it is not clear which one holds the sound."""
        audio = _audio_column(schema, input)
        here = [name for name in kept.names if name in schema.names]
        constant = {name: _partitions(source).get(name) for name in kept.names if name not in here}
        columns = [*here, *_needed(schema, audio)]
        of_file = pa.schema([kept.field(name) for name in here])
        return cls(source, audio, columns, of_file, constant, input)


def _row_group_clips(
    file: pq.ParquetFile, number: int, left: dict[int, dict[str, Any]], wanted: _Wanted
) -> Iterator[Clip]:
    """The clips of a row group. `left` has their places by row; those that are yielded are removed."""
    at = 0
    for batch in file.iter_batches(
        ROWS_AT_ONCE, row_groups=[number], columns=wanted.columns, use_threads=False
    ):
        columns = [_carried(batch[field.name], field.type) for field in wanted.kept]
        sounds = as_stored(batch[wanted.audio])
        for index in range(len(batch)):
            if (place := left.pop(at + index, None)) is None:
                continue
            try:
                values = _row_of(columns, index, wanted.kept)
                sound = _sound(sounds, index, wanted.source, wanted.input)
            except UnicodeDecodeError as error:
                values = [None] * len(columns)
                sound = ClipError("damaged", f"a text that is not UTF-8: {error}")
            except ClipError as error:
                values, sound = [None] * len(columns), error
            named = dict(zip(wanted.kept.names, values, strict=True))
            yield place | dict(wanted.constant) | named, sound
        at += len(batch)


def _carried(column: pa.Array, type: pa.DataType) -> pa.Array:
    """A column in the table's type; in its own if some value does not fit (see `_row_of`)."""
    column = as_stored(column)
    is_finer = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    try:
        return column.cast(type, safe=not is_finer)  # a table's times are of microseconds
    except pa.ArrowException:
        return column


def _row_of(columns: Sequence[pa.Array], index: int, kept: pa.Schema) -> list[Any]:
    """A row of the carried columns. Raises ClipError for a value that the table cannot hold."""
    values = []
    for column, field in zip(columns, kept, strict=True):
        try:
            value = column[index]
            values.append((value if value.type == field.type else value.cast(field.type)).as_py())
        except UnicodeDecodeError:
            raise
        except (pa.ArrowException, ValueError, OverflowError) as error:
            what = f"{field.name}: expected a value of type {field.type}: {error}"
            raise ClipError("damaged", what) from None
    return values


def _sound(column: pa.Array, index: int, source: str, input: Input) -> BinaryIO | ClipError:
    """The sound in a row of `source`, from its value in the audio column."""
    value = column[index]
    path: str | None = None
    if pa.types.is_struct(column.type) and value.is_valid:
        path = value["path"].as_py() if "path" in value else None
        if "array" in value and value["array"].is_valid:
            return decoded_sound(value, input.max_clip_bytes)
        value = value["bytes"] if "bytes" in value else pa.scalar(None)
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar):
        path = value.as_py()
    elif value.is_valid and value.as_py() is not None:
        data = value.as_buffer()
        if data.size > input.max_clip_bytes:
            limit = f"input.max_clip_bytes allows {input.max_clip_bytes:,}, found {data.size:,}"
            return ClipError("too_large", limit)
        return io.BytesIO(data.to_pybytes())
    if not path:
        return ClipError("unreadable", "the row has null in place of its sound")
    return open_reference(path, source, input)


def open_reference(path: str, source: str, input: Input) -> BinaryIO | ClipError:
    """The file that a row of `source` names, opened, or the error."""
    roots = allowed(base_of(source, input), source, input)
    try:
        return open_file(resolve(path, roots[0], roots), None, input.storage_options)
    except ClipError as error:
        return error


def _search(input: Input, warn: Callable[[str], None]) -> Search:
    # Spark, Hive and Delta prefix the names of files without data with `_`.
    return Search(suffixes(input), input.storage_options, warn, hidden=(".", "_"))


@contextmanager
def opened(source: str, version: str, input: Input) -> Iterator[tuple[pq.ParquetFile, PageWatcher]]:
    """Open a Parquet file, with a watcher of its pages and a read-ahead of at most READ_BYTES. Raises
    ClipError."""
    with open_file(source, version, input.storage_options, cache_type="none") as file:
        refuse_pointer(file)
        pages = PageWatcher(file)
        try:
            parquet = pq.ParquetFile(pages, buffer_size=READ_BYTES)
            parquet.schema_arrow  # noqa: B018  # built on first access, from the file's metadata
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: Ray's tensors
            raise ClipError("damaged", f"the Parquet footer can't be read: {error}") from None
        yield parquet, pages


def _audio_column(schema: pa.Schema, input: Input) -> str:
    """The column that holds the sound. Raises ValueError."""
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise ValueError(f"expected columns of different names, found {twice[0]!r} twice")
    sounds = [field.name for field in schema if holds_sound(field.type)]
    wanted = input.columns.audio
    if wanted is not None:
        if wanted in sounds or (wanted in schema.names and is_text(schema.field(wanted).type)):
            return wanted
        found = str(schema.field(wanted).type) if wanted in schema.names else "no such column"
        raise ValueError(
            f"input.columns.audio: expected a binary column, a struct with bytes or a column of "
            f"paths among {', '.join(schema.names)}, found {wanted!r}: {found}"
        )
    if "audio" in sounds or len(sounds) == 1:
        return "audio" if "audio" in sounds else sounds[0]
    if not sounds:
        for name in PATH_COLUMNS:
            if name in schema.names and is_text(schema.field(name).type):
                return name
    raise ValueError(
        f"input.columns.audio: expected the name of the column with the sound, which is not "
        f"evident among {', '.join(schema.names)}"
    )


def _needed(schema: pa.Schema, audio: str) -> Sequence[str]:
    """The column or the fields of its struct, in Parquet's names."""
    type = storage_type(schema.field(audio).type)
    if not pa.types.is_struct(type):
        return [audio]
    return [f"{audio}.{field.name}" for field in type if field.name in FIELDS]


def _partitions(source: str) -> dict[str, str | None]:
    """The columns in a path: `.../split=train/...` -> {"split": "train"}."""
    pairs = [part.partition("=") for part in source.split("/")[:-1] if "=" in part]
    return {
        name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, _, value in pairs
        if name
    }
