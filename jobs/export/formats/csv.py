"""CSV: `PART/clips.csv`, with quotes around fields that need them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from types import SimpleNamespace

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._files import prepared, problem, shard
from jobs.export.formats._table import fields, names
from jobs.export.options import Audio

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("none", "link", "copy", "flac", "wav")
CRLF = "\r\n"


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the table of a part."""
    with folder.create_text(f"{export.prefix(part)}clips.csv") as file:
        # A field with a character of the line terminator gets quotes, so that it has to have both.
        lines = SimpleNamespace(write=lambda line: file.write(f"{line.removesuffix(CRLF)}\n"))
        writer = csv.writer(lines, lineterminator=CRLF)
        writer.writerow(names(export))
        writer.writerows(fields(item, export) for item in items)
