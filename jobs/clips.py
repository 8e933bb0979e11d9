"""What identifies a clip, and a shard's clips together."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Collection
from functools import reduce
from typing import NamedTuple

import pyarrow as pa

from jobs.sources import PLACE

ALL = -1  # the set of all tasks, see `jobs.due`


def clip_ids(found: pa.Table) -> pa.Array:
    """The `clip_id` of each row's place and, if there is such a column, `channel`."""
    has_channels = "channel" in found.column_names and found["channel"].null_count < len(found)
    names = [*PLACE.names, *(["channel"] if has_channels else [])]
    columns = (found[name].to_pylist() for name in names)
    return pa.array([clip_id(*place) for place in zip(*columns, strict=True)], pa.string())


def clip_id(
    source: str,
    member: str | None,
    source_version: str,
    offset_s: float,
    channel: int | None = None,
) -> str:
    """128-bit BLAKE2b of a clip's place and channel, as 32 hex digits."""
    place = f"{source}\0{member or ''}\0{source_version}\0{offset_s!r}"
    place += "" if channel is None else f"\0{channel}"
    return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()


class Shard(NamedTuple):
    """The contents of a shard, as a run found them that read it to the end: they save reading it
    again. Which clips are done follows from the table's rows alone."""

    version: str
    clips: int
    kept: Collection[str]  # clip_ids of its rows whose clips were not found, as reading failed
    digest: str  # of the clip_ids of its clips; "" if an earlier version wrote it

    def is_done(self, version: str, clips: int, digest: str) -> bool:
        """Whether the shard has this version, and finished rows for exactly its clips: `clips` and
        `digest` are those of its finished rows without the `kept` ones."""
        is_same = digest == self.digest if self.digest else True
        return version == self.version and clips == self.clips and is_same


def digest(clip_ids: Collection[str]) -> str:
    """A digest of a set of ids in any order: their exclusive or, as 32 hex digits."""
    return f"{reduce(operator.xor, (int(id, 16) for id in clip_ids), 0):032x}"
