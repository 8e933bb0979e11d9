"""Kaldi's filter bank on a GPU: what AST, SeamlessM4T, wav2vec2-bert and Speech2Text hear."""

from __future__ import annotations

from typing import Any

import numpy as np

from audio_ops.wav2vec2 import FBANK_FRAME, FBANK_HOP

FLOOR = 1.192092955078125e-07  # Kaldi's, of a band's power
PREEMPHASIS = 0.97


def compute_on(device: str, extractor: Any) -> Any:
    """The extractor, which computes its filter bank on `device` if it has one and that is a GPU.

    transformers goes frame by frame through numpy (`spectrogram` in audio_utils.py), 15 ms for 10 s
    of sound, which a GPU labels in one. With torchaudio it has other filters, and keeps them.
    """
    if device != "cpu" and {"mel_filters", "window", "_extract_fbank_features"} <= set(
        dir(extractor)
    ):
        extractor._extract_fbank_features = FilterBank(extractor, device)
    return extractor


class FilterBank:
    """An extractor's `_extract_fbank_features` in torch, in float64 like the original."""

    def __init__(self, extractor: Any, device: str):
        import torch

        self.device = device
        self.filters = torch.from_numpy(extractor.mel_filters).to(device)  # (bins, mels)
        self.window = torch.from_numpy(extractor.window).to(device)

    def __call__(self, waveform: np.ndarray, max_length: int | None = None) -> np.ndarray:
        """Float32 `(frames, mels)`; with `max_length`, as AST calls it, so many frames.

        Those who call it without take samples to be 16-bit integers, as Kaldi does.
        """
        import torch
        from torch.nn.functional import pad

        sound = torch.tensor(np.squeeze(waveform), device=self.device).double()
        frames = (sound if max_length else sound * 2**15).unfold(0, FBANK_FRAME, FBANK_HOP)
        frames = frames - frames.mean(1, keepdim=True)
        frames = frames - PREEMPHASIS * pad(frames[None, :, :-1], (1, 0), "replicate")[0]
        power = torch.fft.rfft(frames * self.window, 512).abs().square()
        bank = (power @ self.filters).clamp(min=FLOOR).log().float()
        if max_length:
            bank = pad(bank, (0, 0, 0, max_length - len(bank)))
        return bank.cpu().numpy()
