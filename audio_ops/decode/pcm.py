"""Uncompressed sound: 16-bit WAV without a decoder, other formats with libsndfile."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from audio_ops.decode.claims import Claim, SoundChunk
from audio_ops.decode.formats import Container
from audio_ops.decode.sound import (
    BLOCK_SAMPLES,
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    Sound,
    checked_blocks,
)
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

_UP_TO_16_BITS = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW"}  # libsndfile's subtypes


def open_pcm(source: Source, container: Container, start_s: float = 0.0) -> Sound | None:
    """The sound from `start_s` on, or None if FFmpeg has to decode the file: another container, a
    streamed file, an unknown codec.

    Raises ClipError `truncated` if the file, or its sound, ends too early.
    """
    if not container.sound_chunk:
        return None
    chunk = container.sound_chunk(source)
    if chunk.size is None:
        return None
    available = max(0, source.length - chunk.start)
    file: Any = _Pcm16.open(source, chunk, available) if container.name == "wav" else None
    if file is None:
        source.seek(0)
        with suppress(soundfile.LibsndfileError):
            file = soundfile.SoundFile(source)
    if chunk.size > available:
        raise _cut(file, chunk.size, available)
    if file is None or file.subtype.startswith("MPEG"):  # libsndfile would guess its length
        return None
    duration_s = file.frames / file.samplerate
    start = round(start_s * file.samplerate)
    if start >= file.frames > 0:
        raise ClipError("truncated", f"the sound ends at {duration_s:.2f} s, before {start_s:g} s")
    if start:
        file.seek(start)
    claim = Claim((file.frames - start) / file.samplerate)
    blocks = _blocks(file, file.frames - start)
    return Sound(
        file.samplerate,
        file.channels,
        f"{container.name}/{file.subtype.lower()}",
        duration_s,
        checked_blocks(blocks, source, container, file.samplerate, claim),
    )


def _cut(file: Any, claimed: int, available: int) -> ClipError:
    """The error of a file that ends within its sound; `file` is None if it could not be opened."""
    found_s = file.frames / file.samplerate if file and available else 0.0
    in_s = f"header says {found_s * claimed / available:.2f} s, found {found_s:.2f} s; "
    in_bytes = f"{available} of {claimed} bytes of sound"
    return ClipError("truncated", (in_s if found_s else "") + in_bytes)


def _blocks(file: Any, frames: int) -> Iterator[np.ndarray]:
    """(channels, samples) of the next `frames`; see `Sound.blocks`."""
    step = max(1, BLOCK_SAMPLES // file.channels)
    dtype = "int16" if file.subtype in _UP_TO_16_BITS else "float32"
    for left in range(frames, 0, -step):  # reading until the end is found would take twice as long
        yield file.read(min(left, step), dtype=dtype, always_2d=True).T


@dataclass
class _Pcm16:
    """16-bit WAV, the most common format, with the used part of `soundfile.SoundFile`'s interface.

    Opening a short clip with libsndfile takes many times as long as reading it.
    """

    source: Source
    start: int
    frames: int
    samplerate: int
    channels: int
    subtype = "PCM_16"

    @classmethod
    def open(cls, source: Source, chunk: SoundChunk, available: int) -> _Pcm16 | None:
        """None for any format but plain 16-bit PCM. available: bytes that follow the header."""
        if len(chunk.wav_format) < 16:
            return None
        fields = struct.unpack("<HHIIHH", chunk.wav_format)
        tag, channels, sample_rate, _, frame_bytes, bits = fields
        if (tag, bits, frame_bytes) != (1, 16, 2 * channels) or not 1 <= channels <= MAX_CHANNELS:
            return None
        if not MIN_RATE <= sample_rate <= MAX_RATE:  # left to libsndfile or FFmpeg to report
            return None
        source.seek(chunk.start)
        size = min(chunk.size or 0, available)
        return cls(source, chunk.start, size // frame_bytes, sample_rate, channels)

    def seek(self, frame: int) -> None:
        self.source.seek(self.start + frame * 2 * self.channels)

    def read(self, frames: int, **_: Any) -> np.ndarray:
        data = self.source.read(frames * 2 * self.channels)
        data = data[: len(data) - len(data) % (2 * self.channels)]
        return np.frombuffer(data, "<i2").reshape(-1, self.channels)
