"""What identifies a clip, and a shard's clips together."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Collection
from functools import reduce
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ALL = -1  # the set of all tasks, see `jobs.planning.due`
IDS_AT_ONCE = 65_536


def clip_ids(found: pa.Table) -> pa.Array:
    """The `clip_id` of each row's place and, if there is such a column, `channel`."""
    return as_clip_ids(numbers_of_places(found))


def numbers_of_places(found: pa.Table) -> np.ndarray:
    """`clip_ids` as numbers of 128 bits: uint64 `(rows, 2)`."""
    parts = [_numbers(found.slice(at, IDS_AT_ONCE)) for at in range(0, len(found), IDS_AT_ONCE)]
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])


def _numbers(found: pa.Table) -> np.ndarray:
    """`numbers_of_places` of few rows, whose places fit into memory as texts."""
    offsets = found["offset_s"].combine_chunks().dictionary_encode()
    texts = pa.array([repr(offset_s) for offset_s in offsets.dictionary.to_pylist()], pa.string())
    columns = [found["source"], found["member"], found["source_version"]]
    places = pc.binary_join_element_wise(
        *columns, texts.take(offsets.indices), "\0", null_handling="replace"
    )
    if "channel" in found.column_names:
        channels = pc.binary_join_element_wise("\0", found["channel"].cast(pa.string()), "")
        places = pc.binary_join_element_wise(places, pc.fill_null(channels, ""), "")
    hashes = [
        hashlib.blake2b(place, digest_size=16).digest()
        for place in places.cast(pa.binary()).to_pylist()
    ]
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64).reshape(-1, 2)


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
    """The contents of a shard that a run has read to the end, so that it need not be read again. Which
    clips are done follows from the table's rows alone."""

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


class Ids:
    """A set of `clip_id`s, given as `numbers`, in which others are looked up; 20 bytes for each."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.order = np.argsort(numbers[:, 0]).astype(np.int32)
        self.numbers = numbers[self.order]

    def at(self, wanted: np.ndarray) -> np.ndarray:
        """The place in the set of each id, given as `numbers`, as int64; -1 if it is not in it.

        If two ids of the set agree in their first 64 bits, one of them is not found.
        """
        if not len(self.numbers):
            return np.full(len(wanted), -1, np.int64)
        at = np.searchsorted(self.numbers[:, 0], wanted[:, 0]).clip(max=len(self.numbers) - 1)
        is_found = (self.numbers[at] == wanted).all(axis=1)
        return np.where(is_found, self.order[at], -1).astype(np.int64)


def numbers(clip_ids: pa.Array) -> np.ndarray:
    """The ids as numbers of 128 bits: uint64 `(ids, 2)`."""
    found = np.empty((len(clip_ids), 2), np.uint64)
    for start in range(0, len(clip_ids), IDS_AT_ONCE):
        some = clip_ids[start : start + IDS_AT_ONCE]
        _, offsets, content = some.cast(pa.binary()).buffers()
        first, end = np.frombuffer(offsets, np.int32)[[some.offset, some.offset + len(some)]]
        letters = np.frombuffer(content, np.uint8)[first:end].reshape(-1, 32)
        nibbles = (letters & 15) + 9 * (letters >> 6)
        of_some = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u8")
        found[start : start + len(some)] = of_some
    return found


def as_clip_ids(numbers: np.ndarray) -> pa.Array:
    """The `clip_id`s that are these `numbers`, as 32 hex digits each."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, len(digits) + 1, 32, np.int64)
    found = pa.LargeStringArray.from_buffers(
        len(numbers), pa.py_buffer(offsets), pa.py_buffer(digits)
    )
    return found.cast(pa.string())
