"""Finds files: those under a folder, and those that a glob or a brace range names.

Folders, globs and names mean the same on local disks and on stores. A name that exists is that
name, whatever characters it has.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise, starmap
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.sources import BadInput
from jobs.sources._hub import in_cache
from jobs.sources._inventory import files_of, read_inventory
from jobs.sources._paths import (
    Found,
    file_system,
    info_of,
    is_local,
    local_file,
    local_path,
    spelt_otherwise,
    stored_file,
)
from jobs.sources._stored_folders import stored_files

LOOKUPS_AT_ONCE = 16
MAX_NAMES = 1_000_000  # of one path with brace ranges
NO_EXTENSION = "no extension"
FILES_AT_ONCE = 1 << 16  # of which there are Python objects
FOUND = pa.schema(
    [
        ("source", pa.string()),
        ("version", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_s", pa.float64()),
    ]
)
LARGE = {pa.string(): pa.large_string()}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_MAGIC = re.compile(r"[*?[]")
_EXTENSION = re.compile(r"\.[0-9]*[A-Za-z][0-9A-Za-z]*$")


@dataclass(frozen=True)
class Search:
    """Which files of a folder are wanted; counts the others, by extension."""

    suffixes: tuple[str, ...]  # in lower case
    options: Mapping[str, Any]  # for fsspec
    warn: Callable[[str], None]
    hidden: tuple[str, ...] = (".",)  # beginnings of names of files and folders that are skipped
    listed: tuple[str, ...] = ()  # extensions of files that lists name, which are not counted
    inventory: str | None = None  # of S3, which is read in place of a listing
    passed_over: Counter[str] = field(default_factory=Counter)

    def wants(self, name: str) -> bool:
        if name.lower().endswith(self.suffixes):
            return True
        kind = extension(name)
        if kind[1:] not in self.listed:
            self.passed_over[kind] += 1
        return False


def extension(name: str) -> str:
    """The last extension of a file's name, in lower case and with its dot, to be counted."""
    return os.path.splitext(name)[1].lower() or NO_EXTENSION


