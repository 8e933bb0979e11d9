"""A batch of prepared clips + one task's model -> the task's columns. Isolates what fails."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import ClipError
from audio_ops.inference.batching import micro_batches
from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.signal.waveforms import waveforms_of
from audio_ops.tasks import Clip, TaskModel, TaskOptions, Window, load_task

if TYPE_CHECKING:
    from audio_ops.when import When

WAVEFORM = re.compile(r"sound_\d+")  # a task named `sound` has columns sound_label, ...
WINDOW_S = 30.0  # Whisper's, and the longest that most models are given
FEW_CLIPS_S = 40.0
NOTED_BATCHES = 8  # a note of what is at hand takes a millisecond, a batch of short sounds ten
DEATHS_OF_A_CLIP = 3  # once among others and twice alone, and it gets no further chance

AtHand = Callable[[Sequence[Clip]], AbstractContextManager[Any]]


class Ledger(Protocol):
    """Knows which clips a model was at when its process died; kept where that does not reach.

    A `call` is one table; after a death the same call comes again, to a process that knows nothing.
    """

    def enter(self, call: str) -> dict[str, int]:
        """How often the process died at clips of this call, by `clip_id`: at most once for all
        times that others were at hand as well, and once for each time that the clip was alone."""

    def at(self, call: str, clips: Sequence[str], alone: bool) -> None:
        """These are at hand from now on. What was at hand alone before has come out alive."""

    def leave(self, call: str) -> None:
        """The call has all its labels."""


class Label:
    """One task's model, loaded once, called with Arrow tables of prepared clips.

    A table goes in with the clips' columns, `sound_{rate}` and perhaps `speech`; it comes out with
    the task's columns and `{name}_error` behind them, and without the columns in `drop`. A clip
    that already failed (`error_kind`), or of which the task's `when` is not true, passes through
    with nulls and costs nothing.

    `device` is what the model runs on, `cuda` or `cpu`, and decides its number format and batches.

    `batch_s` is the budget of padded audio-seconds for one forward pass; None: as many as the
    device gains from. It changes no label, and is cut for good to half of a batch for which memory
    ran out.

    With a `ledger` a clip that kills the process costs itself, if what killed it comes again with
    the same table: see `guarded`. It may be called from several threads.
    """

    ledger: Ledger | None = None

    def __init__(
        self,
        name: str,
        options: TaskOptions,
        checkpoint: Checkpoint,
        *,
        device: str,
        batch_s: float | None = None,
        threads: int | None = None,
        drop: Sequence[str] = (),
        ledger: Ledger | None = None,
    ):
        import torch

        if threads:
            torch.set_num_threads(threads)
        task = load_task(options.task)
        self.name = name
        self.columns: dict[str, pa.DataType] = task.columns(options)
        self.heard_s = self.padded_s = 0.0  # of all windows so far, without and with padding
        self.drop = list(drop)
        self.ledger = ledger
        self.turn = _Turn()
        self.logged: set[tuple[type, Any]] = set()  # kinds of exceptions, see `failure`
        self.when = _when(options.when)
        self.device = device
        self.model: TaskModel = task.Model(options, checkpoint, device)
        self.batch_s = batch_s or default_batch_s(self.model, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        clips = self.clips(table)
        labels = self.guarded(clips, self.ledger) if self.ledger else self.label(clips)
        for column, values in self.arrays(labels).items():
            table = table.append_column(f"{self.name}_{column}", values)
        errors = [str(label) if isinstance(label, ClipError) else None for label in labels]
        table = table.append_column(f"{self.name}_error", pa.array(errors, pa.string()))
        return table.drop_columns([column for column in self.drop if column in table.column_names])

    def arrays(self, labels: list[dict[str, Any] | ClipError | None]) -> dict[str, pa.Array]:
        """The labels by column. One that a column's type cannot hold becomes a ClipError in `labels`."""
        with suppress(Exception):
            return self._arrays(labels)
        for index, label in enumerate(labels):
            try:
                self._arrays([label])
            except Exception as error:
                labels[index] = self.failure(error)
        return self._arrays(labels)

    def _arrays(self, labels: Sequence[dict[str, Any] | ClipError | None]) -> dict[str, pa.Array]:
        rows = [label if isinstance(label, dict) else {} for label in labels]
        return {
            column: pa.array([row.get(column) for row in rows], type_)
            for column, type_ in self.columns.items()
        }

    def clips(self, table: pa.Table) -> list[Clip | ClipError | None]:
        """The clips to label, the ClipError of one whose `when` has no value, or None. The sound
        is not copied.
        """
        scalars = table.select(
            [c for c in table.column_names if c != "speech" and not WAVEFORM.fullmatch(c)]
        )
        sounds = waveforms_of(table.column(f"sound_{self.model.sample_rate}"))
        speech = table.column("speech").combine_chunks() if "speech" in table.column_names else None
        clips: list[Clip | ClipError | None] = [None] * len(table)
        good = pc.indices_nonzero(scalars["error_kind"].is_null())
        if self.when is not None:
            verdicts = self.when(scalars.take(good))
            for row, verdict in zip(good.to_pylist(), verdicts, strict=True):
                clips[row] = verdict if isinstance(verdict, ClipError) else None
            good = good.filter(pa.array([verdict is True for verdict in verdicts], pa.bool_()))
        for row, columns in zip(good.to_pylist(), scalars.take(good).to_pylist(), strict=True):
            curve = speech[row].as_buffer() if speech is not None else None
            clips[row] = Clip(
                sounds[row],
                columns["duration_s"],
                np.frombuffer(curve, np.uint8) if curve is not None else None,
                columns,
            )
        return clips

    def guarded(
        self, clips: Sequence[Clip | ClipError | None], ledger: Ledger
    ) -> list[dict[str, Any] | ClipError | None]:
        """`label`, but with a note of what is at hand before anything is done with it.

        What was at hand at a death is labelled first, each clip alone in the process. One that
        was alone at two deaths is `crashed`; the loss of a machine takes a clip that far by a
        chance that can be neglected.
        """
        ids = [clip.row["clip_id"] if isinstance(clip, Clip) else "" for clip in clips]
        call = next(filter(None, ids), "")
        if not call:
            return self.label(clips)
        deaths = ledger.enter(call)
        alone: dict[int, dict[str, Any] | ClipError | None] = {}
        if deaths:
            with self.turn(alone=True):
                for index, clip in enumerate(clips):
                    if deaths.get(ids[index], 0) >= DEATHS_OF_A_CLIP:
                        alone[index] = ClipError("crashed", "the model's process dies of this clip")
                    elif ids[index] in deaths:
                        ledger.at(call, [ids[index]], alone=True)
                        alone[index] = self.label([clip])[0]
                ledger.at(call, [], alone=False)

        @contextmanager
        def at_hand(some: Sequence[Clip]) -> Iterator[None]:
            with self.turn():
                ledger.at(call, [clip.row["clip_id"] for clip in some], alone=False)
                yield
                ledger.at(call, [], alone=False)

        rest = [None if index in alone else clip for index, clip in enumerate(clips)]
        labels = self.label(rest, at_hand)
        ledger.leave(call)
        return [alone.get(index, label) for index, label in enumerate(labels)]

    def label(
        self, clips: Sequence[Clip | ClipError | None], at_hand: AtHand = nullcontext
    ) -> list[dict[str, Any] | ClipError | None]:
        """Columns for each clip, the ClipError of one that failed, or None for None.

        Whatever is done with clips is done within an `at_hand` of them.
        """
        labels: list[dict[str, Any] | ClipError | None] = [
            clip if isinstance(clip, ClipError) else None for clip in clips
        ]
        good = [clip for clip in clips if isinstance(clip, Clip)]
        windows: list[tuple[int, Window]] = []
        with at_hand(good):
            for index, clip in enumerate(clips):
                if isinstance(clip, Clip):
                    try:
                        windows += [(index, window) for window in self.model.windows(clip)]
                    except Exception as error:
                        labels[index] = self.failure(error)
        outputs = self.outputs([(clips[index], window) for index, window in windows], at_hand)  # type: ignore[misc]
        of_clip: dict[int, list[int]] = {}
        for number, (index, _) in enumerate(windows):
            of_clip.setdefault(index, []).append(number)
        with at_hand(good):
            for index, numbers in of_clip.items():
                results = [outputs[number] for number in numbers]
                failed = next((result for result in results if isinstance(result, ClipError)), None)
                try:
                    labels[index] = failed or self.model.join(
                        clips[index],  # type: ignore[arg-type]
                        [windows[number][1] for number in numbers],
                        results,
                    )
                except Exception as error:
                    labels[index] = self.failure(error)
        return labels

    def failure(self, error: Exception) -> ClipError:
        """The ClipError of one clip for which the model raised `error`.

        Whatever is not a ClipError is logged with its traceback, once for each type of exception
        and line that raised it. Raises `error` itself if the GPU is of no use any more.
        """
        if isinstance(error, ClipError):
            return error
        if context_is_lost(error):
            raise error
        [*_, frame] = traceback.extract_tb(error.__traceback__) or [None]
        kind = type(error), frame and (frame.filename, frame.lineno)
        if kind not in self.logged:
            self.logged.add(kind)
            traceback.print_exception(error)
        if _out_of_memory(error):
            return ClipError("out_of_memory", f"not enough memory for one window: {error}")
        return ClipError("model", f"{type(error).__name__}: {error}")

    def outputs(
        self, windows: Sequence[tuple[Clip, Window]], at_hand: AtHand = nullcontext
    ) -> list[Any]:
        """The model's output (or a ClipError) for each window, from padded micro-batches."""
        lengths = [window.stop - window.start for _, window in windows]
        groups: list[Hashable] = [
            (window.group, length) if self.model.equal_lengths else window.group
            for (_, window), length in zip(windows, lengths, strict=True)
        ]
        outputs: list[Any] = [None] * len(windows)
        batches = micro_batches(
            [self.model.padded_s(length) for length in lengths], self.batch_s, groups
        )
        for first in range(0, len(batches), NOTED_BATCHES):
            noted = batches[first : first + NOTED_BATCHES]
            with at_hand([windows[n][0] for batch in noted for n in batch]):
                for batch in noted:
                    found = self.heard([windows[number] for number in batch])
                    for number, output in zip(batch, found, strict=True):
                        outputs[number] = output
        return outputs

    def heard(self, windows: Sequence[tuple[Clip, Window]]) -> list[Any]:
        """The model's output (or a ClipError) for each window of one micro-batch, and its count."""
        waveforms = [clip.waveform[window.start : window.stop] for clip, window in windows]
        outputs = self.isolated(waveforms, windows[0][1].group)
        lengths = [len(waveform) for waveform in waveforms]
        self.heard_s += sum(lengths) / self.model.sample_rate
        self.padded_s += len(lengths) * max(map(self.model.padded_s, lengths))
        return outputs

    def isolated(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        """The model on one batch; where it fails, on its halves, down to the window at fault."""
        try:
            return self.model(waveforms, group)
        except Exception as error:
            failure = self.failure(error)
            if failure.kind == "out_of_memory":
                failed_s = len(waveforms) * max(self.model.padded_s(len(w)) for w in waveforms)
                self.batch_s = max(min(self.batch_s, failed_s / 2), 1.0)
        # Outside the except block: the traceback would keep the failed batch's tensors alive.
        if len(waveforms) == 1:
            return [failure]
        _free_memory(self.device)
        half = len(waveforms) // 2
        return self.isolated(waveforms[:half], group) + self.isolated(waveforms[half:], group)


def default_batch_s(model: TaskModel, device: str) -> float:
    """Seconds of padded sound in one forward pass. On a CPU what has no steps gains nothing from
    more than a few clips, while the activations of wav2vec2-base take 16 MB a second."""
    if device != "cpu":
        return 256 * WINDOW_S
    return 16 * WINDOW_S if model.is_generative else FEW_CLIPS_S


class _Turn:
    """Lets many into a block at once, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0  # -1: one alone

    @contextmanager
    def __call__(self, alone: bool = False) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside if alone else self._inside >= 0)
            self._inside = -1 if alone else self._inside + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside = 0 if alone else self._inside - 1
                self._changed.notify_all()


def _when(expression: str | None) -> When | None:
    """DuckDB is imported by the actors of tasks that have a `when`, and by no others."""
    if expression is None:
        return None
    from audio_ops.when import When

    return When(expression)


def device() -> str:
    """What models can run on in this process: the GPU if it has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        # torch's CPU allocator raises a bare RuntimeError
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def context_is_lost(error: Exception) -> bool:
    """A failed kernel leaves the GPU unusable for this process: the actor has to go."""
    import torch

    return isinstance(error, torch.AcceleratorError)


def _free_memory(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.empty_cache()
