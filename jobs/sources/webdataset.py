"""WebDataset: tars of audio and its metadata, `0001.flac`, `0001.json`, `0002.flac`, ... in sequence.

Successive members whose names, including folders, are equal up to the first dot of the file name
form a sample. Every audio member is a clip; the `.json`, `.txt` and `.cls` members of its sample are
its columns. A tar (plain, gzip, zstd) is read as a stream and never extracted; memory holds one
sample. Members' names are never used as paths.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, PLACE, Clip, Listing, NoSuchColumn
from jobs.sources._paths import as_text, find_files, open_file, parse_json

SHARDED = True
OPTIONS = ("extensions", "max_clip_bytes")
SIDECARS = ("json", "txt", "cls")
OFFERED = "key, txt, cls, json, json.FIELD"  # all text; json.a.b looks into json.a

MAX_SIDECAR_BYTES = 4 << 20
MAX_MEMBERS = 1_000_000  # audio and sidecars of a tar, whose names are kept in memory
# Of a long name or a pax header, which tarfile parses in quadratic time.
MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS = 8  # of one member
# Limits of a decompressed tar, in bytes and in multiples of its size: the larger one holds.
UNPACKED_BYTES, UNPACKED_TIMES = 256 << 20, 100
_EXTRA_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def suffixes(input: Input) -> tuple[str, ...]:
    return (".tar", ".tar.gz", ".tgz", ".tar.zst")


def columns(input: Input, names: list[str]) -> pa.Schema:
    for name in names:
        if name not in ("key", *SIDECARS) and not (name.startswith("json.") and name[5:]):
            raise NoSuchColumn(name, OFFERED)
    return pa.schema([(name, pa.string()) for name in names])


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """All tars under the input's paths."""
    files = find_files(input.paths, suffixes(input), input.storage_options, warn)
    columns = {
        "source": [file.source for file in files],
        "member": pa.nulls(len(files), pa.string()),
        "source_version": [file.version for file in files],
        "offset_s": [0.0] * len(files),
    }
    return Listing(pa.table(columns, schema=PLACE))


def clips(plan: pa.Table, input: Input, kept: pa.Schema = NO_COLUMNS) -> Iterator[Clip]:
    """All clips of each tar. If a tar is damaged, its last item is an error without a member.

    A clip's version is a digest of its bytes, so that its identity stays when the tar grows or is
    written again.
    """
    for row in plan.select(PLACE.names).to_pylist():
        try:
            with open_file(row["source"], row["source_version"], input.storage_options) as file:
                seen: set[str] = set()
                for sample in _samples(file, input, frozenset(kept.names)):
                    for member, sound in sample.clips():
                        columns = sample.columns(member, kept)
                        place = {"member": _unique_name(member, seen)}
                        if not isinstance(sound, ClipError):
                            place["source_version"] = _digest(sound, columns)
                        yield row | columns | place, sound
        except ClipError as error:
            yield row, error


@dataclass
class _Sample:
    """The members with the same key."""

    key: str
    names: set[str] = field(default_factory=set)
    audio: list[tuple[str, io.BytesIO | ClipError]] = field(default_factory=list)
    sidecars: dict[str, bytes | None] = field(default_factory=dict)  # by the name after the key
    size: int = 0

    def clips(self) -> Iterator[tuple[str, io.BytesIO | ClipError]]:
        yield from self.audio
        if self.sidecars and not self.audio:
            found = ", ".join(f".{suffix}" for suffix in self.sidecars)
            yield (
                self.key,
                ClipError(
                    "no_audio",
                    f"expected an audio member beside those of this name, found only {found}",
                ),
            )

    def columns(self, member: str, kept: pa.Schema) -> dict[str, str | None]:
        """The kept columns of a member, null where a sidecar is missing, too large, or not UTF-8 or
        JSON."""
        columns: dict[str, str | None] = {}
        parsed: Any = None
        for name in kept.names:
            kind, _, path = name.partition(".")
            text = self._text(member, kind)
            if path:
                parsed = parsed or _json(text)
                columns[name] = as_text(_look_up(parsed, path))
            else:
                columns[name] = self.key if kind == "key" else text
        return columns

    def _text(self, member: str, kind: str) -> str | None:
        # A name with dots, 0.5_take.wav, has its own sidecar, 0.5_take.txt, or that of its sample.
        own = member[len(self.key) + 1 :].rpartition(".")[0]
        data = self.sidecars.get(f"{own}.{kind}", self.sidecars.get(kind))
        try:
            return None if data is None else data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            return None


def _samples(file: BinaryIO, input: Input, kept: frozenset[str]) -> Iterator[_Sample]:
    """A tar's samples. Raises ClipError for damage, after all samples that precede it."""
    wanted = {name.partition(".")[0] for name in kept}
    extensions = frozenset(input.extensions)
    sample, count = _Sample(""), 0
    try:
        with _tar_errors(), _unpacked(file) as stream:
            archive = _Archive.open(fileobj=stream, mode="r|", bufsize=stream.at_once)  # type: ignore[call-overload]
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all headers
                name = _Name.of(header)
                is_used = name.kind in SIDECARS or name.kind in extensions
                if name.is_hidden or header.isdir() or not is_used:
                    continue
                if (count := count + 1) > MAX_MEMBERS:
                    raise ClipError("too_large", f"a tar may have {MAX_MEMBERS:,} members")
                if name.key != sample.key or name.full in sample.names:
                    yield sample
                    sample = _Sample(name.key)
                sample.names.add(name.full)
                if name.kind in SIDECARS:
                    max_bytes = input.max_clip_bytes if name.kind in wanted else None
                    _add_sidecar(sample, name, archive, header, max_bytes)
                else:
                    _add_audio(sample, name, archive, header, input.max_clip_bytes)
    except ClipError:
        if sample.audio:  # otherwise its audio may be in the part that cannot be read
            yield sample
        raise
    yield sample


