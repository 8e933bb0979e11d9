"""Who gets how much of the cluster. Worked out so that no stage can starve another.

Ray schedules by claimed CPUs. Model actors hold theirs to the end, so if they claimed them all,
reading would wait for a CPU that never comes free: on two cores, whole-CPU stages hang for ever.
A part is therefore kept back for the stages that read, decode and write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config import Config

ACTOR_BYTES = 3 << 30  # torch, a model of some hundred million parameters and a batch
WINDOW_S = 30.0  # Whisper's, and the longest that the other models are given


class CannotRun(Exception):
    """The cluster lacks what the config asks for. Exit code 2."""


@dataclass(frozen=True)
class TaskShare:
    """One task's actors: how many, the claim of each, torch's threads, seconds of audio a batch."""

    actors: int
    num_cpus: float
    num_gpus: float
    threads: int
    batch_s: float


@dataclass(frozen=True)
class Shares:
    """What each stage claims: CPUs per worker that reads and decodes or writes; the tasks' actors."""

    prepare_cpus: float
    write_cpus: float
    tasks: dict[str, TaskShare]


def share_out(config: Config, available: Mapping[str, float], blocks: int = 1 << 30) -> Shares:
    """Divide the cluster's resources (`ray.cluster_resources()`) among the stages.

    Without GPUs a task gets an actor of one thread per CPU: decoding text step by step is many
    small operations, over which a second thread gains little, and waits for ever if another
    process has its core. Fewer, wider ones where memory is short or there are fewer `blocks`.

    Raises CannotRun, saying what is missing, if the config's own figures do not fit.
    """
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    asked = config.resources
    small = cpus < 8
    prepare_cpus = asked.prepare_cpus or (0.25 if small else 1.0)
    write_cpus = min(prepare_cpus, 0.25)
    kept_back = max(prepare_cpus + write_cpus, cpus / 8 if not gpus else cpus / 2)
    for_models = cpus - kept_back
    tasks: dict[str, TaskShare] = {}
    gpus_each = gpus / len(config.tasks)
    for name in config.tasks:
        wish = asked.tasks.get(name)
        num_gpus = _first(wish and wish.num_gpus, _part_of_a_gpu(gpus, len(config.tasks)))
        if num_gpus:
            actors = _first(wish and wish.actors, max(1, int(gpus_each / num_gpus)))
            num_cpus = _first(
                wish and wish.num_cpus, _floor(min(1.0, for_models / len(config.tasks) / actors))
            )
        else:
            share = for_models / len(config.tasks)
            room = available.get("memory", 1 << 60) / ACTOR_BYTES / len(config.tasks)
            each = wish and wish.num_cpus
            most = share / each if each else cpus / len(config.tasks) if small else share
            actors = _first(wish and wish.actors, max(1, int(min(most, room, blocks))))
            num_cpus = _first(wish and wish.num_cpus, _floor(share / actors))
        tasks[name] = TaskShare(
            actors,
            num_cpus,
            num_gpus,
            threads=max(1, round(num_cpus) if num_gpus or not small else round(cpus / actors)),
            batch_s=_first(wish and wish.batch_s, WINDOW_S * (64 if num_gpus else 16)),
        )
    shares = Shares(prepare_cpus, write_cpus, tasks)
    _check(shares, cpus, gpus)
    return shares


def _check(shares: Shares, cpus: float, gpus: float) -> None:
    wanted_cpus = sum(t.actors * t.num_cpus for t in shares.tasks.values())
    wanted_gpus = sum(t.actors * t.num_gpus for t in shares.tasks.values())
    missing = []
    if wanted_gpus > gpus:
        missing.append(f"the models ask for {wanted_gpus:g} GPUs, the cluster has {gpus:g}")
    elif not _fit(shares, gpus):
        missing.append(
            f"the models ask for {wanted_gpus:g} GPUs in parts that do not fit on {gpus:g}, as no "
            "actor can have some of one and some of another"
        )
    rest = max(shares.prepare_cpus, shares.write_cpus)
    if wanted_cpus + rest > cpus + 1e-6:
        missing.append(
            f"the models ask for {wanted_cpus:g} CPUs and reading for {rest:g}, "
            f"the cluster has {cpus:g}"
        )
    if missing:
        raise CannotRun(
            f"resources: {'; '.join(missing)}: lower `resources` or start a larger cluster"
        )


def _part_of_a_gpu(gpus: float, tasks: int) -> float:
    """What each task's actor gets of a GPU: so much that they all have room, none on two GPUs."""
    if not gpus or tasks <= gpus:
        return min(1.0, gpus)
    return _floor(1 / math.ceil(tasks / max(1, int(gpus))))


def _fit(shares: Shares, gpus: float) -> bool:
    """Whether the actors have room, each on one GPU or on whole ones."""
    free = [1.0] * int(gpus)
    needs = [task.num_gpus for task in shares.tasks.values() for _ in range(task.actors)]
    for need in sorted(needs, reverse=True):
        for _ in range(max(1, math.ceil(need))):
            part = min(1.0, need)
            gpu = next((n for n, rest in enumerate(free) if rest >= part - 1e-6), None)
            if need and gpu is None:
                return False
            if gpu is not None:
                free[gpu] -= part
    return True


def _first(wish: Any, default: Any) -> Any:
    return default if wish is None else wish


def _floor(cpus: float) -> float:
    return max(0.05, int(cpus * 100) / 100)
