"""Frames of samples -> blocks of one rate and one number of channels, with silence in the gaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np
import soxr

from audio_ops.decode.formats import Container
from audio_ops.decode.packets import Decoded
from audio_ops.decode.sound import BLOCK_SAMPLES, Progress, check_supported
from audio_ops.errors import ClipError
from audio_ops.flags import Findings
from audio_ops.signal.waveforms import as_float32

MIN_GAP_S = 0.015  # timestamps in milliseconds jitter by one; the shortest packets in use have 20
MAX_JITTER_S = 1.0  # by which timestamps may go back; further back they have started over
MAX_GAP_S = 600.0  # beyond it the timestamps have started over, as where recordings were joined
_PIECE_SAMPLES = 1 << 14


class Joiner:
    """Joins the frames of a stream, whose `first` one decides the rate (Hz), the channels and the
    dtype of all blocks."""

    def __init__(
        self, first: av.AudioFrame, container: Container, findings: Findings, reached: Progress
    ) -> None:
        self.rate, self.channels = first.sample_rate, first.layout.nb_channels
        self._dtype = np.int16 if first.format.name[:3] in ("u8", "u8p", "s16") else np.float32
        self._container, self._findings, self._reached = container, findings, reached
        self._now = self.rate, self.channels
        self._fifo = av.AudioFifo()  # an array per frame would take as long as decoding
        self._convert: Converter | None = None
        self._end_s: float | None = None
        self._before_s = 0.0  # of frames that are not in `_fifo`

    def __call__(self, decoded: Iterable[Decoded]) -> Iterator[np.ndarray]:
        """Blocks (channels, samples), of BLOCK_SAMPLES in all or somewhat more."""
        is_timed = self._container.has_timestamps
        for part in decoded:
            if isinstance(part, float):
                yield from self._silence(part)
                continue
            for frame in part:
                if (frame.sample_rate, frame.layout.nb_channels) != self._now:
                    yield from self._change(frame)
                if is_timed:
                    yield from self._advance(frame)
                frame.pts = None  # else AudioFifo refuses those that overlap
                self._fifo.write(frame)
            part.clear()  # so that the next frames reuse their memory, which is in the cache
            if self._fifo.samples * self._now[1] >= BLOCK_SAMPLES:
                yield from self._flush()
        yield from self._flush(last=True)

    def _advance(self, frame: av.AudioFrame) -> Iterator[np.ndarray]:
        """Silence before the frame, if its timestamp says so."""
        start_s, end_s = frame.time, self._end_s
        length_s = frame.samples / frame.sample_rate
        is_ogg = self._container.name == "ogg"
        if is_ogg and start_s and frame.duration and frame.time_base:
            # Of Vorbis, FFmpeg takes the first packet of a page for too short where the size of the
            # blocks changes, and so for late; where it ends is right.
            start_s -= max(0.0, length_s - float(frame.duration * frame.time_base))
        if start_s is None:  # of FLAC's frames after a bad one
            start_s = end_s or 0.0
        elif end_s is not None and start_s - end_s > MIN_GAP_S:
            yield from self._gap(start_s - end_s, end_s)
        self._reached.end_s = start_s + length_s
        if end_s is not None and start_s < end_s < start_s + MAX_JITTER_S:
            start_s = end_s  # else silence would be inserted wherever jitter returns
        self._end_s = start_s + length_s

    def _flush(self, last: bool = False) -> Iterator[np.ndarray]:
        """What was joined so far. last: before another rate, or the end."""
        block = self._fifo.read()
        if self._convert:
            samples = frame_samples(block) if block else np.empty((self._now[1], 0), np.float32)
            yield from self._convert(samples, last)
        elif block:
            yield frame_samples(block)

    def _silence(self, seconds: float) -> Iterator[np.ndarray]:
        yield from self._flush()
        left = round(seconds * self.rate)
        step = BLOCK_SAMPLES // self.channels
        for start in range(0, left, step):
            yield np.zeros((self.channels, min(step, left - start)), self._dtype)

    def _gap(self, gap_s: float, at_s: float) -> Iterator[np.ndarray]:
        """Silence for a jump of the timestamps."""
        is_corrupt, self._reached.has_lost_packets = self._reached.has_lost_packets, False
        if not is_corrupt:
            error = ClipError("damaged", f"{gap_s:.2f} s are missing at {at_s:.2f} s")
            is_lost = self._container.has_sample_positions  # elsewhere it may never have been sent
            flag = "corrupt" if is_lost else "gap"
            self._findings.damage(flag, error, silenced_s=gap_s if is_lost else 0.0)
        if gap_s <= MAX_GAP_S:
            yield from self._silence(gap_s)

    def _change(self, frame: av.AudioFrame) -> Iterator[np.ndarray]:
        """What was joined so far, before frames of another rate or other channels."""
        yield from self._flush(last=True)
        before, self._now = self._now, (frame.sample_rate, frame.layout.nb_channels)
        check_supported(*self._now)
        from_, to = (f"{rate} Hz, {channels} channels" for rate, channels in (before, self._now))
        self._before_s += self._fifo.samples_written / before[0]
        message = f"changes from {from_} to {to} at {self._before_s:.2f} s"
        error = ClipError("damaged", message)
        self._findings.damage("changed", error)
        self._fifo = av.AudioFifo()
        target = self.rate, self.channels
        self._convert = Converter(self._now, target, self._dtype)


class Converter:
    """Converts samples of one rate (Hz) and number of channels to another."""

    def __init__(self, now: tuple[int, int], target: tuple[int, int], dtype: Any) -> None:
        self._channels, self._dtype = target[1], dtype
        self._stream = None
        if now[0] != target[0]:
            self._stream = soxr.ResampleStream(now[0], target[0], target[1], "float32", "HQ")

    def __call__(self, samples: np.ndarray, last: bool) -> Iterator[np.ndarray]:
        """Blocks of (channels, samples). last: whether nothing follows."""
        step = max(1, _PIECE_SAMPLES // self._channels)
        for start in range(0, samples.shape[1] or 1, step):
            piece = as_float32(samples[:, start : start + step])
            if len(piece) != self._channels:  # which keeps the mean of the channels
                piece = np.repeat(piece.mean(axis=0, keepdims=True), self._channels, axis=0)
            if self._stream:
                is_last = last and start + step >= samples.shape[1]
                piece = self._stream.resample_chunk(np.ascontiguousarray(piece.T), is_last).T
            if self._dtype == np.int16:
                piece = np.clip(np.rint(piece * 32768), -32768, 32767).astype(np.int16)
            if piece.size:
                yield piece


# By FFmpeg's sample format, without the p of planar ones. PyAV's own table lacks s64.
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_SCALE = {"s32": 2.0**-31, "s64": 2.0**-63}


def frame_samples(frame: av.AudioFrame) -> np.ndarray:
    """A frame's samples (channels, samples): int16 for formats of up to 16 bits, else float32 with
    a full scale of 1, scaled by an exact power of two."""
    name = frame.format.name.removesuffix("p")
    if len(frame.planes) == 1:  # packed or mono, which to_ndarray would copy
        plane: Any = frame.planes[0]
        channels = frame.layout.nb_channels
        samples = np.frombuffer(plane, _DTYPES[name], frame.samples * channels)
        samples = samples.reshape(-1, channels).T
    else:
        samples = frame.to_ndarray()
    if name == "s16":
        return samples
    if name == "u8":
        return (samples.astype(np.int16) - 128) << 8
    if scale := _SCALE.get(name):
        return samples.astype(np.float32) * np.float32(scale)
    with np.errstate(over="ignore"):  # doubles may become Inf, which is reported later
        return samples.astype(np.float32, copy=False)
