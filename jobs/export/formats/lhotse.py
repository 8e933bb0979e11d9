"""Lhotse's cuts: `PART/cuts.jsonl.gz`, a cut with one supervision for each clip or segment."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._cuts import cut, recording
from jobs.export.formats._fields import as_json, unlinkable
from jobs.export.formats._files import absolute_path_of, prepared, shard
from jobs.export.formats._tars import gzipped_lines
from jobs.export.options import Audio
from jobs.sources._paths import is_local
from jobs.workers.reopen import place_of

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("link", "copy", "flac", "wav")


def problem(item: Item, export: Export) -> str | None:
    """Why a cut cannot name a clip where it is."""
    if export.audio != "link":
        return None
    if reason := unlinkable(item):
        return reason
    if item["offset_s"] or place_of(item["member"]).length_s is not None:
        return (
            "the clip is a stretch of a file, whose length Lhotse wants and the table does not have"
        )
    return None


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the cuts."""
    with gzipped_lines(folder, f"{export.prefix(part)}cuts.jsonl.gz") as write:
        for item in items:
            path = absolute_path_of(item, export)
            kind = "file" if is_local(path) else "url"
            write(as_json(cut(item, export, recording(item, export, kind, path))))
