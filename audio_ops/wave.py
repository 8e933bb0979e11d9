"""Downmix, resample and measure sound, in a stream of blocks or whole.

Shapes: (channels, samples) or (samples,). Full scale is [-1, 1] in float32, and 2^15 in int16, as
which sound of 16 bits stays until something is computed with it. Rates are in Hz.
"""

from __future__ import annotations

import math

import numpy as np
import soxr

from audio_ops.waveforms import as_float32


def downmix(block: np.ndarray) -> np.ndarray:
    """(channels, samples) -> (samples,): the mean of the channels."""
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
    """Resample (samples,) block by block with soxr HQ; what comes out ignores the block size.

    n samples become ceil(n * target_rate / source_rate) in all, as with librosa.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self._rates = source_rate, target_rate
        self._taken = self._given = 0
        self._stream = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(source_rate, target_rate, 1, "float32", "HQ")

    def __call__(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """(samples,) -> float32 (as many as are ready,); `last` gives the rest. Where the two rates
        are one, a block comes back as it is."""
        if self._stream is None:
            return block
        out = self._stream.resample_chunk(np.ascontiguousarray(as_float32(block)), last)
        self._taken += len(block)
        self._given += len(out)
        if last:  # soxr rounds to the nearest number of samples
            source_rate, target_rate = self._rates
            wanted = -(-self._taken * target_rate // source_rate)
            if missing := wanted - self._given:
                out = np.append(out, np.zeros(missing, np.float32))
        return out


def resample(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """float32 (samples,) at one rate -> float32 (samples,) at the other."""
    return Resampler(source_rate, target_rate)(waveform, last=True)


def _sum_of_squares(samples: np.ndarray) -> float:
    """Of float32 (samples,), in rows: float32 has digits enough for 256, float64 for all of them.

    Not one dot product: BLAS would spend a thread per core on it.
    """
    whole = len(samples) - len(samples) % 256
    rows, rest = samples[:whole].reshape(-1, 1, 256), samples[whole:]
    of_rows = np.matmul(rows, rows.swapaxes(1, 2)).sum(dtype=np.float64)
    return float(of_rows + np.einsum("i,i->", rest, rest))


class Level:
    """Peak and RMS over all channels of a stream, in dB relative to full scale (a sample of 1)."""

    def __init__(self) -> None:
        self._peak = 0.0
        self._square = 0.0
        self._count = 0

    def add(self, block: np.ndarray) -> None:
        """Take (channels, samples) into account."""
        if block.size:
            unit = 2.0**-15 if block.dtype == np.int16 else 1.0
            self._peak = max(self._peak, unit * float(block.max()), -unit * float(block.min()))
            samples = block.ravel("K").astype(np.float32, copy=False)
            self._square += unit**2 * _sum_of_squares(samples)
            self._count += block.size

    @property
    def peak_dbfs(self) -> float | None:
        """None for digital silence."""
        return 20 * math.log10(self._peak) if self._peak else None

    @property
    def rms_dbfs(self) -> float | None:
        """None for digital silence; a full-scale sine has -3.01."""
        return 10 * math.log10(self._square / self._count) if self._square else None
