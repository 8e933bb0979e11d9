"""Encoded clips -> Arrow tables of waveforms, at each sample rate that the tasks need.

Rows in = rows out, in order: a clip that cannot be decoded keeps its row, with the error in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from audio_ops.decode.headerless import Headerless
from audio_ops.decode.open import open_sound
from audio_ops.decode.sound import Sound
from audio_ops.errors import NO_FAILURES, ClipError
from audio_ops.flags import KEEP, Damage, Findings, in_order
from audio_ops.schemas import Channels, prepared_schema
from audio_ops.signal.oddities import Oddities, is_silent
from audio_ops.signal.output import Output
from audio_ops.signal.voice import SAMPLE_RATE as SPEECH_RATE
from audio_ops.signal.voice import speech_probability
from audio_ops.signal.wave import Level, downmix, peak_of, resample
from audio_ops.signal.waveforms import WAVEFORM, as_float32, waveform_column

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
    channels: Channels = "mean",
    identified: Callable[[Row, int | None, int], Row] = lambda row, *_: row,
    want_speech: Speech = "never",
    needs: Callable[[Row], tuple[tuple[int, ...], Speech]] | None = None,
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
    channels: `mean`, `each` (a row for every channel) or the number of one, from 1 on.
    identified: the identity of a row, by that of its clip, its channel (None for the mean, and for
        errors) and how many rows the clip has. They are in one table.
    want_speech: for which clips `speech` is computed (uint8 per 32 ms, see signal/voice.py): all,
        those longer than `long_s` seconds, or none.
    needs: those of `rates` and `want_speech` that a clip needs, by its identity; its other columns
        of sound are null.
    max_batch_bytes, max_batch_clips: limits of one table; a single clip may have more bytes.
    failed: errors by `clip_id` of clips that have crashed a process before; they are not decoded.
    decoded: called after each block with the seconds of the clip that are decoded so far.
    """
    options = _Options(rates, max_clip_s, damage, raw, channels, want_speech, long_s, decoded)
    options_of = cache(options.of)
    recordings = (
        _rows(
            identity,
            file,
            options if needs is None or file is None else options_of(*needs(identity)),
            failed,
            identified=identified,
        )
        for identity, file in clips
    )
    target = prepared_schema(schema, rates)
    batch: list[Row] = []
    size = 0
    for rows in recordings:
        sounds = [row[f"sound_{rate}"] for row in rows for rate in rates if f"sound_{rate}" in row]
        more = sum(sound.nbytes for sound in sounds)
        if batch and (len(batch) >= max_batch_clips or size + more > max_batch_bytes):
            yield _table(batch, target)
            batch, size = [], 0
        batch += rows
        size += more
        del rows, sounds  # else they would stay in memory after the batch
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
    channels: Channels
    want_speech: Speech
    long_s: float
    decoded: Callable[[float], None]

    def of(self, rates: Sequence[int], want_speech: Speech) -> _Options:
        return replace(self, rates=rates, want_speech=want_speech)


def _rows(
    identity: Row,
    file: BinaryIO | ClipError | None,
    options: _Options,
    failed: Mapping[str, ClipError],
    *,
    identified: Callable[[Row, int | None, int], Row],
) -> list[Row]:
    """A clip's row or, with `channels: each`, a row for each channel; one with an error in place of
    the sound if it fails. Missing columns are null."""
    if file is None:
        return [identity]
    length_s = identity.pop("duration_s", None)
    stretch = None if length_s is None else (identity["offset_s"], length_s)
    failure = failed.get(identity.get("clip_id", ""))
    stage, error = "decode", failure
    if failure and not isinstance(file, ClipError):
        file.close()
    elif isinstance(file, ClipError) and not failure:
        stage, error = "read", file
    elif not isinstance(file, ClipError):
        try:
            rows = _sounds(file, options, stretch, options.raw(identity))
            return [identified(identity, row.pop("channel"), len(rows)) | row for row in rows]
        except ClipError as caught:
            error = caught
        except MemoryError:
            error = ClipError("memory", "the sound does not fit into memory")
    assert error is not None
    return [identified(identity, None, 1) | _error(stage, error)]


def _sounds(
    file: BinaryIO, options: _Options, stretch: Stretch | None, raw: Headerless | None
) -> list[Row]:
    """The rows of `prepare_recording`, and `speech` if wanted. Closes the file."""
    rates, want_speech = options.rates, options.want_speech
    with file:
        rows = prepare_recording(
            file,
            rates,
            options.max_clip_s,
            stretch,
            options.decoded,
            damage=options.damage,
            raw=raw,
            channels=options.channels,
        )
    for row in rows:
        if want_speech == "always" or (
            want_speech == "long" and row["duration_s"] > options.long_s
        ):
            rate = SPEECH_RATE if SPEECH_RATE in rates else max(rates)
            sound = resample(row[f"sound_{rate}"][:], rate, SPEECH_RATE)
            row["speech"] = speech_probability(sound).tobytes()
    return rows


def _error(stage: str, error: ClipError) -> Row:
    return {"error_stage": stage, "error_kind": error.kind, "error_message": error.message}


def prepare_clip(file: BinaryIO, *arguments: Any, **options: Any) -> Row:
    """The only row of `prepare_recording`, which has the same arguments but not `each`."""
    (row,) = prepare_recording(file, *arguments, **options)
    return row


