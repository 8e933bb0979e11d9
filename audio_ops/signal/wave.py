"""Downmix, resample and measure sound, whole or block by block.

Shapes are (channels, samples) or (samples,), rates are in Hz. Full scale is 1 in float32 and 2^15
in int16; 16-bit sound stays int16 until something is computed with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import soxr

from audio_ops.signal.waveforms import as_float32

PIECE_SAMPLES = 1 << 14  # per call of soxr, which copies them: they fit in a core's cache


def downmix(block: np.ndarray) -> np.ndarray:
    """Mean of the channels, (channels, samples) -> (samples,): float32, or int16 of one channel.

    Raises ValueError for another shape.
    """
    if block.ndim != 2:
        raise ValueError(f"expected (channels, samples), got shape {block.shape}")
    if len(block) == 1:
        return np.ascontiguousarray(block[0])
    block = as_float32(block)
    total = block[0] + block[1]  # many times faster than mean() on interleaved samples
    for channel in block[2:]:
        total += channel
    return total / np.float32(len(block))


class Resampler:
    """Resamples (samples,) block by block with soxr HQ. The output does not depend on block sizes.

    n samples become ceil(n * target_rate / source_rate) in all, as with librosa.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self._rates = source_rate, target_rate
        self._consumed = self._produced = 0
        self._stream = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(source_rate, target_rate, 1, "float32", "HQ")

    def __call__(self, block: np.ndarray, last: bool = False) -> Iterator[np.ndarray]:
        """Consume (samples,), int16 or float32; yield float32 (samples,) as far as they are ready.

        last: marks the last block, which may be empty: yields the samples held back as well. If
        both rates are equal, yields the block unchanged.
        """
        if self._stream is None:
            yield block
            return
        self._consumed += len(block)
        for start in range(0, len(block) or 1, PIECE_SAMPLES):
            piece = as_float32(block[start : start + PIECE_SAMPLES])
            is_last = last and start + PIECE_SAMPLES >= len(block)
            part = self._stream.resample_chunk(np.ascontiguousarray(piece), is_last)
            self._produced += len(part)
            yield part
        if last:  # soxr rounds to the nearest number of samples
            source_rate, target_rate = self._rates
            wanted = -(-self._consumed * target_rate // source_rate)
            yield np.zeros(wanted - self._produced, np.float32)


def resample(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample float32 (samples,), whole."""
    if source_rate == target_rate:
        return waveform
    return np.concatenate(list(Resampler(source_rate, target_rate)(waveform, last=True)))


def _sum_of_squares(samples: np.ndarray) -> float:
    """Sum of squares of float32 (samples,): in float32 for rows of 1024, which is precise enough,
    and in float64 over the rows. Not one dot product: BLAS would use all cores."""
    whole = len(samples) - len(samples) % 1024
    rows, rest = samples[:whole].reshape(-1, 1024), samples[whole:]
    return float(np.vecdot(rows, rows).sum(dtype=np.float64) + np.vecdot(rest, rest))


def peak_of(block: np.ndarray) -> float:
    """The peak of int16 or float32, 1 is full scale; perhaps NaN."""
    if not block.size:
        return 0.0
    unit = 2.0**-15 if block.dtype == np.int16 else 1.0
    return unit * max(float(block.max()), -float(block.min()))


class Level:
    """Peak and RMS of a stream, in dB relative to full scale (a sample of 1)."""

    def __init__(self) -> None:
        self.peak = self.last_peak = 0.0
        self.count = 0
        self._square = 0.0

    def add(self, samples: np.ndarray, peak: float | None = None) -> None:
        """Include samples of any shape, int16 or float32. peak: theirs, if it is known."""
        self.last_peak = peak_of(samples) if peak is None else peak
        self.peak = max(self.peak, self.last_peak)
        unit = 2.0**-15 if samples.dtype == np.int16 else 1.0
        samples = samples.ravel("K").astype(np.float32, copy=False)
        with np.errstate(over="ignore"):  # such samples show in the peak
            self._square += unit**2 * _sum_of_squares(samples)
        self.count += samples.size

    @property
    def peak_dbfs(self) -> float | None:
        """None for digital silence."""
        return 20 * math.log10(self.peak) if self.peak else None

    @property
    def rms_dbfs(self) -> float | None:
        """None for digital silence; -3.01 for a full-scale sine."""
        return 10 * math.log10(self._square / self.count) if self._square else None
