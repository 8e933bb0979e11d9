"""Sound in tars: the same bytes for the same members, whenever and by whom they are written."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item

Write = Callable[[str, bytes], None]


def prepared(export: Export) -> Export:
    """The export as it is."""
    return export


def problem(item: Item, export: Export) -> str | None:
    """None: every clip can be in a tar."""
    return None


@contextmanager
def tar(folder: Folder, name: str) -> Iterator[Write]:
    """A tar; the function writes a member by its name and content."""
    with (
        folder.create(name) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):

        def write(member: str, content: bytes) -> None:
            header = tarfile.TarInfo(member)
            header.size, header.mtime, header.mode = len(content), 0, 0o644
            archive.addfile(header, io.BytesIO(content))

        yield write


@contextmanager
def gzipped_lines(folder: Folder, name: str) -> Iterator[Callable[[str], None]]:
    """A gzipped text, without the time in its header; the function writes a line."""
    with (
        folder.create(name) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):

        def write(line: str) -> None:
            packed.write(f"{line}\n".encode(errors="replace"))

        yield write
