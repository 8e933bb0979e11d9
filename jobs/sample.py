"""`earmark run --sample N`: labels few clips, evenly spread over the input, into a table beside the output,
and estimates what labelling the whole input would take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.config import Config
from jobs.progress import Progress, clock
from jobs.resources import Shares, TaskShare, nodes_now, nodes_to_come, share_out
from jobs.sources import Listing


def sample_config(config: Config) -> Config:
    """The config with `<output.path>-sample` as its output."""
    path = f"{config.output.path.rstrip('/')}-sample"
    return config.model_copy(
        update={"output": config.output.model_copy(update={"path": path})}, deep=True
    )


def evenly(listing: Listing, count: int) -> Listing:
    """`count` of the listing's rows (clips, or shards) or all if there are fewer: of one input
    always the same ones, from its first row to its last. Rows of earlier samples are obsolete."""
    rows = np.linspace(0, len(listing.clips) - 1, min(count, len(listing.clips))).round()
    return listing._replace(
        clips=listing.clips.take(pa.array(rows.astype(np.int64))),
        complete=frozenset(listing.clips["source"].to_pylist()),
    )


def clips_per_shard(count: int | None, shards: int) -> int | None:
    """The clips to label of each of the shards that `evenly` chose for `count` clips; None: all."""
    return None if count is None else math.ceil(count / max(1, min(count, shards)))


def whole_of(
    rows: int,
    progress: Progress,
    models: Mapping[str, Mapping[str, Any]],
    shares: Shares,
    full: Shares,
) -> dict[str, Any] | None:
    """An estimate for all `rows` of the input (clips, or shards), from a sample's run: `clips`,
    `audio_hours`, `seconds` and, by task, `times_real_time` and `seconds`. None if the run has
    labelled nothing.

    `shares` are those of the sample's run, `full` those of a run with more clips than its models
    need: a model's speed is taken to grow with its actors and their threads. Models work side by
    side, so the slowest decides.
    """
    if not progress.audio_s:
        return None
    clips_of_ready = progress.clips_in_shards if progress.sharded else progress.labelled
    clips = round(rows * clips_of_ready / progress.ready)
    audio_s = progress.audio_s / progress.labelled * clips
    tasks = {}
    for task, model in models.items():
        more = _power(full.tasks[task]) / _power(shares.tasks[task])
        if speed := model["times_real_time"] * more:
            part = model["heard_s"] / progress.audio_s  # less than 1 with `when`
            tasks[task] = {"times_real_time": speed, "seconds": audio_s * part / speed}
    seconds = max((one["seconds"] for one in tasks.values()), default=None)
    return {"clips": clips, "audio_hours": audio_s / 3600, "seconds": seconds, "tasks": tasks}


def lines(whole: Mapping[str, Any]) -> list[str]:
    """The estimate of `whole_of`, to show."""
    clips, hours = whole["clips"], whole["audio_hours"]
    shown = [f"the whole input: about {clips:,} clips, {hours:,.2f} h of audio"]
    for task, one in whole["tasks"].items():
        speed, seconds = one["times_real_time"], one["seconds"]
        shown.append(f"  {task}: about {speed:,.1f}× real time, {clock(seconds)}")
    if whole["seconds"] is not None:
        costs = "" if whole["cost"] is None else f" and costs about {whole['cost']:,.2f}"
        shown.append(f"labelling it on this cluster takes about {clock(whole['seconds'])}{costs}")
    return shown


def shares_of_whole(config: Config) -> Shares:
    """The division of the cluster for a run with more clips than its models need."""
    return share_out(config, nodes_now(), future_nodes=nodes_to_come())


def _power(share: TaskShare) -> float:
    return share.actors * (share.num_gpus or share.threads)
