"""A model on the windows of many clips: padded micro-batches, and what fails alone."""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from audio_ops.crash_guard import Recorder
from audio_ops.errors import ClipError
from audio_ops.inference.batching import micro_batches
from audio_ops.tasks import Clip, TaskModel, Window

WINDOW_S = 30.0  # Whisper's, and the longest that most models take
CPU_BATCH_S = 40.0
RECORDED_BATCHES = 8  # recording clips in progress takes 1 ms, a batch of short clips 10 ms


class Failures:
    """Exceptions as ClipErrors. Each type of exception and line that raised it is logged once."""

    def __init__(self) -> None:
        self._logged: set[tuple[type, Any]] = set()

    def clip_error(self, error: Exception) -> ClipError:
        """The ClipError of one clip on which the model raised `error`; a ClipError is itself.

        Raises `error` if the GPU is unusable from now on, see `context_is_lost`.
        """
        if isinstance(error, ClipError):
            return error
        if context_is_lost(error):
            raise error
        [*_, frame] = traceback.extract_tb(error.__traceback__) or [None]
        kind = type(error), frame and (frame.filename, frame.lineno)
        if kind not in self._logged:
            self._logged.add(kind)
            traceback.print_exception(error)
        if _is_out_of_memory(error):
            return ClipError("out_of_memory", f"not enough memory for one window: {error}")
        return ClipError("model", f"{type(error).__name__}: {error}")


class BatchRunner:
    """Runs one model in padded micro-batches of similar windows.

    A batch that raises is halved until the window at fault is alone. `batch_s` is the budget of
    padded audio-seconds of one forward pass (None: as many as the device gains from). It changes no
    label; when memory runs out it is cut to half of the failed batch for good.

    `input_s` and `padded_s` count the seconds of audio so far, without and with padding.
    """

    def __init__(self, model: TaskModel, device: str, batch_s: float | None, failures: Failures):
        self.model = model
        self.device = device
        self.batch_s = batch_s or default_batch_s(model, device)
        self.input_s = self.padded_s = 0.0
        self._failures = failures

    def __call__(
        self, windows: Sequence[tuple[Clip, Window]], record: Recorder = nullcontext
    ) -> list[Any]:
        """The model's output, or a ClipError, for each window. Clips are in progress inside of
        `record(clips)`."""
        lengths = [window.stop - window.start for _, window in windows]
        groups: list[Hashable] = [
            (window.group, length) if self.model.equal_lengths else window.group
            for (_, window), length in zip(windows, lengths, strict=True)
        ]
        outputs: list[Any] = [None] * len(windows)
        batches = micro_batches(
            [self.model.padded_s(length) for length in lengths], self.batch_s, groups
        )
        for first in range(0, len(batches), RECORDED_BATCHES):
            recorded = batches[first : first + RECORDED_BATCHES]
            with record([windows[n][0] for batch in recorded for n in batch]):
                for batch in recorded:
                    found = self._batch([windows[number] for number in batch])
                    for number, output in zip(batch, found, strict=True):
                        outputs[number] = output
        return outputs

    def _batch(self, windows: Sequence[tuple[Clip, Window]]) -> list[Any]:
        waveforms = [clip.waveform[window.start : window.stop] for clip, window in windows]
        outputs = self._isolated(waveforms, windows[0][1].group)
        lengths = [len(waveform) for waveform in waveforms]
        self.input_s += sum(lengths) / self.model.sample_rate
        self.padded_s += len(lengths) * max(map(self.model.padded_s, lengths))
        return outputs

    def _isolated(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        """Outputs of one batch; where it fails, of its halves, down to the window at fault."""
        try:
            return self.model(waveforms, group)
        except Exception as error:
            failure = self._failures.clip_error(error)
            if failure.kind == "out_of_memory":
                failed_s = len(waveforms) * max(self.model.padded_s(len(w)) for w in waveforms)
                self.batch_s = max(min(self.batch_s, failed_s / 2), 1.0)
        # Outside the except block: the traceback would keep the failed batch's tensors alive.
        if len(waveforms) == 1:
            return [failure]
        _free_memory(self.device)
        half = len(waveforms) // 2
        return self._isolated(waveforms[:half], group) + self._isolated(waveforms[half:], group)


def default_batch_s(model: TaskModel, device: str) -> float:
    """Seconds of padded audio in one forward pass.

    On a CPU, a model that generates no text gains nothing from more than a few clips, while the
    activations of wav2vec2-base take 16 MB a second.
    """
    if device != "cpu":
        return 256 * WINDOW_S
    return 16 * WINDOW_S if model.is_generative else CPU_BATCH_S


def available_device() -> str:
    """`cuda` if this process has a GPU that torch can use, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def context_is_lost(error: Exception) -> bool:
    """Whether a failed kernel has left the GPU unusable for this process, which has to end."""
    import torch

    return isinstance(error, torch.AcceleratorError)


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        # torch's CPU allocator raises a bare RuntimeError
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _free_memory(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.empty_cache()
