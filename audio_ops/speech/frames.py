"""The frames that CTC encoders on log-mel features make. No torch in here."""

from __future__ import annotations

import math
from typing import Any

LOG_MEL = (
    "granite_speech5_ctc",
    "lasr_ctc",
    "parakeet_ctc",
)  # they have one, and masks undo padding
LASR_CONVOLUTIONS = 2


def samples_per_frame(model_type: str, encoder: dict[str, Any], hop: int) -> int:
    """Samples from one frame to the next, of an encoder with this configuration."""
    if model_type == "lasr_ctc":
        return hop * int(encoder.get("subsampling_conv_stride", 2)) ** LASR_CONVOLUTIONS
    if model_type == "granite_speech5_ctc":  # pairs of frames, halved again in some layers
        return hop * 2 ** (1 + len(_halving(encoder)))
    return hop * int(encoder.get("subsampling_factor", 8))


def frames_of(model_type: str, encoder: dict[str, Any], samples: int, extractor: Any) -> int:
    """The frames of so much sound, without padding."""
    hop: int = extractor.hop_length
    if model_type == "parakeet_ctc":
        return parakeet_frames(samples // hop, encoder)
    if model_type == "granite_speech5_ctc":
        frames = -(-(samples // hop) // 2)
        return frames // 2 ** len(_halving(encoder))
    frames = (samples - extractor.win_length) // hop + 1
    kernel, stride = _lasr_convolution(encoder)
    for _ in range(LASR_CONVOLUTIONS):
        frames = (frames - kernel) // stride + 1
    return frames


def shortest(model_type: str, encoder: dict[str, Any], extractor: Any) -> int:
    """The fewest samples from which there is a frame."""
    hop: int = extractor.hop_length
    if model_type == "parakeet_ctc":
        return 2 * hop  # its extractor divides by its mel frames less one
    if model_type == "granite_speech5_ctc":
        pairs: int = 2 ** len(_halving(encoder))
        return (2 * pairs - 1) * hop
    kernel, stride = _lasr_convolution(encoder)
    frames = 1
    for _ in range(LASR_CONVOLUTIONS):
        frames = (frames - 1) * stride + kernel
    return (frames - 1) * hop + int(extractor.win_length)


def parakeet_frames(mels: int, encoder: dict[str, Any]) -> int:
    """The frames that Parakeet's encoder makes of so many log-mel frames.

    Each of its convolutions halves them, over padding on both sides.
    """
    kernel = encoder["subsampling_conv_kernel_size"]
    stride = encoder["subsampling_conv_stride"]
    for _ in range(int(math.log2(encoder["subsampling_factor"]))):
        mels = (mels + (kernel - 1) // 2 * 2 - kernel) // stride + 1
    return mels


def _halving(encoder: dict[str, Any]) -> list[int]:
    """The layers that halve the frames."""
    layers = encoder.get("subsample_layers")
    return [0, 1] if layers is None else list(layers)


def _lasr_convolution(encoder: dict[str, Any]) -> tuple[int, int]:
    kernel = encoder.get("subsampling_conv_kernel_size", 5)
    return kernel, encoder.get("subsampling_conv_stride", 2)
