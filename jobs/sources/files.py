"""Audio files, one clip each: files, folders (recursive) and globs, local or on any fsspec store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, PLACE, Clip, Listing, pick
from jobs.sources._paths import open_file
from jobs.sources._walk import Search, find_files

SHARDED = False
OPTIONS = ("extensions",)
COLUMNS = pa.schema(
    [
        ("folder", pa.string()),  # name of the folder that holds the file
        ("file_name", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_at", pa.timestamp("us", "UTC")),
    ]
)


def suffixes(input: Input) -> tuple[str, ...]:
    return tuple(f".{extension}" for extension in input.extensions)


def columns(input: Input, names: list[str]) -> pa.Schema:
    return pick(COLUMNS, names)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """All files under the input's paths, sorted by name, each once, without hidden files and, in
    folders, without those that have none of the input's extensions."""
    search = Search(suffixes(input), input.storage_options, warn)
    files = find_files(input.paths, search)
    sources = [file.source for file in files]
    offered = {
        "folder": [source.rsplit("/", 2)[-2] if "/" in source else "" for source in sources],
        "file_name": [source.rsplit("/", 1)[-1] for source in sources],
        "size_bytes": [file.size_bytes for file in files],
        "modified_at": [
            None if file.mtime_s is None else datetime.fromtimestamp(file.mtime_s, timezone.utc)
            for file in files
        ],
    }
    columns = {
        "source": sources,
        "member": pa.nulls(len(files), pa.string()),
        "source_version": [file.version for file in files],
        "offset_s": [0.0] * len(files),
        **{name: offered[name] for name in kept.names},
    }
    clips = pa.table(columns, schema=pa.schema([*PLACE, *kept]))
    return Listing(clips, passed_over=search.passed_over)


def clips(
    plan: pa.Table,
    input: Input,
    kept: pa.Schema = NO_COLUMNS,
    passed_over: Counter[str] | None = None,
) -> Iterator[Clip]:
    """Each row and its file, opened."""
    for row in plan.to_pylist():
        try:
            yield row, open_file(row["source"], row["source_version"], input.storage_options)
        except ClipError as error:
            yield row, error
