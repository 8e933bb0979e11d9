"""Lists of audio files: JSON lines or arrays (NeMo), CSV with any delimiter, and TSV (Common Voice).

An entry names a file or a part of it (`offset`, `duration` in seconds); its other columns can be kept
as text. Paths are relative to `audio_root` or else to the manifest's folder (of a TSV, to `clips/` in
it), and lead into these and into the folders of `audio_allow`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, BadInput, Listing
from jobs.sources._entries import OPTIONS as OPTIONS_OF_LISTS
from jobs.sources._entries import (
    Entry,
    audio_lists,
    base_of,
    clips,
    find_listed,
    search_for_lists,
    seconds,
    text_columns,
)
from jobs.sources._lines import DELIMITERS, PACKED, Line, TextList, first_line, unpacked_name
from jobs.sources._paths import Found, absolute, exists, folder_of
from jobs.sources._walk import extension

__all__ = ["OPTIONS", "SHARDED", "clips", "columns", "find", "suffixes"]

SHARDED = False
OPTIONS = (
    *("columns.audio", "columns.offset", "columns.duration", "columns.names"),
    *("delimiter", "encoding", *OPTIONS_OF_LISTS),
)
PATH_COLUMNS = (
    *("audio_filepath", "path", "audio", "audio_path", "file_name", "file", "wav", "wav_filename"),
    *("filename", "wav_path", "wav_file", "audio_file", "audio_filename", "filepath", "file_path"),
)


def suffixes(input: Input) -> tuple[str, ...]:
    names = (".jsonl", ".csv", ".tsv", "manifest.json")
    return tuple(f"{name}{packed}" for packed in PACKED for name in names)


def columns(input: Input, names: list[str]) -> pa.Schema:
    search = search_for_lists(input, suffixes(input))
    return text_columns(audio_lists(search, input, _entries, _base), names)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each entry, in the manifests' order; a clip that is listed twice gets one row.

    Raises BadInput if no entry has a column that the input names for the parts of files.
    """
    named = {input.columns.offset: "offset", input.columns.duration: "duration"}
    named.pop(None, None)
    there: dict[str, None] = {}  # columns, until all of `named` are among them

    def entries(found: Found, input: Input) -> Iterator[Entry]:
        for entry in _entries(found, input):
            if not named.keys() <= there.keys():
                there.update(dict.fromkeys(entry.values))
            yield entry

    search = search_for_lists(input, suffixes(input), warn)
    listing = find_listed(
        audio_lists(search, input, entries, _base), input, warn, kept, search.passed_over
    )
    for column, key in named.items():
        if there and column not in there:
            offered = ", ".join(there)
            raise BadInput(
                f"input.columns.{key}: expected a column of the list ({offered}), found {column!r}"
            )
    return listing


def is_list(found: Found, input: Input) -> bool:
    """Whether a file holds objects of JSON, or a table with a column of paths, or paths without a
    header. Raises BadInput if it is in an unknown encoding."""
    line = first_line(found, input)
    if unpacked_name(found.source).endswith(".json"):
        return line.lstrip().startswith(("{", "["))
    fields = re.split(f"[{''.join(DELIMITERS)}\\s]", line)
    has_paths = any(extension(field)[1:] in input.extensions for field in fields)
    headers = (line.split(delimiter) for delimiter in DELIMITERS)
    return has_paths or bool(input.columns.names) or any(_path_columns(h, input) for h in headers)


def _entries(found: Found, input: Input) -> Iterator[Entry]:
    for line in TextList(found, input, lambda names: bool(_path_columns(names, input))):
        if isinstance(line.values, dict) and "shard_id" in line.values:
            raise BadInput(
                f"input.path: expected a list of files, found {found.source}, which lists members of "
                f"tars: set input.path to the tars, and input.manifest to it"
            )
        yield _entry(line, input)


def _entry(line: Line, input: Input) -> Entry:
    place = f"line {line.number}"
    if isinstance(line.values, ClipError):
        return Entry(place, problem=line.values)
    path, columns = "", input.columns
    offset, duration = columns.offset or "offset", columns.duration or "duration"
    try:
        path = path_of(line.values, input)
        offset_s = seconds(line.values.get(offset), offset) or 0.0
        duration_s = seconds(line.values.get(duration), duration)
    except ClipError as error:
        return Entry(place, path, values=line.values, problem=error)
    return Entry(place, path, offset_s, duration_s, line.values)


def _path_columns(names: Sequence[str], input: Input) -> list[str]:
    """The columns that may hold the path, of those named, the likeliest first."""
    if input.columns.audio:
        return [name for name in names if name == input.columns.audio]
    by_name = {name.lower(): name for name in reversed(names)}
    return [by_name[name] for name in PATH_COLUMNS if name in by_name]


def path_of(values: dict[str, Any], input: Input) -> str:
    """The path in an entry. Raises ClipError."""
    names = [input.columns.audio] if input.columns.audio else PATH_COLUMNS
    path = next((values[name] for name in names if values.get(name)), None)
    if path is None and not input.columns.audio:
        path = next((values[name] for name in _path_columns(list(values), input)), None)
    if isinstance(path, dict):  # as `datasets` writes it
        path = path.get("path")
    if not isinstance(path, str) or not path:
        found = [_found(name, values[name], name in names) for name in values]
        raise ClipError(
            "unreadable", f"expected a path in {' or '.join(names)}, found {', '.join(found)}"
        )
    return path


def _found(name: str, value: Any, is_of_paths: bool) -> str:
    """A column for a message, with what it holds if that should be a path."""
    if not is_of_paths or value is None:
        return name
    return f"{name}: {'an empty text' if value == '' else type(value).__name__}"


def _base(source: str, input: Input) -> str:
    """The folder that paths are relative to: of a TSV, as in Common Voice, `clips/` beside it."""
    home = absolute(folder_of(source))
    clips = f"{home}/clips"
    if input.audio_root or not unpacked_name(source).endswith(".tsv"):
        return base_of(source, input)
    return clips if exists(clips, input.storage_options) else home
