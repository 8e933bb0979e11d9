"""Guards against Parquet pages that decompress to far more than their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow.parquet as pq

from audio_ops.errors import ClipError

MAX_PAGE_BYTES, MAX_PAGE_RATIO = 32 << 20, 20  # limits of a decompressed page: the larger one holds
PAGE_HEADER_BYTES = 64 << 10


class PageWatcher:
    """A binary file for `pq.ParquetFile` that checks the header of each page as Arrow reads it.

    Arrow allocates the size that a page's header claims, which is not in the footer. Reading raises
    ClipError before a small page is decompressed into a large one.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next: dict[int, int] = {}  # start of a column's next page: end of the column
        self.seek, self.tell = file.seek, file.tell

    def close(self) -> None:
        """Does nothing: the caller that opened the file closes it."""

    def watch(self, group: pq.RowGroupMetaData, columns: Sequence[str]) -> None:
        """Check the pages of these columns of a row group, which are to be read next."""
        self._next.clear()
        for column in map(group.column, range(group.num_columns)):
            if not any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in columns):
                continue
            start = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                start = min(start, column.dictionary_page_offset)
            self._next[start] = start + column.total_compressed_size

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        try:
            data = self._file.read(size)
        except OSError as error:  # Arrow would report it as a damaged page
            raise ClipError("unreadable", f"reading the file failed: {error}") from None
        end = start + len(data)
        for at in [at for at in self._next if start <= at < end]:
            stop = self._next.pop(at)
            while start <= at < min(end, stop):
                at += self._page(at, data[at - start : at - start + PAGE_HEADER_BYTES])
            if at < stop:
                self._next[at] = stop
        return data

    def _page(self, at: int, head: bytes) -> int:
        """The length in bytes of the page at `at`, including its header."""
        try:
            unpacked, packed, size = page_header(head)
        except IndexError:  # the header continues after the bytes read
            here = self._file.tell()
            self._file.seek(at)
            head = self._file.read(PAGE_HEADER_BYTES)
            self._file.seek(here)
            try:
                unpacked, packed, size = page_header(head)
            except IndexError:
                raise ClipError("damaged", "a page's header has no end") from None
        if unpacked < 0 or packed < 0:
            raise ClipError("damaged", "a page with a negative size")
        if unpacked > max(MAX_PAGE_BYTES, MAX_PAGE_RATIO * packed):
            raise ClipError("too_large", f"a page of {packed:,} bytes unpacks to {unpacked:,}")
        return size + packed


def page_header(data: bytes) -> tuple[int, int, int]:
    """(bytes decompressed, bytes compressed, bytes of the header itself) of a page, from its header.

    The header is a struct in Thrift's compact protocol that begins with three integers: the kind
    of page and the two sizes. Raises IndexError if it is longer than `data`, and ClipError if it is
    no such struct.
    """
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    def skip_struct(depth: int = 0) -> None:
        nonlocal at
        while field := data[at]:
            at += 1
            if not field >> 4:  # the field number follows, as it is not a small difference
                number()
            kind = field & 15
            if kind in (4, 5, 6):
                number()
            elif kind in (3, 7):
                at += 1 if kind == 3 else 8
            elif kind == 8:
                length = number()  # moves `at` itself
                at += length
            elif kind == 12 and depth < 4:
                skip_struct(depth + 1)
            elif kind not in (1, 2):  # a boolean is its kind: no value follows
                raise ClipError("damaged", "a page's header cannot be read")
        at += 1

    sizes = []
    for _ in range(3):
        if data[at] != 0x15:
            raise ClipError("damaged", "a page's header cannot be read")
        at += 1
        value = number()
        sizes.append(value >> 1 ^ -(value & 1))
    skip_struct()
    return sizes[1], sizes[2], at
