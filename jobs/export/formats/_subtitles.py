"""Subtitles: a file for each clip, with a cue for each segment; all of its text without segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NamedTuple

from jobs.export.folder import Folder
from jobs.export.formats import Add, Export, Item, Shard
from jobs.export.formats._fields import one_line
from jobs.export.options import Audio, BadExport

AUDIO: tuple[Audio, ...] = ("none",)
FILES_AT_ONCE = 16
FILES_IN_A_FOLDER = 10_000
Finish = Callable[[str, Iterator[Item], Export, Folder], None]


class Cue(NamedTuple):
    """A text, without line ends, and when it is shown, in seconds from the clip's start."""

    start_s: float
    end_s: float
    text: str


def prepared(export: Export) -> Export:
    """The export as it is. Raises BadExport for segments, which are cues of their clip."""
    if export.is_cut:
        raise BadExport(
            "--cut segments: expected whole clips for subtitles, whose cues are the segments"
        )
    return export


def problem(item: Item, export: Export) -> str | None:
    """None: every labelled clip has subtitles."""
    return None


def shard(shard: Shard, export: Export, folder: Folder) -> AbstractContextManager[Add]:
    """Not called, as there is no sound."""
    raise NotImplementedError


def writer(suffix: str, content: Callable[[list[Cue]], str]) -> Finish:
    """The `finish` of a format: it writes a file with this content of a clip's cues for each clip."""

    def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
        def write(number: int, item: Item) -> None:
            inner = f"{number // FILES_IN_A_FOLDER:05d}/" if number >= FILES_IN_A_FOLDER else ""
            path = f"{export.prefix(part)}{inner}{item['id']}.{suffix}"
            folder.write(path, content(cues(item)).encode(errors="replace"))

        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            waiting = []
            for number, item in enumerate(items):
                waiting.append(threads.submit(write, number, item))
                if len(waiting) == 64 * FILES_AT_ONCE:
                    [one.result() for one in waiting]
                    waiting.clear()
            [one.result() for one in waiting]

    return finish


def cues(item: Item) -> list[Cue]:
    """A clip's cues, in order, each with a text and some time to show it."""
    duration_s = item["duration_s"]
    found = [
        Cue(max(0.0, cue["start_s"] or 0.0), min(cue["end_s"] or duration_s, duration_s), text)
        for cue in item["segments"] or ()
        if (text := one_line(cue["text"]))
    ]
    if not item["segments"] and (text := one_line(item["value"])):
        found = [Cue(0.0, duration_s, text)]
    return sorted(cue for cue in found if cue.end_s - cue.start_s >= 0.001)


def clock(time_s: float, point: str) -> str:
    """`00:00:01,500`."""
    ms = round(1000 * time_s)
    hours, minutes = divmod(ms // 60_000, 60)
    return f"{hours:02d}:{minutes:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"
