"""Waveforms -> Whisper's log-mel features, on the model's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

MIN_POWER = 1e-10  # of a mel band


class LogMel:
    """`WhisperFeatureExtractor` in torch from end to end.

    The original goes through numpy and back, on a GPU for ten times as long as it computes.
    """

    def __init__(self, extractor: Any, device: str):
        import torch

        self.extractor, self.device = extractor, device
        self.filters = torch.from_numpy(extractor.mel_filters).to(device, torch.float32)
        self.window = torch.hann_window(extractor.n_fft, device=device)

    def __call__(self, waveforms: Sequence[np.ndarray], samples: int) -> torch.Tensor:
        """Float32 `(batch, mels, frames)` of waveforms `(samples,)`, padded with zeros to `samples`."""
        import torch
        from torch.nn.functional import pad

        hop, width = self.extractor.hop_length, self.extractor.n_fft
        # Behind the longest waveform all frames are alike: that padding is not transformed.
        longest = max(map(len, waveforms))
        frames = min(samples // hop, -(-(longest + width) // hop))
        sound = torch.zeros(len(waveforms), frames * hop, device=self.device)
        for row, waveform in zip(sound, waveforms, strict=True):
            row[: len(waveform)] = torch.tensor(waveform)
        spectrum = torch.stft(sound, width, hop, window=self.window, return_complex=True)[..., :-1]
        power = torch.view_as_real(spectrum).square().sum(-1)
        log = (self.filters.T @ power).clamp(min=MIN_POWER).log10()
        log = pad(log, (0, samples // hop - frames), value=math.log10(MIN_POWER))
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
