"""Audio files, one clip each: files, folders (recursive) and globs, local or on any fsspec store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, PLACE, Clip, Listing, pick
from jobs.sources._inventory import read_inventory
from jobs.sources._paths import open_file
from jobs.sources._walk import Search, file_table

SHARDED = False
OPTIONS = ("extensions", "inventory")
COLUMNS = pa.schema(
    [
        ("folder", pa.string()),  # name of the folder that holds the file
        ("file_name", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_at", pa.timestamp("us", "UTC")),
    ]
)
_IN_INVENTORIES = {"size_bytes": "size", "modified_at": "last_modified_date"}


def suffixes(input: Input) -> tuple[str, ...]:
    return tuple(f".{extension}" for extension in input.extensions)


def columns(input: Input, names: list[str]) -> pa.Schema:
    if input.inventory is not None:
        needed = [_IN_INVENTORIES[name] for name in names if name in _IN_INVENTORIES]
        read_inventory(input.inventory, input.storage_options, needed)
    return pick(COLUMNS, names)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """All files under the input's paths, sorted by name, each once, without hidden files and, in
    folders, without those that have none of the input's extensions."""
    search = Search(suffixes(input), input.storage_options, warn, inventory=input.inventory)
    files = file_table(input.paths, search)
    columns = {
        "source": files["source"],
        "member": pa.nulls(len(files), pa.string()),
        "source_version": files["version"],
        "offset_s": np.zeros(len(files)),
        **{name: _OFFERED[name](files) for name in kept.names},
    }
    clips = pa.table(columns, schema=pa.schema([*PLACE, *kept]))
    return Listing(clips, passed_over=search.passed_over)


def _part(files: pa.Table, pattern: str) -> pa.ChunkedArray:
    """What a pattern's group `part` has of each file's path; empty if there is none."""
    return pc.fill_null(pc.struct_field(pc.extract_regex(files["source"], pattern), "part"), "")


def _times(files: pa.Table) -> pa.Array:
    """Times of modification, rounded to microseconds as `datetime.fromtimestamp` does it."""
    whole, rest = np.divmod(pc.fill_null(files["mtime_ns"], 0).to_numpy(), 10**9)
    seconds = whole + 1e-9 * rest  # a float64, like `os.stat`'s
    rest_s, whole_s = np.modf(seconds)
    microseconds = (whole_s * 1e6 + np.rint(rest_s * 1e6)).astype(np.int64)
    is_unknown = files["mtime_ns"].is_null().to_numpy()
    return pa.array(microseconds, mask=is_unknown).cast(pa.timestamp("us", "UTC"))


# The values of `COLUMNS`
_OFFERED: Mapping[str, Callable[[pa.Table], pa.Array | pa.ChunkedArray]] = {
    "folder": lambda files: _part(files, r"(?s)(?P<part>[^/]*)/[^/]*$"),
    "file_name": lambda files: _part(files, r"(?s)(?P<part>[^/]*)$"),
    "size_bytes": lambda files: files["size_bytes"],
    "modified_at": _times,
}


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
