"""How audio is packaged: one file per packaging; its name is what YAML calls it.

Each of these files is a `Source`, which `_contract.py` has mypy check. Files whose names begin with
`_` are shared by several of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input

# Where a clip is: together these columns identify it.
PLACE = pa.schema(
    [
        ("source", pa.string()),  # path or URL of the file that holds it
        ("member", pa.string()),  # name or row inside the source, else null
        ("source_version", pa.string()),  # ETag, or size and mtime; a digest for a tar's member
        ("offset_s", pa.float64()),
    ]
)
MISSING = "missing"
NOT_A_FILE = "not a regular file"
NO_VERSION = (MISSING, NOT_A_FILE)  # in place of a version, where there is no file to read
NO_COLUMNS = pa.schema([])
# A listing's column `_problem`: why a clip cannot be read, known before its file is opened.
PROBLEM = pa.struct([("kind", pa.string()), ("message", pa.string())])

# A clip's columns, and its encoded sound or the error that stands in for it.
Clip = tuple[dict[str, Any], BinaryIO | ClipError]


class Listing(NamedTuple):
    """The clips of an input, and which rows of the table they make obsolete.

    A row of the table whose place is not among `clips` belongs to a clip that has vanished. It
    stays, unless

    - its `source` is in `whole`: files that were read from end to end, and hold no other clips; or
    - `versions` has another version of its `source`: it describes sound that no longer exists.
    """

    clips: pa.Table
    whole: Collection[str] = frozenset()
    versions: Mapping[str, str] = MappingProxyType({})


class Source(Protocol):
    """The contract that the module of a packaging fulfils."""

    @property
    def SHARDED(self) -> bool:  # noqa: N802
        """Whether a file has to be read to know which clips it holds."""

    @property
    def OPTIONS(self) -> tuple[str, ...]:  # noqa: N802
        """The keys of `Input` that it takes besides path, format and storage_options."""

    def suffixes(self, input: Input) -> tuple[str, ...]:
        """What its files' names end with, in lower case, for folders and `format: auto`."""

    def columns(self, input: Input, names: list[str]) -> pa.Schema:
        """The types of those of its columns that a run carries along, from as little of the input
        as will do.

        Raises NoSuchColumn, or ValueError (`key: expected ...`) for an input that doesn't fit its
        options.
        """

    def find(
        self, input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS
    ) -> Listing:
        """Every clip there is, or every shard (`member` null) if SHARDED, in an order that lasts.

        Opens no more files than it must. The clips have the columns `PLACE`, those of `kept` that
        are known by then, and others for `clips`, whose names begin with `_`. One of these is known
        outside: rows with an equal `_unit` are read together. A file that does not exist has one
        of `NO_VERSION` for its version. `warn(text)` is called for what is passed over.

        Raises FileNotFoundError for a path that names nothing, and OSError where a storage does
        not answer whether a file exists.
        """

    def clips(self, plan: pa.Table, input: Input, kept: pa.Schema = NO_COLUMNS) -> Iterator[Clip]:
        """For each row of a plan its columns and its sound, in the plan's order.

        The columns are `PLACE`, `kept` and whatever else the plan holds. With a `duration_s` among
        them the clip is that stretch of the file from `offset_s` on. If SHARDED: all clips of each
        shard, each with a version of its own, and, where reading a shard fails, an error without a
        `member` last. A file is read before the next one is asked for.
        """


class NoSuchColumn(Exception):
    """A column that a source does not have. `offered` lists those it has."""

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


def load_source(name: str) -> Source:
    """The module of the packaging that YAML calls `name`."""
    return cast(Source, import_module(f"{__name__}.{name}"))
