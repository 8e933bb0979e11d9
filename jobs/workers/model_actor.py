"""One task's model in a Ray actor: it labels and counts; the last task's actors also write."""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.inference import gpu
from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.label import Label, is_due
from audio_ops.tasks import TaskOptions
from jobs.models import on_this_node
from jobs.table.write import WriteSettings, write_rows
from jobs.workers import metrics
from jobs.workers.crash_ledger import ActorWork, TaskLedger

STARTS_IN_A_ROW = 10  # of a model's process without a label, until the run is given up
LOST_CONTEXT = 72  # exit code of a process whose GPU has become unusable


@dataclass(frozen=True)
class ModelSettings:
    """One task's model and how its actors run it, see `audio_ops.label.Label`."""

    name: str
    options: TaskOptions
    checkpoint: Checkpoint
    device: str
    num_gpus: float
    batch_s: float | None
    threads: int
    drop: tuple[str, ...]
    bit: int | None = None  # of the task in `_due`


class ModelActor:
    """Labels tables of prepared clips; with `write` it writes them and returns rows of WRITTEN.

    Two calls may overlap: one labels while the other writes. A model's exception becomes an error
    row (see `Label`); one that leaves the GPU unusable ends the process, and Ray sends the table to
    a new one. `ledger` is the actor of `crash_ledger.start_ledger`.

    Raises RuntimeError if torch finds no GPU where `device` is `cuda`, or if this actor's process
    was started too often without labelling anything: then the model is at fault, and not a clip.
    """

    def __init__(self, model: ModelSettings, ledger: Any, write: WriteSettings | None):
        self.name = model.name
        self.ledger = TaskLedger(ledger, model.name)
        starts = self.ledger.started()
        if starts > STARTS_IN_A_ROW:
            raise RuntimeError(
                f"tasks.{model.name}: the model's process died {starts - 1} times in a row without "
                "labelling a clip; its last messages are in Ray's logs (worker-*.err)"
            )
        self.label = _load(model, self.ledger)
        self.write = write
        self.counted_s = 0.0, 0.0
        self.thread = ThreadPoolExecutor(1)  # each thread that torch is called from gets a pool

    def __call__(self, clips: pa.Table) -> pa.Table:
        labelled = self.thread.submit(self.labelled, clips).result()
        return labelled if self.write is None else _written(labelled, self.write)

    def labelled(self, clips: pa.Table) -> pa.Table:
        """The clips with the task's columns, counted as the task's stage."""
        first_at, started = time.time(), time.monotonic()
        try:
            labelled = self.label(clips)
        except Exception as error:
            if gpu.failure(error) != "lost context":
                raise
            traceback.print_exc()
            os._exit(LOST_CONTEXT)
        runner = self.label.runner
        self.ledger.worked(ActorWork(first_at, time.time(), runner.input_s, runner.padded_s))
        before, self.counted_s = self.counted_s, (runner.input_s, runner.padded_s)
        input_s, padded_s = (now - then for now, then in zip(self.counted_s, before, strict=True))
        metrics.count_model(self.name, input_s, padded_s)
        is_clip = labelled["shard_end"].is_null()
        mine = labelled.select([f"{self.name}_error", "duration_s"])
        mine = mine.filter(pc.and_(is_clip, is_due(labelled, self.label.bit)))
        errors = mine[f"{self.name}_error"]
        failed = len(errors) - errors.null_count
        metrics.count_clips(self.name, {"ok": errors.null_count, "error": failed})
        metrics.count_audio(self.name, mine["duration_s"])
        metrics.observe_time(self.name, started)
        return labelled


def _load(model: ModelSettings, ledger: TaskLedger) -> Label:
    """Fetch the model if this node does not have it, and load it."""
    gc.disable()  # what torch and transformers load stays: collecting takes a fifth of their start
    if model.device != "cpu":
        expect_gpu(model.name)
        gpu.limit_memory(model.num_gpus)
    label = Label(
        model.name,
        model.options,
        on_this_node(model.checkpoint),
        device=model.device,
        batch_s=model.batch_s,
        gpu_fraction=min(1.0, model.num_gpus),
        threads=model.threads,
        drop=model.drop,
        ledger=ledger,
        bit=model.bit,
    )
    gc.freeze()
    gc.enable()
    return label


def _written(clips: pa.Table, write: WriteSettings) -> pa.Table:
    """The rows of `write_rows`, counted as stage `write` by the clips' own statuses."""
    started = time.monotonic()
    written = write_rows(clips, write)
    for statuses in written["statuses"].to_pylist():
        metrics.count_clips("write", Counter(statuses or ()))
    metrics.count_audio("write", written["audio_s"])
    metrics.observe_time("write", started)
    return written


def environment(threads: int, on_gpu: bool) -> dict[str, str]:
    """Environment variables with which a ModelActor's process has to be started."""
    # `torch.set_num_threads` holds for the thread that calls it, and another one labels.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if not on_gpu:
        # Else it would have the node's GPUs, which Ray has given to others.
        variables |= {"CUDA_VISIBLE_DEVICES": ""}
        # On a CPU torch allocates each activation separately. By default glibc maps it from the kernel,
        # which zeroes it page by page, and unmaps it at once: a tenth to a third of a wav2vec2 pass.
        # With these settings glibc keeps the memory, in the one arena that may exceed 64 MB.
        variables |= {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
            # By default oneDNN caches primitives of 1,024 shapes, which fragment that arena: after some
            # hundred lengths of sound, wav2vec2-base's process takes half as much memory again. 256
            # are as fast.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        }
    return variables


def expect_gpu(task: str) -> None:
    """Raise RuntimeError, with the remedy, if torch cannot use the GPU that Ray has counted."""
    import torch

    if available_device() == "cpu":
        build = torch.version.cuda or torch.version.hip
        raise RuntimeError(
            f"tasks.{task}: expected a GPU on node {socket.gethostname()}, where Ray counts one, "
            f"found none that torch {torch.__version__} can use: "
            + (
                f"check the driver there (`nvidia-smi`; torch is built for {build})"
                if build
                else "install a build of torch for GPUs there"
            )
            + f", or set resources.tasks.{task}.num_gpus: 0 to run on CPUs"
        )
