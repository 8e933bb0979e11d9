"""SubRip: `PART/ID.srt` for each clip. Nothing in it stands for `-->` in a text, which is `->` there."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.export.formats._subtitles import AUDIO, Cue, clock, prepared, problem, shard, writer

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]


def content(cues: Sequence[Cue]) -> str:
    """The file of a clip's cues."""
    return "".join(
        f"{number}\n{clock(cue.start_s, ',')} --> {clock(cue.end_s, ',')}\n"
        f"{cue.text.replace('-->', '->')}\n\n"
        for number, cue in enumerate(cues, 1)
    )


finish = writer("srt", content)
