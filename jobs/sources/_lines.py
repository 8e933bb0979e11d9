"""Lists as text: lines of JSON objects, a JSON array of them, CSV or TSV; plain, gzip or zstd."""

from __future__ import annotations

import codecs
import csv
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import BadInput
from jobs.sources._paths import Found, open_file, parse_json
from jobs.sources._unpack import unpacked

MAX_LINE = 1 << 20  # characters, in all lines of an entry together
MAX_BAD_LINES = 1000  # in succession: such a file is no list, and its rest gets no entries
MAX_ARRAY_BYTES = 256 << 20  # of a JSON array, which is parsed as a whole
PACKED = ("", ".gz", ".zst")  # what may follow the extension of a list
ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[")
ARRAY_OF_OBJECTS = re.compile(ARRAY.pattern + rb"\s*\{")  # else it is a line that is no object
DELIMITERS = (",", ";", "\t", "|")
HEAD_BYTES = 4096
SHOWN = 200  # characters of a first line in a message
# By the bytes that begin a file.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Line(NamedTuple):
    """An entry of a list: its last line, and its values by column or what is wrong with it."""

    number: int
    values: dict[str, Any] | ClipError


class Layout(NamedTuple):
    """A table whose delimiter and columns are known, because it has neither header nor quotes."""

    delimiter: str
    names: tuple[str, ...]
    at_least: int  # fields of a line


@contextmanager
def opened_text(found: Found, input: Input) -> Iterator[tuple[io.TextIOWrapper, bytes]]:
    """A text file, decompressed and decoded, and its first bytes.

    Bytes that are not UTF-8 become surrogates. Raises FileNotFoundError if it can't be opened or
    read, BadInput if it is in another encoding that does not show.
    """
    try:
        with (
            open_file(found.source, found.version or None, input.storage_options) as file,
            unpacked(file) as stream,
        ):
            raw = io.BufferedReader(_Raw(stream), 1 << 16)
            head = raw.peek(HEAD_BYTES)[:HEAD_BYTES]
            encoding = _encoding(head, found.source, input)
            errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
            yield io.TextIOWrapper(raw, encoding, errors=errors, newline="\n"), head
    except ClipError as error:
        raise FileNotFoundError(f"{found.source}: {error.message}") from None
    except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{found.source}: reading the list failed: {error}") from None


def unpacked_name(source: str) -> str:
    """A list's name in lower case, without the extension of its compression."""
    return source.lower().removesuffix(".gz").removesuffix(".zst")


def first_line(found: Found, input: Input) -> str:
    """The first line of a text file that is not empty, or ""."""
    with opened_text(found, input) as (text, _):
        return next((line for _, line in numbered(text) if line.strip()), "")


def _encoding(head: bytes, source: str, input: Input) -> str:
    if input.encoding:
        return "utf-8-sig" if input.encoding.lower() in ("utf-8", "utf8") else input.encoding
    marked = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if marked is None and 5 * head.count(0) > len(head):
        raise BadInput(
            f"input.encoding: expected text in UTF-8, found zero bytes at the beginning of {source}: "
            f"{head[:40]!r}; UTF-16 without a mark is utf-16-le or utf-16-be"
        )
    return marked or "utf-8-sig"


class TextList:
    """The entries of a list, in order. Empty lines are skipped.

    Raises FileNotFoundError if it can't be read, and BadInput if it is in another encoding, or a
    table whose header is not recognised. `is_header(names)` says whether a table's first line can be
    its header, if it has no `layout`.
    """

    def __init__(
        self,
        found: Found,
        input: Input,
        is_header: Callable[[Sequence[str]], bool] = bool,
        layout: Layout | None = None,
    ) -> None:
        self.found, self._input = found, input
        self._is_header, self._layout = is_header, layout
        self._lines = self._not_utf8 = self._beyond_ascii = 0

    def __iter__(self) -> Iterator[Line]:
        name = unpacked_name(self.found.source)
        with opened_text(self.found, self._input) as (text, head):
            if name.endswith((".jsonl", ".json")):
                begins = ARRAY if name.endswith(".json") else ARRAY_OF_OBJECTS
                entries = self._array(text) if begins.match(head) else self._objects(numbered(text))
            elif self._layout:
                entries = self._laid_out(numbered(text), self._layout)
            else:
                entries = self._table(numbered(text), name.rpartition(".")[2])
            yield from _until_too_many_are_bad(entries)
        if self._not_utf8 and not self._beyond_ascii and 100 * self._not_utf8 >= self._lines:
            raise BadInput(
                f"input.encoding: expected UTF-8, found {self._not_utf8:,} lines of "
                f"{self.found.source} in another encoding, such as latin-1, cp1252 or gb18030"
            )

    def _objects(self, lines: Iterator[tuple[int, str]]) -> Iterator[Line]:
        for number, line in lines:
            if not line.strip():
                continue
            if len(line) > MAX_LINE:
                yield Line(number, _too_long(number))
            elif not self._is_utf8(line):
                yield Line(number, ClipError("damaged", f"line {number} is not UTF-8"))
            else:
                yield Line(number, _object(number, line))

    def _array(self, text: io.TextIOWrapper) -> Iterator[Line]:
        whole = text.read(MAX_ARRAY_BYTES + 1)
        try:
            if len(whole) > MAX_ARRAY_BYTES:
                raise ValueError(f"more than {MAX_ARRAY_BYTES >> 20} MiB: write a line per entry")
            whole.encode()
            values = parse_json(whole)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"input.path: expected JSON in {self.found.source}: {error}") from None
        for number, value in enumerate(values, 1):
            self._lines += 1
            yield Line(number, _checked(number, value))

    def _laid_out(self, lines: Iterator[tuple[int, str]], layout: Layout) -> Iterator[Line]:
        for number, line in lines:
            if not line.strip():
                continue
            fields = line.split(layout.delimiter)
            if not layout.at_least <= len(fields) <= len(layout.names):
                what = f"expected {len(layout.names)} fields, found {len(fields)}"
                yield Line(number, ClipError("damaged", f"line {number}: {what}"))
            elif not self._is_utf8(line):
                yield Line(number, ClipError("damaged", f"line {number} is not UTF-8"))
            else:
                yield Line(number, dict(zip(layout.names, fields, strict=False)))

    def _table(self, lines: Iterator[tuple[int, str]], suffix: str) -> Iterator[Line]:
        """The entries of a CSV, whose quoted fields may contain line ends, or of a TSV without quotes."""
        first = next(((number, line) for number, line in lines if line.strip()), None)
        if first is None:
            return
        delimiter, names, has_header = self._header(first[1], suffix)
        rest = lines if has_header else chain([first], lines)
        is_plain = suffix == "tsv" and delimiter == "\t"
        before = first[0] - (not has_header)
        for number, fields in _plain(rest) if is_plain else _quoted(rest, delimiter, before):
            if not isinstance(fields, list):
                yield Line(number, fields)
            elif len(fields) != len(names):
                what = f"line {number}: expected {len(names)} fields, found {len(fields)}"
                yield Line(number, ClipError("damaged", what))
            elif not self._is_utf8("".join(fields)):
                yield Line(number, ClipError("damaged", f"line {number} is not UTF-8"))
            else:
                yield Line(number, dict(zip(names, fields, strict=True)))

    def _header(self, line: str, suffix: str) -> tuple[str, list[str], bool]:
        """A table's delimiter, the names of its columns, and whether they are its first line."""
        given = self._input.columns.names
        usual = "\t" if suffix == "tsv" else ","
        every = [self._input.delimiter] if self._input.delimiter else [usual, *DELIMITERS]
        split = {delimiter: _fields(line, delimiter, suffix) for delimiter in every}
        if given:
            fitting = [d for d, fields in split.items() if len(fields) == len(given)]
            return (fitting or every)[0], list(given), False
        fitting = [d for d, fields in split.items() if self._is_header(fields)]
        names = split[delimiter := (fitting or every)[0]]
        if not fitting:
            raise BadInput(
                f"input.columns.audio: expected the name of the column with the paths in the header "
                f"of {self.found.source}, found {line[:SHOWN]!r} (a list without a header needs "
                f"input.columns.names; other fields than {', '.join(names)[:SHOWN]} need "
                f"input.delimiter or input.encoding)"
            )
        # Spreadsheets write delimiters for empty columns after the others.
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise BadInput(
                f"input.path: expected columns of different names in {self.found.source}, found "
                f"{twice[0]!r} twice"
            )
        return delimiter, names, True

    def _is_utf8(self, text: str) -> bool:
        self._lines += 1
        if text.isascii():
            return True
        try:
            text.encode()
        except UnicodeEncodeError:
            self._not_utf8 += 1
            return False
        self._beyond_ascii += 1
        return True


