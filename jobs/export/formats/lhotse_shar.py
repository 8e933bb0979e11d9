"""Lhotse's Shar: `PART/cuts.000000.jsonl.gz` and `recording.000000.tar`, ... with the same clips. The
part is `all` in an export that is not split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.export.folder import Folder
from jobs.export.formats import Add, Export, Item, Shard
from jobs.export.formats._cuts import cut, recording
from jobs.export.formats._fields import as_json
from jobs.export.formats._tars import gzipped_lines, prepared, problem, tar
from jobs.export.options import Audio
from jobs.export.sound import Encoded

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("flac", "wav", "copy")


@contextmanager
def shard(shard: Shard, export: Export, folder: Folder) -> Iterator[Add]:
    """Write the cuts and the sound of a shard."""
    prefix = f"{shard.part}/"  # always: Lhotse takes each file in the folder for one of the Shar
    with (
        gzipped_lines(folder, f"{prefix}cuts.{shard.number:06d}.jsonl.gz") as write_cut,
        tar(folder, f"{prefix}recording.{shard.number:06d}.tar") as write,
    ):

        def add(item: Item, sound: Encoded) -> None:
            of = recording(item, export, "shar", "")
            write(f"{item['id']}.{sound.extension}", sound.content)
            write(f"{item['id']}.json", f"{as_json(of)}\n".encode())
            write_cut(as_json(cut(item, export, of)))

        yield add


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Nothing: each shard has its cuts."""
