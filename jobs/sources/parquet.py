"""A row of a Parquet file, one clip: a binary column, Hugging Face's {bytes, path}, or paths.

Row groups are the unit of work; columns that are not kept are never read. `split=train/` in a
path is a column `split`. Extension types are read as what they are stored as: making objects of
them may run code, as Ray's pickled ones do.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audio_ops.errors import ClipError
from jobs.config import Input
from jobs.sources import NO_COLUMNS, Listing, NoSuchColumn
from jobs.sources._paths import Found, absolute, folder_of, look, open_file, resolve

SHARDED = False
OPTIONS = ("columns.audio", "audio_root", "max_clip_bytes")
PATH_COLUMNS = ("audio", "path", "audio_path", "audio_filepath", "file", "file_name", "file_path")

ROWS_AT_ONCE = 4  # each may be the one large value of a small page over again
READ_BYTES = 8 << 20  # of a column at once: one request where the file is on a store
FOOTERS_AT_ONCE = 16
PAGE_BYTES, PAGE_TIMES = 32 << 20, 20  # a page may unpack to so many, or so many times its own
PAGE_HEADER_BYTES = 64 << 10

Clip = tuple[dict[str, Any], BinaryIO | ClipError]


def suffixes(input: Input) -> tuple[str, ...]:
    return (".parquet",)


def columns(input: Input, names: list[str]) -> pa.Schema:
    """As the first file that can be opened has them, in types that a table can hold."""
    for found in _look(input, lambda _: None):
        try:
            with _open(found.source, found.version, input) as (file, _):
                schema = file.schema_arrow
        except ClipError:
            continue
        _audio_column(schema, input)
        offered = {name: pa.string() for name in _partitions(found.source)}
        offered |= {field.name: _plain(field.type) for field in schema}
        for name in names:
            if name not in offered:
                raise NoSuchColumn(name, ", ".join(offered))
        return pa.schema([(name, offered[name]) for name in names])
    return pa.schema([(name, pa.string()) for name in names])


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each row of every file, and one for a file whose footer can't be read."""

    def footer(found: Found) -> list[int] | ClipError:
        """The rows of each row group."""
        try:
            with _open(found.source, found.version, input) as (file, _):
                absent = (
                    set(kept.names) - set(file.schema_arrow.names) - {*_partitions(found.source)}
                )
                if absent:
                    warn(f"{found.source} has no column {', '.join(sorted(absent))}: null there")
                footer = file.metadata
                rows = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        except ClipError as error:
            return error
        # a lie, which would fill the memory here
        if sum(rows) > (found.size_bytes or 0) or min(rows, default=0) < 0:
            return ClipError(
                "damaged", f"the footer says {sum(rows)} rows in {found.size_bytes} bytes"
            )
        return rows

    files = _look(input, warn)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(footer, files))
    members: list[np.ndarray] = []
    units: list[np.ndarray] = []
    units_before = 0
    for rows in footers:
        rows = rows if isinstance(rows, list) else [1]
        members.append(np.arange(sum(rows)))
        units.append(np.repeat(np.arange(len(rows)) + units_before, rows))
        units_before += len(rows)
    of_file = np.repeat(np.arange(len(files)), [len(rows) for rows in members])
    problems = [str(rows) if isinstance(rows, ClipError) else None for rows in footers]
    problem = pa.array(problems, pa.string()).take(of_file)
    member = pa.array(np.concatenate([[], *members]).astype(np.int64)).cast(pa.string())
    clips = pa.table(
        {
            "source": pa.array([file.source for file in files], pa.string()).take(of_file),
            "member": pa.compute.if_else(problem.is_valid(), None, member),
            "source_version": pa.array([file.version for file in files], pa.string()).take(of_file),
            "offset_s": np.zeros(len(of_file)),
            "_unit": np.concatenate([[], *units]).astype(np.int64),
            "_problem": problem,
        }
    )
    whole = {file.source for file, bad in zip(files, problems, strict=True) if bad is None}
    return Listing(clips, whole)


def clips(plan: pa.Table, input: Input, kept: pa.Schema = NO_COLUMNS) -> Iterator[Clip]:
    """Each row's sound; of its row group only the columns that are needed are read."""
    for (source, version), group in groupby(
        plan.to_pylist(), key=lambda row: (row["source"], row["source_version"])
    ):
        rows = list(group)
        if rows[0]["_problem"]:
            yield rows[0], ClipError(*rows[0]["_problem"].split(": ", 1))
            continue
        try:
            with _open(source, version, input) as (file, pages):
                yield from _file_clips(file, pages, rows, input, kept)
        except ClipError as error:
            yield from ((row, error) for row in rows)


