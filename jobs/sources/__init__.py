"""How audio is packaged: one file per packaging; its name is what YAML calls it.

Each of these files is a `Source`, which mypy checks in `_contract.py`. Files whose names begin with
`_` are shared by several packagings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input

# The place of a clip: together these columns identify it.
PLACE = pa.schema(
    [
        ("source", pa.string()),  # path or URL of the file that holds it
        ("member", pa.string()),  # name or row inside the source, or null
        ("source_version", pa.string()),  # ETag, or size and mtime; of a tar's member its digest
        ("offset_s", pa.float64()),
    ]
)
MISSING = "missing"
NOT_A_FILE = "not a regular file"
NO_VERSION = (MISSING, NOT_A_FILE)  # in place of a version, if there is no file to read
NO_COLUMNS = pa.schema([])
# A listing's column `_problem`: an error of a clip that is known before its file is opened.
PROBLEM = pa.struct([("kind", pa.string()), ("message", pa.string())])

# A clip's columns, and its encoded sound or an error in place of it.
Clip = tuple[dict[str, Any], BinaryIO | ClipError]


class Listing(NamedTuple):
    """The clips of an input, and which rows of the table they make obsolete.

    A row of the table whose place is not among `clips` belongs to a clip that has vanished. It
    stays, unless

    - its `source` is in `complete`: files that were read to the end, and hold no other clips; or
    - `versions` has another version of its `source`: it describes sound that no longer exists.
    """

    clips: pa.Table
    complete: Collection[str] = frozenset()
    versions: Mapping[str, str] = MappingProxyType({})
    passed_over: Mapping[str, int] = MappingProxyType({})  # files that are no clips, by extension


class Source(Protocol):
    """The interface of a packaging's module."""

    @property
    def SHARDED(self) -> bool:  # noqa: N802
        """Whether a file has to be read to know which clips it holds."""

    @property
    def OPTIONS(self) -> tuple[str, ...]:  # noqa: N802
        """The keys of `Input` that it accepts besides path, format and storage_options."""

    def suffixes(self, input: Input) -> tuple[str, ...]:
        """The suffixes of its files in lower case, for searching folders and for `format: auto`."""

    def columns(self, input: Input, names: list[str]) -> pa.Schema:
        """The types of the columns `names`, which a run keeps, reading as little of the input as
        possible.

        Raises NoSuchColumn or BadInput.
        """

    def find(
        self, input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS
    ) -> Listing:
        """All clips of the input, or all shards (`member` null) if SHARDED, in a stable order.

        Opens no more files than necessary. The clips have the columns `PLACE`, those of `kept` that
        are already known, and others for `clips`, whose names begin with `_`. Of these only `_unit`
        is used elsewhere: rows with equal values are read together. A file that does not exist has
        one of `NO_VERSION` as its version. `warn(text)` is called for whatever is skipped.

        Raises BadInput, FileNotFoundError for a path that matches nothing, and OSError if a storage
        does not answer whether a file exists.
        """

    def clips(
        self,
        plan: pa.Table,
        input: Input,
        kept: pa.Schema = NO_COLUMNS,
        passed_over: Counter[str] | None = None,
    ) -> Iterator[Clip]:
        """The columns and the sound of each row of a plan, in the plan's order.

        The columns are `PLACE`, `kept` and any others of the plan. If they include `duration_s`, the
        clip is the part of the file that begins at `offset_s` and lasts that long. If SHARDED, all
        clips of each shard, each with its own version; if reading a shard fails, its last item is an
        error without a `member`, and `passed_over` counts what else they hold, by extension. The
        caller reads a file before it asks for the next one.
        """


class ShardedSource(Source, Protocol):
    """The interface of a packaging's module that is SHARDED."""

    def look(self, plan: pa.Table, input: Input) -> Counter[str] | None:
        """What the shards of a plan hold, by extension, if they are few and none of them holds a
        clip; otherwise None. Opens only a few."""


class BadInput(ValueError):
    """The input does not fit the config: `key: expected ..., found ...`."""


class NoSuchColumn(Exception):
    """A column that a source does not have. `offered` lists the columns that it has."""

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
    """The names of all packagings in YAML."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load_source(name: str) -> Source:
    """The module of the packaging with this name in YAML."""
    return cast(Source, import_module(f"{__name__}.{name}"))
