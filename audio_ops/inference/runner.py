"""Runs a model on the windows of many clips, in padded micro-batches; isolates the window that fails."""

from __future__ import annotations

import time
import traceback
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from audio_ops.crash_guard import Recorder
from audio_ops.errors import ClipError
from audio_ops.inference import gpu
from audio_ops.inference.batching import micro_batches
from audio_ops.tasks import Clip, TaskModel, Window

WINDOW_S = 30.0  # Whisper's, and the longest that most models take
CPU_BATCH_S = 40.0
RECORDED_BATCHES = 8  # recording clips in progress takes 1 ms, a batch of short clips 10 ms
# Wait before the next try of a batch that ran out of memory: another process on the same GPU may have
# needed the memory for a moment. A window that is alone is tried several times.
WAIT_S = 0.5
WAITS_ALONE_S = (WAIT_S, 2 * WAIT_S, 4 * WAIT_S)
BATCHES_UNTIL_GROWTH = 16


class Failures:
    """Exceptions as ClipErrors. Each type of exception and line that raised it is logged once."""

    def __init__(self) -> None:
        self._logged: set[tuple[type, Any]] = set()

    def clip_error(self, error: Exception) -> ClipError:
        """The ClipError of one clip on which the model raised `error`; a ClipError is itself.

        Raises `error` if the GPU is unusable from now on.
        """
        if isinstance(error, ClipError):
            return error
        kind_of_failure = gpu.failure(error)
        if kind_of_failure == "lost context":
            raise error
        [*_, frame] = traceback.extract_tb(error.__traceback__) or [None]
        kind = type(error), frame and (frame.filename, frame.lineno)
        if kind not in self._logged:
            self._logged.add(kind)
            traceback.print_exception(error)
        if kind_of_failure == "memory":
            return ClipError("out_of_memory", f"not enough memory for one window: {error}")
        return ClipError("model", f"{type(error).__name__}: {error}")


class BatchRunner:
    """Runs one model in padded micro-batches of similar windows.

    A batch that raises is halved until the window at fault is alone. A batch for which memory runs
    out is tried again before that, as another process on the same GPU may have needed the memory for
    a moment. `batch_s` is the budget of padded audio-seconds of one forward pass. It changes no label.

    `input_s` and `padded_s` count the seconds of audio so far, without and with padding.
    """

    def __init__(self, model: TaskModel, device: str, batch_s: float, failures: Failures):
        self.model = model
        self.device = device
        self.budget = Budget(batch_s)
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
            [self.model.padded_s(length) for length in lengths], self.budget.batch_s, groups
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
        waits = WAITS_ALONE_S if len(waveforms) == 1 else (WAIT_S,)
        outputs = self._attempt(waveforms, group)
        for wait_s in waits:
            if not _is_memory(outputs):
                break
            _free_memory(self.device)
            time.sleep(wait_s)
            outputs = self._attempt(waveforms, group)
        if isinstance(outputs, list):
            self.budget.succeeded()
            return outputs
        if len(waveforms) == 1:
            return [outputs]
        if _is_memory(outputs):
            self.budget.failed(len(waveforms) * max(self.model.padded_s(len(w)) for w in waveforms))
        _free_memory(self.device)
        half = len(waveforms) // 2
        return self._isolated(waveforms[:half], group) + self._isolated(waveforms[half:], group)

    def _attempt(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any] | ClipError:
        """The model's outputs for one batch, or the ClipError of its exception.

        A function of its own, since the traceback would keep the failed batch's tensors alive.
        """
        try:
            return self.model(waveforms, group)
        except Exception as error:
            return self._failures.clip_error(error)


class Budget:
    """Seconds of padded audio in one forward pass, `batch_s`.

    When memory runs out it becomes half of the failed batch. After BATCHES_UNTIL_GROWTH batches it
    doubles again, up to where it began; that number doubles with each failure, so that a budget that
    is too large in the long run costs little.
    """

    def __init__(self, batch_s: float):
        self.batch_s = self._largest_s = batch_s
        self._until_growth = BATCHES_UNTIL_GROWTH
        self._successes = 0

    def failed(self, failed_s: float) -> None:
        """A batch of `failed_s` padded seconds ran out of memory."""
        self.batch_s = max(min(self.batch_s, failed_s / 2), 1.0)
        self._until_growth *= 2
        self._successes = 0

    def succeeded(self) -> None:
        """A batch has run."""
        self._successes += 1
        if self._successes >= self._until_growth and self.batch_s < self._largest_s:
            self.batch_s = min(2 * self.batch_s, self._largest_s)
            self._successes = 0


def _is_memory(outputs: list[Any] | ClipError) -> bool:
    return isinstance(outputs, ClipError) and outputs.kind == "out_of_memory"


def default_batch_s(model: TaskModel, device: str, fraction: float = 1.0) -> float:
    """Seconds of padded audio in one forward pass.

    On a GPU no more than fits into the free part of `fraction` of its memory, see
    `gpu.batch_limit_s`. On a CPU, a model that generates no text gains nothing from more than a few
    clips, while the activations of wav2vec2-base take 16 MB a second.
    """
    if device != "cpu":
        return min(256 * WINDOW_S, gpu.batch_limit_s(model, device, fraction))
    return 16 * WINDOW_S if model.is_generative else CPU_BATCH_S


def available_device() -> str:
    """`cuda` if this process has a GPU that torch can use, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _free_memory(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.empty_cache()
