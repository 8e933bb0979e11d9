"""NaN and Inf in a model's outputs, which become an error of the window instead of a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from audio_ops.errors import ClipError

if TYPE_CHECKING:
    import torch


def are_finite(numbers: Sequence[float] | np.ndarray) -> bool:
    """True if no number, in an array of any shape, is NaN or Inf."""
    return bool(np.isfinite(numbers).all())


def finite_rows(states: torch.Tensor) -> list[bool]:
    """For each row of (rows, ...), whether it is finite. Synchronises with the device once."""
    finite: list[bool] = states.isfinite().flatten(1).all(1).tolist()
    return finite


def not_finite(numbers: str) -> ClipError:
    """The error of a window whose `numbers` (logits, ...) are not all finite."""
    return ClipError(
        "model",
        f"expected finite {numbers}, found NaN or Inf: set the task's dtype: float32 (float16 "
        "overflows at 65504); if that does not help, the checkpoint's weights are broken",
    )
