"""Uncompressed sound: 16-bit WAV without a decoder, other formats with libsndfile."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from audio_ops.decode.claims import HEADER_BYTES, Claim, SoundChunk, byte_shortage
from audio_ops.decode.formats import Container
from audio_ops.decode.headerless import ENCODINGS, Headerless
from audio_ops.decode.sound import (
    BLOCK_SAMPLES,
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    Expected,
    Sound,
    blocks_from,
    checked_blocks,
)
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from audio_ops.flags import Findings

_UP_TO_16_BITS = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW"}  # libsndfile's subtypes


def open_pcm(
    source: Source, container: Container, findings: Findings, start_s: float = 0.0
) -> Sound | None:
    """The sound from `start_s` on, or None if FFmpeg has to decode the file: another container, a
    streamed file, an unknown codec, or one in which libsndfile cannot seek.

    Raises ClipError `truncated` if the file, or its sound, ends too early.
    """
    if not container.sound_chunk:
        return None
    chunk = container.sound_chunk(source)
    available = max(0, source.length - chunk.start)
    file: Any = None
    if container.name in ("wav", "w64"):
        file = _Pcm16.open(source, chunk, available)
    # A streamed file is left to FFmpeg, but AIFF, which it does not read then
    if file is None and (chunk.size is not None or container.name == "aiff"):
        source.seek(0)
        with suppress(soundfile.LibsndfileError):
            file = soundfile.SoundFile(source)
    if file is None or file.subtype.startswith("MPEG"):  # libsndfile would guess its length
        return None
    duration_s = file.frames / file.samplerate
    start = round(start_s * file.samplerate)
    cut = byte_shortage(chunk, available, duration_s)
    if cut and not available:
        raise cut[0]
    if start >= file.frames > 0:
        raise ClipError("truncated", f"the sound ends at {duration_s:.2f} s, before {start_s:g} s")
    if start and not _sought(file, start):
        return None
    claimed_s = duration_s / (1 - cut[1]) if cut else duration_s
    expected = Expected(Claim(claimed_s - start / file.samplerate), cut=cut, more=chunk.more_share)
    if chunk.size and 0 < chunk.size - available <= HEADER_BYTES:
        findings.note("shorter_than_header")
    blocks = _blocks(file, file.frames - start)
    return Sound(
        file.samplerate,
        file.channels,
        f"{container.name}/{file.subtype.lower()}",
        duration_s,
        findings,
        checked_blocks(blocks, source, file.samplerate, expected, findings),
    )


def open_headerless(
    source: Source, raw: Headerless, findings: Findings, start_s: float
) -> Sound | None:
    """The sound from `start_s` on, or None if FFmpeg has to decode the encoding. Earlier sound is
    decoded only in encodings without seeking."""
    encoding, rate = ENCODINGS[raw.encoding], raw.sample_rate
    if not encoding.subtype:
        return None
    source.seek(0)
    file: Any = soundfile.SoundFile(
        source,
        samplerate=rate,
        channels=raw.channels,
        format="RAW",
        subtype=encoding.subtype,
        endian=encoding.endian,
    )
    start = round(start_s * rate)
    if start >= file.frames > 0:
        ends = f"the sound ends at {file.frames / rate:.2f} s, before {start_s:g} s"
        raise ClipError("truncated", ends)
    is_sought = start > 0 and _sought(file, start)
    blocks = _blocks(file, file.frames - (start if is_sought else 0))
    sound = Sound(
        rate,
        raw.channels,
        f"raw/{raw.encoding}",
        file.frames / rate,
        findings,
        checked_blocks(blocks, source, rate, Expected(Claim(None)), findings),
    )
    return sound if is_sought else blocks_from(sound, start_s)


def _sought(file: Any, frame: int) -> bool:
    """Whether `file` is at that frame now: libsndfile cannot seek in some codecs, such as GSM."""
    with suppress(soundfile.LibsndfileError):
        file.seek(frame)
        return True
    return False


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
        size = available if chunk.size is None else min(chunk.size, available)
        return cls(source, chunk.start, size // frame_bytes, sample_rate, channels)

    def seek(self, frame: int) -> None:
        self.source.seek(self.start + frame * 2 * self.channels)

    def read(self, frames: int, **_: Any) -> np.ndarray:
        data = self.source.read(frames * 2 * self.channels)
        data = data[: len(data) - len(data) % (2 * self.channels)]
        return np.frombuffer(data, "<i2").reshape(-1, self.channels)
