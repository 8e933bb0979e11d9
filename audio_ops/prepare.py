"""Encoded clips -> Arrow tables of waveforms, at each sample rate that the tasks need.

Rows in = rows out, in order: a clip that cannot be decoded keeps its row, with the error in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from audio_ops.decode.headerless import Headerless
from audio_ops.decode.open import open_sound
from audio_ops.decode.sound import Sound
from audio_ops.errors import NO_FAILURES, ClipError
from audio_ops.flags import FLAGS, KEEP, Damage, Findings
from audio_ops.schemas import prepared_schema
from audio_ops.signal.oddities import Oddities
from audio_ops.signal.voice import SAMPLE_RATE as SPEECH_RATE
from audio_ops.signal.voice import speech_probability
from audio_ops.signal.wave import Level, Resampler, downmix, resample
from audio_ops.signal.waveforms import WAVEFORM, Pcm16, Waveform, as_float32, waveform_column

Speech = Literal["never", "long", "always"]
Stretch = tuple[float, float]  # part of a file: start and length in seconds
Row = dict[str, Any]

MAX_PEAK = 1e12  # beyond it the mean of channels could overflow; full scale is 1
SHORT_S = 0.1  # that may be missing at the end of a stretch: manifests round


def prepare(
    clips: Iterable[tuple[Row, BinaryIO | ClipError | None]],
    schema: pa.Schema,
    rates: Sequence[int],
    max_clip_s: float,
    *,
    damage: Damage = KEEP,
    raw: Callable[[Row], Headerless | None] = lambda _: None,
    want_speech: Speech = "never",
    long_s: float = 30.0,
    max_batch_bytes: int = 64 << 20,
    max_batch_clips: int = 16,
    failed: Mapping[str, ClipError] = NO_FAILURES,
    decoded: Callable[[float], None] = lambda _: None,
) -> Iterator[pa.Table]:
    """Decode clips and close their files; yield tables of `prepared_schema(schema, rates)`.

    clips: each clip's identity (the columns of `schema`) and its file, or the ClipError that
        reading raised, or None for a row that is no clip. A `duration_s` in the identity, which may
        be Inf, selects that many seconds of the file from its `offset_s` on.
    rates: sample rates of the waveforms in each row, in Hz.
    damage: how much of a damaged sound may be lost.
    raw: how a clip is encoded that has no header, by its identity.
    want_speech: for which clips `speech` is computed (uint8 per 32 ms, see signal/voice.py): all,
        those longer than `long_s` seconds, or none.
    max_batch_bytes, max_batch_clips: limits of one table; a single clip may have more bytes.
    failed: errors by `clip_id` of clips that have crashed a process before; they are not decoded.
    decoded: called after each block with the seconds of the clip that are decoded so far.
    """
    options = _Options(rates, max_clip_s, damage, raw, want_speech, long_s, decoded)
    rows = (_row(identity, file, options, failed) for identity, file in clips)
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
        del row  # else its sound would stay in memory after the batch
        if size >= max_batch_bytes:
            yield _table(batch, target)
            batch, size = [], 0
    if batch:
        yield _table(batch, target)


@dataclass(frozen=True)
class _Options:
    """The arguments of `prepare` that apply to one clip."""

    rates: Sequence[int]
    max_clip_s: float
    damage: Damage
    raw: Callable[[Row], Headerless | None]
    want_speech: Speech
    long_s: float
    decoded: Callable[[float], None]


def _row(
    identity: Row,
    file: BinaryIO | ClipError | None,
    options: _Options,
    failed: Mapping[str, ClipError],
) -> Row:
    """A clip's row, with an error in place of its sound if it fails; missing columns are null."""
    if file is None:
        return identity
    length_s = identity.pop("duration_s", None)
    stretch = None if length_s is None else (identity["offset_s"], length_s)
    failure = failed.get(identity.get("clip_id", ""))
    if failure:
        if not isinstance(file, ClipError):
            file.close()
        return identity | _error("decode", failure)
    if isinstance(file, ClipError):
        return identity | _error("read", file)
    try:
        return identity | _sound(file, options, stretch, options.raw(identity))
    except ClipError as error:
        return identity | _error("decode", error)
    except MemoryError:
        too_much = ClipError("memory", "the sound does not fit into memory")
        return identity | _error("decode", too_much)


def _sound(
    file: BinaryIO, options: _Options, stretch: Stretch | None, raw: Headerless | None
) -> Row:
    """The columns of `prepare_clip`, and `speech` if wanted. Closes the file."""
    rates, want_speech = options.rates, options.want_speech
    with file:
        row = prepare_clip(
            file,
            rates,
            options.max_clip_s,
            stretch,
            options.decoded,
            damage=options.damage,
            raw=raw,
        )
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
    *,
    damage: Damage = KEEP,
    raw: Headerless | None = None,
) -> Row:
    """Decode, downmix and resample a file block by block, never holding it at its stored rate.

    Returns `duration_s`, `sample_rate`, `channels`, `format`, `peak_dbfs`, `rms_dbfs`,
    `sound_flags` and, for each rate in Hz, `sound_{rate}`: (samples,), float32 or Pcm16, whose
    slices are float32. Of channels that cancel each other, the loudest one takes the place of their
    mean, for which the file is decoded again.

    Of a `stretch` nothing after its end is decoded, and nothing before its start in formats with
    seeking (WAV, W64, AIFF, AU, CAF).

    Raises ClipError: `too_long` for more than `max_clip_s` seconds, `not_finite` for NaN, Inf and
    peaks of `MAX_PEAK` on, `truncated` for less sound than the header or the stretch claims, and
    whatever `open_sound` and its blocks raise; but only what `damage` does not keep.
    """
    part = _Part(rates, max_clip_s, *(stretch or (0.0, math.inf)), damage, raw)
    row, oddities = _decode(file, part, decoded)
    if oddities.channels_cancel:
        file.seek(0)
        row, _ = _decode(file, part, decoded, channel=oddities.loudest_channel)
    flags = {*row["sound_flags"], *oddities.flags()}
    return row | {"sound_flags": [flag for flag in FLAGS if flag in flags]}


