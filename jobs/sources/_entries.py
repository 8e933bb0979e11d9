"""Clips that lists name: an entry has the path of a file, perhaps a part of it, and columns.

Paths are relative to `input.audio_root` or else to a folder that follows from the list, and lead into
these, the list's own folder and those of `input.audio_allow`. A clip's version is that of its audio
file, so a text that changes in a list does not relabel the clip.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import (
    MISSING,
    NO_COLUMNS,
    NO_VERSION,
    PLACE,
    PROBLEM,
    BadInput,
    Clip,
    Listing,
    NoSuchColumn,
)
from jobs.sources._paths import (
    Found,
    absolute,
    as_text,
    file_system,
    folder_of,
    info_of,
    is_local,
    local_file,
    open_file,
    resolve,
    stored_file,
)
from jobs.sources._walk import LOOKUPS_AT_ONCE, Search, find_files

OPTIONS = ("audio_root", "audio_allow")
MAX_SECONDS = 1e9
SHOWN = 300  # characters of a problem in a message
LOOKUPS_BEFORE_LISTING = 3
OF_PARTS = re.compile(r"(?i)(^|_)(start|begin|end|onset)(_|$)")


class Entry(NamedTuple):
    """What a list says of a clip. `values` has its columns, `problem` what is wrong with it."""

    place: str  # in the list, such as `line 3`
    audio: str = ""  # path or URL
    offset_s: float = 0.0
    duration_s: float | None = None
    values: Mapping[str, Any] = MappingProxyType({})
    problem: ClipError | None = None


class AudioList(NamedTuple):
    """A list, the folder that its paths are relative to, and its entries."""

    file: Found
    base: str
    entries: Iterable[Entry]


Entries = Callable[[Found, Input], Iterable[Entry]]  # of a list


def search_for_lists(
    input: Input, suffixes: tuple[str, ...], warn: Callable[[str], None] = lambda _: None
) -> Search:
    """A search for lists with these suffixes, beside the audio files that they name."""
    return Search(suffixes, input.storage_options, warn, listed=input.extensions)


def audio_lists(
    search: Search,
    input: Input,
    entries: Entries,
    base: Callable[[str, Input], str] | None = None,
) -> Iterator[AudioList]:
    """The lists that a search finds; their paths are relative to `base(list, input)`, which is
    `base_of` by default."""
    for file in find_files(input.paths, search):
        yield AudioList(file, (base or base_of)(file.source, input), entries(file, input))


def text_columns(lists: Iterable[AudioList], names: Sequence[str]) -> pa.Schema:
    """The columns of lists, all as text. Reads entries until each column has been seen.

    Raises NoSuchColumn.
    """
    missing, offered = set(names), dict[str, None]()
    for each in lists:
        for entry in each.entries:
            offered.update(dict.fromkeys(entry.values))
            missing -= entry.values.keys()
            if not missing:
                break
    for name in names:
        if name in missing and offered:
            raise NoSuchColumn(name, ", ".join(offered))
    return pa.schema([(name, pa.string()) for name in names])


def find_listed(
    lists: Iterable[AudioList],
    input: Input,
    warn: Callable[[str], None],
    kept: pa.Schema,
    passed_over: Mapping[str, int],
) -> Listing:
    """A row for each entry, in the lists' order; a clip that is listed twice gets one row.

    Raises BadInput if a list has entries, but none that names a file.
    """
    rows, complete = listed_rows(lists, input, warn, kept)
    versions = add_versions(rows, input)
    _warn_of_missing(rows, versions, warn)
    return Listing(as_table(rows, kept), complete, versions, passed_over)


def listed_rows(
    lists: Iterable[AudioList],
    input: Input,
    warn: Callable[[str], None],
    kept: pa.Schema,
    known: Collection[str] = (),
) -> tuple[list[dict[str, Any]], set[str]]:
    """The rows of the entries, without versions if they have no problem, and the lists' names.

    `known` are files that `input.path` names, wherever they are links to.
    """
    rows: dict[tuple[str, str | None, float], dict[str, Any]] = {}
    repeated: list[str] = []
    parts: dict[str, None] = {}  # columns that may have a clip's start or end in its file
    complete: set[str] = set()
    for file, base, entries in lists:
        complete.add(file.source)
        roots = allowed(base, file.source, input)
        problem: ClipError | None = None  # the first one
        has_paths = False
        for entry in entries:
            has_paths = has_paths or bool(entry.audio)
            problem = problem or entry.problem
            row = _row(entry, file, roots, kept, known)
            if row["_problem"] is None:
                place = (row["source"], row["member"], row["offset_s"])
                if place in rows:
                    repeated.append(f"{file.source}, {entry.place}")
                    names = entry.values.keys() - {input.columns.offset, input.columns.duration}
                    parts |= dict.fromkeys(filter(OF_PARTS.search, sorted(names)))
                    continue
            else:
                place = (file.source, row["member"], 0.0)
            rows[place] = row
        if problem and not has_paths:
            raise BadInput(
                f"input.path: expected a list of files, found no path in {file.source}: "
                f"{problem.message[:SHOWN]}"
            )
    if repeated:
        each = f"{len(repeated):,} clips are listed more than once, e.g. in {repeated[0]}"
        warn(each + _if_parts(parts))
    return list(rows.values()), complete


def _if_parts(columns: Collection[str]) -> str:
    """What to do if repeated entries are parts of files, whose places are in these columns."""
    if not columns:
        return ""
    return (
        f": if {', '.join(columns)} delimit a part of the file, name the columns with its start and its "
        f"length, in seconds, in input.columns.offset and input.columns.duration"
    )


def as_table(rows: Sequence[dict[str, Any]], kept: pa.Schema) -> pa.Table:
    """The clips of a `Listing`, from rows of `listed_rows` with versions."""
    own = [("_duration_s", pa.float64()), ("_problem", PROBLEM)]
    return pa.Table.from_pylist(list(rows), schema=pa.schema([*PLACE, *kept, *own]))


def clips(
    plan: pa.Table,
    input: Input,
    kept: pa.Schema = NO_COLUMNS,
    passed_over: Counter[str] | None = None,
) -> Iterator[Clip]:
    """Each row and its file, opened."""
    for row in plan.to_pylist():
        problem, duration_s = row.pop("_problem"), row.pop("_duration_s")
        if duration_s is not None or row["offset_s"]:
            row["duration_s"] = math.inf if duration_s is None else duration_s
        try:
            if problem:
                raise ClipError(problem["kind"], problem["message"])
            yield row, open_file(row["source"], row["source_version"], input.storage_options)
        except ClipError as error:
            yield row, error


def base_of(source: str, input: Input) -> str:
    """The folder that paths in the file `source` are relative to, if nothing else is usual."""
    return absolute(input.audio_root) if input.audio_root else absolute(folder_of(source))


def allowed(base: str, source: str, input: Input) -> list[str]:
    """The folders that paths in the file `source` may lead into, `base` first."""
    return [base, absolute(folder_of(source)), *map(absolute, input.audio_allow)]


def seconds(value: Any, name: str) -> float | None:
    """A time of an entry, or None if it has none. Raises ClipError."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # the last for an integer of 400 digits
        number = math.nan
    if not 0 <= number <= MAX_SECONDS:
        raise ClipError("damaged", f"{name}: expected seconds, found {value!r}")
    return number


