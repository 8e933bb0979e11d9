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
from jobs.table.table import Table
from jobs.workers.read import ReadSettings
from jobs.workers.reopen import clips_of, opened
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
    """Clips that are read in one go: of one run's input, and channel.

    seconds: of each clip, at most.
    kept: columns of the source whose values are part of a clip's version.
    """

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
    groups: dict[tuple[str, int | None], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["source"]):  # a tar is read once
        if row["error_stage"] in UNDECODABLE and row["error_kind"] not in READABLE:
            yield Sound(row["clip_id"], ClipError(row["error_kind"], row["error_message"]))
        else:
            groups[row["run_id"], row["channel"]].append(row)
    for (run_id, channel), same in groups.items():
        yield from _read(Reading(inputs[run_id], audio, channel, same, seconds, kept))


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
    rows = {row["clip_id"]: row for row in reading.rows}

    def clips() -> Clips:
        for clip, file in opened(clips_of(reading.rows), reading.input, reading.kept):
            row = rows[clip.clip_id]
            memory.working_on(clip.clip_id, 0)
            length_s = min(row["duration_s"] or reading.seconds, reading.seconds)
            yield {**row, "duration_s": length_s}, file
            memory.working_on("", 0)

    return prepare(
        clips(),
        schema=pa.schema([("clip_id", pa.string())]),
        rates=(RATE,),
        max_clip_s=reading.seconds,
        damage=EVERYTHING,
        raw=ReadSettings(reading.input, reading.audio, (RATE,), "never").headerless,
        channels=reading.channel or "mean",
        max_batch_clips=4,
        decoded=memory.decoded,
    )
