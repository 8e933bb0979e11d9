"""A batch of prepared clips + one task's model -> the task's columns. Isolates what fails."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.batching import micro_batches
from audio_ops.checkpoint import Checkpoint
from audio_ops.decode import ClipError
from audio_ops.prepare import waveform
from audio_ops.tasks import Clip, Model, TaskOptions, Window, load_task

if TYPE_CHECKING:
    from audio_ops.when import When

WAVEFORM = re.compile(r"sound_\d+")  # a task named `sound` has columns sound_label, ...


class Label:
    """One task's model, loaded once, called with Arrow tables of prepared clips.

    A table goes in with the clips' columns, `sound_{rate}` and perhaps `speech`; it comes out with
    the task's columns and `{name}_error` behind them, and without the columns in `drop`. A clip
    that already failed (`error_kind`), or of which the task's `when` is not true, passes through
    with nulls and costs nothing.

    `batch_s` is the budget of padded audio-seconds for one forward pass. It changes no label, and
    is halved for good when memory runs out.
    """

    def __init__(
        self,
        name: str,
        options: TaskOptions,
        checkpoint: Checkpoint,
        *,
        batch_s: float,
        threads: int | None = None,
        drop: Sequence[str] = (),
    ):
        import torch

        if threads:
            torch.set_num_threads(threads)
        task = load_task(options.task)
        self.name = name
        self.columns: dict[str, pa.DataType] = task.columns(options)
        self.batch_s = batch_s
        self.drop = list(drop)
        self.when = _when(options.when)
        self.model: Model = task.Model(
            options, checkpoint, "cuda" if torch.cuda.is_available() else "cpu"
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        labels = self.label(self.clips(table))
        for column, type_ in self.columns.items():
            values = [label.get(column) if isinstance(label, dict) else None for label in labels]
            table = table.append_column(f"{self.name}_{column}", pa.array(values, type_))
        errors = [str(label) if isinstance(label, ClipError) else None for label in labels]
        table = table.append_column(f"{self.name}_error", pa.array(errors, pa.string()))
        return table.drop_columns([column for column in self.drop if column in table.column_names])

    def clips(self, table: pa.Table) -> list[Clip | ClipError | None]:
        """The clips to label, the ClipError of one whose `when` has no value, or None. The sound
        is not copied.
        """
        scalars = table.select(
            [c for c in table.column_names if c != "speech" and not WAVEFORM.fullmatch(c)]
        )
        sound = table.column(f"sound_{self.model.sample_rate}").combine_chunks()
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
                waveform(sound, row),
                columns["duration_s"],
                np.frombuffer(curve, np.uint8) if curve is not None else None,
                columns,
            )
        return clips

    def label(
        self, clips: Sequence[Clip | ClipError | None]
    ) -> list[dict[str, Any] | ClipError | None]:
        """Columns for each clip, the ClipError of one that failed, or None for None."""
        labels: list[dict[str, Any] | ClipError | None] = [
            clip if isinstance(clip, ClipError) else None for clip in clips
        ]
        windows: list[tuple[int, Window]] = []
        for index, clip in enumerate(clips):
            if isinstance(clip, Clip):
                try:
                    windows += [(index, window) for window in self.model.windows(clip)]
                except ClipError as error:
                    labels[index] = error
        outputs = self.outputs([(clips[index], window) for index, window in windows])  # type: ignore[misc]
        of_clip: dict[int, list[int]] = {}
        for number, (index, _) in enumerate(windows):
            of_clip.setdefault(index, []).append(number)
        for index, numbers in of_clip.items():
            results = [outputs[number] for number in numbers]
            failed = next((result for result in results if isinstance(result, ClipError)), None)
            try:
                labels[index] = failed or self.model.join(
                    clips[index],  # type: ignore[arg-type]
                    [windows[number][1] for number in numbers],
                    results,
                )
            except ClipError as error:
                labels[index] = error
        return labels

    def outputs(self, windows: Sequence[tuple[Clip, Window]]) -> list[Any]:
        """The model's output (or a ClipError) for each window, from padded micro-batches."""
        lengths = [window.stop - window.start for _, window in windows]
        groups: list[Hashable] = [
            (window.group, length) if self.model.equal_lengths else window.group
            for (_, window), length in zip(windows, lengths, strict=True)
        ]
        outputs: list[Any] = [None] * len(windows)
        padded_s = [self.model.padded_s(length) for length in lengths]
        for batch in micro_batches(padded_s, self.batch_s, groups):
            waveforms = [
                windows[n][0].waveform[windows[n][1].start : windows[n][1].stop] for n in batch
            ]
            for number, output in zip(
                batch, self.isolated(waveforms, windows[batch[0]][1].group), strict=True
            ):
                outputs[number] = output
        return outputs

    def isolated(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        """The model on one batch; where it fails, on its halves, down to the window at fault."""
        try:
            return self.model(waveforms, group)
        except ClipError as error:
            failure = error
        except Exception as error:
            if _context_is_lost(error):
                raise
            if _out_of_memory(error):
                self.batch_s = max(self.batch_s / 2, 1.0)
                failure = ClipError("out_of_memory", f"not enough memory for one window: {error}")
            else:
                failure = ClipError("model", f"{type(error).__name__}: {error}")
        # Outside the except block: the traceback would keep the failed batch's tensors alive.
        if len(waveforms) == 1:
            return [failure]
        _free_memory()
        half = len(waveforms) // 2
        return self.isolated(waveforms[:half], group) + self.isolated(waveforms[half:], group)


def _when(expression: str | None) -> When | None:
    """DuckDB is imported by the actors of tasks that have a `when`, and by no others."""
    if expression is None:
        return None
    from audio_ops.when import When

    return When(expression)


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        # torch's CPU allocator raises a bare RuntimeError
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _context_is_lost(error: Exception) -> bool:
    """A failed kernel leaves the GPU unusable for this process: the actor has to go."""
    import torch

    return isinstance(error, torch.AcceleratorError)


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
