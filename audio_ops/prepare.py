"""Encoded clips -> Arrow tables with their waveforms, at each rate that the tasks need.

Rows in = rows out, in order: a clip that cannot be decoded keeps its row, which says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from audio_ops.decode.open import open_sound
from audio_ops.decode.sound import Sound
from audio_ops.errors import NONE_LOST, ClipError
from audio_ops.schemas import prepared_schema
from audio_ops.signal.voice import SAMPLE_RATE as SPEECH_RATE
from audio_ops.signal.voice import speech_probability
from audio_ops.signal.wave import Level, Resampler, downmix, resample
from audio_ops.signal.waveforms import WAVEFORM, Pcm16, Waveform, as_float32, waveform_column

Speech = Literal["never", "long", "always"]
Stretch = tuple[float, float]  # of a file: its start and its length in seconds
Row = dict[str, Any]

MAX_PEAK = 1e12  # beyond it the mean of channels might become Inf; full scale is 1
SHORT_S = 0.1  # that a stretch may lack at its end: manifests round


def prepare(
    clips: Iterable[tuple[Row, BinaryIO | ClipError | None]],
    schema: pa.Schema,
    rates: Sequence[int],
    max_clip_s: float,
    *,
    want_speech: Speech = "never",
    long_s: float = 30.0,
    max_batch_bytes: int = 64 << 20,
    max_batch_clips: int = 16,
    lost: Mapping[str, ClipError] = NONE_LOST,
    decoded: Callable[[float], None] = lambda _: None,
) -> Iterator[pa.Table]:
    """Decode clips, and close their files; yield tables of `prepared_schema(schema, rates)`.

    clips: identity (the columns of `schema`) and file of each, or the ClipError that reading it
        raised, or None for a row that is no clip. A `duration_s` in the identity selects that many seconds of the file, from its
        `offset_s` on; it may be Inf.
    rates: Hz, of the waveforms in each row.
    want_speech: whether `speech`, uint8 per 32 ms (see signal/voice.py), is made for every clip,
        for those over `long_s`, or never.
    max_batch_bytes, max_batch_clips: of one table, unless one clip alone has more bytes.
    lost: errors by `clip_id`, of clips that have ended a process before; these are not opened.
    decoded: called again and again with the seconds of the current clip that are decoded by then.
    """
    options = _Options(rates, max_clip_s, want_speech, long_s, decoded)
    rows = (_row(identity, file, options, lost) for identity, file in clips)
    target = prepared_schema(schema, rates)
    batch: list[Row] = []
    size = 0
    for row in rows:
        row_size = sum(row[f"sound_{rate}"].nbytes for rate in rates if f"sound_{rate}" in row)
        if batch and (len(batch) >= max_batch_clips or size + row_size > max_batch_bytes):
            yield _table(batch, target)
            batch, size = [], 0
        batch.append(row)
        size += row_size
        del row  # its sound belongs to the batch
        if size >= max_batch_bytes:
            yield _table(batch, target)
            batch, size = [], 0
    if batch:
        yield _table(batch, target)


@dataclass(frozen=True)
class _Options:
    """Those of `prepare` that apply to one clip."""

    rates: Sequence[int]
    max_clip_s: float
    want_speech: Speech
    long_s: float
    decoded: Callable[[float], None]


def _row(
    identity: Row,
    file: BinaryIO | ClipError | None,
    options: _Options,
    lost: Mapping[str, ClipError],
) -> Row:
    """A clip's row, with an error in place of its sound if it fails; columns left out are null."""
    if file is None:
        return identity
    length_s = identity.pop("duration_s", None)
    stretch = None if length_s is None else (identity["offset_s"], length_s)
    failure = lost.get(identity.get("clip_id", ""))
    if failure:
        if not isinstance(file, ClipError):
            file.close()
        return identity | _error("decode", failure)
    if isinstance(file, ClipError):
        return identity | _error("read", file)
    try:
        return identity | _sound(file, options, stretch)
    except ClipError as error:
        return identity | _error("decode", error)
    except MemoryError:
        too_much = ClipError("memory", "the sound does not fit into memory")
        return identity | _error("decode", too_much)


def _sound(file: BinaryIO, options: _Options, stretch: Stretch | None) -> Row:
    """The columns of `prepare_clip`, and `speech` if it is wanted; closes the file."""
    rates, want_speech = options.rates, options.want_speech
    with file:
        row = prepare_clip(file, rates, options.max_clip_s, stretch, options.decoded)
    if want_speech == "always" or (want_speech == "long" and row["duration_s"] > options.long_s):
        rate = SPEECH_RATE if SPEECH_RATE in rates else max(rates)
        sound = resample(row[f"sound_{rate}"][:], rate, SPEECH_RATE)
        row["speech"] = speech_probability(sound).tobytes()
    return row


