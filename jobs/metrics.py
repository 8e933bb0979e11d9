"""What Prometheus sees of a run: the stages of `jobs.label`, counted where they run.

On Ray's metrics endpoint the names begin with `ray_`, and those of counters end in `_total`.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter, Histogram

from audio_ops.errors import END_OF_SHARD
from jobs import models
from jobs.read import read as read_clips
from jobs.shared_storage import expect_input
from jobs.table import write

COUNTERS = {
    "earmark_clips": ("Clips that a stage has finished, by outcome.", ("stage", "status")),
    "earmark_audio_seconds": ("Seconds of sound in them.", ("stage",)),
    "earmark_heard_seconds": ("Seconds of sound that a task's model has heard.", ("stage",)),
    "earmark_padded_seconds": ("The same with the padding of its batches.", ("stage",)),
}
SECONDS = "earmark_stage_seconds"
BUCKETS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]


def read(
    plan: pa.Table, *, driver: str, seen: tuple[str, ...], **settings: Any
) -> Iterator[pa.Table]:
    """`jobs.read.read`, counted as stage `read`. On other nodes than the driver's it raises OSError
    where there is none of the local files that the driver has `seen`."""
    expect_input(driver, seen)
    started = time.monotonic()
    for clips in read_clips(plan, **settings):
        kinds = Counts(clips["error_kind"].to_pylist())
        del kinds[END_OF_SHARD]
        ok = kinds.pop(None, 0)
        _count_clips("read", Counts(ok=ok, error=kinds.total()))
        _count("earmark_audio_seconds", _seconds(clips), stage="read")
        _took("read", started)
        yield clips
        started = time.monotonic()


class LabelHere(models.LabelHere):
    """`jobs.models.LabelHere`, counted as a stage with the task's name.

    With `write`, the settings of `jobs.table.write.write_rows`, it writes what it has labelled, and what
    comes out are that function's rows. Of two calls at once one labels while the other writes.
    """

    counted = 0.0, 0.0

    def __init__(self, *, write: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.write = write
        self.thread = ThreadPoolExecutor(1)  # each thread that torch is called from gets a pool

    def __call__(self, clips: pa.Table) -> pa.Table:
        labelled = self.thread.submit(self.labelled, clips).result()
        return labelled if self.write is None else write_rows(labelled, **self.write)

    def labelled(self, clips: pa.Table) -> pa.Table:
        started = time.monotonic()
        labelled = super().__call__(clips)
        before, self.counted = self.counted, (self.heard_s, self.padded_s)
        heard_s, padded_s = (now - then for now, then in zip(self.counted, before, strict=True))
        statuses = Counts(_outcome(error) for error in labelled[f"{self.name}_error"].to_pylist())
        _count_clips(self.name, statuses)
        _count("earmark_audio_seconds", _seconds(labelled), stage=self.name)
        _count("earmark_heard_seconds", heard_s, stage=self.name)
        _count("earmark_padded_seconds", padded_s, stage=self.name)
        _took(self.name, started)
        return labelled


def write_rows(clips: pa.Table, **settings: Any) -> pa.Table:
    """`jobs.table.write.write_rows`, counted as stage `write`: with the rows' own statuses."""
    started = time.monotonic()
    written = write.write_rows(clips, **settings)
    for file in written.select(["statuses", "audio_s"]).to_pylist():
        _count_clips("write", Counts(file["statuses"] or ()))
        _count("earmark_audio_seconds", file["audio_s"] or 0.0, stage="write")
    _took("write", started)
    return written


def _outcome(error: str | None) -> str:
    return "error" if error else "ok"


def _seconds(clips: pa.Table) -> float:
    seconds: float | None = pc.sum(clips["duration_s"]).as_py()
    return seconds or 0.0


def _count_clips(stage: str, statuses: Counts[str]) -> None:
    for status, count in statuses.items():
        _count("earmark_clips", count, stage=stage, status=status)


def _count(name: str, value: float, **tags: str) -> None:
    if value > 0:  # Ray refuses to count nothing
        _counter(name).inc(value, tags)


def _took(stage: str, started: float) -> None:
    _histogram().observe(time.monotonic() - started, {"stage": stage})


@cache
def _counter(name: str) -> Counter:
    description, tags = COUNTERS[name]
    return Counter(name, description, tag_keys=tags)


@cache
def _histogram() -> Histogram:
    description = "Seconds that a stage took for a table of clips."
    return Histogram(SECONDS, description, boundaries=BUCKETS_S, tag_keys=("stage",))
