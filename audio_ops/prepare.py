"""Encoded clips -> Arrow tables with their waveforms, at each rate that the tasks need.

Rows in = rows out, in order: a clip that can't be decoded keeps its row, which says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from audio_ops.decode import ClipError, Sound, open_sound
from audio_ops.voice import SAMPLE_RATE as SPEECH_RATE
from audio_ops.voice import speech_probability
from audio_ops.wave import Level, Resampler, downmix, resample
from audio_ops.waveforms import COLUMN, Pcm16, Waveform, as_float32, waveform_column

Speech = Literal["never", "long", "always"]
Stretch = tuple[float, float]  # of a file: where it begins, how long it is; seconds
NONE_LOST: Mapping[str, ClipError] = MappingProxyType({})

LOUDEST = 1e12  # beyond it the mean of channels might become Inf; full scale is 1
SHORT_S = 0.1  # a stretch may miss so much at the end: manifests round

SOUND = pa.schema(
    [
        ("duration_s", pa.float64()),
        ("sample_rate", pa.int32()),  # Hz, as stored
        ("channels", pa.int32()),
        ("format", pa.string()),
        ("peak_dbfs", pa.float32()),  # null for digital silence
        ("rms_dbfs", pa.float32()),
    ]
)
ERROR = pa.schema(
    [
        ("error_stage", pa.string()),  # null, `read` or `decode`
        ("error_kind", pa.string()),  # one of decode.KINDS
        ("error_message", pa.string()),
    ]
)


def prepared_schema(identity: pa.Schema, rates: Sequence[int]) -> pa.Schema:
    """The columns of `prepare`: identity, sound, error, `sound_{rate}`, `speech`."""
    sounds = [pa.field(f"sound_{rate}", COLUMN) for rate in rates]
    return pa.schema([*identity, *SOUND, *ERROR, *sounds, pa.field("speech", pa.binary())])


def prepare(
    clips: Iterable[tuple[dict[str, Any], BinaryIO | ClipError]],
    schema: pa.Schema,
    rates: Sequence[int],
    max_clip_s: float,
    want_speech: Speech = "never",
    long_s: float = 30.0,
    max_batch_bytes: int = 64 << 20,
    max_batch_clips: int = 16,
    lost: Mapping[str, ClipError] = NONE_LOST,
    decoded: Callable[[float], None] = lambda _: None,
) -> Iterator[pa.Table]:
    """Decode clips, and close their files; yield tables of `prepared_schema(schema, rates)`.

    A clip comes with its identity (the columns of `schema`) and its file, or the ClipError that
    met the reader; a `duration_s` in the identity means that much of the file, from its `offset_s`
    on. `speech`, uint8 per 32 ms (see voice.py), is made for every clip, for those over `long_s`,
    or never. A table holds up to `max_batch_clips` clips and, unless one clip alone
    has more, `max_batch_bytes` of waveforms.

    A clip that is `lost` (by its `clip_id`: it has ended a process before) is not touched.
    `decoded` hears how many seconds of the clip at hand are there, again and again.
    """
    target = prepared_schema(schema, rates)
    rows: list[dict[str, Any]] = []
    size = 0
    for identity, file in clips:
        length_s = identity.pop("duration_s", None)
        stretch = None if length_s is None else (identity["offset_s"], length_s)
        if identity.get("clip_id") in lost:
            row = _error("decode", lost[identity["clip_id"]])
            if not isinstance(file, ClipError):
                file.close()
        else:
            row = _prepare_row(file, rates, max_clip_s, want_speech, long_s, stretch, decoded)
        row_size = sum(row[f"sound_{rate}"].nbytes for rate in rates if f"sound_{rate}" in row)
        if rows and (len(rows) >= max_batch_clips or size + row_size > max_batch_bytes):
            yield _table(rows, target)
            rows, size = [], 0
        rows.append(identity | row)
        size += row_size
        del row  # its sound is the table's now
        if size >= max_batch_bytes:
            yield _table(rows, target)
            rows, size = [], 0
    if rows:
        yield _table(rows, target)


def _prepare_row(
    file: BinaryIO | ClipError,
    rates: Sequence[int],
    max_clip_s: float,
    want_speech: Speech,
    long_s: float,
    stretch: Stretch | None,
    decoded: Callable[[float], None],
) -> dict[str, Any]:
    """What a clip adds to its identity; columns left out are null."""
    if isinstance(file, ClipError):
        return _error("read", file)
    try:
        with file:
            row = prepare_clip(file, rates, max_clip_s, stretch, decoded)
        if want_speech == "always" or (want_speech == "long" and row["duration_s"] > long_s):
            rate = SPEECH_RATE if SPEECH_RATE in rates else max(rates)
            sound = resample(row[f"sound_{rate}"][:], rate, SPEECH_RATE)
            row["speech"] = speech_probability(sound).tobytes()
    except ClipError as error:
        return _error("decode", error)
    except MemoryError:
        return _error("decode", ClipError("memory", "the sound does not fit into memory"))
    return row


def _error(stage: str, error: ClipError) -> dict[str, Any]:
    return {"error_stage": stage, "error_kind": error.kind, "error_message": error.message}


def prepare_clip(
    file: BinaryIO,
    rates: Sequence[int],
    max_clip_s: float,
    stretch: Stretch | None = None,
    decoded: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Decode, downmix and resample a file in a stream, never holding it at its stored rate.

    Returns `duration_s`, `sample_rate`, `channels`, `format`, `peak_dbfs`, `rms_dbfs` and, for
    each rate in Hz, `sound_{rate}`: float32 (samples,), or what becomes that where it is sliced.
    Raises ClipError, `too_long` for more than `max_clip_s` seconds. Of a `stretch` nothing after
    its end is decoded, and nothing before its start if the format can be sought in (WAV, AIFF, AU,
    CAF).
    """
    start_s, length_s = stretch or (0.0, math.inf)
    sound = open_sound(file, start_s)
    if (sound.duration_s or 0) - start_s > max_clip_s < length_s:
        raise _too_long(f"{sound.duration_s:.2f} s", max_clip_s)
    resamplers = {rate: Resampler(sound.sample_rate, rate) for rate in rates}
    expected_s = min(sound.duration_s or 0, length_s, max_clip_s)
    sounds = {rate: _Samples(round(expected_s * rate) + 1) for rate in rates}
    level, count = Level(), 0
    room = np.empty((sound.channels, 0), np.float32)  # one for all: a page that is new costs more
    for block in _up_to(sound, length_s):
        count += block.shape[1]
        if count > max_clip_s * sound.sample_rate:
            raise _too_long("more", max_clip_s)
        decoded(count / sound.sample_rate)
        if sound.sample_rate not in rates:  # nobody takes it as it is stored
            if room.shape[1] < block.shape[1]:
                room = np.empty_like(block, np.float32)
            block = as_float32(block, room[:, : block.shape[1]])
        if not level.add(block) < LOUDEST:
            at = count - block.shape[1] + int(np.argmin((np.abs(block) < LOUDEST).all(axis=0)))
            raise ClipError("not_finite", f"NaN or Inf at {start_s + at / sound.sample_rate:.2f} s")
        mono = downmix(block)
        for rate, resampler in resamplers.items():
            for part in resampler(mono):
                sounds[rate].add(part)
    missing_s = length_s - count / sound.sample_rate
    if not count:
        raise ClipError("truncated", f"the sound ends before {start_s:g} s")
    if SHORT_S < missing_s < math.inf:
        raise ClipError(
            "truncated",
            f"expected {length_s:g} s from {start_s:g} s on, {missing_s:.2f} s are missing",
        )
    for rate, resampler in resamplers.items():
        for part in resampler(mono[:0], last=True):
            sounds[rate].add(part)
    waveforms = {f"sound_{rate}": sounds[rate].whole() for rate in rates}
    return {
        "duration_s": count / sound.sample_rate,
        "sample_rate": sound.sample_rate,
        "channels": sound.channels,
        "format": sound.format,
        "peak_dbfs": level.peak_dbfs,
        "rms_dbfs": level.rms_dbfs,
        **waveforms,
    }


