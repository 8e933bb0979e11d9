"""Lengths and padding of wav2vec2 and its relatives, by their configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audio_ops.inference.transformers_compat import norm_each_apart

# Where an attention mask undoes padding exactly. It does not for the others, which convolve or
# pool over time after padding has turned non-zero (data2vec's stacked positional convolutions, the
# conformer's, SEW's squeezing by two frames).
MASKED = {"hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wavlm"}
FBANK_FRAME, FBANK_HOP = 400, 160  # samples of a Kaldi filter bank at 16 kHz


def is_masked(config: dict[str, Any], norm_apart: bool = False) -> bool:
    """Whether a padded batch with an attention mask gives each clip what it would get alone.

    `config` is a whole config.json; `norm_apart` is true for a model on which `norm_each_apart` is.
    """
    return (
        config.get("model_type") in MASKED
        # Group norm runs over time, padding included (transformers issue 18501). Batch norm ahead
        # of the positional convolution, as in some HuBERTs, turns masked zeros into its bias.
        and (config["model_type"] == "wav2vec2-bert" or _norm(config) != "group" or norm_apart)
        and not config.get("conv_pos_batch_norm")
        # The adapter convolves over padded frames that the encoder has filled.
        and not config.get("add_adapter")
    )


def hears_padded(model: Any, config: dict[str, Any], device: str) -> bool:
    """Whether the loaded model may get padded batches with an attention mask.

    Batches of equal length cost little on a CPU; on a GPU they are a hundred times slower than
    padded ones, so there group norm is made to leave the padding out.
    """
    norm_apart = device != "cpu" and is_masked(config, norm_apart=True) and norm_each_apart(model)
    return is_masked(config, norm_apart)


def _norm(config: dict[str, Any]) -> str:
    norm: str = config.get("feat_extract_norm", "group")  # every config class's default
    return norm


def shortest(config: dict[str, Any]) -> int:
    """The fewest samples that give the model one frame."""
    if config.get("model_type") == "wav2vec2-bert":
        return FBANK_FRAME + FBANK_HOP  # two frames, stacked to one
    kernels = config.get("conv_kernel") or (10, 3, 3, 3, 3, 2, 2)
    strides = config.get("conv_stride") or (5, 2, 2, 2, 2, 2, 2)
    samples = int(config.get("squeeze_factor") or 1)  # SEW
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def conv_frames(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """The frames that a feature encoder's convolutions without padding make of so many samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples
