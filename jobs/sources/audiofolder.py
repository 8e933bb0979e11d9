"""Folders of audio files with a `metadata.csv`, `.jsonl` or `.parquet` (Hugging Face's AudioFolder).

Every audio file is a clip, as with `files`. Columns come from the metadata, whose column `file_name` has
paths relative to its own folder; files that it does not name have null there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, Listing, NoSuchColumn, files, parquet
from jobs.sources._entries import (
    AudioList,
    Entry,
    add_versions,
    as_table,
    base_of,
    clips,
    listed_rows,
    text_columns,
)
from jobs.sources._lines import TextList
from jobs.sources._paths import Found, as_text
from jobs.sources._walk import Search, find_files

__all__ = ["OPTIONS", "SHARDED", "clips", "columns", "find", "suffixes"]

SHARDED = False
OPTIONS = ("extensions", "audio_root", "audio_allow", "encoding", "delimiter")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "metadata.tsv")


def suffixes(input: Input) -> tuple[str, ...]:
    return ()  # audio files, which are those of `files`


def is_metadata(source: str) -> bool:
    """Whether a file is named like the metadata of a folder."""
    return source.rsplit("/", 1)[-1].lower() in METADATA


def columns(input: Input, names: list[str]) -> pa.Schema:
    """Those of `files`, and those of the metadata as text."""
    others = [name for name in names if name not in files.COLUMNS.names]
    try:
        of_metadata = text_columns(_lists(input, lambda _: None), others)
    except NoSuchColumn as error:
        raise NoSuchColumn(error.name, ", ".join([*files.COLUMNS.names, str(error)])) from None
    every = pa.unify_schemas([files.COLUMNS, of_metadata])
    return pa.schema([every.field(name) for name in names])


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """All audio files, and a row for each entry of the metadata whose file is not among them."""
    of_files = pa.schema([field for field in kept if field.name in files.COLUMNS.names])
    others = pa.schema([field for field in kept if field.name not in files.COLUMNS.names])
    listing = files.find(input, warn, of_files)
    here = set(listing.clips["source"].to_pylist())
    rows, complete = listed_rows(_lists(input, warn), input, warn, others, here)
    by_source = {row["source"]: row for row in rows if row["_problem"] is None}
    found = [row for row in listing.clips.to_pylist() if not is_metadata(row["source"])]
    empty = dict.fromkeys(others.names) | {"_duration_s": None, "_problem": None}
    merged = [
        row | {name: by_source.get(row["source"], empty)[name] for name in empty} for row in found
    ]
    missing = [row for row in rows if row["_problem"] or row["source"] not in here]
    versions = add_versions(missing, input)
    missing = [dict.fromkeys(of_files.names) | row for row in missing]
    passed_over = dict(listing.passed_over)
    for name in METADATA:
        passed_over.pop(f".{name.rpartition('.')[2]}", None)
    return Listing(as_table([*merged, *missing], kept), complete, versions, passed_over)


def _lists(input: Input, warn: Callable[[str], None]) -> Iterator[AudioList]:
    search = Search(METADATA, input.storage_options, warn)
    for file in find_files(input.paths, search):
        if is_metadata(file.source):
            entries = _parquet if file.source.lower().endswith(".parquet") else _text
            yield AudioList(file, base_of(file.source, input), entries(file, input))


def _entry(place: str, values: dict[str, Any]) -> Entry:
    name = next((values[n] for n in sorted(values, key=len) if _is_file_name(n)), None)
    if isinstance(name, str) and name:
        return Entry(place, name, values=values)
    what = f"expected a path in file_name, found {', '.join(values)}"
    return Entry(place, values=values, problem=ClipError("unreadable", what))


def _is_file_name(column: str) -> bool:
    return column == "file_name" or column.endswith("_file_name")


def has_file_names(names: Sequence[str]) -> bool:
    """Whether these can be the columns of a folder's metadata."""
    return any(map(_is_file_name, names))


def names_files(found: Found, input: Input) -> bool:
    """Whether the first entry of a folder's metadata has a `file_name`. Raises BadInput."""
    entries = _parquet if found.source.lower().endswith(".parquet") else _text
    return bool(next(iter(entries(found, input)), Entry("")).audio)


def _text(found: Found, input: Input) -> Iterator[Entry]:
    for line in TextList(found, input, has_file_names):
        place = f"line {line.number}"
        if isinstance(line.values, ClipError):
            yield Entry(place, problem=line.values)
        else:
            yield _entry(place, line.values)


def _parquet(found: Found, input: Input) -> Iterator[Entry]:
    number = 0
    try:
        with parquet.opened(found.source, found.version, input) as (file, pages):
            names = [field.name for field in file.schema_arrow]
            for group in range(file.metadata.num_row_groups):
                pages.watch(file.metadata.row_group(group), names)
                for batch in file.iter_batches(row_groups=[group], use_threads=False):
                    for row in batch.to_pylist():
                        values = {name: _as_text(value) for name, value in row.items()}
                        yield _entry(f"row {number}", values)
                        number += 1
    except (ClipError, OSError, pa.ArrowException) as error:
        raise FileNotFoundError(f"{found.source}: {error}") from None


def _as_text(value: Any) -> str | None:
    try:
        return as_text(value)
    except TypeError:  # a time, say
        return str(value)
