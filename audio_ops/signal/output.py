"""A waveform that grows while a sound is decoded."""

from __future__ import annotations

import numpy as np

from audio_ops.signal.wave import Resampler
from audio_ops.signal.waveforms import Pcm16, Waveform


class Output:
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