class _Name(NamedTuple):
    """The parts of a member's name `a/b.c.TXT`."""

    full: str
    key: str  # a/b
    suffix: str  # c.TXT
    kind: str  # txt

    @classmethod
    def of(cls, header: tarfile.TarInfo) -> _Name:
        name = _as_utf8(header.name)
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        return cls(name, f"{folder}{slash}{stem}", suffix, suffix.rpartition(".")[2].lower())

    @property
    def is_hidden(self) -> bool:
        return not self.key or self.key.endswith("/")


def _add_sidecar(
    sample: _Sample, name: _Name, archive: _Archive, header: tarfile.TarInfo, max_bytes: int | None
) -> None:
    """Add the content, or None if it is too large for the sample, or unused (no `max_bytes`)."""
    fits = header.isreg() and not header.issparse() and header.size <= MAX_SIDECAR_BYTES
    fits = fits and max_bytes is not None and sample.size + header.size <= max_bytes
    content = _content(archive, header).getvalue() if fits else None
    sample.sidecars[name.suffix[: -len(name.kind)] + name.kind] = content
    sample.size += header.size if fits else 0


def _add_audio(
    sample: _Sample, name: _Name, archive: _Archive, header: tarfile.TarInfo, max_bytes: int
) -> None:
    """Add the content, or a ClipError in its place."""
    content: io.BytesIO | ClipError
    if not header.isreg() or header.issparse():
        what = f"a link to {_as_utf8(header.linkname)}" if header.linkname else "not a file"
        content = ClipError("unreadable", f"the member is {what}")
    elif (size := sample.size + header.size) > max_bytes:
        limit = f"input.max_clip_bytes allows {max_bytes:,} in a sample, found {size:,}"
        content = ClipError("too_large", limit)
    else:
        content = _content(archive, header)
        sample.size += header.size
    sample.audio.append((name.full, content))


@contextmanager
def _tar_errors() -> Iterator[None]:
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


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[_Bounded]:
    """The tar, decompressed as it is read, up to a limit."""
    max_bytes = max(UNPACKED_BYTES, UNPACKED_TIMES * file.seek(0, 2))
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield _Bounded(unpacked, max_bytes)
    elif magic == b"\x28\xb5\x2f\xfd":
        with pa.CompressedInputStream(file, "zstd") as unpacked:
            yield _Bounded(unpacked, max_bytes)
    else:
        yield _Bounded(file, max_bytes, at_once=1 << 16)


class _Bounded:
    """A stream of at most `max_bytes`. Reading more raises ClipError, as does repeated reading at the
    end, where tarfile would loop forever to skip the size that a header claims."""

    def __init__(self, file: Any, max_bytes: int, at_once: int = tarfile.RECORDSIZE) -> None:
        self._file, self._max_bytes = file, max_bytes
        self.at_once = at_once  # bytes; damage to a compressed tar can lose as many before it
        self._count = self._ends = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._count += len(data)
        self._ends += not data
        if self._count > self._max_bytes:
            what = f"the tar decompresses to more than {self._max_bytes:,} bytes"
            raise ClipError("too_large", what)
        if self._ends > 3:
            raise ClipError("truncated", "the tar ends inside of a member")
        return data


class _Header(tarfile.TarInfo):
    """A header that raises ClipError if it is damaged; tarfile takes that for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        assert isinstance(archive, _Archive)
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


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    ignore_zeros = True
    is_ended = False
    depth = 0


def _as_utf8(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _content(archive: tarfile.TarFile, header: tarfile.TarInfo) -> io.BytesIO:
    """A member's bytes, in memory that grows with them and is not the size that a header claims."""
    content = io.BytesIO()
    file = archive.extractfile(header)
    assert file is not None  # a regular file
    shutil.copyfileobj(file, content, 1 << 20)
    content.seek(0)
    return content


def _digest(sound: io.BytesIO, columns: dict[str, str | None]) -> str:
    """A clip's version: BLAKE2b (128 bits) of its sound and the kept sidecars."""
    digest = hashlib.blake2b(sound.getbuffer(), digest_size=16)
    if texts := {name: text for name, text in columns.items() if name != "key"}:
        digest.update(json.dumps(texts, sort_keys=True).encode())
    return f"blake2b:{digest.hexdigest()}"


def _unique_name(name: str, seen: set[str]) -> str:
    """The name, with a number if it was used before: `a.wav`, `a.wav#2`, ..."""
    unique, count = name, 1
    while unique in seen:
        count += 1
        unique = f"{name}#{count}"
    seen.add(unique)
    return unique


def _json(text: str | None) -> Any:
    try:
        return parse_json(text or "null")
    except (ValueError, RecursionError):
        return None


def _look_up(value: Any, path: str) -> Any:
    """The value of `a.b` in {"a.b": ...} or else in {"a": {"b": ...}}."""
    if not isinstance(value, dict) or path in value:
        return value.get(path) if isinstance(value, dict) else None
    first, dot, rest = path.partition(".")
    return _look_up(value.get(first), rest) if dot else None
