"""Rows of a table -> their sound, as the sources open it.

A row does not say which packaging it came from, but its `member` does: none or `3.2 s` for a file or a
stretch of it, a number for a row of a Parquet file, and a name for a member of a tar.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import PLACE, PROBLEM, parquet, webdataset
from jobs.sources._paths import open_file

_LENGTH = re.compile(r"(?:(?P<name>.*) )?(?P<length>\d[\d.e+-]*) s", re.DOTALL)
DIGEST = "blake2b:"  # begins the version of a tar's member

Opened = Iterator[tuple["Clip", BinaryIO | ClipError]]


class Place(NamedTuple):
    """Where a clip is in its source: `name` is a tar member's name, or a row's number."""

    kind: Literal["file", "row", "member"]
    name: str
    length_s: float | None  # of a stretch; None: to the end


def place_of(member: str | None) -> Place:
    """The place that a row's `member` describes."""
    if member is None:
        return Place("file", "", None)
    if member.isdecimal():
        return Place("row", member, None)
    if match := _LENGTH.fullmatch(member):
        length_s = float(match["length"])
        return Place("member" if match["name"] else "file", match["name"] or "", length_s)
    return Place("member", member, None)


@dataclass(frozen=True)
class Clip:
    """A labelled clip, of which `items` (numbers of rows of a shard) are exported."""

    clip_id: str
    source: str
    member: str | None
    version: str
    offset_s: float
    channel: int | None
    sample_rate: int  # Hz, as stored
    format: str | None  # as in the table
    items: tuple[int, ...]

    @property
    def place(self) -> Place:
        return place_of(self.member)

    @property
    def stretch(self) -> tuple[float, float] | None:
        """The start and the length of its part of a file, in seconds; None for all of it."""
        length_s = self.place.length_s
        if not self.offset_s and length_s is None:
            return None
        return self.offset_s, math.inf if length_s is None else length_s

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole file, and no channel or stretch of one."""
        return self.stretch is None and self.channel is None


def clips_of(rows: Sequence[Mapping[str, Any]]) -> list[Clip]:
    """The clips of a shard's rows, in order. Segments of one clip are next to each other."""
    clips = []
    numbered = list(enumerate(rows))
    for _, group in groupby(numbered, key=lambda pair: pair[1]["clip_id"]):
        own = list(group)
        first = own[0][1]
        names = ("clip_id", "source", "member", "offset_s", "channel", "sample_rate", "format")
        clips.append(
            Clip(
                **{name: first[name] for name in names},
                version=first["source_version"],
                items=tuple(number for number, _ in own),
            )
        )
    return clips


def opened(
    clips: Sequence[Clip],
    input: Input,
    kept: pa.Schema,
    begins: Callable[[Clip], None] = lambda _: None,
) -> Opened:
    """Each clip and its sound: those of a tar in the tar's order, all others in their own.

    kept: the columns that the run kept, as they are part of the version of a tar's member.
    begins: called with a clip before its source is opened, which may have others.
    """
    for (source, kind), group in groupby(clips, key=lambda clip: (clip.source, clip.place.kind)):
        of_source = list(group)
        begins(of_source[0])
        if kind == "file":
            yield from ((clip, _file(clip, input)) for clip in of_source)
        elif kind == "row":
            yield from _rows(of_source, input)
        else:
            yield from _members(source, of_source, input, kept)


def _file(clip: Clip, input: Input) -> BinaryIO | ClipError:
    try:
        return open_file(clip.source, clip.version, input.storage_options)
    except ClipError as error:
        return error


def _rows(clips: Sequence[Clip], input: Input) -> Opened:
    """The clips of a Parquet file; the channels of a row's sound share its bytes."""
    by_row = defaultdict[str, list[Clip]](list)
    for clip in clips:
        by_row[clip.place.name].append(clip)
    rows = [
        dict.fromkeys(PLACE.names) | {"source": clip.source, "source_version": clip.version}
        for clip, *_ in by_row.values()
    ]
    for row, member in zip(rows, by_row, strict=True):
        row |= {"member": member, "offset_s": 0.0, "_problem": None}
    plan = pa.Table.from_pylist(rows, schema=pa.schema([*PLACE, ("_problem", PROBLEM)]))
    try:
        for row, sound in parquet.clips(plan, input):
            yield from _shared(by_row.pop(row["member"]), sound)
    except ValueError as error:  # it is not clear which column has the sound
        left = [clip for own in by_row.values() for clip in own]
        yield from ((clip, ClipError("unreadable", str(error))) for clip in left)


def _members(source: str, clips: Sequence[Clip], input: Input, kept: pa.Schema) -> Opened:
    """The clips of a tar. One that is not there any more, or has other bytes, is an error."""
    wanted = defaultdict[str, list[Clip]](list)
    for clip in clips:
        wanted[clip.place.name].append(clip)
    whole = {clip.version for clip in clips if not clip.version.startswith(DIGEST)}
    version = whole.pop() if len(whole) == 1 else None
    tar = {"source": source, "member": None, "source_version": version, "offset_s": 0.0}
    failure: ClipError | None = None
    for member, sound in webdataset.clips(
        pa.Table.from_pylist([tar], schema=PLACE), input, kept=kept
    ):
        if member["member"] is None:
            assert isinstance(sound, ClipError)
            failure = sound
        for clip, its in _shared(wanted.pop(member["member"], []), sound):
            has_changed = clip.version.startswith(DIGEST) and (
                clip.version != member["source_version"]
            )
            yield clip, _changed(its) if has_changed else its
    missing = failure or ClipError("unreadable", "not found: the tar has no such member any more")
    for own in wanted.values():
        yield from ((clip, missing) for clip in own)


def _changed(sound: BinaryIO | ClipError) -> ClipError:
    if isinstance(sound, ClipError):
        return sound
    sound.close()
    return ClipError("unreadable", "the member has changed since it was labelled")


def _shared(clips: Sequence[Clip], sound: BinaryIO | ClipError) -> Opened:
    """The sound for each of the clips, as each reader closes its file."""
    if len(clips) < 2 or isinstance(sound, ClipError):
        yield from ((clip, sound) for clip in clips)
        return
    with sound:
        content = sound.read()
    yield from ((clip, io.BytesIO(content)) for clip in clips)
