"""The formats of exports: one file each; its name is what `--as` calls it (`-` is written `_`).

Each of these files is a `Format`, which mypy checks in `_contract.py`. Files whose names begin with `_`
are shared by several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import pyarrow as pa

from jobs.export.folder import Folder
from jobs.export.options import Audio
from jobs.export.sound import Encoded

# An exported clip or segment: its `id`, the columns of `select`, and what a format adds when its sound
# is written: `path`, `sample_rate`, `samples`, `channels`, `extension`, `shard`.
Item = dict[str, Any]
Add = Callable[[Item, Encoded], None]  # writes an item's sound, and sets what the item gets from it


class Shard(NamedTuple):
    """A shard of a part of an export."""

    part: str
    number: int  # in its part
    of: int  # the shards of its part


@dataclass(frozen=True)
class Export:
    """What formats know of an export.

    out: the folder or URL where it will be, absolute.
    parts: how many shards each has. prefix: whether the parts have folders of their own.
    kind: `text` or `label`, the name of an item's `value`.
    """

    out: str
    parts: Mapping[str, int]
    is_split: bool
    kind: str
    audio: Audio
    is_cut: bool
    columns: Mapping[str, pa.DataType]  # carried along
    has_speaker: bool
    schema: pa.Schema | None = None  # of `datasets`

    def prefix(self, part: str) -> str:
        """What begins the names of a part's files."""
        return f"{part}/" if self.is_split else ""


class Format(Protocol):
    """The interface of a format's module."""

    @property
    def AUDIO(self) -> Sequence[Audio]:  # noqa: N802
        """How its sound may be exported; the first one is the default."""

    def prepared(self, export: Export) -> Export:
        """The export with what the format has to know of it before any shard is written.

        Raises BadExport if something is missing that the format needs.
        """

    def problem(self, item: Item, export: Export) -> str | None:
        """Why a clip cannot be in this export, without its sound being opened; None if it can."""

    def shard(self, shard: Shard, export: Export, folder: Folder) -> AbstractContextManager[Add]:
        """Writes a shard of sound, which has its name when the block ends. Runs in a worker."""

    def finish(self, part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
        """Write what names the clips of a part, which is ready, in order. Runs in the driver."""


def format_names() -> list[str]:
    """All formats, as `--as` calls them."""
    names = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def load_format(name: str) -> Format:
    """The module of the format that `--as` calls `name`."""
    return cast(Format, import_module(f"{__name__}.{name.replace('-', '_')}"))
