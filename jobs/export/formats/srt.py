"""SubRip: `PART/ID.srt` for each clip. Nothing in it stands for `-->` in a text, which is `->` there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._subtitles import (
    AUDIO,
    Cue,
    clock,
    named,
    prepared,
    problem,
    shard,
    write_subtitles,
)

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the subtitles of a part."""
    write_subtitles(named(items, part, export), "srt", content, folder)


def content(cues: Sequence[Cue]) -> str:
    """The file of a clip's cues."""
    return "".join(
        f"{number}\n{clock(cue.start_s, ',')} --> {clock(cue.end_s, ',')}\n"
        f"{cue.text.replace('-->', '->')}\n\n"
        for number, cue in enumerate(cues, 1)
    )
