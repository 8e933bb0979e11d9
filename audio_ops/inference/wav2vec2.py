"""wav2vec2 and its relatives: what their configs say about lengths and padding."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Where an attention mask undoes padding exactly. It does not for the others, which convolve or
# pool over time after padding has turned non-zero (data2vec's stacked positional convolutions, the
# conformer's, SEW's squeezing by two frames).
MASKED = {"hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wavlm"}
FBANK_FRAME, FBANK_HOP = 400, 160  # samples of a Kaldi filter bank at 16 kHz


def is_masked(config: dict[str, Any], norm_apart: bool = False) -> bool:
    """Whether a padded batch with an attention mask gives each clip what it would get alone.

    `config` is a config.json, whole; `norm_apart` says that the model has been through
    `norm_each_apart`.
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
    on_gpu = device != "cpu"
    if on_gpu and is_masked(config, norm_apart=True):
        norm_each_apart(model)
    return is_masked(config, norm_apart=on_gpu)


def norm_each_apart(model: Any) -> None:
    """Let group norm, if the model has it, see each row of a padded batch without its padding."""
    import torch

    layers = getattr(getattr(model.base_model, "feature_extractor", None), "conv_layers", [None])
    norm: Any = getattr(layers[0], "layer_norm", None)
    if not isinstance(norm, torch.nn.GroupNorm):
        return
    (kernel,), (stride,) = layers[0].conv.kernel_size, layers[0].conv.stride
    batch = threading.local()  # a call that overlaps with this one has its own lengths

    def keep_lengths(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        batch.samples = inputs["attention_mask"].sum(-1).tolist()

    def forward(states: torch.Tensor) -> torch.Tensor:
        normed = torch.zeros_like(states)
        for row, samples in enumerate(batch.samples):
            own = slice(row, row + 1), slice(None), slice(0, (samples - kernel) // stride + 1)
            normed[own] = torch.nn.functional.group_norm(
                states[own], norm.num_groups, norm.weight, norm.bias, norm.eps
            )
        return normed

    model.register_forward_pre_hook(keep_lengths, with_kwargs=True)
    layers[0].layer_norm.forward = forward


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
