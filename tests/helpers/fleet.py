"""A run on a fleet of GPUs that are there in name and in time alone.

`python fleet.py CONFIG` is `python -m jobs.label CONFIG`, but for the models: an actor sleeps as long as
a GPU takes for a full table, and labels a clip with the number of its samples. All else is real.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audio_ops.crash_guard import CrashGuard
from audio_ops.inference.runner import BatchRunner, Failures
from audio_ops.label import Label
from audio_ops.tasks import Clip, Window, load_task
from jobs.workers import model_actor
from jobs.workers.crash_ledger import TaskLedger
from jobs.workers.model_actor import ModelActor, ModelSettings

RATE = 16_000
# A table of 128 MiB, as on clusters with GPUs, is 4,194 s of 16-bit sound, which Whisper large-v3-turbo
# labels at 800 x real time on an H100 (docs/speed.md). The tables here are small, the time is the same.
SERVICE_S = 5.2
WORKERS_PATH = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])


class SleepingModel:
    """A TaskModel whose label is the number of a clip's samples."""

    sample_rate = RATE
    is_generative = equal_lengths = False

    def windows(self, clip: Clip) -> list[Window]:
        return [Window(0, len(clip.waveform))]

    def padded_s(self, samples: int) -> float:
        return samples / RATE

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        time.sleep(SERVICE_S)
        return [str(len(waveform)) for waveform in waveforms]

    def join(self, clip: Clip, windows: Sequence[Window], outputs: Sequence[Any]) -> dict[str, Any]:
        return {"label": outputs[0], "labels": outputs, "scores": [1.0]}


def sleeping_label(model: ModelSettings, ledger: TaskLedger) -> Label:
    """A Label that needs neither a checkpoint nor torch, which 32 processes have no memory for."""
    label = Label.__new__(Label)
    label.name, label.drop, label.bit, label.when = model.name, list(model.drop), model.bit, None
    label.columns = load_task(model.options.task).columns(model.options)
    label.model, label.failures = SleepingModel(), Failures()
    label.runner = BatchRunner(label.model, "cpu", 1e9, label.failures)  # a table is one batch
    label.guard = CrashGuard(ledger)
    return label


class FleetActor(ModelActor):
    """A ModelActor around `sleeping_label`."""

    def __init__(self, **settings: Any) -> None:
        model_actor._load = sleeping_label
        super().__init__(**settings)


def main() -> int:
    """`python -m jobs.label` with FleetActors."""
    from jobs import label

    model_actor.ModelActor = FleetActor  # type: ignore[misc]
    return label.main(sys.argv[1:])


if __name__ == "__main__":
    import fleet  # by its name, which workers import it by

    from jobs.exit_codes import exit_with

    exit_with(fleet.main())
