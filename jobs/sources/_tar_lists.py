"""Lists of the members of tars, which have their columns: NeMo's tarred sets and Lhotse's Shar.

A list says which tar an entry belongs to by `shard_id`, or else by the number in its own name; that of
a tar is the last number in its name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import BadInput
from jobs.sources._entries import seconds
from jobs.sources._lines import TextList
from jobs.sources._paths import Found, as_text, exists, folder_of
from jobs.sources._walk import LOOKUPS_AT_ONCE, Search, find_files
from jobs.sources.lhotse import columns_of, is_item
from jobs.sources.manifest import path_of

NEMO = "tarred_audio_manifest.json"
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
# The entries of a tar, in the plan's row of it; `values` are those of the kept columns, in order.
ENTRIES = pa.list_(
    pa.struct(
        [
            ("name", pa.string()),
            ("offset_s", pa.float64()),  # null: the list gives none
            ("duration_s", pa.float64()),
            ("values", pa.list_(pa.string())),
        ]
    )
)


class Part(NamedTuple):
    """What a list says of a member, or of a part of it. Without a list, all of it is a clip."""

    values: Mapping[str, str | None] = MappingProxyType({})
    offset_s: float = 0.0
    duration_s: float | None = None

    @property
    def is_whole(self) -> bool:
        return not self.offset_s and self.duration_s is None


class Members:
    """The entries of a tar, by the members that they name."""

    def __init__(self, entries: Sequence[dict[str, Any]] | None, kept: Sequence[str]) -> None:
        self._kept = kept
        self._by_name = defaultdict[str, list[dict[str, Any]]](list)
        for entry in entries or ():
            self._by_name[entry["name"]].append(entry)

    def parts(self, member: str) -> list[Part]:
        """The parts of a member that are clips. A name that is listed without offsets several times is
        that of several members, in order."""
        names = (_stem(member), _stem(member.rpartition("/")[2]))
        name = next((name for name in names if name in self._by_name), None)
        if name is None:
            return [Part()]
        entries = self._by_name.pop(name)
        places = {(entry["offset_s"], entry["duration_s"]) for entry in entries}
        if len(places) == len(entries) > 1 and None not in {offset for offset, _ in places}:
            return [self._part(entry, is_one_of_many=True) for entry in entries]
        if entries[1:]:
            self._by_name[name] = entries[1:]
        return [self._part(entries[0])]

    def missing(self) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        """The names and columns of the entries whose members did not come."""
        for name, entries in self._by_name.items():
            for entry in entries:
                yield name, self._part(entry).values

    def _part(self, entry: dict[str, Any], is_one_of_many: bool = False) -> Part:
        values = dict(zip(self._kept, entry["values"], strict=True))
        if is_one_of_many or entry["offset_s"]:
            return Part(values, entry["offset_s"] or 0.0, entry["duration_s"])
        return Part(values)


def find_tar_lists(tars: pa.ChunkedArray, input: Input) -> list[Found]:
    """The lists of `input.manifest`, or else those that lie beside the tars under their usual names."""
    options = input.storage_options
    if input.manifest:
        paths = [input.manifest] if isinstance(input.manifest, str) else input.manifest
        return find_files(paths, Search(SUFFIXES, options, lambda _: None))
    is_shar: dict[str, bool] = {}  # by folder
    for chunk in tars.chunks:
        for tar in chunk.to_pylist():
            folder = folder_of(tar)
            is_shar[folder] = is_shar.get(folder, False) or "/recording." in tar

    def beside(folder: str) -> list[str]:
        if exists(f"{folder}/{NEMO}", options):
            return [f"{folder}/{NEMO}"]
        found: list[Found] = []
        if is_shar[folder]:
            pattern = f"{folder}/cuts.*.jsonl"
            for name in (pattern, f"{pattern}.gz"):
                with suppress(FileNotFoundError):
                    found += find_files([name], Search((), options, lambda _: None))
        return [file.source for file in found]

    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
        lists = [name for names in threads.map(beside, is_shar) for name in names]
    return find_files(lists, Search(SUFFIXES, options, lambda _: None))


def list_columns(lists: Sequence[Found], input: Input) -> list[str]:
    """The columns of the first entries of the lists."""
    names: dict[str, None] = {}
    for found in lists[:1]:
        for number, line in enumerate(TextList(found, input)):
            if isinstance(line.values, dict):
                names |= dict.fromkeys(_columns(line.values))
            if number == 100:
                break
    return list(names)


def entries_of_tars(
    tars: Sequence[str],
    lists: Sequence[Found],
    input: Input,
    kept: pa.Schema,
    warn: Callable[[str], None],
) -> pa.Array:
    """The entries of each tar (`ENTRIES`). Raises BadInput if they fit none."""
    by_shard = defaultdict[tuple[str, int | None], list[dict[str, Any]]](list)
    folders = {folder_of(tar) for tar in tars}
    for found in lists:
        folder = folder_of(found.source) if folder_of(found.source) in folders else ""
        bad = 0
        for shard, entry in _read(found, input, kept.names):
            if entry is None:
                bad += 1
            else:
                by_shard[folder, shard].append(entry)
        if bad:
            warn(f"{bad:,} entries of {found.source} can't be read: their columns are null")
    if len(tars) == 1:
        every = [entry for entries in by_shard.values() for entry in entries]
        own = _of_tar(tars[0], by_shard)
        return pa.array([own or every], ENTRIES)
    entries = [_of_tar(tar, by_shard) for tar in tars]
    if by_shard and not any(entries):
        raise BadInput(
            f"input.manifest: expected entries of the tars by shard_id, found those of "
            f"{sorted({str(shard) for _, shard in by_shard})[:8]} for tars such as {tars[0]}"
        )
    if others := by_shard.keys() - {key for tar in tars for key in _keys(tar)}:
        count = sum(len(by_shard[key]) for key in others)
        shards = ", ".join(sorted({str(shard) for _, shard in others})[:8])
        warn(f"{count:,} entries of lists are of tars that the input does not have: {shards}")
    return pa.array(entries, ENTRIES)


def _keys(tar: str) -> list[tuple[str, int | None]]:
    """The keys of a tar's entries: of lists in its own folder, and of others."""
    return [(folder_of(tar), _number(tar)), ("", _number(tar))]