def _file_clips(
    file: pq.ParquetFile,
    pages: _Pages,
    rows: list[dict[str, Any]],
    input: Input,
    kept: pa.Schema,
) -> Iterator[Clip]:
    """Raises ClipError before the first clip, if at all."""
    schema = file.schema_arrow
    source = rows[0]["source"]
    try:
        audio = _audio_column(schema, input)
    except ValueError as error:
        raise ClipError("unreadable", f"no column of sound: {error}") from None
    here = [name for name in kept.names if name in schema.names]
    constant = {name: _partitions(source).get(name) for name in kept.names if name not in here}
    needed = [*here, *_needed(schema, audio)]
    wanted = {int(row["member"]): row for row in rows}
    start = 0
    for number in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(number).num_rows
        left = {at: row for at, row in wanted.items() if start <= at < stop}
        at, start = start, stop
        if not left:
            continue
        pages.watch(file.metadata.row_group(number), needed)
        try:
            for batch in file.iter_batches(
                ROWS_AT_ONCE,
                row_groups=[number],
                columns=needed,
                use_threads=False,
            ):
                columns = [_stored(batch[name]).cast(kept.field(name).type) for name in here]
                sounds = _stored(batch[audio])
                for index in range(len(batch)):
                    if (place := left.pop(at + index, None)) is None:
                        continue
                    try:
                        values = [column[index].as_py() for column in columns]
                        sound = _sound(sounds, index, source, input)
                    except UnicodeDecodeError as error:
                        values = [None] * len(here)
                        sound = ClipError("damaged", f"a text that is not UTF-8: {error}")
                    yield place | constant | dict(zip(here, values, strict=True)), sound
                at += len(batch)
        except ClipError as error:
            yield from ((row, error) for row in left.values())
        except MemoryError:
            failure = ClipError("memory", f"row group {number} does not fit into memory")
            yield from ((row, failure) for row in left.values())
        except (OSError, pa.ArrowException) as error:
            failure = ClipError("damaged", f"row group {number} can't be read: {error}")
            yield from ((row, failure) for row in left.values())


def _stored(column: pa.Array) -> pa.Array:
    """The same without its extension type, and without those inside of it."""
    return column if (type := _storage(column.type)) == column.type else column.cast(type)


def _storage(type: pa.DataType) -> pa.DataType:
    if isinstance(type, pa.BaseExtensionType):
        return _storage(type.storage_type)
    if pa.types.is_struct(type):
        return pa.struct([field.with_type(_storage(field.type)) for field in type])
    if pa.types.is_map(type):
        return pa.map_(_storage(type.key_type), _storage(type.item_type))
    if pa.types.is_list(type):
        return pa.list_(type.value_field.with_type(_storage(type.value_type)))
    if pa.types.is_large_list(type):
        return pa.large_list(type.value_field.with_type(_storage(type.value_type)))
    if pa.types.is_fixed_size_list(type):
        value = type.value_field.with_type(_storage(type.value_type))
        return pa.list_(value, type.list_size)
    return type


def _sound(column: pa.Array, index: int, source: str, input: Input) -> BinaryIO | ClipError:
    value = column[index]
    path: str | None = None
    if pa.types.is_struct(column.type):
        path = value["path"].as_py() if value.is_valid and "path" in value else None
        value = value["bytes"] if value.is_valid else value
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar):
        path = value.as_py()
    elif value.is_valid and value.as_py() is not None:
        data = value.as_buffer()
        if data.size > input.max_clip_bytes:
            limit = f"input.max_clip_bytes allows {input.max_clip_bytes:,}, found {data.size:,}"
            return ClipError("too_large", limit)
        return io.BytesIO(data.to_pybytes())
    if not path:
        return ClipError("unreadable", "the row holds null where its sound should be")
    return open_reference(path, source, input)


def open_reference(path: str, source: str, input: Input) -> BinaryIO | ClipError:
    """The file that a row of `source` names."""
    home = absolute(folder_of(source))
    base = absolute(input.audio_root) if input.audio_root else home
    try:
        return open_file(resolve(path, base, [home, base]), None, input.storage_options)
    except ClipError as error:
        return error


def _look(input: Input, warn: Callable[[str], None]) -> list[Found]:
    # `_` as Spark, Hive and Delta use it: what begins so is not data
    return look(input.paths, suffixes(input), input.storage_options, warn, hidden=(".", "_"))


@contextmanager
def _open(source: str, version: str, input: Input) -> Iterator[tuple[pq.ParquetFile, _Pages]]:
    """Raises ClipError. What is read is what is asked for, and no more of it than READ_BYTES."""
    with open_file(source, version, input.storage_options, cache_type="none") as file:
        pages = _Pages(file)
        try:
            parquet = pq.ParquetFile(pages, buffer_size=READ_BYTES)
            parquet.schema_arrow  # noqa: B018  # built here, from what the file says
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: Ray's tensors
            raise ClipError("damaged", f"the Parquet footer can't be read: {error}") from None
        yield parquet, pages


