"""Reads tars as streams, whatever their headers claim."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from audio_ops.errors import ClipError

# Of a long name or a pax header, which tarfile parses in quadratic time.
MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS = 8  # of one member
_EXTRA_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


@contextmanager
def tar_errors() -> Iterator[None]:
    """Turn the exceptions of reading a damaged tar into a ClipError."""
    try:
        yield
    except (tarfile.ReadError, EOFError) as error:
        raise ClipError("truncated", f"the tar ends too early: {error}") from None
    except tarfile.TarError as error:
        raise ClipError("damaged", f"the tar can't be read: {error}") from None
    except (zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise ClipError("damaged", f"the tar can't be decompressed: {error}") from None
    except OSError as error:
        raise ClipError("unreadable", f"reading the tar failed: {error}") from None


class Header(tarfile.TarInfo):
    """A header that raises ClipError if it is damaged; tarfile takes that for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        assert isinstance(archive, Archive)
        archive.depth += 1  # reading an extra header reads the next one, recursively
        try:
            if archive.depth > MAX_HEADERS:
                raise ClipError("damaged", f"a member may have {MAX_HEADERS} headers")
            header = super().fromtarfile(archive)
            if header.size < 0:
                raise tarfile.HeaderError("a negative size")  # type: ignore[attr-defined]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.is_ended = True  # zeros: the end, or a boundary of archives joined by `cat`
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.is_ended:
                raise
            if not archive.offset:
                raise ClipError("empty", "the file has no bytes") from None
            raise ClipError("truncated", "the tar ends without an end mark") from None
        except tarfile.TruncatedHeaderError as error:  # type: ignore[attr-defined]
            raise ClipError("truncated", f"the tar ends in a header: {error}") from None
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            what = f"header at byte {archive.offset}" if archive.offset else "the file is no tar"
            raise ClipError("damaged", f"{what}: {error}") from None
        finally:
            archive.depth -= 1
        archive.is_ended = False
        return header

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _EXTRA_HEADERS and not 0 <= self.size <= MAX_HEADER_BYTES:
            what = f"a header may have {MAX_HEADER_BYTES} bytes, found {self.size}"
            raise ClipError("damaged", what)
        return super()._proc_member(archive)  # type: ignore[misc]

    # The map of a sparse file may have any length, and no audio is sparse, so maps are skipped.

    def _proc_sparse(self, archive: Any) -> Any:
        _, has_more, _ = self._sparse_structs  # type: ignore[attr-defined]
        while has_more:
            block = archive.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.TruncatedHeaderError("truncated map")  # type: ignore[attr-defined]
            has_more = block[504]
        self.sparse: Any = []
        return self._proc_builtin(archive)  # type: ignore[attr-defined]

    def _proc_gnusparse_10(self, member: Any, *_: Any) -> None:
        member.sparse = []


class Archive(tarfile.TarFile):
    tarinfo = Header
    ignore_zeros = True
    is_ended = False
    depth = 0


def as_utf8(name: str) -> str:
    """A member's name, with escapes in place of bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def content_of(archive: tarfile.TarFile, header: tarfile.TarInfo) -> io.BytesIO:
    """A member's bytes, in memory that grows with them and is not the size that a header claims."""
    content = io.BytesIO()
    file = archive.extractfile(header)
    assert file is not None  # a regular file
    shutil.copyfileobj(file, content, 1 << 20)
    content.seek(0)
    return content
