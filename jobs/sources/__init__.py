"""How audio is packaged: one file per packaging; its name is what YAML calls it.

A source's file holds, and nothing else needs to know it:

- `SHARDED`: whether its files have to be read to know what clips they hold;
- `OPTIONS`: what it takes of `Input` besides path, format and storage options;
- `suffixes(input)`: what its files' names end with, in small letters, for folders and `auto`;
- `columns(input, names)`: the types of those of its columns that a run wants to carry along, from
  as little of the input as will do. Raises NoSuchColumn, or ValueError (`key: expected ...`) for
  an input that doesn't fit its options;
- `find(input, warn, kept)`: a `Listing` of every clip there is (if `SHARDED`: every shard, `member`
  null), in a lasting order, without opening more than it must. The columns of its clips are
  `PLACE`, those of `kept` that are known by then, and, for `clips`, others whose names begin with
  `_`; one of them is known outside: rows with the same `_unit` are best read together. A file that
  does not exist has one of `NO_VERSION` for its version. Raises FileNotFoundError for a path that
  names nothing, and OSError where a storage does not say whether a file exists;
  `warn(text)` is called with what was passed over;
- `clips(plan, input, kept)`: for each row of a plan a dict of `PLACE`, `kept`, and whatever else
  the plan holds, and its sound as a binary file, or the ClipError that stands in for it, in the
  plan's order. A `duration_s` in the dict means that the clip is the stretch of the file from
  `offset_s` on. If `SHARDED`: all clips of each shard, each with a version of its own, and, where
  reading a shard fails, an error without a `member` last. A file is read before the next is asked
  for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import pyarrow as pa

# Where a clip is: what makes it this clip and no other.
PLACE = pa.schema(
    [
        ("source", pa.string()),  # path or URL of the file that holds it
        ("member", pa.string()),  # name or row inside the source, else null
        ("source_version", pa.string()),  # ETag, or size and mtime; of a tar's member its digest
        ("offset_s", pa.float64()),
    ]
)
MISSING = "missing"
NOT_A_FILE = "not a regular file"
NO_VERSION = (MISSING, NOT_A_FILE)  # in place of the version of what is no file that can be read
NO_COLUMNS = pa.schema([])


class Listing(NamedTuple):
    """The clips of an input, and what that says of rows that the table holds from before.

    A row whose place is not listed is one of a clip that has vanished, and stays, unless

    - its `source` is in `whole`: files that were read from end to end, and hold no other clips; or
    - `versions` has another version of its `source`: it describes sound that no longer exists.
    """

    clips: pa.Table
    whole: Collection[str] = frozenset()
    versions: Mapping[str, str] = MappingProxyType({})


class NoSuchColumn(Exception):
    """A column that a source does not have. `offered` says what it has."""

    def __init__(self, name: str, offered: str):
        super().__init__(f"expected columns of the source ({offered}), found {name!r}")
        self.name = name


def pick(offered: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Some columns of a schema. Raises NoSuchColumn."""
    for name in names:
        if name not in offered.names:
            raise NoSuchColumn(name, ", ".join(offered.names))
    return pa.schema([offered.field(name) for name in names])


def source_names() -> list[str]:
    """Every packaging there is, as YAML calls them."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load_source(name: str) -> ModuleType:
    """The module of the packaging that YAML calls `name`."""
    return import_module(f"{__name__}.{name}")
