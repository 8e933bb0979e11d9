"""Lists of audio files: JSON lines (NeMo), CSV, and TSV (Common Voice).

An entry names a file or a part of it (`offset`, `duration` in seconds); its other columns can be kept
as text. Paths are relative to `audio_root` or else to the manifest's folder (of a TSV, to `clips/` in
it), and may not lead outside of these. A clip's version is that of its audio file, so a text that
changes in a manifest does not relabel the clip.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
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
    Clip,
    Listing,
    NoSuchColumn,
)
from jobs.sources._paths import (
    Found,
    absolute,
    as_text,
    file_system,
    find_files,
    folder_of,
    is_local,
    local_file,
    open_file,
    parse_json,
    resolve,
    stored_file,
)

SHARDED = False
OPTIONS = ("columns.audio", "columns.offset", "columns.duration", "audio_root")
PATH_COLUMNS = ("audio_filepath", "path", "audio", "audio_path", "file_name", "file", "wav")
MAX_LINE = 1 << 20  # characters, in all lines of an entry together
MAX_SECONDS = 1e9
MAX_BAD_LINES = 1000  # in succession: such a file is no manifest, and its rest gets no rows
LOOKUPS_AT_ONCE = 16
LOOKUPS_BEFORE_LISTING = 3


class Entry(NamedTuple):
    """A line of a manifest: its values by column, or an error."""

    line: int
    values: dict[str, Any] | ClipError


def suffixes(input: Input) -> tuple[str, ...]:
    return (".jsonl", ".csv", ".tsv", "manifest.json")


def columns(input: Input, names: list[str]) -> pa.Schema:
    """The columns, all as text. Reads entries until each column has been seen."""
    missing, offered = set(names), dict[str, None]()
    for found in find_files(input.paths, suffixes(input), input.storage_options, lambda _: None):
        for entry in _entries(found, input):
            if isinstance(entry.values, dict):
                offered.update(dict.fromkeys(entry.values))
                missing -= entry.values.keys()
            if not missing:
                break
    for name in names:
        if name in missing and offered:
            raise NoSuchColumn(name, ", ".join(offered))
    return pa.schema([(name, pa.string()) for name in names])


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each entry, in the manifests' order; a clip that is listed twice gets one row."""
    rows: dict[tuple[str, str | None, float], dict[str, Any]] = {}
    repeated: list[str] = []
    manifests: set[str] = set()
    for found in find_files(input.paths, suffixes(input), input.storage_options, warn):
        manifests.add(found.source)
        roots = _roots(found.source, input)
        for entry in _entries(found, input):
            row = _row(entry, found, roots, input, kept)
            if row["_problem"] is None:
                place = (row["source"], row["member"], row["offset_s"])
                if place in rows:
                    repeated.append(f"{found.source}, line {entry.line}")
                    continue
            else:
                place = (found.source, row["member"], 0.0)
            rows[place] = row
    if repeated:
        warn(f"{len(repeated):,} clips are listed more than once, e.g. in {repeated[0]}")
    versions = _versions([row["source"] for row in rows.values() if row["_problem"] is None], input)
    for row in rows.values():
        row["source_version"] = row["source_version"] or versions[row["source"]]
    own = [("_duration_s", pa.float64()), ("_problem", PROBLEM)]
    clips = pa.Table.from_pylist(list(rows.values()), schema=pa.schema([*PLACE, *kept, *own]))
    known = {source: version for source, version in versions.items() if version not in NO_VERSION}
    return Listing(clips, manifests, known)


def clips(plan: pa.Table, input: Input, kept: pa.Schema = NO_COLUMNS) -> Iterator[Clip]:
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


def _roots(manifest: str, input: Input) -> tuple[str, str]:
    """The folder that a manifest's paths are relative to, and the manifest's own folder. Its paths
    may lead into both."""
    home = absolute(folder_of(manifest))
    base = absolute(input.audio_root) if input.audio_root else _base(manifest, home, input)
    return base, home


def _row(
    entry: Entry, found: Found, roots: tuple[str, str], input: Input, kept: pa.Schema
) -> dict[str, Any]:
    """The listing's row for an entry of the manifest `found`."""
    row: dict[str, Any] = {
        "source": found.source,
        "member": f"line {entry.line}",
        "source_version": found.version,
        "offset_s": 0.0,
        "_problem": None,
    }
    try:
        if isinstance(entry.values, ClipError):
            raise entry.values
        row |= {name: as_text(entry.values.get(name)) for name in kept.names}
        source = resolve(_path(entry.values, input), roots[0], roots)
        offset_s = _seconds(entry.values, input.columns.offset, "offset") or 0.0
        duration_s = _seconds(entry.values, input.columns.duration, "duration")
        if duration_s == 0:
            raise ClipError("empty", "the manifest gives a duration of 0 s")
    except ClipError as error:
        return row | {"_problem": {"kind": error.kind, "message": error.message}}
    # Two parts of a file may begin at one offset, so the duration belongs to the clip's place.
    member = None if duration_s is None else f"{duration_s} s"
    return row | {
        "source": source,
        "member": member,
        "source_version": None,
        "offset_s": offset_s,
        "_duration_s": duration_s,
    }