def _until_too_many_are_bad(entries: Iterator[Line]) -> Iterator[Line]:
    bad = 0
    for entry in entries:
        bad = bad + 1 if isinstance(entry.values, ClipError) else 0
        if bad == MAX_BAD_LINES:
            rest = f"{bad:,} bad lines up to line {entry.number}: the rest is not read"
            yield entry._replace(values=ClipError("damaged", rest))
            return
        yield entry


class _Raw(io.RawIOBase):
    """A stream as an object that `io` can buffer."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._is_ended = stream, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b"" if self._is_ended else self._stream.read(len(buffer))
        self._is_ended = not data
        buffer[: len(data)] = data
        return len(data)


def numbered(text: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
    """Numbered lines. Only line feeds end a line, because a text may contain the other line ends.

    Longer lines are cut to MAX_LINE + 1 characters.
    """
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith("\n"):
            rest = text.readline(MAX_LINE + 1)
        yield number, line if len(line) > MAX_LINE else line.rstrip("\r\n")


def _too_long(number: int) -> ClipError:
    return ClipError("damaged", f"line {number}: an entry may have {MAX_LINE:,} characters")


def _object(number: int, line: str) -> dict[str, Any] | ClipError:
    try:
        return _checked(number, parse_json(line))
    except (ValueError, RecursionError) as error:
        what = f"line {number}: expected a whole JSON object, found {line.strip()[:40]!r}: {error}"
        return ClipError("damaged", what)


def _checked(number: int, value: Any) -> dict[str, Any] | ClipError:
    if isinstance(value, dict):
        return value
    what = f"line {number}: expected a JSON object, found {type(value).__name__}"
    return ClipError("damaged", what)


def _fields(line: str, delimiter: str, suffix: str) -> list[str]:
    if suffix == "tsv" and delimiter == "\t":
        return line.split("\t")
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _plain(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str] | ClipError]]:
    for number, line in lines:
        if len(line) > MAX_LINE:
            yield number, _too_long(number)
        elif line:
            yield number, line.split("\t")


def _quoted(
    lines: Iterator[tuple[int, str]], delimiter: str, before: int
) -> Iterator[tuple[int, list[str] | ClipError]]:
    """The fields of each entry, with its last line; `before` lines came before these."""
    size = 0  # characters of the entry being read, which an open quote extends line by line

    def text() -> Iterator[str]:
        nonlocal size
        for _, line in lines:
            size += len(line)
            yield '"x"x' if size > MAX_LINE else f"{line}\n"  # an error, in a quote and outside

    reader = csv.reader(text(), delimiter=delimiter, strict=True)
    while True:
        size = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number = before + reader.line_num
            problem = ClipError("damaged", f"line {number}: {error}")
            yield number, problem if size <= MAX_LINE else _too_long(number)
            continue
        if fields:
            yield before + reader.line_num, fields
