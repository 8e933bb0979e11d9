"""Counters for Prometheus, of the stages `read`, each task's name, and `write`.

On Ray's metrics endpoint the names begin with `ray_`, and those of counters end in `_total`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter, Histogram

COUNTERS = {
    "earmark_clips": ("Clips that a stage has finished, by outcome.", ("stage", "status")),
    "earmark_audio_seconds": ("Seconds of audio in them.", ("stage",)),
    "earmark_heard_seconds": ("Seconds of audio that a task's model received.", ("stage",)),
    "earmark_padded_seconds": ("Seconds of audio with the padding of its batches.", ("stage",)),
}
SECONDS = "earmark_stage_seconds"
BUCKETS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]


def count_clips(stage: str, statuses: Mapping[str, int]) -> None:
    """Add the number of clips of each status."""
    for status, clips in statuses.items():
        _count("earmark_clips", clips, stage=stage, status=status)


def count_audio(stage: str, seconds: pa.ChunkedArray) -> None:
    """Add a column of seconds; nulls count nothing."""
    _count("earmark_audio_seconds", pc.sum(seconds).as_py() or 0.0, stage=stage)


def count_model(stage: str, input_s: float, padded_s: float) -> None:
    """Add the seconds of audio that a model got, without and with padding."""
    _count("earmark_heard_seconds", input_s, stage=stage)
    _count("earmark_padded_seconds", padded_s, stage=stage)


def observe_time(stage: str, started: float) -> None:
    """Add the time since `started` (`time.monotonic`) that a stage took for one table."""
    _histogram().observe(time.monotonic() - started, {"stage": stage})


def _count(name: str, value: float, **tags: str) -> None:
    if value > 0:  # Ray refuses to add 0
        _counter(name).inc(value, tags)


@cache
def _counter(name: str) -> Counter:
    description, tags = COUNTERS[name]
    return Counter(name, description, tag_keys=tags)


@cache
def _histogram() -> Histogram:
    description = "Seconds that a stage took for a table of clips."
    return Histogram(SECONDS, description, boundaries=BUCKETS_S, tag_keys=("stage",))