def _path(values: dict[str, Any], input: Input) -> str:
    names = [input.columns.audio] if input.columns.audio else PATH_COLUMNS
    path = next((values[name] for name in names if values.get(name)), None)
    if not isinstance(path, str):
        raise ClipError(
            "unreadable", f"expected a path in {' or '.join(names)}, found {', '.join(values)}"
        )
    return path


def _seconds(values: dict[str, Any], name: str | None, default: str) -> float | None:
    value = values.get(name or default)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):  # the last for an integer of 400 digits
        seconds = math.nan
    if not 0 <= seconds <= MAX_SECONDS:
        raise ClipError("damaged", f"{name or default}: expected seconds, found {value!r}")
    return seconds


def _base(source: str, home: str, input: Input) -> str:
    """The folder that paths are relative to: of a TSV, as in Common Voice, `clips/` beside it."""
    clips = f"{home}/clips"
    if not source.lower().endswith(".tsv"):
        return home
    if is_local(source):
        return clips if os.path.lexists(clips) else home
    try:  # not `isdir`, which is False for any failure of a store
        is_folder = file_system(source, input.storage_options).info(clips)["type"] == "directory"
    except FileNotFoundError:
        return home
    return clips if is_folder else home


def _entries(found: Found, input: Input) -> Iterator[Entry]:
    """A manifest's entries. Empty lines are skipped. Raises FileNotFoundError if it can't be opened."""
    try:
        opened = open_file(found.source, found.version, input.storage_options)
    except ClipError as error:
        raise FileNotFoundError(f"{found.source}: {error.message}") from None
    with io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape", newline="\n") as text:
        lines = _lines(text)
        suffix = found.source.lower().rpartition(".")[2]
        bad = 0
        for entry in _json_entries(lines) if suffix in ("jsonl", "json") else _table(lines, suffix):
            bad = bad + 1 if isinstance(entry.values, ClipError) else 0
            if bad == MAX_BAD_LINES:
                rest = f"{bad:,} bad lines up to line {entry.line}: the rest is not read"
                entry = entry._replace(values=ClipError("damaged", rest))
            yield entry
            if bad == MAX_BAD_LINES:
                return


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
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


def _json_entries(lines: Iterator[tuple[int, str]]) -> Iterator[Entry]:
    for number, line in lines:
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            yield Entry(number, _too_long(number))
            continue
        try:
            line.encode()
            values = parse_json(line)
        except (ValueError, RecursionError) as error:
            yield Entry(number, ClipError("damaged", f"line {number} is no JSON: {error}"))
            continue
        if not isinstance(values, dict):
            what = f"line {number}: expected a JSON object, found {type(values).__name__}"
            yield Entry(number, ClipError("damaged", what))
            continue
        yield Entry(number, values)


def _table(lines: Iterator[tuple[int, str]], suffix: str) -> Iterator[Entry]:
    """The entries of a CSV, whose quoted fields may contain line ends, or of a TSV without quotes."""
    names: list[str] | None = None
    for number, fields in _tsv(lines) if suffix == "tsv" else _csv(lines):
        if not isinstance(fields, list):
            yield Entry(number, fields)
        elif names is None:
            names = fields
        elif len(fields) != len(names):
            what = f"line {number}: expected {len(names)} fields, found {len(fields)}"
            yield Entry(number, ClipError("damaged", what))
        elif any(not field.isascii() and _is_broken(field) for field in fields):
            yield Entry(number, ClipError("damaged", f"line {number} is not UTF-8"))
        else:
            yield Entry(number, dict(zip(names, fields, strict=True)))


def _tsv(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str] | ClipError]]:
    for number, line in lines:
        if len(line) > MAX_LINE:
            yield number, _too_long(number)
        elif line:
            yield number, line.split("\t")


def _csv(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str] | ClipError]]:
    size = 0  # characters of the entry being read, which an open quote extends line by line

    def text() -> Iterator[str]:
        nonlocal size
        for _, line in lines:
            size += len(line)
            yield '"x"x' if size > MAX_LINE else f"{line}\n"  # an error, in a quote and outside

    reader = csv.reader(text(), strict=True)
    while True:
        size = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number = reader.line_num
            problem = ClipError("damaged", f"line {number}: {error}")
            yield number, problem if size <= MAX_LINE else _too_long(number)
            continue
        if fields:
            yield reader.line_num, fields


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _versions(sources: Sequence[str], input: Input) -> dict[str, str]:
    """The version of each file, or MISSING. On a store, all files of a folder are listed at once.

    Raises OSError if a storage does not answer whether a file exists: a clip that only seems to be
    missing must not count as a change of the input.
    """
    local = {source for source in sources if is_local(source)}
    versions = {source: local_file(source).version for source in local}
    remote = sorted(set(sources) - local)
    folders = [list(group) for _, group in groupby(remote, folder_of)]

    def look_up(names: list[str]) -> dict[str, str]:
        fs = file_system(names[0], input.storage_options)
        if len(names) > LOOKUPS_BEFORE_LISTING and (listed := _listed(fs, folder_of(names[0]))):
            infos = {fs.unstrip_protocol(info["name"]): info for info in listed}
            return {
                name: stored_file(name, infos[name]).version if name in infos else MISSING
                for name in names
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
        return stored_file(name, fs.info(name)).version
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        raise OSError(
            f"expected an answer whether {name} exists, found: {type(error).__name__}: {error} "
            "(S3 answers 403 also for a missing object where the bucket may not be listed)"
        ) from error
