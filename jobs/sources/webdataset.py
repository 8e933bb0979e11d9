"""WebDataset: tars of audio and its metadata, `0001.flac`, `0001.json`, `0002.flac`, ... in sequence.

Successive members whose names, including folders, are equal up to the first dot of the file name
form a sample. Every audio member is a clip; the `.json`, `.txt` and `.cls` members of its sample are
its columns. A tar (plain, gzip, zstd) is read as a stream and never extracted; memory holds one
sample. Members' names are never used as paths.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from audio_ops.decode.formats import recognise
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, PLACE, Clip, Listing, NoSuchColumn
from jobs.sources._paths import as_text, open_file, parse_json
from jobs.sources._tar import Archive, as_utf8, content_of, tar_errors
from jobs.sources._tar_lists import Members, Part, entries_of_tars, find_tar_lists, list_columns
from jobs.sources._unpack import unpacked
from jobs.sources._walk import Search, extension, file_table, listed

SHARDED = True
OPTIONS = ("extensions", "inventory", "manifest", "max_clip_bytes")
SIDECARS = ("json", "txt", "cls")
OFFERED = "key, txt, cls, json, json.FIELD"  # all text; json.a.b looks into json.a

MAX_SIDECAR_BYTES = 4 << 20
MAX_MEMBERS = 1_000_000  # audio and sidecars of a tar, whose names are kept in memory
LOOKED_INTO, LOOKED_INTO_BYTES = 8, 256 << 20  # tars, and bytes of each, by `look`


def suffixes(input: Input) -> tuple[str, ...]:
    return (".tar", ".tar.gz", ".tgz", ".tar.zst")


def columns(input: Input, names: list[str]) -> pa.Schema:
    others = [
        name
        for name in names
        if name not in ("key", *SIDECARS) and not (name.startswith("json.") and name[5:])
    ]
    if others:
        search = _search(input, lambda _: None)
        tars = file_table(input.paths, search)["source"]
        offered = list_columns(find_tar_lists(tars, input), input)
        for name in others:
            if name not in offered:
                raise NoSuchColumn(name, ", ".join([OFFERED, *offered]))
    return pa.schema([(name, pa.string()) for name in names])


def _search(input: Input, warn: Callable[[str], None]) -> Search:
    return Search(suffixes(input), input.storage_options, warn, inventory=input.inventory)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """All tars under the input's paths, and what lists say of their members."""
    search = _search(input, warn)
    files = file_table(input.paths, search)
    columns = {
        "source": files["source"],
        "member": pa.nulls(len(files), pa.string()),
        "source_version": files["version"],
        "offset_s": np.zeros(len(files)),
    }
    clips = pa.table(columns, schema=PLACE)
    if lists := find_tar_lists(files["source"], input):
        for found in lists:
            search.passed_over[extension(found.source)] -= 1
        more = f" and {len(lists) - 1:,} more" if len(lists) > 1 else ""
        warn(f"columns of the tars' members come from {lists[0].source}{more}")
        entries = entries_of_tars(files["source"].to_pylist(), lists, input, kept, warn)
        clips = clips.append_column("_entries", entries)
    return Listing(clips, passed_over=+search.passed_over)


def clips(
    plan: pa.Table,
    input: Input,
    kept: pa.Schema = NO_COLUMNS,
    passed_over: Counter[str] | None = None,
) -> Iterator[Clip]:
    """All clips of each tar. If a tar is damaged, or has no audio, its last item is an error without
    a member.

    A clip's version is a digest of its bytes, so that its identity stays when the tar grows or is
    written again.
    """
    for row in plan.to_pylist():
        members = Members(row.get("_entries"), kept.names)
        row = {name: row[name] for name in PLACE.names}
        others: Counter[str] = Counter()
        try:
            with open_file(row["source"], row["source_version"], input.storage_options) as file:
                seen: set[str] = set()
                for sample in _samples(file, input, frozenset(kept.names), others):
                    for member, sound in sample.clips():
                        columns = sample.columns(member, kept)
                        place = {"member": _unique_name(member, seen)}
                        if not isinstance(sound, ClipError):
                            place["source_version"] = _digest(sound, columns)
                        parts = members.parts(member)
                        for part, own in zip(parts, _copies(sound, len(parts)), strict=True):
                            yield _part(row | columns | place, part), own
            for name, values in members.missing():
                what = "the tar has no such member, although its list names it"
                missing = {"member": _unique_name(name, seen), **values}
                yield row | missing, ClipError("unreadable", what)
            if others and not seen:
                found = listed(others)
                raise ClipError("no_audio", f"no member is named like audio: {found}")
        except ClipError as error:
            yield row, error
        if passed_over is not None:
            passed_over.update(others)


def _copies(sound: io.BytesIO | ClipError, count: int) -> Sequence[io.BytesIO | ClipError]:
    """`count` files of the sound, as each reader closes its own. They share their bytes."""
    if count == 1 or isinstance(sound, ClipError):
        return [sound] * count
    content = sound.getvalue()
    return [io.BytesIO(content) for _ in range(count)]


