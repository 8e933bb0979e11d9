"""The dtype in which a model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def torch_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype of that name (`float32`, `bfloat16`, `float16`); for `auto` the fastest.

    `auto` on CUDA is bfloat16 if the GPU computes in it (compute capability 8.0 and above), else
    float16. On CPUs it is bfloat16 with AMX or AVX512_BF16, else float32: without these
    instructions torch emulates bfloat16, several times slower than float32.

    Raises ValueError for any other name.
    """
    import torch

    if name == "auto":
        if device.startswith("cuda"):
            bfloat16 = torch.cuda.get_device_capability(device)[0] >= 8
            return torch.bfloat16 if bfloat16 else torch.float16
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
        return torch.bfloat16 if device == "cpu" and fast else torch.float32
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected auto, float32, bfloat16 or float16, found {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