def _of_tar(tar: str, by_shard: Mapping[tuple[str, int | None], Any]) -> list[dict[str, Any]]:
    return next((by_shard[key] for key in _keys(tar) if key in by_shard), [])


def _read(
    found: Found, input: Input, kept: Iterable[str]
) -> Iterator[tuple[int | None, dict[str, Any] | None]]:
    """The number of the tar of each entry, and the entry or None if it can't be read."""
    own = _number(found.source)
    for line in TextList(found, input):
        try:
            if isinstance(line.values, ClipError):
                raise line.values
            values = line.values
            if is_item(values):
                shard, name, offset_s, duration_s = own, str(values["id"]), None, None
            else:
                shard = int(values["shard_id"]) if "shard_id" in values else own
                name = _stem(path_of(values, input))
                offset_s = seconds(values.get("offset"), "offset") or 0.0
                duration_s = seconds(values.get("duration"), "duration")
            columns = _columns(values)
            texts = [as_text(columns.get(column)) for column in kept]
        except (ClipError, KeyError, TypeError, ValueError):
            yield own, None
            continue
        place = {"offset_s": offset_s, "duration_s": duration_s}
        yield shard, {"name": name, **place, "values": texts}


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    return columns_of(values) if is_item(values) else values


def _stem(name: str) -> str:
    """A member's name without its last extension."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and "/" not in extension else name


def _number(source: str) -> int | None:
    """The last number in a file's name, `audio_12.tar` or `cuts.000012.jsonl.gz`."""
    numbers = re.findall(r"\d+", source.rpartition("/")[2])
    return int(numbers[-1]) if numbers else None
