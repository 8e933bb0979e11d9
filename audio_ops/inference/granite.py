"""The features of Granite Speech and Granite Speech 5, without torchaudio.

transformers' extractors compute them with torchaudio, which is not built for every torch. Here each clip's
features are computed alone and then padded: transformers pads the sound, so that features at a clip's end
depend on its neighbours. tests/models/test_features_without_torchaudio.py compares with numbers from
torchaudio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

FLOOR = 1e-10  # of a band's power
FLOOR_DB = 8.0  # below the clip's loudest band, in tenths


class Mels:
    """torchaudio's `MelSpectrogram` with its defaults: HTK's scale, triangles of height 1."""

    def __init__(self, settings: Mapping[str, Any], mels: int, device: str):
        import torch
        from transformers.audio_utils import mel_filter_bank

        self.rate = int(settings.get("sampling_rate") or 16_000)
        nested = settings.get("melspec_kwargs") or {}
        self.fft, self.window_length, self.hop_length = (
            int(nested.get(key) or settings.get(key) or default)
            for key, default in (("n_fft", 512), ("win_length", 400), ("hop_length", 160))
        )
        filters = mel_filter_bank(
            self.fft // 2 + 1, mels, 0.0, self.rate / 2, self.rate, norm=None, mel_scale="htk"
        )
        self.filters = torch.from_numpy(filters).float().T.to(device)  # (mels, bins)
        self.window = torch.hann_window(self.window_length, device=device)

    def __call__(self, sound: torch.Tensor) -> torch.Tensor:
        """The power in each band, float32 `(mels, frames)`, of float32 `(samples,)`."""
        import torch

        spectrum = torch.stft(
            sound,
            self.fft,
            self.hop_length,
            self.window_length,
            self.window,
            pad_mode="reflect",
            return_complex=True,
        )
        power: torch.Tensor = self.filters @ spectrum.abs().square()
        return power


class GraniteFeatures:
    """The extractor of granite_speech and granite_speech_plus: pairs of log-mel frames."""

    def __init__(self, settings: Mapping[str, Any], device: str):
        nested = settings.get("melspec_kwargs") or {}
        self.mels = Mels(
            settings, int(nested.get("n_mels") or settings.get("n_mels") or 80), device
        )
        self.sampling_rate, self.hop_length = self.mels.rate, self.mels.hop_length
        self.device = device

    def frames(self, waveform: np.ndarray) -> torch.Tensor:
        """Float32 `(pairs, 2 * mels)`, without an odd frame at the end."""
        import torch

        logmel = floored_log(self.mels(torch.tensor(waveform, device=self.device))).T
        even = logmel[: len(logmel) // 2 * 2]
        return even.reshape(len(even) // 2, -1)


class Granite5Features:
    """The extractor of granite_speech5_ctc: pairs of log-mel frames with their differences in time."""

    def __init__(self, settings: Mapping[str, Any], device: str):
        self.mels = Mels(settings, int(settings.get("num_mel_bins") or 80), device)
        self.sampling_rate, self.hop_length = self.mels.rate, self.mels.hop_length
        self.delta_length = int(settings.get("delta_win_length") or 3)
        self.floor_db = float(settings.get("logmel_floor_db") or FLOOR_DB)
        self.device = device

    def frames(self, waveform: np.ndarray) -> torch.Tensor:
        """Float32 `(pairs, 4 * mels)`; a pair that is incomplete is filled with silence."""
        import torch

        sound = torch.tensor(waveform, device=self.device)
        count = -(-(len(waveform) // self.hop_length) // 2) * 2
        missing = max(0, (count - 1) * self.hop_length + 1 - len(sound))
        power = self.mels(torch.nn.functional.pad(sound, (0, missing)))[:, :count]
        logmel = floored_log(power, self.floor_db)
        both = torch.cat([logmel, differences(logmel, self.delta_length)])
        return both.T.reshape(count // 2, -1)

    def __call__(self, waveforms: Sequence[np.ndarray], **_: Any) -> Any:
        """transformers' BatchFeature of `input_features` and `attention_mask`."""
        import torch
        from torch.nn.utils.rnn import pad_sequence
        from transformers import BatchFeature

        each = [self.frames(waveform) for waveform in waveforms]
        lengths = torch.tensor([len(frames) for frames in each], device=self.device)
        features = pad_sequence(each, batch_first=True)
        mask = torch.arange(features.shape[1], device=self.device) < lengths[:, None]
        return BatchFeature({"input_features": features, "attention_mask": mask.long()})


def floored_log(power: torch.Tensor, floor_db: float = FLOOR_DB) -> torch.Tensor:
    """The logarithm of bands, not further below the clip's loudest one than the floor, scaled."""
    import torch

    logs = power.clamp(min=FLOOR).log10()
    return torch.maximum(logs, logs.max() - floor_db) / 4 + 1


def differences(bands: torch.Tensor, length: int) -> torch.Tensor:
    """torchaudio's `compute_deltas` of `(bands, frames)`, over `length` frames."""
    import torch

    reach = (length - 1) // 2
    weights = torch.arange(-reach, reach + 1, dtype=bands.dtype, device=bands.device)
    padded = torch.nn.functional.pad(bands[None], (reach, reach), mode="replicate")[0]
    return padded.unfold(1, 2 * reach + 1, 1) @ weights / weights.square().sum()
