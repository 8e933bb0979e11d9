"""wav2vec2 and its relatives: the shortest sound they take, and whether padding changes their
output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audio_ops.inference.transformers_compat import mask_group_norm

# Model types for which an attention mask undoes padding exactly. The others convolve or pool over
# time after padding has turned non-zero: data2vec's stacked positional convolutions, the
# conformer's, SEW's squeezing of two frames into one.
MASKED = {"hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wavlm"}
FBANK_FRAME, FBANK_HOP = 400, 160  # samples of a Kaldi filter bank at 16 kHz


def is_masked(config: dict[str, Any], group_norm_masked: bool = False) -> bool:
    """True if clips in a padded batch with an attention mask get the same output as alone.

    config: the checkpoint's whole config.json.
    group_norm_masked: `mask_group_norm` has been applied to the model.
    """
    return (
        config.get("model_type") in MASKED
        # Group norm runs over time, padding included (transformers issue 18501). Batch norm before
        # the positional convolution, as in some HuBERTs, turns masked zeros into its bias.
        and (
            config["model_type"] == "wav2vec2-bert" or _norm(config) != "group" or group_norm_masked
        )
        and not config.get("conv_pos_batch_norm")
        # The adapter convolves over padded frames that the encoder has filled.
        and not config.get("add_adapter")
    )


def accepts_padding(model: Any, config: dict[str, Any], device: str) -> bool:
    """True if padded batches with an attention mask are safe for the loaded model.

    Batches of equal length cost little on a CPU. On a GPU they are a hundred times slower than
    padded ones, so there `mask_group_norm` is applied if that makes padding safe.
    """
    if device != "cpu" and not is_masked(config) and is_masked(config, group_norm_masked=True):
        return mask_group_norm(model)
    return is_masked(config)


def _norm(config: dict[str, Any]) -> str:
    norm: str = config.get("feat_extract_norm", "group")  # every config class's default
    return norm


def shortest(config: dict[str, Any]) -> int:
    """The fewest samples from which the model makes one frame."""
    if config.get("model_type") == "wav2vec2-bert":
        return FBANK_FRAME + FBANK_HOP  # two frames, stacked into one
    kernels = config.get("conv_kernel") or (10, 3, 3, 3, 3, 2, 2)
    strides = config.get("conv_stride") or (5, 2, 2, 2, 2, 2, 2)
    samples = int(config.get("squeeze_factor") or 1)  # SEW
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def conv_frames(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """The number of frames that unpadded convolutions with these kernels and strides make of `samples`."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples
