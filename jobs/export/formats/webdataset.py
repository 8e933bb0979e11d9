"""WebDataset: `PART/000000.tar`, ... with `ID.flac`, `ID.json` and, of a transcript, `ID.txt`."""

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
    """Write the items of a tar, each with its members in succession."""
    with tar(folder, f"{export.prefix(shard.part)}{shard.number:06d}.tar") as write:

        def add(item: Item, sound: Encoded) -> None:
            about = {"id": item["id"], "duration": seconds(item["duration_s"])}
            about |= labels(item, export) | origin(item)
            write(f"{item['id']}.{sound.extension}", sound.content)
            write(f"{item['id']}.json", as_json(about).encode())
            if export.kind == "text":
                write(f"{item['id']}.txt", item["value"].encode())

        yield add


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Nothing: the tars have it all."""
