"""WebVTT: `PART/ID.vtt` for each clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

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
    write_subtitles(named(items, part, export), "vtt", content, folder)


def content(cues: Sequence[Cue]) -> str:
    """The file of a clip's cues. A text with markup shows as it is."""
    return "WEBVTT\n\n" + "".join(
        f"{clock(cue.start_s, '.')} --> {clock(cue.end_s, '.')}\n"
        f"{escape(cue.text, quote=False)}\n\n"
        for cue in cues
    )
