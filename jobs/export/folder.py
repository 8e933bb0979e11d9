"""The folder of an export while it is made, and how it becomes the export.

All files are written into `OUT.unfinished`. When the last one is there, a local folder is renamed, and
on a store its objects are copied, those that name others last. So a reader of OUT sees all of an export
or, of a store, at least none of its lists without what they name.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from jobs.sources._paths import absolute, is_local
from jobs.table.storage import Storage

ABOUT = ".earmark/export.json"  # which export this is; in OUT when it is whole
RECORDS = ".earmark/records"  # of finished shards, until the lists are written
PROBE = "_earmark"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HALF = re.compile(r"(^|/)\.([^/]*\.)?[0-9a-f]{32}$")  # a file that a killed process was writing
COPIED_LAST = (".json", ".jsonl", ".jsonl.gz", ".csv", ".tsv", ".yaml", "wav.scp")


@dataclass(frozen=True)
class Folder:
    """A folder, local or on a store, into which whole files are written."""

    path: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def storage(self) -> Storage:
        return Storage(self.path, self.options)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write into, which gets its name, in place of any other, when the block ends."""
        storage = self.storage
        if not storage.is_local:
            with tempfile.TemporaryDirectory() as scratch:
                local = os.path.join(scratch, "file")
                with open(local, "wb") as file:
                    yield file
                with storage.naming(name):
                    storage.retrying(lambda: storage.fs.put_file(local, f"{storage.root}/{name}"))
            return
        path = f"{storage.root}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        unfinished = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}"
        try:
            with open(unfinished, "wb") as file:
                yield file
            os.replace(unfinished, path)
        except BaseException as error:
            os.unlink(unfinished)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                error.filename = path  # an error of writing names no file
            raise

    @contextmanager
    def create_text(self, name: str) -> Iterator[io.TextIOWrapper]:
        """Like `create`, for UTF-8 text with the line ends that are written."""
        with self.create(name) as file:
            text = io.TextIOWrapper(file, "utf-8", errors="replace", newline="")
            yield text
            text.flush()
            text.detach()

    def write(self, name: str, content: bytes) -> None:
        """Write a file of this content."""
        storage = self.storage
        storage.retrying(lambda: storage.write(name, content))

    def remove(self, name: str = "") -> None:
        """Remove a file or a folder, if it is there."""
        storage = self.storage
        path = f"{storage.root}/{name}".rstrip("/")
        if storage.exists(name):
            with storage.naming(name):
                storage.fs.rm(path, recursive=True)

    def about(self) -> dict[str, Any] | None:
        """What `ABOUT` says; None if it is not there."""
        try:
            about: dict[str, Any] = json.loads(self.storage.read(ABOUT))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return about

    def names(self) -> list[str]:
        """The files in the folder and below it, sorted."""
        storage = self.storage
        storage.fs.invalidate_cache()
        return sorted(path[len(storage.root) + 1 :] for path in storage.fs.find(storage.root))


def folders(out: str, options: Mapping[str, Any]) -> tuple[Folder, Folder]:
    """The finished and the unfinished folder of an export to `out`, of a link that to which it leads."""
    path = absolute(out)
    if is_local(out) and os.path.islink(path):
        path = os.path.realpath(path)
    return Folder(path, options), Folder(f"{path}.unfinished", options)


def complete(unfinished: Folder, out: Folder) -> None:
    """Make the unfinished folder the finished one."""
    unfinished.remove(RECORDS)
    unfinished.remove(PROBE)
    for name in unfinished.names():
        if _HALF.search(name):
            unfinished.remove(name)
    storage, target = unfinished.storage, out.storage
    if storage.is_local:
        if os.path.isdir(target.root):  # it is empty
            os.rmdir(target.root)
        os.makedirs(os.path.dirname(target.root), exist_ok=True)
        os.rename(storage.root, target.root)
        return

    def order(name: str) -> tuple[bool, bool, str]:
        return name == ABOUT, name.endswith(COPIED_LAST), name

    for name in sorted(unfinished.names(), key=order):
        with target.naming(name):
            storage.retrying(
                lambda name=name: storage.fs.cp_file(  # type: ignore[misc]
                    f"{storage.root}/{name}", f"{target.root}/{name}"
                )
            )
    unfinished.remove()


def is_empty(folder: Folder) -> bool:
    """Whether there is nothing in a folder, or no folder."""
    return not folder.storage.names()
