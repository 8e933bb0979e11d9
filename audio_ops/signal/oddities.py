"""Oddities of samples, found block by block: offset, clipping, silent or cancelling channels."""

from __future__ import annotations

import numpy as np

STRIDE = 61  # a prime, so that hardly a tone repeats with it: sums over all samples take too long
MAX_OFFSET = 0.01  # of full scale, -40 dBFS
FULL_SCALE = 0.999  # a sample from here on may have been clipped
CLIPPED_SHARE = 1e-3  # of all samples: normalised sound has a handful of them
SILENT_PEAK = 1e-3  # -60 dBFS: a channel without anything but dither or the noise of a line
SOUND_POWER = 1e-6  # -60 dBFS: quieter blocks say nothing about how channels relate
CANCELLED = 0.1  # of the power that the mean of unrelated channels has
CANCELLED_SHARE = 0.1  # of the sound, from which on its mean is not to be used
LOSSY_PEAK = 2.0  # lossy codecs overshoot; beyond it the sound was encoded over full scale


def is_silent(peak: float) -> bool:
    """Whether a channel with this peak holds nothing but dither or the noise of a line."""
    return peak <= SILENT_PEAK


class Oddities:
    """The flags of a sound's samples. lossless: whether samples are as they were stored."""

    def __init__(self, channels: int, lossless: bool) -> None:
        self._max_peak = 1.0 if lossless else LOSSY_PEAK
        self._peak = 0.0
        self._count = self._clipped = self._sounding = self._cancelled = 0
        self._sums, self._powers = np.zeros(channels), np.zeros(channels)
        self._silent = np.ones(channels, bool)

    def add(self, block: np.ndarray, peak: float) -> None:
        """Include (channels, samples), int16 or float32. peak: the block's, 1 is full scale."""
        count = block.shape[1]
        unit = 2.0**-15 if block.dtype == np.int16 else 1.0
        self._peak = max(self._peak, peak)
        self._count += count
        if peak >= FULL_SCALE:
            limit = int(FULL_SCALE / unit) if unit < 1 else FULL_SCALE
            self._clipped += int(np.count_nonzero(block >= limit))
            self._clipped += int(np.count_nonzero(block <= -limit))
        if len(block) == 1:  # in few calls: short clips are decoded in a few of them
            some = block[0, ::STRIDE]
            mean = float(np.add.reduce(some, dtype=np.float64)) * unit / len(some)
            if abs(mean) > MAX_OFFSET / 2 * max(1.0, peak):  # perhaps by chance
                mean = float(np.add.reduce(block[0], dtype=np.float64)) * unit / count
            self._sums[0] += mean * count
            return
        some = block[:, ::STRIDE].astype(np.float32, "C")
        powers = np.vecdot(some, some) * (unit**2 / some.shape[1])
        means = some.sum(axis=1) * (unit / some.shape[1])
        if np.abs(means).max() > MAX_OFFSET / 2 * max(1.0, peak):
            means = block.mean(axis=1, dtype=np.float64) * unit
        self._sums += means * count
        self._powers += powers * count
        mixed = some.sum(axis=0) * np.float32(unit / len(block))
        self._add_channels(block, powers, float(np.vecdot(mixed, mixed)) / len(mixed), unit)

    def _add_channels(
        self, block: np.ndarray, powers: np.ndarray, mixed_power: float, unit: float
    ) -> None:
        for channel in np.flatnonzero(self._silent) if self._silent.any() else ():
            if (
                powers[channel] > SILENT_PEAK**2
                or np.abs(block[channel]).max() * unit > SILENT_PEAK
            ):
                self._silent[channel] = False
        if powers.mean() > SOUND_POWER:
            self._sounding += block.shape[1]
            if mixed_power * len(block) < CANCELLED * powers.mean():
                self._cancelled += block.shape[1]

    @property
    def channels_cancel(self) -> bool:
        """Whether the mean of the channels loses what they hold."""
        return self._cancelled > CANCELLED_SHARE * self._sounding

    @property
    def loudest_channel(self) -> int:
        """Its number, from 0 on."""
        return int(np.argmax(self._powers))

    def flags(self) -> list[str]:
        """Keys of `audio_ops.flags.FLAGS`."""
        count, channels = max(1, self._count), len(self._sums)
        is_over = self._peak > self._max_peak
        offset = max(map(abs, self._sums.tolist())) / count
        silent = channels > 1 and bool(self._silent.any() and not self._silent.all())
        found = {
            "over_full_scale": is_over,
            "clipped": not is_over and self._clipped > CLIPPED_SHARE * count * channels,
            "dc_offset": offset > MAX_OFFSET * max(1.0, self._peak),
            "silent_channel": silent,
            "channels_cancel": self.channels_cancel,
        }
        return [flag for flag, is_found in found.items() if is_found]
