"""A table of prepared clips + one task's model -> the task's columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.crash_guard import CrashGuard, CrashLedger, Labels, Recorder
from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.light_import import import_transformers
from audio_ops.inference.runner import BatchRunner, Failures, default_batch_s
from audio_ops.inference.transformers_compat import run_in_one_process
from audio_ops.schemas import TASK_FAILURE, failure_column
from audio_ops.signal.waveforms import waveforms_of
from audio_ops.tasks import Clip, TaskModel, TaskOptions, Window, load_task

if TYPE_CHECKING:
    from audio_ops.when import When

NOT_SCALAR = re.compile(r"sound_\d+|speech|shard_end|_due|_keeps")
DUE = "_due"  # column: the tasks to run on a clip, as a bit mask; all if there is none


class Label:
    """One task's model, loaded once, called with Arrow tables of prepared clips.

    A table comes in with the clips' columns, `sound_{rate}` and perhaps `speech`. It leaves with the
    task's columns, `{name}_error` (text for people) and `_{name}_failure` (TASK_FAILURE, for the
    code) appended, and without the columns in `drop`. A row without sound (a clip that failed
    before, a shard's end), and a clip of which the task's `when` is not true, passes through with
    nulls at no cost; one whose `_due` lacks the task's `bit` keeps the labels that it has.

    device: `cuda` or `cpu`; it decides the model's number format and batches.
    batch_s: see `BatchRunner`; None: see `default_batch_s`, which `gpu_fraction` goes to.
    threads: of torch; None: its default.
    ledger: with it, a clip that kills the process costs only itself, see `CrashGuard`.

    It may be called from several threads.
    """

    bit: int | None = None  # the task's place in `_due`

    def __init__(
        self,
        name: str,
        options: TaskOptions,
        checkpoint: Checkpoint,
        *,
        device: str,
        batch_s: float | None = None,
        gpu_fraction: float = 1.0,
        threads: int | None = None,
        drop: Sequence[str] = (),
        ledger: CrashLedger | None = None,
        bit: int | None = None,
    ):
        import_transformers(device)
        run_in_one_process()
        import torch

        if threads:
            torch.set_num_threads(threads)
        task = load_task(options.task)
        self.name = name
        self.columns: dict[str, pa.DataType] = task.columns(options)
        self.drop, self.bit = list(drop), bit
        self.when = _when(options.when)
        self.model: TaskModel = task.Model(options, checkpoint, device)
        self.failures = Failures()
        budget_s = batch_s or default_batch_s(self.model, device, gpu_fraction)
        self.runner = BatchRunner(self.model, device, budget_s, self.failures)
        self.guard = CrashGuard(ledger) if ledger else None

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with this task's columns, rows in the same order."""
        clips = self.clips(table)
        labels = self.guard(clips, self.label) if self.guard else self.label(clips)
        due = is_due(table, self.bit)
        for column, values in self.arrays(labels).items():
            table = put(table, f"{self.name}_{column}", values, due)
        errors = [label if isinstance(label, ClipError) else None for label in labels]
        text = pa.array([error and str(error) for error in errors], pa.string())
        failures = [error and {"kind": error.kind, "message": error.message} for error in errors]
        table = put(table, f"{self.name}_error", text, due)
        table = put(table, failure_column(self.name), pa.array(failures, TASK_FAILURE), due)
        return table.drop_columns([column for column in self.drop if column in table.column_names])

    def clips(self, table: pa.Table) -> list[Clip | ClipError | None]:
        """The clips to label; a ClipError where `when` cannot be evaluated; None for all other
        rows. Waveforms are not copied."""
        scalars = table.select([c for c in table.column_names if not NOT_SCALAR.fullmatch(c)])
        sounds = waveforms_of(table.column(f"sound_{self.model.sample_rate}"))
        speech = table.column("speech").combine_chunks() if "speech" in table.column_names else None
        clips: list[Clip | ClipError | None] = [None] * len(table)
        due = is_due(table, self.bit).to_pylist()
        there = [row for row, sound in enumerate(sounds) if sound is not None and due[row]]
        rows = pa.array(there, pa.int64())
        if self.when is not None:
            verdicts = self.when(scalars.take(rows))
            for row, verdict in zip(rows.to_pylist(), verdicts, strict=True):
                clips[row] = verdict if isinstance(verdict, ClipError) else None
            rows = rows.filter(pa.array([verdict is True for verdict in verdicts], pa.bool_()))
        for row, columns in zip(rows.to_pylist(), scalars.take(rows).to_pylist(), strict=True):
            curve = speech[row].as_buffer() if speech is not None else None
            clips[row] = Clip(
                sounds[row],
                columns["duration_s"],
                np.frombuffer(curve, np.uint8) if curve is not None else None,
                columns,
            )
        return clips

    def label(
        self, clips: Sequence[Clip | ClipError | None], record: Recorder = nullcontext
    ) -> list[Labels]:
        """Columns by name for each clip, the ClipError of one that failed, or None for None.

        Clips are in progress inside of `record(clips)`.
        """
        labels: list[Labels] = [clip if isinstance(clip, ClipError) else None for clip in clips]
        good = [clip for clip in clips if isinstance(clip, Clip)]
        windows: list[tuple[int, Window]] = []
        with record(good):
            for index, clip in enumerate(clips):
                if isinstance(clip, Clip):
                    try:
                        windows += [(index, window) for window in self.model.windows(clip)]
                    except Exception as error:
                        labels[index] = self.failures.clip_error(error)
        outputs = self.runner([(clips[index], window) for index, window in windows], record)  # type: ignore[misc]
        of_clip: dict[int, list[int]] = {}
        for number, (index, _) in enumerate(windows):
            of_clip.setdefault(index, []).append(number)
        with record(good):
            for index, numbers in of_clip.items():
                parts = [windows[number][1] for number in numbers]
                results = [outputs[number] for number in numbers]
                labels[index] = self._joined(clips[index], parts, results)  # type: ignore[arg-type]
        return labels

    def _joined(self, clip: Clip, windows: Sequence[Window], results: Sequence[Any]) -> Labels:
        """A clip's columns from its windows' outputs, or the first ClipError among them."""
        failed = next((result for result in results if isinstance(result, ClipError)), None)
        try:
            return failed or self.model.join(clip, windows, results)
        except Exception as error:
            return self.failures.clip_error(error)

    def arrays(self, labels: list[Labels]) -> dict[str, pa.Array]:
        """The labels by column. A label that its column's type cannot hold becomes a ClipError in
        `labels`."""
        with suppress(Exception):
            return self._arrays(labels)
        for index, label in enumerate(labels):
            try:
                self._arrays([label])
            except Exception as error:
                labels[index] = self.failures.clip_error(error)
        return self._arrays(labels)

    def _arrays(self, labels: Sequence[Labels]) -> dict[str, pa.Array]:
        rows = [label if isinstance(label, dict) else {} for label in labels]
        return {
            column: pa.array([row.get(column) for row in rows], type_)
            for column, type_ in self.columns.items()
        }


def is_due(table: pa.Table, bit: int | None) -> pa.Array:
    """Whether the task with this bit is due on each clip, as booleans (rows,)."""
    if bit is None or DUE not in table.column_names:
        return pa.repeat(True, len(table))
    masks = table[DUE].combine_chunks()
    return pc.not_equal(pc.bit_wise_and(masks, pa.scalar(1 << bit, pa.int64())), 0)


def put(table: pa.Table, name: str, values: pa.Array, where: pa.Array) -> pa.Table:
    """The table with these values of a column in some rows; others keep what they have, or null."""
    is_new = name not in table.column_names
    if not is_new:
        values = values.cast(table.field(name).type)
    if not pc.all(where, min_count=0).as_py():
        old = pa.nulls(len(table), values.type) if is_new else table[name]
        values = pc.if_else(where, values, old)
    if is_new:
        return table.append_column(name, values)
    return table.set_column(table.column_names.index(name), name, values)


def _when(expression: str | None) -> When | None:
    """The task's `when`. DuckDB is imported only by the actors of tasks that have one."""
    if expression is None:
        return None
    from audio_ops.when import When

    return When(expression)