def _up_to(sound: Sound, length_s: float) -> Iterator[np.ndarray]:
    """The sound's blocks until `length_s` is full."""
    if length_s == math.inf:
        yield from sound.blocks
        return
    left = max(1, round(length_s * sound.sample_rate))
    for block in sound.blocks:
        yield block[:, :left]
        left -= block.shape[1]
        if left <= 0:
            return


def _too_long(found: str, max_clip_s: float) -> ClipError:
    return ClipError("too_long", f"audio.max_clip_s allows {max_clip_s:g} s, found {found}")


class _Samples:
    """Sound that grows in place: realloc moves pages where concatenate copies them."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._data = np.empty(0, np.float32)
        self._count = 0

    def add(self, samples: np.ndarray) -> None:
        """Take in (samples,), of one dtype all the time."""
        if not self._count:
            if len(samples) >= self._expected - 1:  # all of it: needs no copy
                self._data, self._count = samples, len(samples)
                return
            self._data = np.empty(self._expected, samples.dtype)  # takes memory as it is filled
        end = self._count + len(samples)
        if end > len(self._data):
            if not self._data.flags.owndata:
                self._data = self._data.copy()
            self._data.resize(max(end, len(self._data) * 5 // 4), refcheck=False)
        np.copyto(self._data[self._count : end], samples, "equiv")
        self._count = end

    def whole(self) -> Waveform:
        if self._count < len(self._data):
            self._data.resize(self._count, refcheck=False)
        return Pcm16(self._data) if self._data.dtype == np.int16 else self._data


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.type == COLUMN:
            columns.append(waveform_column(values))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)
