"""The feature extractors that transformers computes in numpy, in torch on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from audio_ops.inference.transformers_compat import replace_filter_bank
from audio_ops.inference.wav2vec2 import FBANK_FRAME, FBANK_HOP

FLOOR = 1.192092955078125e-07  # of a band's power, as in Kaldi
PREEMPHASIS = 0.97
VARIANCE_FLOOR = 1e-7  # added by `Wav2Vec2FeatureExtractor`


def compute_on(device: str, extractor: Any) -> Any:
    """The extractor, or one that computes the same features faster on that device.

    AST, SeamlessM4T, wav2vec2-bert and Speech2Text use Kaldi's filter bank. transformers computes
    it frame by frame (`spectrogram` in audio_utils.py): 15 ms for 10 s of sound, which a GPU labels
    in 1 ms. With torchaudio installed transformers has other filters, which are kept.
    """
    if type(extractor).__name__ == "Wav2Vec2FeatureExtractor" and (
        extractor.padding_side,
        extractor.padding_value,
    ) == ("right", 0.0):
        return Normed(extractor, device)
    if device != "cpu":
        replace_filter_bank(extractor, lambda original: FilterBank(original, device))
    return extractor


class Normed:
    """`Wav2Vec2FeatureExtractor`: zero mean and unit variance, padded with zeros at the end.

    Only for batches of clips of equal length, or with an attention mask: without one transformers
    treats padding as sound.
    """

    def __init__(self, extractor: Any, device: str):
        self.device = device
        self.normalize: bool = extractor.do_normalize
        self.wants_mask: bool = extractor.return_attention_mask

    def __call__(
        self,
        waveforms: Sequence[np.ndarray],
        return_attention_mask: bool | None = None,
        pad_to_multiple_of: int | None = None,
        **_: Any,
    ) -> Any:
        """transformers' BatchFeature, on the device, from float32 (samples,) waveforms.

        It has `input_values`, float32 (clips, samples), and if wanted `attention_mask`, int32.
        """
        import torch
        from transformers import BatchFeature

        step = pad_to_multiple_of or 1
        longest = -(-max(map(len, waveforms)) // step) * step
        padded = np.zeros((len(waveforms), longest), np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
            if self.normalize and self.device == "cpu":
                _normalize(row[: len(waveform)])  # while a core's caches have it
        values = torch.from_numpy(padded).to(self.device)
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        if self.normalize and self.device != "cpu":
            normalize_batch(values, lengths, mask)
        features = {"input_values": values}
        if self.wants_mask if return_attention_mask is None else return_attention_mask:
            features["attention_mask"] = mask.int()
        return BatchFeature(features)


def _normalize(waveform: np.ndarray) -> None:
    """Give (samples,) float32 zero mean and unit variance, in place and to the bit as the extractor."""
    waveform -= waveform.mean()
    waveform /= np.sqrt(np.square(waveform).mean() + VARIANCE_FLOOR)


def normalize_batch(values: Any, lengths: Any, mask: Any) -> None:
    """Give each row of (clips, samples), float32, zero mean and unit variance up to its length, in
    place. `mask` is true up to there; beyond it values are 0, and stay so."""
    values -= values.sum(1, keepdim=True) / lengths[:, None]
    values *= mask
    variance = values.square().sum(1, keepdim=True) / lengths[:, None]
    values /= (variance + VARIANCE_FLOOR).sqrt()


class FilterBank:
    """An extractor's `_extract_fbank_features` in torch, with float64 like the original."""

    def __init__(self, extractor: Any, device: str):
        import torch

        self.device = device
        self.filters = torch.from_numpy(extractor.mel_filters).to(device)  # (bins, mels)
        self.window = torch.from_numpy(extractor.window).to(device)

    def __call__(self, waveform: np.ndarray, max_length: int | None = None) -> np.ndarray:
        """Float32 (frames, mels) of one float32 (samples,) waveform.

        AST gives `max_length`, the number of frames. Extractors that do not give it scale samples
        to 16-bit integers, as Kaldi does.
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
