"""WebVTT: `PART/ID.vtt` for each clip."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jobs.export.formats._subtitles import AUDIO, Cue, clock, prepared, problem, shard, writer

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]


def content(cues: Sequence[Cue]) -> str:
    """The file of a clip's cues. A text with markup shows as it is."""
    return "WEBVTT\n\n" + "".join(
        f"{clock(cue.start_s, '.')} --> {clock(cue.end_s, '.')}\n"
        f"{escape(cue.text, quote=False)}\n\n"
        for cue in cues
    )


finish = writer("vtt", content)
