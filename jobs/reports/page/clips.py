"""Reads clips of a table again: the same stretch, channel and decoder as when they were labelled.

As in a run, everything that a file may break happens in a sandbox (`jobs.workers.sandbox`).
"""

from __future__ import annotations

import json
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from audio_ops.errors import ClipError
from audio_ops.flags import Damage
from audio_ops.prepare import prepare
from audio_ops.signal.waveforms import waveforms_of
from jobs.config import Audio
from jobs.input import Input
from jobs.sources import PLACE, PROBLEM, BadInput, files, load_source, parquet, webdataset
from jobs.table.table import Table
from jobs.workers.read import ReadSettings
from jobs.workers.sandbox import Died, SharedMemory, sandbox

RATE = 24_000  # Hz, one of Opus's own
MEMORY_BYTES, TIMEOUT_S = 2 << 30, 60.0  # for one clip, besides its own duration
UNDECODABLE = ("read", "decode")  # stages of errors that reading again would only repeat
READABLE = ("too_long", "too_short")  # kinds of them whose sound can be played all the same
ANY = "."  # in place of the input's path: each clip's own is read
EVERYTHING = Damage("keep", 1.0)

Row = Mapping[str, Any]
Clips = Iterator[tuple[dict[str, Any], BinaryIO | ClipError]]


class Sound(NamedTuple):
    """A clip's sound at RATE, (samples,) float32, or why there is none."""

    clip_id: str
    samples: np.ndarray | ClipError


@dataclass(frozen=True)
class Reading:
    """Clips that are read in one go: of one packaging, input and channel.

    seconds: of each clip, at most.
    kept: columns of the source whose values are part of a clip's version.
    """

    packaging: str
    input: Input
    audio: Audio
    channel: int | None
    rows: Sequence[Row]
    seconds: float
    kept: pa.Schema


