"""Sound as one file for each clip, in a folder for each shard, beside the list that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.export.folder import Folder
from jobs.export.formats import Add, Export, Item, Shard
from jobs.export.formats._fields import linked, one_channel, unlinkable
from jobs.export.sound import Encoded


def prepared(export: Export) -> Export:
    """The export as it is."""
    return export


def problem(item: Item, export: Export) -> str | None:
    """Why a list of files cannot name a clip, if files stay where they are."""
    return (unlinkable(item) or one_channel(item)) if export.audio == "link" else None


@contextmanager
def shard(shard: Shard, export: Export, folder: Folder) -> Iterator[Add]:
    """Write the sound of each item into `PART/audio/SHARD/ID.flac`."""
    name = f"{export.prefix(shard.part)}audio/{shard.number:05d}"
    folder.remove(name)  # what a killed export has left

    def add(item: Item, sound: Encoded) -> None:
        path = f"{name}/{item['id']}.{sound.extension}"
        with folder.create(path) as file:
            file.write(sound.content)
        item["path"] = path.removeprefix(export.prefix(shard.part))

    yield add


def path_of(item: Item, export: Export) -> str:
    """An item's path: relative to its part's folder, or of its own file."""
    return linked(item) if export.audio == "link" else item["path"]


def absolute_path_of(item: Item, export: Export) -> str:
    """An item's path for formats whose relative paths are relative to wherever they are read."""
    if export.audio == "link":
        return linked(item)
    return f"{export.out}/{export.prefix(item['part'])}{item['path']}"
