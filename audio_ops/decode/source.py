"""A file, as decoders read it."""

from __future__ import annotations

import errno
from typing import BinaryIO

from audio_ops.errors import ClipError


class Source:
    """A seekable file from byte `start` on, with `read`, `seek` and `tell` for a decoder.

    It has no `name` from which a decoder could find another file or guess a format. The first
    exception of a read or seek is kept for `check`: libsndfile would print it, FFmpeg wrap it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.start = file, 0
        self._failure: BaseException | None = None
        self.length = self.seek(0, 2)
        self.seek(0)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except BaseException as exc:
            self._failure = self._failure or exc
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset + (0 if whence else self.start), whence) - self.start
        except (ValueError, OverflowError):  # a false header: before the start, or beyond any file
            return -1
        except BaseException as exc:
            if getattr(exc, "errno", None) != errno.EINVAL:  # beyond any file, on a local disk
                self._failure = self._failure or exc
            return -1

    def tell(self) -> int:
        return self._file.tell() - self.start

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`. The position for `read` stays as it is."""
        position = self.tell()
        found = self.read(size) if self.seek(offset) >= 0 else b""
        self.seek(position)
        return found

    def tail(self, size: int) -> bytes:
        """The last `size` bytes, or all of them."""
        return self.at(max(0, self.length - size), size)

    def skip(self, count: int) -> None:
        """Make the byte at `count` the first one."""
        self.start += count
        self.length -= count
        self.seek(0)

    def check(self) -> None:
        """Raise the first exception of a read or seek: an OSError as ClipError `unreadable`."""
        if isinstance(self._failure, OSError):
            raise ClipError("unreadable", f"reading failed: {self._failure}") from self._failure
        if self._failure:
            raise self._failure