def read_clips(table: Table, rows: Sequence[Row], seconds: float) -> Iterator[Sound]:
    """The sound of each of these rows of a table, in any order, at most so many seconds of it."""
    settings = table.settings()
    raw = settings.get("audio", {}).get("raw", [])
    audio = Audio(raw=tuple(raw))
    schema = table.schema()
    kept = pa.schema([schema.field(name) for name in settings.get("keep", ())])
    inputs = _inputs(table, {row["run_id"] for row in rows})
    groups: dict[tuple[str, str, int | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row["error_stage"] in UNDECODABLE and row["error_kind"] not in READABLE:
            yield Sound(row["clip_id"], ClipError(row["error_kind"], row["error_message"]))
        else:
            packaging = packaging_of(row["source"], inputs[row["run_id"]])
            groups[packaging, row["run_id"], row["channel"]].append(row)
    for (packaging, run_id, channel), same in groups.items():
        reading = Reading(packaging, inputs[run_id], audio, channel, same, seconds, kept)
        yield from _read(reading)


def packaging_of(source: str, input: Input) -> str:
    """How a clip of this source is read: as a member of a tar, a row of Parquet, or (a part of) a
    file, whatever list has named it."""
    for name in ("webdataset", "parquet"):
        is_of_run = input.format == name
        if is_of_run or (
            input.format == "auto" and source.lower().endswith(load_source(name).suffixes(input))
        ):
            return name
    return "files"


def _inputs(table: Table, run_ids: Collection[str]) -> dict[str, Input]:
    """The input of each run, as its summary has it. Of a run without one (killed, or of an earlier
    version) the files' names say how they are packaged."""
    options = table.storage.options
    inputs = {}
    for run_id in run_ids:
        try:
            found = json.loads(table.storage.read(f"_runs/{run_id}.json")).get("input")
            inputs[run_id] = Input(path=ANY, storage_options=options, **(found or {}))
        except (FileNotFoundError, ValueError, TypeError):  # ValueError: no JSON, or no such key
            inputs[run_id] = Input(path=ANY, storage_options=options)
    return inputs


def _read(reading: Reading) -> Iterator[Sound]:
    """The sound of each row. A clip that ends its sandbox, or takes too long, has none."""
    left = {row["clip_id"]: row for row in reading.rows}
    while left:
        part = Reading(**{**vars(reading), "rows": list(left.values())})
        try:
            with sandbox() as process:
                for found in process.tables(decoded, {"reading": part}, TIMEOUT_S, MEMORY_BYTES):
                    sounds = waveforms_of(found[f"sound_{RATE}"])
                    for row, sound in zip(found.to_pylist(), sounds, strict=True):
                        if left.pop(row["clip_id"], None) is not None:
                            yield Sound(row["clip_id"], _samples(row, sound))
        except Died as death:
            at = death.clip_id if death.clip_id in left else next(iter(left))
            del left[at]
            yield Sound(at, ClipError(death.kind, death.message))
        except Exception as error:  # of a store that does not answer, whatever it raises
            traceback.print_exc()
            failure = ClipError("unreadable", f"{type(error).__name__}: {error}")
            yield from (Sound(clip_id, failure) for clip_id in left)
            return
        else:
            for clip_id in left:
                yield Sound(clip_id, ClipError("unreadable", "it was not found where it was"))
            return


def _samples(row: Row, sound: Any) -> np.ndarray | ClipError:
    if sound is None:
        return ClipError(row["error_kind"] or "empty", row["error_message"] or "no samples")
    return np.array(sound[:], np.float32)


def decoded(memory: SharedMemory, reading: Reading) -> Iterator[pa.Table]:
    """Tables with the sound of each clip that is still there, in a sandbox."""
    wanted = {_place(row): row for row in reading.rows}
    raw = ReadSettings(reading.input, reading.audio, (RATE,), "never").headerless

    def opened() -> Clips:
        left = dict(wanted)
        for clip, file in OPEN[reading.packaging](reading):
            row = left.pop(_place(clip), None)
            if row is None:
                if not isinstance(file, ClipError):
                    file.close()
                continue
            memory.working_on(row["clip_id"], 0)
            length_s = min(row["duration_s"] or reading.seconds, reading.seconds)
            if not isinstance(file, ClipError) and _is_other(clip, row):
                file.close()
                file = ClipError("unreadable", "its sound has changed since it was labelled")
            yield {**row, "duration_s": length_s}, file
            memory.working_on("", 0)
            if not left:
                return

    return prepare(
        opened(),
        schema=pa.schema([("clip_id", pa.string())]),
        rates=(RATE,),
        max_clip_s=reading.seconds,
        damage=EVERYTHING,
        raw=raw,
        channels=reading.channel or "mean",
        max_batch_clips=4,
        decoded=memory.decoded,
    )


def _place(row: Row) -> tuple[str, str | None, float]:
    return row["source"], row["member"], row["offset_s"]


def _is_other(clip: Row, row: Row) -> bool:
    """Whether a member of a tar has another digest than the one that was labelled."""
    both = clip["source_version"], row["source_version"]
    return both[0] != both[1] and all((each or "").startswith("blake2b:") for each in both)


def _plan(rows: Sequence[Row], **more: pa.Array) -> pa.Table:
    places = [{name: row[name] for name in PLACE.names} for row in rows]
    plan = pa.Table.from_pylist(places, schema=PLACE)
    for name, column in more.items():
        plan = plan.append_column(name, column)
    return plan


def _of_files(reading: Reading) -> Clips:
    return files.clips(_plan(reading.rows), reading.input)


def _of_parquet(reading: Reading) -> Clips:
    """The rows of Parquet files, those of a file together."""
    rows = sorted(reading.rows, key=lambda row: (row["source"], row["source_version"]))
    return parquet.clips(_plan(rows, _problem=pa.nulls(len(rows), PROBLEM)), reading.input)


def _of_tars(reading: Reading) -> Clips:
    """All members of each tar; the caller takes those that it wants."""
    by_tar: dict[str, list[Row]] = defaultdict(list)
    for row in reading.rows:
        by_tar[row["source"]].append(row)
    for source, rows in by_tar.items():
        input = reading.input.model_copy(update={"path": source})
        left = {_place(row) for row in rows}
        try:
            found = webdataset.find(input, lambda _: None, reading.kept)
            for clip, file in webdataset.clips(found.clips, input, reading.kept):
                left.discard(_place(clip))
                yield clip, file
                if not left:
                    break
        except FileNotFoundError:
            error = ClipError("unreadable", "there is no such file")
            yield from ((dict(row), error) for row in rows)
        except BadInput as bad:
            failure = ClipError("unreadable", str(bad))
            yield from ((dict(row), failure) for row in rows)


OPEN = {"files": _of_files, "parquet": _of_parquet, "webdataset": _of_tars}
