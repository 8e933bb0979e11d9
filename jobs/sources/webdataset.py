"""Tars of audio as WebDataset has them: `0001.flac`, `0001.json`, `0002.flac`, ... one after another.

What members share up to the first dot of their file name, folders included, makes them a sample,
in any order but next to each other. Every audio member is a clip; `.json`, `.txt` and `.cls`
members of its sample are its columns. A tar (plain, gzip, zstd) is read in one stream and never
unpacked; what is held of it is one sample. Members' names are names: nothing is opened by them.
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
from typing import Any, BinaryIO

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.config import Input
from jobs.sources import NO_COLUMNS, PLACE, Listing, NoSuchColumn
from jobs.sources._paths import as_text, look, open_file, parse_json

SHARDED = True
OPTIONS = ("extensions", "max_clip_bytes")
SIDECARS = ("json", "txt", "cls")
OFFERED = "key, txt, cls, json, json.FIELD"  # all text; json.a.b looks into json.a

MAX_SIDECAR_BYTES = 4 << 20
MAX_MEMBERS = 1_000_000  # of use, in a tar: their names are remembered
MAX_HEADER_BYTES = 16 << 10  # of a long name or a pax header: tarfile's pattern takes its square
MAX_HEADERS = 8  # of one member
UNPACKED_BYTES, UNPACKED_TIMES = 256 << 20, 100  # a packed tar may have so many, or times its own
_EXTRA_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)

Clip = tuple[dict[str, Any], BinaryIO | ClipError]


def suffixes(input: Input) -> tuple[str, ...]:
    return (".tar", ".tar.gz", ".tgz", ".tar.zst")


def columns(input: Input, names: list[str]) -> pa.Schema:
    for name in names:
        if name not in ("key", *SIDECARS) and not (name.startswith("json.") and name[5:]):
            raise NoSuchColumn(name, OFFERED)
    return pa.schema([(name, pa.string()) for name in names])


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """Every tar under the input's paths."""
    files = look(input.paths, suffixes(input), input.storage_options, warn)
    columns = {
        "source": [file.source for file in files],
        "member": pa.nulls(len(files), pa.string()),
        "source_version": [file.version for file in files],
        "offset_s": [0.0] * len(files),
    }
    return Listing(pa.table(columns, schema=PLACE))


def clips(plan: pa.Table, input: Input, kept: pa.Schema = NO_COLUMNS) -> Iterator[Clip]:
    """All clips of each tar. Where a tar is broken, its last row is an error without a member.

    The version of a clip is a digest of its own bytes, so that a tar which grows, or is packed
    anew, leaves what is in it already the clips that they were.
    """
    for row in plan.select(PLACE.names).to_pylist():
        try:
            with open_file(row["source"], row["source_version"], input.storage_options) as file:
                seen: set[str] = set()
                for sample in _samples(file, input, frozenset(kept.names)):
                    for member, sound in sample.clips():
                        columns = sample.columns(member, kept)
                        place = {"member": _told_apart(member, seen)}
                        if not isinstance(sound, ClipError):
                            place["source_version"] = _digest(sound, columns)
                        yield row | columns | place, sound
        except ClipError as error:
            yield row, error


@dataclass
class _Sample:
    """The members that share a key."""

    key: str
    names: set[str] = field(default_factory=set)
    audio: list[tuple[str, io.BytesIO | ClipError]] = field(default_factory=list)
    sidecars: dict[str, bytes | None] = field(default_factory=dict)  # by what is behind the key
    size: int = 0

    def clips(self) -> Iterator[tuple[str, io.BytesIO | ClipError]]:
        yield from self.audio
        if self.sidecars and not self.audio:
            found = ", ".join(f".{suffix}" for suffix in self.sidecars)
            yield (
                self.key,
                ClipError(
                    "no_audio",
                    f"expected an audio member next to those of this name, found only {found}",
                ),
            )

    def columns(self, member: str, kept: pa.Schema) -> dict[str, str | None]:
        """A sidecar that is missing or too large or no UTF-8, or not JSON, gives null."""
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
        # A name with dots, 0.5_take.wav, has its own sidecar beside the sample's: 0.5_take.txt.
        own = member[len(self.key) + 1 :].rpartition(".")[0]
        data = self.sidecars.get(f"{own}.{kind}", self.sidecars.get(kind))
        try:
            return None if data is None else data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            return None