def listed(counts: Mapping[str, int], most: int = 8) -> str:
    """`3 .txt, 1 .jpg`, the most frequent ones first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{count:,} {name}" for name, count in ordered[:most]]
    rest = sum(count for _, count in ordered[most:])
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def find_files(paths: Sequence[str], search: Search) -> list[Found]:
    """All files under `paths`, sorted by name, each once.

    Raises FileNotFoundError for a path that matches nothing.
    """
    found = {item.source: item for item in _walk_all(paths, search)}
    return [found[source] for source in sorted(found)]


def file_table(paths: Sequence[str], search: Search) -> pa.Table:
    """Like `find_files`, as a table with the columns `FOUND`: 80 bytes a file instead of 400."""
    files = _walk_all(paths, search)
    batches = []
    while columns := list(zip(*islice(files, FILES_AT_ONCE), strict=True)):
        arrays = [pa.array(values, f.type) for values, f in zip(columns, FOUND, strict=True)]
        batches.append(pa.record_batch(arrays, schema=FOUND))
    table = pa.Table.from_batches(batches, FOUND)
    if all(map(_is_sorted, batches)) and all(starmap(_is_before, pairwise(batches))):
        return table  # as that of a local folder always is
    del batches
    return _sorted(table)


def _is_sorted(files: pa.RecordBatch) -> bool:
    """Whether the files are sorted by name, each once."""
    names = files["source"]
    return bool(pc.all(pc.less(names[:-1], names[1:]), min_count=0).as_py())


def _is_before(files: pa.RecordBatch, others: pa.RecordBatch) -> bool:
    return bool(files["source"][-1].as_py() < others["source"][0].as_py())


def _sorted(files: pa.Table) -> pa.Table:
    """The files sorted by name, each once. One array of strings ends at 2 GiB: the names of 30 million
    files may be more."""
    large = pa.schema([(f.name, LARGE.get(f.type, f.type)) for f in FOUND])
    files = files.cast(large).combine_chunks()
    names = files["source"]
    order = pc.sort_indices(names).to_numpy()
    is_first = np.ones(len(order), bool)
    for at in range(1, len(order), FILES_AT_ONCE):
        here = order[at : at + FILES_AT_ONCE]
        before = order[at - 1 : at - 1 + len(here)]
        is_first[at : at + len(here)] = pc.not_equal(names.take(here), names.take(before))
    order = order[is_first]
    parts = (order[at : at + FILES_AT_ONCE] for at in range(0, len(order), FILES_AT_ONCE))
    return pa.concat_tables(files.take(pa.array(part)).cast(FOUND) for part in parts)


def _walk_all(paths: Sequence[str], search: Search) -> Iterator[Found]:
    if search.inventory is None:
        yield from (item for path in paths for item in walk(path, search))
        return
    inventory = read_inventory(search.inventory, search.options)
    for path, item in files_of(inventory, paths, search.options):
        if item.source == path or _is_wanted(item.source, path, search):
            yield item


def walk(path: str, search: Search, *, in_order: bool = False) -> Iterator[Found]:
    """The files under one path, unsorted but in the same order each time if `in_order`, each as soon
    as it is found. Raises like `find_files`."""
    path = in_cache(path)
    if search.inventory is not None:
        yield from _walk_all([path], search)
    elif is_local(path):
        yield from _walk_local(path, search)
    else:
        yield from _walk_store(path, search, in_order)


class _Storage(NamedTuple):
    """What is found at a name (None: nothing), and under the names that a pattern matches; whether it
    is a folder, and whether a search wants a file of that name."""

    look_up: Callable[[str], Any]
    glob: Callable[[str], Mapping[str, Any]]
    is_folder: Callable[[Any], bool]
    search: Search


def _walk_local(path: str, search: Search) -> Iterator[Found]:
    def look_up(name: str) -> Any:
        return name if os.path.lexists(name) else None

    def matches(pattern: str) -> Mapping[str, Any]:
        return {name: name for name in sorted(glob.glob(pattern, recursive=True))}

    as_it_stands = os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    quoted = os.path.abspath(os.path.expanduser(local_path(path)))
    name = as_it_stands if os.path.lexists(as_it_stands) else quoted
    for match in _matches(name, _Storage(look_up, matches, os.path.isdir, search)):
        if os.path.isdir(match):
            yield from _local_folder(match, search)
        else:
            yield local_file(match)


def _walk_store(path: str, search: Search, in_order: bool) -> Iterator[Found]:
    from botocore.exceptions import BotoCoreError

    fs = file_system(path, dict(search.options))

    def look_up(name: str) -> Any:
        try:
            return info_of(fs, name)
        except FileNotFoundError:
            return None
        except (TypeError, BotoCoreError) as error:
            raise _mistake(error, path, type(fs).__name__) from None

    def matches(pattern: str) -> Mapping[str, Any]:
        found = fs.glob(pattern, detail=True)
        if "/." in pattern:
            return found  # type: ignore[no-any-return]
        return {name: info for name, info in found.items() if "/." not in f"/{name}"}

    def is_folder(info: Any) -> bool:
        return bool(info["type"] == "directory")

    for info in _matches(path.rstrip("/"), _Storage(look_up, matches, is_folder, search)):
        if is_folder(info):
            yield from _stored_folder(fs, info["name"].rstrip("/"), search, in_order)
        elif info["type"] == "file":
            yield stored_file(fs.unstrip_protocol(info["name"]), info)


def _mistake(error: Exception, path: str, store: str) -> Exception:
    """The error as a BadInput, if not the store but the config is to blame."""
    name, what = type(error).__name__, " ".join(str(error).split())
    if name == "TypeError":  # s3fs makes its client when it is first used
        return BadInput(f"input.storage_options: expected options of fsspec's {store}: {what}")
    if name == "ParamValidationError":
        return BadInput(f"input.path: expected a URL that S3 knows, found {path}: {what}")
    if name == "NoCredentialsError":
        return BadInput(
            f"input.storage_options: expected credentials for {path}, found none in them and in the "
            f"environment: a public bucket needs {{anon: true}}"
        )
    return error


def _matches(path: str, storage: _Storage) -> list[Any]:
    """What `storage` finds at the names that a path stands for.

    Raises FileNotFoundError if one of them is not there.
    """
    if (here := storage.look_up(path)) is not None:
        return [here]
    names = _names(path, storage)
    if names != [path] and (found := _matches_of(path, storage)):
        return found

    def each_of(name: str) -> list[Any]:
        here = None if name == path else storage.look_up(name)
        return [here] if here is not None else _matches_of(name, storage)

    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
        every = list(threads.map(each_of, names))
    if missing := [name for name, each in zip(names, every, strict=True) if not each]:
        more = f" nor at {len(missing) - 1:,} more of its names" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"expected a file, folder or glob, found nothing at {missing[0]}"
            f"{spelt_otherwise(missing[0])}{more}"
        )
    return [item for each in every for item in each]


def _names(path: str, storage: _Storage) -> list[str]:
    """The names of a path with braces, except in folders that exist under their very names."""
    parts, literal = path.split("/"), 0
    for number, part in enumerate(parts[:-1]):
        if expand_braces(part) != [part]:
            if storage.look_up("/".join(parts[: number + 1])) is None:
                break
            literal = number + 1
    rest = expand_braces("/".join(parts[literal:]))
    return ["/".join([*parts[:literal], name]) for name in rest]


def _matches_of(name: str, storage: _Storage) -> list[Any]:
    """What a pattern matches.

    A folder that matches is walked. If its files match as well, as with `**`, they are enough.
    """
    if not _MAGIC.search(name):
        return []
    matches = _glob(name, storage)
    folders = {match for match, item in matches.items() if storage.is_folder(item)}
    if re.search(r"(^|/)\*\*(/\*+)?$", name):
        found = {match: item for match, item in matches.items() if match not in folders}
        return _as_in_folders(name, found, set(), storage.search)

    def is_walked(match: str) -> bool:
        parents = itertools.accumulate(match.split("/"), lambda left, right: f"{left}/{right}")
        return any(parent in folders for parent in parents if parent != match)

    found = {match: item for match, item in sorted(matches.items()) if not is_walked(match)}
    return _as_in_folders(name, found, folders, storage.search)


def _as_in_folders(
    pattern: str, found: Mapping[str, Any], folders: Set[str], search: Search
) -> list[Any]:
    """What a pattern matches, without the files that a search in folders passes over for their
    extensions.

    They stay if the pattern ends with an extension, or matches nothing else.
    """
    has_extension = "." in re.split(r"[*?\]]", pattern.rpartition("/")[2])[-1]
    if has_extension or not (folders or any(m.lower().endswith(search.suffixes) for m in found)):
        return list(found.values())
    return [
        item
        for match, item in found.items()
        if match in folders or not _EXTENSION.search(match) or search.wants(match)
    ]


def _glob(pattern: str, storage: _Storage) -> Mapping[str, Any]:
    """The matches of a pattern, in which the parts that exist under their very names are names.

    Behind the first part with a wildcard a bracket is first taken for a bracket.
    """
    parts = pattern.split("/")
    wild = len(parts)
    for number, part in enumerate(parts):
        if _MAGIC.search(part) and storage.look_up("/".join(parts[: number + 1])) is None:
            wild = number
            break
    named = [_MAGIC.sub(r"[\g<0>]", part) for part in parts[:wild]]
    rest = parts[wild:]
    for ending in ([part.replace("[", "[[]") for part in rest], rest):
        if found := storage.glob("/".join([*named, *ending])):
            return found
        if "[" not in "".join(rest):
            break
    return {}


def expand_braces(path: str) -> list[str]:
    """The names of `a-{000..123}.tar`, `{a,b}.tar` and of NeMo's `a_OP_0..9_CL_.tar`, in order."""
    return list(dict.fromkeys(_expanded(path.replace("_OP_", "{").replace("_CL_", "}"))))


