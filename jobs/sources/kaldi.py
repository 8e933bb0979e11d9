"""Kaldi's data folders: `wav.scp` and, if they are there, `segments`, `text`, `utt2spk`, `utt2lang`.

Paths are relative to `audio_root` or else to the folder of `wav.scp`. Commands in `wav.scp` are not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, Listing
from jobs.sources._entries import (
    OPTIONS,
    Entry,
    audio_lists,
    clips,
    find_listed,
    search_for_lists,
    seconds,
    text_columns,
)
from jobs.sources._lines import numbered, opened_text
from jobs.sources._paths import Found, exists, folder_of

__all__ = ["OPTIONS", "SHARDED", "clips", "columns", "find", "suffixes"]

SHARDED = False
COLUMNS = {"text": "text", "utt2spk": "speaker", "utt2lang": "language", "utt2gender": "gender"}
ARCHIVE = re.compile(r".*\.ark:\d+(\[.*\])?")


def suffixes(input: Input) -> tuple[str, ...]:
    return ("wav.scp",)


def columns(input: Input, names: list[str]) -> pa.Schema:
    search = search_for_lists(input, suffixes(input))
    return text_columns(audio_lists(search, input, _entries), names)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each utterance: each line of `segments` or else of `wav.scp`."""
    search = search_for_lists(input, suffixes(input), warn)
    return find_listed(audio_lists(search, input, _entries), input, warn, kept, {})


def _entries(scp: Found, input: Input) -> Iterator[Entry]:
    folder = folder_of(scp.source)
    of_utterance = {
        column: {key: text for _, key, text in _table(f"{folder}/{name}", input)}
        for name, column in COLUMNS.items()
    }

    def values(key: str, recording: str) -> dict[str, str | None]:
        own = {column: texts.get(key) for column, texts in of_utterance.items() if texts}
        return {"utterance": key, "recording": recording, **own}

    recordings = {key: (number, text) for number, key, text in _table(scp.source, input)}
    if not exists(f"{folder}/segments", input.storage_options):
        for key, (number, text) in recordings.items():
            yield _whole(f"line {number}", text)._replace(values=values(key, key))
        return
    segments = [
        (number, key, text.split() or [""])
        for number, key, text in _table(f"{folder}/segments", input)
    ]
    of_channels = {
        parts[0] for _, _, parts in segments if parts[3:] and parts[3] not in ("0", "-1")
    }
    for number, key, (recording, *times) in segments:
        entry = _segment(f"segment {number}", recordings.get(recording), recording, times)
        if recording in of_channels and not entry.problem:
            what = f"segments of several of its channels, here {' '.join(times[2:]) or 'of none'}"
            problem = ClipError("unsupported", f"expected a file of one channel, found {what}")
            entry = entry._replace(problem=problem)
        yield entry._replace(values=values(key, recording))


def _whole(place: str, text: str) -> Entry:
    """The entry of a recording, from its path in `wav.scp`."""
    if text.endswith("|"):
        what = f"wav.scp has a command, which is not run: name files in place of {text[:200]!r}"
        return Entry(place, problem=ClipError("unsupported", what))
    if ARCHIVE.fullmatch(text):
        return Entry(place, problem=ClipError("unsupported", f"a Kaldi archive: {text[:200]!r}"))
    if not text:
        return Entry(place, problem=ClipError("damaged", "expected a path after the key"))
    return Entry(place, text)


def _segment(place: str, recording: tuple[int, str] | None, name: str, times: list[str]) -> Entry:
    if recording is None:
        what = f"wav.scp has no recording {name[:200]!r}"
        return Entry(place, problem=ClipError("damaged", what))
    whole = _whole(place, recording[1])
    try:
        if len(times) not in (2, 3):
            raise ClipError(
                "damaged", f"expected a start and an end, found {' '.join(times)[:200]!r}"
            )
        start_s = seconds(times[0], "start") or 0.0
        end_s = None if times[1].startswith("-1") else seconds(times[1], "end")
        if end_s is not None and end_s < start_s:
            raise ClipError("damaged", f"expected an end after the start, found {times[:2]}")
    except ClipError as error:
        return whole._replace(problem=whole.problem or error)
    duration_s = None if end_s is None else round(end_s - start_s, 6)
    return whole._replace(offset_s=start_s, duration_s=duration_s)


def _table(source: str, input: Input) -> Iterator[tuple[int, str, str]]:
    """The number, the key and the rest of each line; none if there is no such file."""
    if not exists(source, input.storage_options):
        return
    with opened_text(Found(source, "", None, None), input) as (text, _):
        for number, line in numbered(text):
            key, _, rest = line.strip().partition(" ")
            if "\t" in key:
                key, _, rest = line.strip().partition("\t")
            if key:
                yield number, _utf8(key), _utf8(rest.strip())


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