def _error(stage: str, error: ClipError) -> Row:
    return {"error_stage": stage, "error_kind": error.kind, "error_message": error.message}


def prepare_clip(
    file: BinaryIO,
    rates: Sequence[int],
    max_clip_s: float,
    stretch: Stretch | None = None,
    decoded: Callable[[float], None] = lambda _: None,
) -> Row:
    """Decode, downmix and resample a file in a stream, never holding it at its stored rate.

    Returns `duration_s`, `sample_rate`, `channels`, `format`, `peak_dbfs`, `rms_dbfs` and, for
    each rate in Hz, `sound_{rate}`: (samples,), float32 or Pcm16, which becomes float32 where it is
    sliced. Raises ClipError, `too_long` for more than `max_clip_s` seconds. Of a `stretch` nothing
    after its end is decoded, and nothing before its start if the format can be sought in (WAV, W64,
    AIFF, AU, CAF).
    """
    start_s, length_s = stretch or (0.0, math.inf)
    sound = open_sound(file, start_s)
    if (sound.duration_s or 0) - start_s > max_clip_s < length_s:
        raise _too_long(f"{sound.duration_s:.2f} s", max_clip_s)
    expected_s = min(sound.duration_s or 0, length_s, max_clip_s)
    outputs = {rate: _Output(sound.sample_rate, rate, expected_s) for rate in rates}
    level, count = Level(), 0
    buffer = np.empty((sound.channels, 0), np.float32)  # for all blocks: new pages take longer
    for block in _up_to(sound, length_s):
        count += block.shape[1]
        if count > max_clip_s * sound.sample_rate:
            raise _too_long("more", max_clip_s)
        decoded(count / sound.sample_rate)
        if sound.sample_rate not in rates:  # then no output takes the integers
            if buffer.shape[1] < block.shape[1]:
                buffer = np.empty_like(block, np.float32)
            block = as_float32(block, buffer[:, : block.shape[1]])
        if not level.add(block) < MAX_PEAK:
            raise _not_finite(block, count - block.shape[1], sound.sample_rate, start_s)
        mono = downmix(block)
        for output in outputs.values():
            output.add(mono)
    _check_length(count / sound.sample_rate, start_s, length_s)
    waveforms = {f"sound_{rate}": output.finish() for rate, output in outputs.items()}
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
    """The sound's blocks, cut after `length_s`."""
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


def _not_finite(block: np.ndarray, before: int, sample_rate: int, start_s: float) -> ClipError:
    """For the first bad sample of a block that comes `before` samples after `start_s`."""
    at = before + int(np.argmin((np.abs(block) < MAX_PEAK).all(axis=0)))
    return ClipError("not_finite", f"NaN or Inf at {start_s + at / sample_rate:.2f} s")


def _check_length(found_s: float, start_s: float, length_s: float) -> None:
    """Raise ClipError `truncated` if no sound was found, or too little for a stretch."""
    missing_s = length_s - found_s
    if not found_s:
        raise ClipError("truncated", f"the sound ends before {start_s:g} s")
    if SHORT_S < missing_s < math.inf:
        raise ClipError(
            "truncated",
            f"expected {length_s:g} s from {start_s:g} s on, {missing_s:.2f} s are missing",
        )


class _Output:
    """A waveform at one rate, which grows with each block.

    It grows in place: realloc moves pages where concatenate copies them.
    """

    def __init__(self, source_rate: int, rate: int, expected_s: float) -> None:
        self._resampler = Resampler(source_rate, rate)
        self._expected = round(expected_s * rate) + 1
        self._data = np.empty(0, np.float32)
        self._count = 0

    def add(self, mono: np.ndarray) -> None:
        """Resample and append (samples,), of one dtype all the time."""
        for part in self._resampler(mono):
            self._append(part)

    def finish(self) -> Waveform:
        """The whole waveform, with what the resampler held back."""
        for part in self._resampler(np.empty(0, self._data.dtype), last=True):
            self._append(part)
        if self._count < len(self._data):
            self._data.resize(self._count, refcheck=False)
        return Pcm16(self._data) if self._data.dtype == np.int16 else self._data

    def _append(self, samples: np.ndarray) -> None:
        if not len(samples):  # also because what was taken without a copy may be read-only
            return
        if not self._count:
            if len(samples) >= self._expected - 1:  # all of it: needs no copy
                self._data, self._count = samples, len(samples)
                return
            self._data = np.empty(self._expected, samples.dtype)  # pages are taken as it is filled
        end = self._count + len(samples)
        if end > len(self._data):
            if not self._data.flags.owndata:
                self._data = self._data.copy()
            self._data.resize(max(end, len(self._data) * 5 // 4), refcheck=False)
        np.copyto(self._data[self._count : end], samples, "equiv")
        self._count = end


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.type == WAVEFORM:
            columns.append(waveform_column(values))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)
