"""Hugging Face's audiofolder: `PART/metadata.jsonl`, which names the audio files beside it."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._fields import as_json, extra, origin, seconds
from jobs.export.formats._files import prepared, problem, shard
from jobs.export.formats._splits import write_splits
from jobs.export.options import Audio

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("copy", "flac", "wav")


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the metadata, with the same keys in each line, and the list of the splits."""
    if part == list(export.parts)[-1]:
        write_splits(export, folder, lambda name: f"{export.prefix(name)}**")
    with folder.create_text(f"{export.prefix(part)}metadata.jsonl") as file:
        for item in items:
            entry = {"file_name": item["path"], export.kind: item["value"], "id": item["id"]}
            entry |= {"duration": seconds(item["duration_s"]), "score": item["score"]}
            entry |= {name: item[name] for name in ("language", "speaker", "member", "channel")}
            file.write(f"{as_json(entry | origin(item) | extra(item))}\n")
