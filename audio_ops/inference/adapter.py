"""PEFT adapters (LoRA and similar), checked before a run starts, without importing torch or peft."""

from __future__ import annotations

from audio_ops.inference.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdaptedCheckpoint,
    Checkpoint,
)
from audio_ops.inference.extras import check_extra
from audio_ops.inference.weights import Shapes, shapes, shapes_in

MERGED = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "HRA", "SHIRA", "RANDLORA")
PICKLED = "adapter_model.bin"
TIED = ("proj_out", "lm_head")  # may have no weight of their own in a file


def check_adapter(checkpoint: AdaptedCheckpoint) -> None:
    """Raise ValueError if the adapter cannot be merged into its base model."""
    adapter = checkpoint.adapter
    kind = adapter.json(ADAPTER_CONFIG).get("peft_type")
    if kind not in MERGED:
        raise ValueError(
            f"model: expected an adapter of weights ({', '.join(MERGED)}), found peft_type {kind!r} "
            f"in {ADAPTER_CONFIG} of {adapter.source}"
        )
    check_extra("peft", "peft", f"runs the {kind} adapter in {adapter.source}")
    if not adapter.has(ADAPTER_WEIGHTS):
        raise ValueError(
            f"model: expected {ADAPTER_WEIGHTS} beside {ADAPTER_CONFIG}, found "
            f"{f'only {PICKLED}, a pickle,' if adapter.has(PICKLED) else 'none'} in {adapter.source}: "
            f"copy it again if it has one; {PICKLED} is converted with: {_conversion(adapter)}"
        )
    path = adapter.path(ADAPTER_WEIGHTS) if adapter.revision is None else None
    if path is not None and kind == "LORA":
        _check_shapes(shapes_in(path), shapes(checkpoint.base), checkpoint)


def _conversion(adapter: Checkpoint) -> str:
    folder = adapter.source if adapter.revision is None else "FOLDER"
    return (
        'python -c "import torch; from safetensors.torch import save_file as save; '
        f"save(torch.load('{folder}/{PICKLED}', weights_only=True), '{folder}/{ADAPTER_WEIGHTS}')\""
    )


def _check_shapes(own: Shapes, base: Shapes, checkpoint: AdaptedCheckpoint) -> None:
    """ValueError if a LoRA's factors are not those of weights of the base model.

    peft itself passes over factors of layers that the base model does not have.
    """
    for name, shape in own.items() if base else ():
        module, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
        if factor not in ("A.weight", "B.weight") or module.endswith(TIED):
            continue
        # A file of the model without its head has names without the first part.
        weight = base.get(f"{module}.weight") or base.get(f"{module.partition('.')[2]}.weight")
        if weight is None or shape[factor[0] == "A"] != weight[factor[0] == "A"]:
            raise ValueError(
                f"model: expected an adapter of the model in {checkpoint.base.source}, found "
                f"{name} of shape {shape} in {checkpoint.source} for "
                f"{f'a weight of {weight}' if weight else 'a layer that it does not have'}: name the "
                f"model that it was trained on as base_model_name_or_path in {ADAPTER_CONFIG}"
            )
