"""TSV: `PART/clips.tsv`, without quotes, as Common Voice has it. White space in a text is a single space."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._fields import linked, one_line
from jobs.export.formats._files import prepared, shard
from jobs.export.formats._files import problem as problem_of_link
from jobs.export.formats._table import fields, names
from jobs.export.options import Audio

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("none", "link", "copy", "flac", "wav")


def problem(item: Item, export: Export) -> str | None:
    """Why a TSV cannot name a file: nothing in it stands for a tab or a line end."""
    if export.audio == "link" and one_line(path := linked(item)) != path:
        return (
            "the file's name has a tab, a line end or several spaces in succession, unlike a TSV's"
        )
    return problem_of_link(item, export)


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the table of a part."""
    with folder.create_text(f"{export.prefix(part)}clips.tsv") as file:
        file.write("\t".join(map(one_line, names(export))) + "\n")
        for item in items:
            file.write("\t".join(map(one_line, fields(item, export))) + "\n")