@dataclass(frozen=True)
class _Part:
    """What `prepare_clip` takes from a file."""

    rates: Sequence[int]
    max_clip_s: float
    start_s: float
    length_s: float
    damage: Damage
    raw: Headerless | None


def _decode(
    file: BinaryIO, part: _Part, decoded: Callable[[float], None], channel: int | None = None
) -> tuple[Row, Oddities]:
    """The columns of `prepare_clip`, without the flags of the samples. channel: used alone."""
    start_s, length_s = part.start_s, part.length_s
    sound = open_sound(file, start_s, part.damage, part.raw)
    if (sound.duration_s or 0) - start_s > part.max_clip_s < length_s:
        raise _too_long(f"{sound.duration_s:.2f} s", part.max_clip_s)
    expected_s = min(sound.duration_s or 0, length_s, part.max_clip_s)
    outputs = {rate: _Output(sound.sample_rate, rate, expected_s) for rate in part.rates}
    level, count = Level(), 0
    oddities = Oddities(sound.channels, _is_lossless(sound.format))
    blocks = _up_to(sound, length_s)
    if sound.sample_rate not in part.rates:  # then no output takes the integers
        blocks = _as_float32(blocks, sound.channels)
    for block in blocks:
        count += block.shape[1]
        if count > part.max_clip_s * sound.sample_rate:
            raise _too_long("more", part.max_clip_s)
        decoded(count / sound.sample_rate)
        peak = level.add(block)
        if not peak < MAX_PEAK:
            raise _not_finite(block, count - block.shape[1], sound.sample_rate, start_s)
        oddities.add(block, peak)
        mono = downmix(block if channel is None else block[channel : channel + 1])
        for output in outputs.values():
            output.add(mono)
    duration_s = count / sound.sample_rate
    _check_length(duration_s, part, sound.findings)
    sound.findings.check(duration_s)
    waveforms = {f"sound_{rate}": output.finish() for rate, output in outputs.items()}
    return {
        "duration_s": duration_s,
        "sample_rate": sound.sample_rate,
        "channels": sound.channels,
        "format": sound.format,
        "peak_dbfs": level.peak_dbfs,
        "rms_dbfs": level.rms_dbfs,
        "sound_flags": sound.findings.flags,
        **waveforms,
    }, oddities


def _is_lossless(format: str) -> bool:
    codec = format.split("/")[-1]
    return codec in ("float", "double") or codec.startswith("pcm_")


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


def _as_float32(blocks: Iterator[np.ndarray], channels: int) -> Iterator[np.ndarray]:
    """The blocks as float32, each valid until the next: one buffer, as new pages take longer."""
    buffer = np.empty((channels, 0), np.float32)
    for block in blocks:
        if buffer.shape[1] < block.shape[1]:
            buffer = np.empty_like(block, np.float32)
        yield as_float32(block, buffer[:, : block.shape[1]])


def _too_long(found: str, max_clip_s: float) -> ClipError:
    return ClipError("too_long", f"audio.max_clip_s allows {max_clip_s:g} s, found {found}")


def _not_finite(block: np.ndarray, before: int, sample_rate: int, start_s: float) -> ClipError:
    """The error at the first bad sample of a block that begins `before` samples after `start_s`."""
    at = before + int(np.argmin((np.abs(block) < MAX_PEAK).all(axis=0)))
    return ClipError("not_finite", f"NaN or Inf at {start_s + at / sample_rate:.2f} s")


def _check_length(found_s: float, part: _Part, findings: Findings) -> None:
    """Add to `findings` whether a stretch has less sound than it needs. Raises ClipError
    `truncated` for no sound at all."""
    missing_s = part.length_s - found_s
    if not found_s:
        raise ClipError("truncated", f"the sound ends before {part.start_s:g} s")
    if SHORT_S < missing_s < math.inf:
        message = (
            f"expected {part.length_s:g} s from {part.start_s:g} s on, "
            f"{missing_s:.2f} s are missing"
        )
        findings.damage("shorter_than_header", ClipError("truncated", message), missing_s=missing_s)


class _Output:
    """A waveform at one rate that grows with each block.

    It grows in place: realloc moves pages, where concatenate would copy them.
    """

    def __init__(self, source_rate: int, rate: int, expected_s: float) -> None:
        self._resampler = Resampler(source_rate, rate)
        self._expected = round(expected_s * rate) + 1
        self._data = np.empty(0, np.float32)
        self._count = 0

    def add(self, mono: np.ndarray) -> None:
        """Resample and append (samples,), of the same dtype in every call."""
        for part in self._resampler(mono):
            self._append(part)

    def finish(self) -> Waveform:
        """The whole waveform, with the samples that the resampler has held back."""
        for part in self._resampler(np.empty(0, self._data.dtype), last=True):
            self._append(part)
        if self._count < len(self._data):
            self._data.resize(self._count, refcheck=False)
        return Pcm16(self._data) if self._data.dtype == np.int16 else self._data

    def _append(self, samples: np.ndarray) -> None:
        if not len(samples):  # `_data` may be read-only if it was taken without a copy
            return
        if not self._count:
            if len(samples) >= self._expected - 1:  # all of it, which needs no copy
                self._data, self._count = samples, len(samples)
                return
            self._data = np.empty(self._expected, samples.dtype)  # takes pages only as it is filled
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
