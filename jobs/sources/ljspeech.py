"""LJSpeech's `metadata.csv`: `id|text|normalized text`, without a header, beside `wavs/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, Listing
from jobs.sources._entries import OPTIONS as OPTIONS_OF_LISTS
from jobs.sources._entries import (
    Entry,
    audio_lists,
    base_of,
    clips,
    find_listed,
    search_for_lists,
    text_columns,
)
from jobs.sources._lines import Layout, TextList
from jobs.sources._paths import Found, exists, folder_of
from jobs.sources._walk import extension

__all__ = ["OPTIONS", "SHARDED", "clips", "columns", "find", "suffixes"]

SHARDED = False
OPTIONS = ("extensions", "encoding", *OPTIONS_OF_LISTS)
LAYOUT = Layout("|", ("id", "text", "normalized_text"), 2)


def suffixes(input: Input) -> tuple[str, ...]:
    return ("metadata.csv",)


def columns(input: Input, names: list[str]) -> pa.Schema:
    search = search_for_lists(input, suffixes(input))
    return text_columns(audio_lists(search, input, _entries, _base), names)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each line."""
    search = search_for_lists(input, suffixes(input), warn)
    lists = audio_lists(search, input, _entries, _base)
    return find_listed(lists, input, warn, kept, search.passed_over)


def is_list(found: Found, line: str, input: Input) -> bool:
    """Whether a file whose first line is `line` is such a list."""
    fields = line.split(LAYOUT.delimiter)
    folder = folder_of(found.source)
    if not LAYOUT.at_least <= len(fields) <= len(LAYOUT.names):
        return False
    return exists(f"{folder}/wavs/{_name(fields[0], input)}", input.storage_options)


def _base(source: str, input: Input) -> str:
    """The folder that paths are relative to: `wavs/` beside the list."""
    wavs = f"{folder_of(source)}/wavs"
    is_usual = not input.audio_root and exists(wavs, input.storage_options)
    return wavs if is_usual else base_of(source, input)


def _entries(found: Found, input: Input) -> Iterator[Entry]:
    for line in TextList(found, input, layout=LAYOUT):
        place = f"line {line.number}"
        if isinstance(line.values, ClipError):
            yield Entry(place, problem=line.values)
        else:
            values = dict.fromkeys(LAYOUT.names) | line.values
            yield Entry(place, _name(line.values["id"], input), values=values)


def _name(id: str, input: Input) -> str:
    return id if extension(id)[1:] in input.extensions else f"{id}.wav"
