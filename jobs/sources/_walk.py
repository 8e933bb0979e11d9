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
from itertools import chain, islice, pairwise, starmap
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.sources import BadInput
from jobs.sources._braces import expand_braces
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
NO_EXTENSION = "no extension"
FILES_AT_ONCE = 1 << 16  # of which there are Python objects
TUPLES_AT_ONCE = 500  # Python looks for garbage after 700 new ones: a quarter of a listing's time
FOUND = pa.schema(
    [
        ("source", pa.string()),
        ("version", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
LARGE = {pa.string(): pa.large_string()}
_MAGIC = re.compile(r"[*?[]")
_EXTENSION = re.compile(r"\.[0-9]*[A-Za-z][0-9A-Za-z]*$")


@dataclass(frozen=True)
class Search:
    """Which files of a folder are wanted; counts the others, by extension."""

    suffixes: tuple[str, ...]  # in lower case
    options: Mapping[str, Any]  # for fsspec
    warn: Callable[[str], None]
    hidden: tuple[str, ...] = (".",)  # prefixes of names of files and folders that are skipped
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
    batches = list(_batches(_walk_all(paths, search)))
    table = pa.Table.from_batches(batches, FOUND)
    if all(map(_is_sorted, batches)) and all(starmap(_is_before, pairwise(batches))):
        return table  # as that of a local folder always is
    del batches
    return _sorted(table)


def _batches(files: Iterator[Found]) -> Iterator[pa.RecordBatch]:
    columns: list[list[Any]] = [[] for _ in FOUND]
    while few := list(islice(files, TUPLES_AT_ONCE)):
        for column, values in zip(columns, zip(*few, strict=True), strict=True):
            column += values
        if len(columns[0]) >= FILES_AT_ONCE:
            yield _batch(columns)
            columns = [[] for _ in FOUND]
    if columns[0]:
        yield _batch(columns)


def _batch(columns: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    source, tag, *status = map(pa.array, columns, FOUND.types)
    of_status = pc.binary_join_element_wise(*(each.cast(pa.string()) for each in status), "-")
    version = pc.coalesce(tag, of_status)  # as `Found.version`
    return pa.record_batch([source, version, *status], schema=FOUND)


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
        return chain.from_iterable(walk(path, search) for path in paths)
    return _in_inventory(search.inventory, paths, search)


def _in_inventory(path: str, paths: Sequence[str], search: Search) -> Iterator[Found]:
    inventory = read_inventory(path, search.options)
    for path, item in files_of(inventory, paths, search.options):
        if item.source == path or _is_wanted(item.source, path, search):
            yield item


def walk(path: str, search: Search, *, in_order: bool = False) -> Iterator[Found]:
    """The files under one path, unsorted but in the same order each time if `in_order`, each as soon
    as it is found. Raises like `find_files`."""
    path = in_cache(path)
    if search.inventory is not None:
        return _in_inventory(search.inventory, [path], search)
    return _walk_local(path, search) if is_local(path) else _walk_store(path, search, in_order)


class _Storage(NamedTuple):
    """Local disks or a store, as `_matches` uses them.

    look_up: what is found at a name, or None.
    glob: what is found at the names that a pattern matches.
    is_folder: whether that is a folder.
    search: which files are wanted in a folder, and under a pattern that ends without an extension.
    """

    look_up: Callable[[str], Any]
    glob: Callable[[str], Mapping[str, Any]]
    is_folder: Callable[[Any], bool]
    search: Search


def _walk_local(path: str, search: Search) -> Iterator[Found]:
    def look_up(name: str) -> Any:
        try:
            os.lstat(name)
        except PermissionError as error:  # of a folder above it
            what = f"expected a path that may be read, found {name} ({error.strerror})"
            raise BadInput(f"input.path: {what}") from None
        except (OSError, ValueError):
            return None
        return name

    def matches(pattern: str) -> Mapping[str, Any]:
        return {name: name for name in sorted(glob.glob(pattern, recursive=True))}

    as_it_stands = os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    quoted = os.path.abspath(os.path.expanduser(local_path(path)))
    name = as_it_stands if os.path.lexists(as_it_stands) else quoted
    found = _matches(name, _Storage(look_up, matches, os.path.isdir, search))
    return chain.from_iterable(
        _local_folder(match, search) if os.path.isdir(match) else [local_file(match)]
        for match in found
    )


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
    from botocore.exceptions import NoCredentialsError, ParamValidationError

    what = " ".join(str(error).split())
    if isinstance(error, TypeError):  # s3fs makes its client when it is first used
        return BadInput(f"input.storage_options: expected options of fsspec's {store}: {what}")
    if isinstance(error, ParamValidationError):
        return BadInput(f"input.path: expected a URL that S3 knows, found {path}: {what}")
    if isinstance(error, NoCredentialsError):
        return BadInput(
            f"input.storage_options: expected credentials for {path}, found none in them and in the "
            f"environment: a public bucket needs {{anon: true}}"
        )
    return error


def _matches(path: str, storage: _Storage) -> list[Any]:
    """What `storage` finds at the names that a path means.

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

    After the first part with a wildcard, brackets are first taken literally.
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
    folders = [_opened(root, seen, search)]
    try:
        while folders:
            here = folders[-1]
            for name in here.names:
                if name.startswith(search.hidden):
                    continue
                if name.endswith("/"):
                    folders.append(_opened(f"{here.path}/{name[:-1]}", seen, search))
                    break
                if search.wants(name):
                    yield local_file(f"{here.path}/{name}", name, here.descriptor)
            else:
                folders.pop().close()
    finally:
        for folder in folders:
            folder.close()


class _Folder(NamedTuple):
    """A local folder and the names that are left to visit in it; those of folders end with a slash."""

    path: str
    names: Iterator[str]
    descriptor: int | None = None

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


def _opened(path: str, seen: set[tuple[int, int]], search: Search) -> _Folder:
    """The folder; with no names if it was `seen` before or may not be read. The names are sorted such
    that the paths of all files are."""
    folder = _Folder(path, iter(()))
    try:
        folder = folder._replace(descriptor=os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        here = os.stat(path)
        if (here.st_dev, here.st_ino) in seen:
            return folder
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(folder.descriptor) as entries:
            names = sorted(f"{it.name}/" if _is_folder(it) else it.name for it in entries)
        return folder._replace(names=iter(names))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):  # e.g. a hanging mount
            folder.close()
            raise
        search.warn(f"can't list {path}: {error.strerror}")
        return folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link
        return False
