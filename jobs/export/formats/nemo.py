"""NeMo's manifest: `PART/manifest.json`, lines of JSON with `audio_filepath`, `duration` and `text`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._fields import as_json, labels, origin, seconds, span
from jobs.export.formats._files import path_of, prepared, problem, shard
from jobs.export.options import Audio

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("link", "copy", "flac", "wav")


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the manifest. Paths of written sound are relative to it."""
    with folder.create_text(f"{export.prefix(part)}manifest.json") as file:
        for item in items:
            entry: dict[str, Any] = {"audio_filepath": path_of(item, export)}
            if export.audio == "link" and span(item) != (0.0, None):
                entry["offset"] = span(item)[0]
            entry |= {"duration": seconds(item["duration_s"]), **labels(item, export)}
            entry |= {"id": item["id"], **(origin(item) if export.audio != "link" else {})}
            file.write(f"{as_json(entry)}\n")