def _part(clip: dict[str, Any], part: Part) -> dict[str, Any]:
    """The columns of a part of a member."""
    values = {name: value for name, value in part.values.items() if value is not None}
    if part.is_whole:
        return clip | values
    length = "" if part.duration_s is None else f" {part.duration_s} s"
    duration_s = math.inf if part.duration_s is None else part.duration_s
    place = {"member": f"{clip['member']}{length}", "offset_s": part.offset_s}
    return clip | values | place | {"duration_s": duration_s}


def look(plan: pa.Table, input: Input) -> Counter[str] | None:
    """What the tars of a plan hold, by extension, if they are few and none holds a clip; or None."""
    passed_over: Counter[str] = Counter()
    if len(plan) > LOOKED_INTO:
        return None
    for row in plan.select(PLACE.names).to_pylist():
        try:
            with open_file(row["source"], row["source_version"], input.storage_options) as file:
                if file.seek(0, 2) > LOOKED_INTO_BYTES:
                    return None
                samples = _samples(file, input, frozenset(), passed_over)
                if any(sample.audio or sample.sidecars for sample in samples):
                    return None
        except ClipError:
            return None
    return passed_over


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
                    f"expected an audio member next to those of this name, found only {found}: "
                    "`tar --sort=name` packs them one after the other",
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
        # A name with dots, 0.5_take.wav, has its own sidecar, 0.5_take.txt or 0.5_take.wav.txt, or
        # that of its sample.
        whole = member[len(self.key) + 1 :]
        names = [f"{whole}.{kind}", f"{whole.rpartition('.')[0]}.{kind}", kind]
        data = next((self.sidecars[name] for name in names if name in self.sidecars), None)
        try:
            return None if data is None else data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            return None


def _samples(
    file: BinaryIO, input: Input, kept: frozenset[str], passed_over: Counter[str]
) -> Iterator[_Sample]:
    """A tar's samples; counts its other members. Raises ClipError for damage, after all samples that
    precede it."""
    wanted = {name.partition(".")[0] for name in kept}
    sample, count = _Sample(""), 0
    try:
        with tar_errors(), unpacked(file) as stream:
            archive = Archive.open(fileobj=stream, mode="r|", bufsize=stream.at_once)  # type: ignore[call-overload]
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all headers
                name = _Name.of(header)
                if name.is_hidden or header.isdir():
                    continue
                data: io.BytesIO | None = None
                if not name.is_used(input):
                    data = _inner_audio(name, archive, header, input)
                    if data is None:
                        passed_over[extension(name.suffix and f"x.{name.suffix}")] += 1
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
                    sound = data or _audio(archive, header, sample.size, input.max_clip_bytes)
                    sample.audio.append((name.full, sound))
                    sample.size += 0 if isinstance(sound, ClipError) else header.size
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
        name = as_utf8(header.name)
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        return cls(name, f"{folder}{slash}{stem}", suffix, suffix.rpartition(".")[2].lower())

    @property
    def is_hidden(self) -> bool:
        return not self.key or self.key.endswith("/")

    def is_used(self, input: Input) -> bool:
        return (
            self.kind in SIDECARS
            or self.kind in input.extensions
            or any(
                "." in e and f".{self.suffix.lower()}".endswith(f".{e}") for e in input.extensions
            )
        )


def _add_sidecar(
    sample: _Sample, name: _Name, archive: Archive, header: tarfile.TarInfo, max_bytes: int | None
) -> None:
    """Add the content, or None if it is too large for the sample, or unused (no `max_bytes`)."""
    fits = header.isreg() and not header.issparse() and header.size <= MAX_SIDECAR_BYTES
    fits = fits and max_bytes is not None and sample.size + header.size <= max_bytes
    content = content_of(archive, header).getvalue() if fits else None
    sample.sidecars[name.suffix[: -len(name.kind)] + name.kind] = content
    sample.size += header.size if fits else 0


def _inner_audio(
    name: _Name, archive: Archive, header: tarfile.TarInfo, input: Input
) -> io.BytesIO | None:
    """The content of a member like `1.wav.data`, if it is audio: `1.wav.label` may lie beside it."""
    inner = name.suffix.lower().split(".")[:-1]
    is_small = header.size <= input.max_clip_bytes
    if not (set(inner) & set(input.extensions) and header.isreg() and is_small):
        return None
    content = content_of(archive, header)
    try:
        recognise(Source(content))
    except ClipError:
        return None
    content.seek(0)
    return content


def _audio(
    archive: Archive, header: tarfile.TarInfo, before: int, max_bytes: int
) -> io.BytesIO | ClipError:
    """The content, or a ClipError in its place; `before` bytes are in its sample already."""
    if not header.isreg() or header.issparse():
        return ClipError("unreadable", f"the member is {_kind(header)}")
    if (size := before + header.size) > max_bytes:
        limit = f"input.max_clip_bytes allows {max_bytes:,} in a sample, found {size:,}"
        return ClipError("too_large", limit)
    return content_of(archive, header)


def _kind(header: tarfile.TarInfo) -> str:
    """What a member is that is not read, and how to pack it as a file."""
    if header.linkname:
        to = as_utf8(header.linkname)
        return f"a link to {to}: `tar --dereference --hard-dereference` packs the file itself"
    return (
        "a sparse file: `tar` without --sparse packs all of it" if header.issparse() else "no file"
    )


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
