"""Lhotse's manifests of cuts or recordings, JSON lines (`.jsonl`, `.jsonl.gz`) or a JSON array.

A cut is a part of a recording. Paths are relative to `audio_root` or else to the manifest's folder.
Shar, whose tars hold the sound of cuts, is read as `webdataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import NO_COLUMNS, BadInput, Listing
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
from jobs.sources._lines import TextList
from jobs.sources._paths import Found

__all__ = ["OPTIONS", "SHARDED", "clips", "columns", "find", "suffixes"]

SHARDED = False
SAME_S = 1e-3  # durations of a cut and its recording that differ by less are equal
OF_SUPERVISIONS = ("text", "speaker", "language", "gender")
UNCHANGED = {"Resample"}  # transforms after which labels are those of the file


def suffixes(input: Input) -> tuple[str, ...]:
    return ("cuts.jsonl", "cuts.jsonl.gz", "recordings.jsonl", "recordings.jsonl.gz")


def columns(input: Input, names: list[str]) -> pa.Schema:
    search = search_for_lists(input, suffixes(input))
    return text_columns(audio_lists(search, input, _entries), names)


def find(input: Input, warn: Callable[[str], None], kept: pa.Schema = NO_COLUMNS) -> Listing:
    """A row for each cut, or for each recording."""
    search = search_for_lists(input, suffixes(input), warn)
    lists = audio_lists(search, input, _entries)
    return find_listed(lists, input, warn, kept, search.passed_over)


def is_item(value: Mapping[str, Any]) -> bool:
    """Whether an entry of a JSON list is a cut or a recording."""
    return (
        ("sources" in value and "sampling_rate" in value)
        or ("start" in value and "recording" in value)
        or ("tracks" in value)
        or value.get("type") in ("MonoCut", "MultiCut", "PaddingCut", "MixedCut")
    )


def columns_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a cut or recording: its id, what its supervisions say, and its `custom` keys."""
    supervisions = [s for s in value.get("supervisions") or () if isinstance(s, dict)]
    supervisions.sort(key=lambda s: s["start"] if isinstance(s.get("start"), int | float) else 0.0)
    columns: dict[str, Any] = {"id": value.get("id")}
    for name in OF_SUPERVISIONS:
        said = [s[name] for s in supervisions if isinstance(s.get(name), str)]
        if name != "text":
            said = list(dict.fromkeys(said))
        columns[name] = " ".join(said) if said else None
    for custom in (value.get("custom"), *(s.get("custom") for s in supervisions[:1])):
        columns |= {n: v for n, v in (custom or {}).items() if n not in columns}
    return columns


def _entries(found: Found, input: Input) -> Iterator[Entry]:
    for line in TextList(found, input):
        place = f"line {line.number}"
        if isinstance(line.values, ClipError):
            yield Entry(place, problem=line.values)
            continue
        try:
            yield _entry(place, line.values, found.source)
        except ClipError as error:
            yield Entry(place, problem=error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = (
                f"{place}: expected a cut or a recording of Lhotse: {type(error).__name__} {error}"
            )
            yield Entry(place, problem=ClipError("damaged", what))


def _entry(place: str, value: dict[str, Any], manifest: str) -> Entry:
    if not is_item(value):
        raise ClipError("damaged", f"{place}: neither a cut nor a recording of Lhotse")
    is_cut = "sources" not in value
    kind = value.get("type", "MonoCut") if is_cut else "recording"
    columns = columns_of(value)
    recording = value.get("recording") if is_cut else value
    is_made = kind in ("MixedCut", "PaddingCut")
    if is_made or not recording:
        what = f"is a {kind}, which is no part of one recording" if is_made else "has no recording"
        what = f"the cut {value.get('id')!r} {what}"
        return Entry(place, values=columns, problem=ClipError("unsupported", what))
    audio, problem = _source(recording, value.get("channel") if is_cut else None, manifest)
    if not is_cut:
        return Entry(place, audio, values=columns, problem=problem)
    start_s = seconds(value.get("start"), "start") or 0.0
    duration_s = seconds(value.get("duration"), "duration")
    whole_s = seconds(recording.get("duration"), "recording.duration")
    if not start_s and duration_s and whole_s and abs(whole_s - duration_s) < SAME_S:
        duration_s = None
    return Entry(place, audio, start_s, duration_s, columns, problem)


def _source(recording: dict[str, Any], channel: Any, manifest: str) -> tuple[str, ClipError | None]:
    """The file of a recording, and what keeps it from being the sound of a cut of this channel."""
    others = {one["name"] for one in recording.get("transforms") or ()} - UNCHANGED
    sources = recording["sources"]
    if isinstance(channel, int) and len(sources) > 1:
        sources = [one for one in sources if channel in one["channels"]]
    if len(sources) != 1:
        what = f"expected one file of a recording, found {len(sources)}"
        return "", ClipError("unsupported", what)
    [source] = sources
    if source["type"] == "shar":
        raise BadInput(
            f"input.path: expected a manifest of files, found cuts of a Shar in {manifest}: set "
            f"input.path to its folder, or to its recording.*.tar"
        )
    if source["type"] not in ("file", "url"):
        what = f"a source of type {source['type']!r}, which is not read"
        return "", ClipError("unsupported", what)
    problem = None
    if others:
        what = f"a recording that is changed by {', '.join(sorted(others))}"
        problem = ClipError("unsupported", f"expected a recording as it is, found {what}")
    elif isinstance(channel, int) and len(source["channels"]) > 1:
        what = f"channel {channel} of a file with {len(source['channels'])} channels"
        problem = ClipError("unsupported", f"expected a file of one channel, found {what}")
    return str(source["source"]), problem