def prepare_recording(
    file: BinaryIO,
    rates: Sequence[int],
    max_clip_s: float,
    stretch: Stretch | None = None,
    decoded: Callable[[float], None] = lambda _: None,
    *,
    damage: Damage = KEEP,
    raw: Headerless | None = None,
    channels: Channels = "mean",
) -> list[Row]:
    """Decode, downmix and resample a file block by block, never holding it at its stored rate.

    Returns a row or, with `channels: each`, one for each channel: `channel` (from 1 on, or None for
    the mean), `duration_s`, `sample_rate`, `channels`, `format`, `peak_dbfs`, `rms_dbfs`,
    `sound_flags` and, for each rate in Hz, `sound_{rate}`: (samples,), float32 or Pcm16, whose
    slices are float32. Levels are those of what is labelled. Of channels that cancel each other, the
    loudest one takes the place of their mean, for which the file is decoded again.

    Of a `stretch` nothing after its end is decoded, and nothing before its start in formats with
    seeking (WAV, W64, AIFF, AU, CAF).

    Raises ClipError: `too_long` for more than `max_clip_s` seconds, `not_finite` for NaN, Inf and
    peaks of `MAX_PEAK` on, `truncated` for less sound than the header or the stretch claims,
    `unsupported` for a channel that the sound does not have, and whatever `open_sound` and its
    blocks raise; but only what `damage` does not keep.
    """
    start_s, length_s = stretch or (0.0, math.inf)
    part = _Part(rates, max_clip_s, start_s, length_s, damage, raw, decoded)
    sound = _open(file, part)
    wanted: list[int | None] = [None]
    if channels == "each":
        wanted = list(range(sound.channels))
    elif channels != "mean":
        if channels > sound.channels:
            found = f"audio.channels: expected channel {channels}, found {sound.channels} channels"
            raise ClipError("unsupported", found)
        wanted = [channels - 1]
    mixes = _decode(sound, part, wanted)
    cancelled = mixes[0].oddities
    if channels == "mean" and cancelled.channels_cancel:
        file.seek(0)
        sound = _open(file, part)
        [mix] = _decode(sound, part, [cancelled.loudest_channel])
        mix.oddities, mix.channel = cancelled, None
        mixes = [mix]
    loudest = max(mix.loudest for mix in mixes)
    return [mix.row(sound, loudest) for mix in mixes]


@dataclass(frozen=True)
class _Part:
    """What `prepare_recording` takes from a file."""

    rates: Sequence[int]
    max_clip_s: float
    start_s: float
    length_s: float
    damage: Damage
    raw: Headerless | None
    decoded: Callable[[float], None]


def _open(file: BinaryIO, part: _Part) -> Sound:
    sound = open_sound(file, part.start_s, part.damage, part.raw)
    if (sound.duration_s or 0) - part.start_s > part.max_clip_s < part.length_s:
        raise _too_long(f"{sound.duration_s:.2f} s", part.max_clip_s)
    return sound


class _Mix:
    """Accumulates a row: the waveforms that the models get of a sound, its level and its oddities.

    channel: from 0 on, or None for the mean of all.
    """

    def __init__(self, sound: Sound, part: _Part, channel: int | None) -> None:
        expected_s = min(sound.duration_s or 0, part.length_s, part.max_clip_s)
        self.channel = channel
        self.outputs = {rate: Output(sound.sample_rate, rate, expected_s) for rate in part.rates}
        self.level = Level()
        self.loudest = 0.0
        count = sound.channels if channel is None else 1
        self.oddities = Oddities(count, _is_lossless(sound.format))

    def own(self, block: np.ndarray) -> np.ndarray:
        """The channels of (channels, samples) that it is made of."""
        return block if self.channel is None else block[self.channel : self.channel + 1]

    def add(self, block: np.ndarray, peak: float) -> None:
        """Include (channels, samples), whose peak is given."""
        self.loudest = max(self.loudest, peak)
        own = self.own(block)
        mono = downmix(own)
        is_whole = len(block) == 1
        self.level.add(mono, peak if is_whole else None)
        self.oddities.add(own, peak if is_whole or self.channel is None else self.level.last_peak)
        for output in self.outputs.values():
            output.add(mono)

    def row(self, sound: Sound, loudest: float) -> Row:
        """The columns of `prepare_recording`. loudest: the peak of all channels."""
        flags = {*sound.findings.flags, *self.oddities.flags()}
        if self.channel is not None and is_silent(self.level.peak) and not is_silent(loudest):
            flags.add("silent_channel")
        return {
            "channel": None if self.channel is None else self.channel + 1,
            "duration_s": self.level.count / sound.sample_rate,
            "sample_rate": sound.sample_rate,
            "channels": sound.channels,
            "format": sound.format,
            "peak_dbfs": self.level.peak_dbfs,
            "rms_dbfs": self.level.rms_dbfs,
            "sound_flags": in_order(flags),
            **{f"sound_{rate}": output.finish() for rate, output in self.outputs.items()},
        }


def _decode(sound: Sound, part: _Part, channels: Sequence[int | None]) -> list[_Mix]:
    """The whole sound as each of these channels, from 0 on, or the mean (None)."""
    mixes = [_Mix(sound, part, channel) for channel in channels]
    count = 0
    blocks = _up_to(sound, part.length_s)
    if sound.sample_rate not in part.rates:  # then no output takes the integers
        blocks = _as_float32(blocks, sound.channels)
    for block in blocks:
        count += block.shape[1]
        if count > part.max_clip_s * sound.sample_rate:
            raise _too_long("more", part.max_clip_s)
        part.decoded(count / sound.sample_rate)
        peak = peak_of(block)
        if not peak < MAX_PEAK and not all(peak_of(mix.own(block)) < MAX_PEAK for mix in mixes):
            raise _not_finite(block, count - block.shape[1], sound.sample_rate, part.start_s)
        for mix in mixes:
            mix.add(block, peak)
    duration_s = count / sound.sample_rate
    _check_length(duration_s, part, sound.findings)
    sound.findings.check(duration_s)
    return mixes


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


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.type == WAVEFORM:
            columns.append(waveform_column(values))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)
