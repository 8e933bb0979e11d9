"""Decompresses files as they are read: gzip and zstd, up to a limit."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from audio_ops.decode.formats import GIT_LFS
from audio_ops.errors import ClipError

# Limits of a decompressed file, in bytes and in multiples of its size: the larger one holds.
UNPACKED_BYTES, UNPACKED_TIMES = 256 << 20, 100
POINTER_BYTES = 1024  # at most, of Git LFS


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[Bounded]:
    """The file, decompressed as it is read, up to a limit. Raises ClipError for a Git LFS pointer."""
    refuse_pointer(file)
    max_bytes = max(UNPACKED_BYTES, UNPACKED_TIMES * file.seek(0, 2))
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as stream:
            yield Bounded(stream, max_bytes)
    elif magic == b"\x28\xb5\x2f\xfd":
        with pa.CompressedInputStream(file, "zstd") as stream:
            yield Bounded(stream, max_bytes)
    else:
        yield Bounded(file, max_bytes, at_once=1 << 16)


def refuse_pointer(file: BinaryIO) -> None:
    """Raise ClipError if the file is what Git LFS leaves in its place until it is fetched."""
    is_small = file.seek(0, 2) <= POINTER_BYTES
    file.seek(0)
    if is_small and file.read(len(GIT_LFS)) == GIT_LFS:
        what = "a Git LFS pointer in place of the file: `git lfs pull` fetches it"
        raise ClipError("not_audio", what)
    file.seek(0)


class Bounded:
    """A stream of at most `max_bytes`. Reading more raises ClipError, as does repeated reading at the
    end, where tarfile would loop forever to skip the size that a header claims."""

    def __init__(self, file: Any, max_bytes: int, at_once: int = tarfile.RECORDSIZE) -> None:
        self._file, self._max_bytes = file, max_bytes
        self.at_once = at_once  # bytes; damage to a compressed tar can lose as many before it
        self._count = self._ends = 0

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        self._count += len(data)
        self._ends += not data
        if self._count > self._max_bytes:
            raise ClipError("too_large", f"decompresses to more than {self._max_bytes:,} bytes")
        if self._ends > 3:
            raise ClipError("truncated", "the file ends inside of a member")
        return data
