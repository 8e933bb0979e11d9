"""Every use of torch that its documentation does not promise, but for those in `cpu_bfloat16.py`.

When an upgrade breaks an assumption, tests/models/test_gpu.py fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Largest:
    """The number of elements of the largest tensor so far."""

    elements: int = 0


@contextmanager
def largest_tensor() -> Iterator[Largest]:
    """Record the largest tensor that operations return inside of the `with`, in this thread.

    `TorchDispatchMode` in torch/utils/_python_dispatch.py. Without it nothing is recorded, and the
    number stays 0.
    """
    largest = Largest()
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves
    except ImportError:
        yield largest
        return

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                largest.elements = max(largest.elements, getattr(leaf, "numel", int)())
            return result

    with Recorder():
        yield largest
