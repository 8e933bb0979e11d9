"""Random numbers for sampled tokens that depend on the sound alone."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_TURN = threading.Lock()  # torch's generator is one for all threads of a process


@contextmanager
def seeded_by_sound(waveform: np.ndarray, salt: int = 0) -> Iterator[None]:
    """Seeds torch by this sound and `salt`, in one thread at a time, and restores its state."""
    import torch

    with _TURN, torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(waveform.tobytes(), salt))
        yield
