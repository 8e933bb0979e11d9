"""The features of Fun-ASR-Nano, which transformers computes with torchaudio, without it.

tests/models/test_features_without_torchaudio.py compares with numbers from torchaudio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PREEMPHASIS, LOWEST_HZ = 0.97, 20.0


class FunAsrFeatures:
    """Kaldi's filter bank, seven frames at a time, every sixth of these."""

    def __init__(self, settings: Mapping[str, Any], device: str):
        import torch
        from transformers.audio_utils import mel_filter_bank

        def number(key: str, default: int) -> int:
            return int(settings.get(key) or default)

        self.sampling_rate, self.device = number("sampling_rate", 16_000), device
        self.length = self.sampling_rate * number("frame_length", 25) // 1000
        self.hop_length = self.sampling_rate * number("frame_shift", 10) // 1000
        self.stacked, self.stride = number("num_frames_lfr", 7), number("stride_lfr", 6)
        self.fft = 1 << (self.length - 1).bit_length()
        filters = mel_filter_bank(
            self.fft // 2 + 1,
            number("feature_size", 80),
            LOWEST_HZ,
            self.sampling_rate / 2,
            self.sampling_rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self.filters = torch.from_numpy(filters).float().to(device)  # (bins, mels)
        self.window = torch.hamming_window(self.length, periodic=False, device=device)

    def frames(self, waveform: np.ndarray) -> torch.Tensor:
        """Float32 `(frames, 7 * mels)` of float32 `(samples,)`, at least 25 ms of them."""
        import torch

        return self._stack(self._bank(torch.tensor(waveform, device=self.device)))

    def _bank(self, sound: torch.Tensor) -> torch.Tensor:
        """The logarithms of the bands, `(frames, mels)`."""
        import torch
        from torch.nn.functional import pad

        frames = sound.unfold(0, self.length, self.hop_length)
        frames = frames - frames.mean(1, keepdim=True)
        before = pad(frames[None, :, :-1], (1, 0), mode="replicate")[0]
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * self.window, self.fft)
        power: torch.Tensor = spectrum.abs().square() @ self.filters
        return power.clamp(min=torch.finfo(torch.float32).eps).log()

    def _stack(self, bank: torch.Tensor) -> torch.Tensor:
        """Neighbouring frames side by side; the first and the last frame are repeated."""
        import torch

        count = -(-len(bank) // self.stride)
        left = (self.stacked - 1) // 2
        places = torch.arange(count)[:, None] * self.stride + torch.arange(self.stacked) - left
        return bank[places.clamp(0, len(bank) - 1).to(bank.device)].flatten(1)