def _samples(file: BinaryIO, input: Input, kept: frozenset[str]) -> Iterator[_Sample]:
    """A tar's samples. Raises ClipError when all that came before the damage is out."""
    wanted = {name.partition(".")[0] for name in kept}
    extensions = frozenset(input.extensions)
    sample, count = _Sample(""), 0
    try:
        with _tar_errors(), _unpacked(file) as stream:
            archive = _Archive.open(fileobj=stream, mode="r|", bufsize=stream.at_once)  # type: ignore[call-overload]
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it remembers them all
                name = _as_utf8(header.name)
                folder, slash, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                kind = suffix.rpartition(".")[2].lower()
                is_sidecar = kind in SIDECARS
                if not stem or header.isdir() or not (is_sidecar or kind in extensions):
                    continue  # hidden, or of no use here
                if (count := count + 1) > MAX_MEMBERS:
                    raise ClipError("too_large", f"a tar may have {MAX_MEMBERS:,} members")
                if (key := f"{folder}{slash}{stem}") != sample.key or name in sample.names:
                    yield sample
                    sample = _Sample(key)
                sample.names.add(name)
                fits = header.isreg() and not header.issparse()
                fits = fits and sample.size + header.size <= input.max_clip_bytes
                if is_sidecar:
                    fits = fits and header.size <= MAX_SIDECAR_BYTES and kind in wanted
                    content = _content(archive, header).getvalue() if fits else None
                    sample.sidecars[suffix[: -len(kind)] + kind] = content
                    sample.size += header.size if fits else 0
                elif not header.isreg() or header.issparse():
                    what = (
                        f"a link to {_as_utf8(header.linkname)}" if header.linkname else "no file"
                    )
                    sample.audio.append((name, ClipError("unreadable", f"the member is {what}")))
                elif not fits:
                    limit = f"input.max_clip_bytes allows {input.max_clip_bytes:,} in a sample, "
                    found = f"found {sample.size + header.size:,}"
                    sample.audio.append((name, ClipError("too_large", limit + found)))
                else:
                    sample.audio.append((name, _content(archive, header)))
                    sample.size += header.size
    except ClipError:
        if sample.audio:  # else its audio may be in what is lost
            yield sample
        raise
    yield sample


@contextmanager
def _tar_errors() -> Iterator[None]:
    """Turn what reading a damaged tar raises into a ClipError."""
    try:
        yield
    except (tarfile.ReadError, EOFError) as error:
        raise ClipError("truncated", f"the tar ends too early: {error}") from None
    except tarfile.TarError as error:
        raise ClipError("damaged", f"the tar can't be followed: {error}") from None
    except (zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise ClipError("damaged", f"the tar can't be unpacked: {error}") from None
    except OSError as error:
        raise ClipError("unreadable", f"reading the tar failed: {error}") from None


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[_Bounded]:
    most = max(UNPACKED_BYTES, UNPACKED_TIMES * file.seek(0, 2))
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield _Bounded(unpacked, most)
    elif magic == b"\x28\xb5\x2f\xfd":
        with pa.CompressedInputStream(file, "zstd") as unpacked:
            yield _Bounded(unpacked, most)
    else:
        yield _Bounded(file, most, at_once=1 << 16)


class _Bounded:
    """A stream of at most so many bytes. It ends once: to skip what a header claims beyond the
    end, tarfile would read on for ever. Raises ClipError."""

    def __init__(self, file: Any, most: int, at_once: int = tarfile.RECORDSIZE) -> None:
        self._file, self._most = file, most
        self.at_once = at_once  # bytes: with damage to a packed tar, so much before it can be lost
        self._count = self._ends = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._count += len(data)
        self._ends += not data
        if self._count > self._most:
            raise ClipError("too_large", f"the tar unpacks to more than {self._most:,} bytes")
        if self._ends > 3:
            raise ClipError("truncated", "the tar ends inside of a member")
        return data


class _Header(tarfile.TarInfo):
    """tarfile takes a broken header for the end of the archive; here it is a ClipError."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        assert isinstance(archive, _Archive)
        archive.depth += 1  # an extra header asks for the next one from within
        try:
            if archive.depth > MAX_HEADERS:
                raise ClipError("damaged", f"a member may have {MAX_HEADERS} headers")
            header = super().fromtarfile(archive)
            if header.size < 0:
                raise tarfile.HeaderError("a negative size")  # type: ignore[attr-defined]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.is_ended = True  # zeros: the end, or a seam between archives joined by `cat`
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
            raise ClipError("damaged", f"a header of {self.size} bytes: {MAX_HEADER_BYTES} may be")
        return super()._proc_member(archive)  # type: ignore[misc]

    # The map of a sparse file is as long as it claims, and no sound is sparse: it is skipped.

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
    """Grows as it comes: what a header claims is not allocated, and nothing is held twice."""
    content = io.BytesIO()
    file = archive.extractfile(header)
    assert file is not None  # a regular file
    shutil.copyfileobj(file, content, 1 << 20)
    content.seek(0)
    return content


def _digest(sound: io.BytesIO, columns: dict[str, str | None]) -> str:
    """A clip's version: BLAKE2b (128 bits) of its sound and of the sidecars that its row keeps."""
    digest = hashlib.blake2b(sound.getbuffer(), digest_size=16)
    if texts := {name: text for name, text in columns.items() if name != "key"}:
        digest.update(json.dumps(texts, sort_keys=True).encode())
    return f"blake2b:{digest.hexdigest()}"


def _told_apart(name: str, seen: set[str]) -> str:
    """A name that came before gets its position: `a.wav`, `a.wav#2`, ..."""
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
    """`a.b` in {"a.b": ...} or else in {"a": {"b": ...}}."""
    if not isinstance(value, dict) or path in value:
        return value.get(path) if isinstance(value, dict) else None
    first, dot, rest = path.partition(".")
    return _look_up(value.get(first), rest) if dot else None
