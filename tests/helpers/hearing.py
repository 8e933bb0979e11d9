"""Shared by the tests of recognisers: sounds, and a labeller with the model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.tasks import Clip
from audio_ops.tasks import automatic_speech_recognition as task

RATE = 16_000


def sound(seconds: float, hz: float) -> np.ndarray:
    """A wavering tone with pauses, over some noise: float32 (samples,)."""
    at = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(int(hz)).standard_normal(len(at))
    tone = np.sin(2 * np.pi * hz * at * (1 + 0.3 * np.sin(2 * at))) * (np.sin(5 * at) > 0)
    return (0.3 * tone + 0.05 * noise).astype(np.float32)


def labeller(folder: Path, **options: Any) -> Label:
    """The recogniser in `folder` in float32, with its options checked, as a run loads it."""
    chosen = task.Options(
        task="automatic-speech-recognition",
        model=str(folder),
        **{"dtype": "float32", **options},
    )
    checkpoint = find_checkpoint(str(folder))
    task.check(chosen, checkpoint)
    return Label("said", chosen, checkpoint, device=available_device(), batch_s=1e6)


def label(folder: Path, *sounds: np.ndarray, **options: Any) -> list[Any]:
    """The columns of each sound, or its ClipError."""
    return labeller(folder, **options).label([Clip(wave, len(wave) / RATE) for wave in sounds])
