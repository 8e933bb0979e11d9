"""NeMo's tarred sets: `PART/audio_0.tar`, ... and `tarred_audio_manifest.json`, which names members."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.export.folder import Folder
from jobs.export.formats import Add, Export, Item, Shard
from jobs.export.formats._fields import as_json, labels, origin, seconds
from jobs.export.formats._tars import prepared, problem, tar
from jobs.export.options import Audio
from jobs.export.sound import Encoded

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("copy", "flac", "wav")


@contextmanager
def shard(shard: Shard, export: Export, folder: Folder) -> Iterator[Add]:
    """Write the sound of each item as a member `ID.flac`."""
    with tar(folder, f"{export.prefix(shard.part)}audio_{shard.number}.tar") as write:

        def add(item: Item, sound: Encoded) -> None:
            item |= {"path": f"{item['id']}.{sound.extension}", "shard": shard.number}
            write(item["path"], sound.content)

        yield add


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the manifest of a part's tars."""
    with folder.create_text(f"{export.prefix(part)}tarred_audio_manifest.json") as file:
        for item in items:
            entry = {"audio_filepath": item["path"], "duration": seconds(item["duration_s"])}
            entry |= labels(item, export) | {"shard_id": item["shard"]}
            file.write(f"{as_json(entry | {'id': item['id'], **origin(item)})}\n")