def _expanded(path: str) -> list[str]:
    for match in _BRACES.finditer(path):
        if choices := _choices(match[1]):
            before, after = path[: match.start()], path[match.end() :]
            names = [name for choice in choices for name in _expanded(before + choice + after)]
            if len(names) > MAX_NAMES:
                raise BadInput(f"input.path: expected at most {MAX_NAMES:,} names in {path}")
            return names
    return [path]


def _choices(inside: str) -> list[str]:
    """What stands for `{inside}`; nothing if it is neither a range nor a list."""
    if "," in inside:
        return inside.split(",")
    if not (match := _RANGE.fullmatch(inside)):
        return []
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
    if abs(last - first) // step >= MAX_NAMES:
        raise BadInput(f"input.path: expected at most {MAX_NAMES:,} names of {{{inside}}}")
    is_padded = any(re.match(r"-?0\d", end) for end in match.groups()[:2])
    width = max(len(match[1]), len(match[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}}" for number in numbers]


def _stored_folder(fs: Any, root: str, search: Search, in_order: bool) -> Iterator[Found]:
    for info in stored_files(fs, root, search.warn, in_order=in_order):
        name = info["name"]
        # Some stores list what is beside the folder as well, whose name begins with the folder's.
        if name.startswith(f"{root}/") and _is_wanted(name, root, search):
            yield stored_file(fs.unstrip_protocol(name), info)


def _is_wanted(name: str, root: str, search: Search) -> bool:
    parts = name[len(root) :].split("/")
    return not any(part.startswith(search.hidden) for part in parts) and search.wants(name)


def _local_folder(root: str, search: Search) -> Iterator[Found]:
    """The files below `root`, sorted. Links to folders are followed; no folder is visited twice."""
    seen: set[tuple[int, int]] = set()

    def names(folder: str) -> Iterator[str]:
        """What is in a folder, folders with a slash, in the order of the paths of all files."""
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                return iter(())
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(folder) as entries:
                return iter(sorted(f"{it.name}/" if _is_folder(it) else it.name for it in entries))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):  # e.g. a hanging mount
                raise
            search.warn(f"can't list {folder}: {error.strerror}")
            return iter(())

    folders = [(root, names(root))]
    while folders:
        folder, rest = folders[-1]
        for name in rest:
            if name.startswith(search.hidden):
                continue
            if name.endswith("/"):
                below = f"{folder}/{name[:-1]}"
                folders.append((below, names(below)))
                break
            if search.wants(name):
                yield local_file(f"{folder}/{name}")
        else:
            folders.pop()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link
        return False