class _Pages:
    """A Parquet file as Arrow reads it, that looks at the header of each page as it passes by.

    Arrow would unpack whatever a page claims, and a footer does not tell. Raises ClipError, when
    a small page is about to become a large one.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next: dict[int, int] = {}  # where the next page of a column begins: where that ends
        self.seek, self.tell = file.seek, file.tell

    def close(self) -> None:
        pass  # by whoever opened the file

    def watch(self, group: pq.RowGroupMetaData, columns: Sequence[str]) -> None:
        """From now on only these columns of this row group are read."""
        self._next.clear()
        for column in map(group.column, range(group.num_columns)):
            if not any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in columns):
                continue
            start = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                start = min(start, column.dictionary_page_offset)
            self._next[start] = start + column.total_compressed_size

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        try:
            data = self._file.read(size)
        except OSError as error:  # else Arrow makes the same of it as of a damaged page
            raise ClipError("unreadable", f"reading the file failed: {error}") from None
        end = start + len(data)
        for at in [at for at in self._next if start <= at < end]:
            stop = self._next.pop(at)
            while start <= at < min(end, stop):
                at += self._page(at, data[at - start : at - start + PAGE_HEADER_BYTES])
            if at < stop:
                self._next[at] = stop
        return data

    def _page(self, at: int, head: bytes) -> int:
        """How long the page at `at` is."""
        try:
            unpacked, packed, size = _page_header(head)
        except IndexError:  # it goes on in what is read next
            here = self._file.tell()
            self._file.seek(at)
            head = self._file.read(PAGE_HEADER_BYTES)
            self._file.seek(here)
            try:
                unpacked, packed, size = _page_header(head)
            except IndexError:
                raise ClipError("damaged", "a page's header has no end") from None
        if unpacked < 0 or packed < 0:
            raise ClipError("damaged", "a page with a negative size")
        if unpacked > max(PAGE_BYTES, PAGE_TIMES * packed):
            raise ClipError("too_large", f"a page of {packed:,} bytes unpacks to {unpacked:,}")
        return size + packed


def _page_header(data: bytes) -> tuple[int, int, int]:
    """(bytes unpacked, bytes packed, bytes of the header itself) of a page, from its header.

    That is a struct in Thrift's compact protocol, which begins with three integers: the kind of
    page and the two sizes. Raises IndexError if it is longer than `data`.
    """
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    def skip_struct(depth: int = 0) -> None:
        nonlocal at
        while field := data[at]:
            at += 1
            if not field >> 4:  # its number is not told by the one before
                number()
            kind = field & 15
            if kind in (4, 5, 6):
                number()
            elif kind in (3, 7):
                at += 1 if kind == 3 else 8
            elif kind == 8:
                length = number()  # moves `at` itself
                at += length
            elif kind == 12 and depth < 4:
                skip_struct(depth + 1)
            elif kind not in (1, 2):  # a boolean has no value behind it
                raise ClipError("damaged", "a page's header is no such thing")
        at += 1

    sizes = []
    for _ in range(3):
        if data[at] != 0x15:
            raise ClipError("damaged", "a page's header is no such thing")
        at += 1
        value = number()
        sizes.append(value >> 1 ^ -(value & 1))
    skip_struct()
    return sizes[1], sizes[2], at


def _audio_column(schema: pa.Schema, input: Input) -> str:
    """The column that holds the sound. Raises ValueError."""
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise ValueError(f"expected columns of different names, found {twice[0]!r} twice")
    sounds = [field.name for field in schema if _holds_sound(field.type)]
    wanted = input.columns.audio
    if wanted is not None:
        if wanted in sounds or (wanted in schema.names and _is_text(schema.field(wanted).type)):
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
            if name in schema.names and _is_text(schema.field(name).type):
                return name
    raise ValueError(
        f"input.columns.audio: expected the name of the column with the sound, which can't be "
        f"guessed among {', '.join(schema.names)}"
    )


def _holds_sound(type: pa.DataType) -> bool:
    type = _storage(type)
    if pa.types.is_struct(type):
        return any(field.name == "bytes" and _holds_sound(field.type) for field in type)
    return pa.types.is_binary(type) or pa.types.is_large_binary(type)


def _is_text(type: pa.DataType) -> bool:
    type = _storage(type)
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def _needed(schema: pa.Schema, audio: str) -> Sequence[str]:
    """The column, or the fields of its struct, in the words of Parquet."""
    type = _storage(schema.field(audio).type)
    if not pa.types.is_struct(type):
        return [audio]
    return [f"{audio}.{field.name}" for field in type if field.name in ("bytes", "path")]


def _partitions(source: str) -> dict[str, str | None]:
    """`.../split=train/...` -> {"split": "train"}"""
    pairs = [part.partition("=") for part in source.split("/")[:-1] if "=" in part]
    return {
        name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, _, value in pairs
        if name
    }


def _plain(type: pa.DataType) -> pa.DataType:
    """The same in a type that a Delta table has."""
    types = pa.types
    type = _storage(type)
    if types.is_dictionary(type):
        return _plain(type.value_type)
    if types.is_struct(type):
        return pa.struct([(field.name, _plain(field.type)) for field in type])
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return pa.list_(_plain(type.value_type))
    if types.is_unsigned_integer(type):
        return pa.int64()
    if types.is_float16(type):
        return pa.float32()
    if types.is_large_binary(type) or types.is_fixed_size_binary(type):
        return pa.binary()
    if types.is_timestamp(type):
        return pa.timestamp("us", type.tz and "UTC")
    if types.is_date64(type):
        return pa.date32()
    if types.is_null(type) or types.is_large_string(type) or types.is_time(type):
        return pa.string()
    return type