def _row(
    entry: Entry, file: Found, roots: Sequence[str], kept: pa.Schema, known: Collection[str]
) -> dict[str, Any]:
    """The listing's row for an entry of the list `file`."""
    row: dict[str, Any] = {
        "source": file.source,
        "member": entry.place,
        "source_version": file.version,
        "offset_s": 0.0,
        "_problem": None,
        **{name: as_text(entry.values.get(name)) for name in kept.names},
    }
    try:
        if entry.problem:
            raise entry.problem
        source = f"{roots[0]}/{entry.audio}"
        if source not in known:
            source = resolve(entry.audio, roots[0], roots)
        if entry.duration_s == 0:
            raise ClipError("empty", "the list gives a duration of 0 s")
    except ClipError as error:
        return row | {"_problem": {"kind": error.kind, "message": error.message}}
    # Two parts of a file may begin at one offset, so the duration belongs to the clip's place.
    member = None if entry.duration_s is None else f"{entry.duration_s} s"
    return row | {
        "source": source,
        "member": member,
        "source_version": None,
        "offset_s": entry.offset_s,
        "_duration_s": entry.duration_s,
    }


def add_versions(rows: Sequence[dict[str, Any]], input: Input) -> dict[str, str]:
    """Set the versions of the rows that have none yet. Returns those of existing files."""
    versions = _versions([row["source"] for row in rows if row["_problem"] is None], input)
    for row in rows:
        row["source_version"] = row["source_version"] or versions[row["source"]]
    return {source: version for source, version in versions.items() if version not in NO_VERSION}


def _warn_of_missing(
    rows: Sequence[dict[str, Any]], versions: Mapping[str, str], warn: Callable[[str], None]
) -> None:
    """Warn if none of the files that lists name exists, as with a wrong `audio_root`."""
    named = [row["source"] for row in rows if row["_problem"] is None]
    if named and not versions:
        warn(
            f"none of the {len(named):,} files that are listed exists, e.g. {named[0]}: paths are "
            f"relative to input.audio_root, or else to the list's folder"
        )


def _versions(sources: Collection[str], input: Input) -> dict[str, str]:
    """The version of each file, or MISSING. On a store, all files of a folder are listed at once.

    Raises OSError if a storage does not answer whether a file exists: a clip that only seems to be
    missing must not count as a change of the input.
    """
    local = {source for source in sources if is_local(source)}
    versions = {source: local_file(source).version for source in local}
    remote = sorted(set(sources) - local)
    folders = [list(group) for _, group in groupby(remote, folder_of)]

    def look_up(names: list[str]) -> dict[str, str]:
        from fsspec.core import strip_protocol

        fs = file_system(names[0], input.storage_options)
        if len(names) > LOOKUPS_BEFORE_LISTING and (listed := _listed(fs, folder_of(names[0]))):
            infos = {info["name"]: info for info in listed}
            found = ((name, infos.get(strip_protocol(name))) for name in names)  # also of s3a://
            return {
                name: stored_file(name, info).version if info else MISSING for name, info in found
            }
        return {name: _version(fs, name) for name in names}

    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
        for found in threads.map(look_up, folders):
            versions |= found
    return versions


def _listed(fs: Any, folder: str) -> list[dict[str, Any]]:
    """The entries of a folder (`fs.ls`); none if it does not exist or may not be listed."""
    try:
        listed: list[dict[str, Any]] = fs.ls(folder, detail=True)
    except (FileNotFoundError, PermissionError):
        return []
    return listed


def _version(fs: Any, name: str) -> str:
    try:
        return stored_file(name, info_of(fs, name)).version
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        raise OSError(
            f"expected an answer whether {name} exists, found: {type(error).__name__}: {error} "
            "(S3 answers 403 also for a missing object where the bucket may not be listed)"
        ) from error
