"""Memory of GPUs: which errors mean that it ran out, how much a process may take, how large a batch may be.

torch reports these errors as RuntimeError or a subclass, with the message of the CUDA (or HIP)
library that failed: `CUDACachingAllocator.cpp`, `CUDAException.h`, `aten/src/ATen/cuda/Exceptions.h`.
"""

from __future__ import annotations

import re
import traceback
from typing import Literal, NamedTuple

import numpy as np

from audio_ops.inference.torch_compat import largest_tensor
from audio_ops.tasks import Clip, TaskModel

# Handles of cuBLAS and cuDNN are made at their first use; without memory that fails as NOT_INITIALIZED
# (pytorch issue 25053) or INTERNAL_ERROR.
MEMORY = re.compile(
    r"out of memory|allocate memory|ALLOC_FAILED|ALLOCATION_FAILED|ErrorMemoryAllocation"
    r"|STATUS_NOT_INITIALIZED|CUDNN_STATUS_INTERNAL_ERROR|unable to find an engine to execute",
    re.I,
)
LOST = re.compile(
    r"device-side assert|illegal memory access|misaligned address|illegal instruction"
    r"|unspecified launch failure|launch timed out|EXECUTION_FAILED|EXEC_FAILED|MAPPING_ERROR"
    r"|uncorrectable|device lost|driver shutting down",
    re.I,
)
MAX_ELEMENTS = 2**31 - 1  # of one tensor: many kernels index with int32
FREE_SHARE = 0.8  # of the free memory that the default batch may take
PROBE_S = 30.0


def failure(error: BaseException) -> Literal["memory", "lost context"] | None:
    """`memory` if it ran out, `lost context` if the process cannot use the GPU any more, else None."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "memory"
    if not isinstance(error, RuntimeError):  # AcceleratorError is one
        return None
    if MEMORY.search(str(error)):
        return "memory"
    if isinstance(error, torch.AcceleratorError) or LOST.search(str(error)):
        return "lost context"
    return None


def limit_memory(fraction: float) -> None:
    """Let this process have `fraction` of its GPU's memory, where that is less than all of it.

    Several actors on one GPU would otherwise take what the others need later.
    """
    import torch

    if 0 < fraction < 1:
        torch.cuda.set_per_process_memory_fraction(fraction)


class Cost(NamedTuple):
    """Cost of a forward pass for each second of padded audio."""

    elements: float  # of the largest tensor
    bytes: float  # of GPU memory; 0 on a CPU


def batch_limit_s(model: TaskModel, device: str, fraction: float = 1.0) -> float:
    """Seconds of padded audio that fit into the GPU's free memory, and into tensors of MAX_ELEMENTS.

    Runs the model on one window. Infinite, with the traceback logged, if that fails.
    """
    import torch

    try:
        cost = measure(model, device)
        free, total = torch.cuda.mem_get_info()
    except Exception:
        traceback.print_exc()
        return float("inf")
    own = fraction * total - torch.cuda.memory_allocated()
    return limit_s(cost, min(free, own))


def limit_s(cost: Cost, free_bytes: float) -> float:
    """Seconds of padded audio that fit into `free_bytes` and tensors of MAX_ELEMENTS, at this cost."""
    limits = [MAX_ELEMENTS / cost.elements] if cost.elements else []
    limits += [max(0.0, FREE_SHARE * free_bytes) / cost.bytes] if cost.bytes else []
    return min(limits, default=float("inf"))


def measure(model: TaskModel, device: str) -> Cost:
    """The cost of the model's first window of 30 s of silence, for which recognisers generate little:
    Whisper base takes 0.8 s on a CPU, and 14 s for noise, of which it writes to its limit."""
    import torch

    sound = np.zeros(int(PROBE_S * model.sample_rate), np.float32)
    window = model.windows(Clip(sound, PROBE_S))[0]
    waveform = sound[window.start : window.stop]
    padded_s = model.padded_s(len(waveform))
    on_gpu = device != "cpu"
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with largest_tensor() as largest:
        model([waveform], window.group)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    return Cost(largest.elements / padded_s, peak / padded_s)
