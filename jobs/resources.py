"""Divides the cluster's CPUs and GPUs among the stages of a run, so that none can starve another.

Ray schedules by claimed CPUs. Model actors hold theirs to the end of the run, so if they claimed all
of them, reading would wait for a CPU that never becomes free: on two cores, stages that claim whole
CPUs hang forever. Some CPUs are therefore reserved for reading and decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs import ray_compat
from jobs.config import Config, TaskResources

ACTOR_BYTES = 3 << 30  # torch, a model of some hundred million parameters and a batch
BLOCKS_IN_FLIGHT = 4  # per CPU: two being read or passed on, two waiting for a model
MAX_GROUP_NODES = 64  # that are expected of a group without an upper bound

Nodes = Sequence[Mapping[str, float]]


class CannotRun(Exception):
    """The cluster does not have the resources that the config asks for. Exit code 2."""


@dataclass(frozen=True)
class TaskShare:
    """One task's actors, and the CPUs and GPUs that each of them claims."""

    actors: int  # at the start, and at least
    max_actors: int
    num_cpus: float
    num_gpus: float
    threads: int  # of torch, in each actor
    batch_s: float | None  # seconds of audio in a batch, if the config sets it

    @property
    def device(self) -> str:
        """Torch's name of the device that the models run on."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True)
class Shares:
    """The resources of each stage of a run."""

    prepare_cpus: float  # of each worker that reads and decodes
    tasks: dict[str, TaskShare]


def share_out(
    config: Config, nodes: Nodes, max_useful_actors: int = 1 << 30, future_nodes: Nodes = ()
) -> Shares:
    """Divide the resources of the cluster's nodes (see `nodes_now`) among the stages.

    Without GPUs a task gets one actor per CPU, with one thread each: generating text is many small
    operations, from which a second thread gains little, and it waits forever if another process has
    its core. Where memory is short, and beyond `max_useful_actors`, there are fewer, with more
    threads. An actor runs on a single node: claims that the config does not set shrink until all
    actors fit.

    Raises CannotRun, naming what is missing, if the config's own figures do not fit on the nodes
    together with the `future_nodes` that an autoscaler may add.
    """
    all_nodes = [*nodes, *future_nodes]
    for filled in (all_nodes, ()):
        for cuts in range(30):
            shares = _divide(config, nodes, max_useful_actors, 0.9**cuts, filled)
            if not missing_resources(shares, all_nodes):
                return shares
    missing = missing_resources(_divide(config, nodes, max_useful_actors, 1.0), all_nodes)
    raise CannotRun(f"resources: {'; '.join(missing)}: lower `resources` or start a larger cluster")


def _divide(
    config: Config, nodes: Nodes, max_useful_actors: int, scale: float, filled: Nodes = ()
) -> Shares:
    """Shares of the sum of the nodes. CPU claims that the config does not set are multiplied by
    `scale`, then raised until reading still fits on each of the `filled` nodes (see
    `_claim_leaving_free`)."""
    portion = _portion(config, nodes, max_useful_actors)
    wishes = {name: config.resources.tasks.get(name, TaskResources()) for name in config.tasks}
    return Shares(
        portion.prepare_cpus,
        {name: _task_share(wish, portion, scale, filled) for name, wish in wishes.items()},
    )


@dataclass(frozen=True)
class Portion:
    """An equal part of the cluster, which each task gets where the config does not say otherwise."""

    prepare_cpus: float  # of each worker that reads
    is_small: bool  # a cluster of a few CPUs
    all_cpus: float  # of the cluster
    cpus: float
    cpus_for_models: float  # of them, less those for reading
    gpus: float
    gpus_per_actor: float
    max_cpu_actors: float  # that fit in memory and have something to do


def _portion(config: Config, nodes: Nodes, max_useful_actors: int) -> Portion:
    tasks, cpus, gpus = len(config.tasks), _sum(nodes, "CPU"), _sum(nodes, "GPU")
    is_small = cpus < 8
    prepare_cpus = config.resources.prepare_cpus or (0.25 if is_small or not gpus else 1.0)
    # One worker that reads, and some more: if claims are small, a second worker.
    reserved = max(prepare_cpus + min(prepare_cpus, 0.25), cpus / 8 if not gpus else cpus / 2)
    fit_in_memory = (_sum(nodes, "memory") or 1 << 60) / ACTOR_BYTES / tasks
    return Portion(
        prepare_cpus=prepare_cpus,
        is_small=is_small,
        all_cpus=cpus,
        cpus=cpus / tasks,
        cpus_for_models=(cpus - reserved) / tasks,
        gpus=gpus / tasks,
        gpus_per_actor=_part_of_a_gpu(gpus, tasks),
        max_cpu_actors=min(fit_in_memory, max_useful_actors),
    )


def _task_share(wish: TaskResources, portion: Portion, scale: float, filled: Nodes) -> TaskShare:
    num_gpus = portion.gpus_per_actor if wish.num_gpus is None else wish.num_gpus
    actors = _actors(wish, portion, num_gpus)
    num_cpus = wish.num_cpus
    if num_cpus is None:
        each = portion.cpus_for_models / actors
        num_cpus = _floor(scale * (min(1.0, each) if num_gpus else each))
        if not num_gpus:
            num_cpus = _claim_leaving_free(portion.prepare_cpus, filled, at_least=num_cpus)
    # On a small cluster reading is soon ahead, and a task that waits for another one leaves it its CPUs.
    threads = portion.all_cpus / actors if portion.is_small and not num_gpus else num_cpus
    return TaskShare(
        actors=wish.actors.min if wish.actors else actors,
        max_actors=wish.actors.max if wish.actors else actors,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        threads=max(1, round(threads)),
        batch_s=wish.batch_s,
    )


def _actors(wish: TaskResources, portion: Portion, num_gpus: float) -> int:
    """The number of actors among which a task's portion is divided: of a pool that may grow, as many
    as it may have."""
    if num_gpus:
        actors = int(portion.gpus / num_gpus)
    else:
        fit = portion.cpus if portion.is_small else portion.cpus_for_models
        if wish.num_cpus:
            fit = portion.cpus_for_models / wish.num_cpus
        actors = int(min(fit, portion.max_cpu_actors))
    actors = max(1, actors)
    return max(wish.actors.min, min(wish.actors.max, actors)) if wish.actors else actors


def block_bytes(nodes: Nodes) -> int:
    """The maximum size of a block of sound. A GPU needs many clips at once; on CPUs smaller blocks
    keep all actors busy and are committed sooner."""
    return 128 << 20 if _sum(nodes, "GPU") else 16 << 20


def part_in_flight(config: Config, nodes: Nodes) -> float:
    """The fraction of the nodes' object stores that blocks between the stages may fill.

    Ray's default is half, which fills up with whatever is read ahead of the models. The fraction
    holds for nodes that join later, too. Raises CannotRun if the config asks for more than the
    stores hold.
    """
    stores = _sum(nodes, "object_store_memory")
    if asked := (config.resources.in_flight_mb or 0) << 20:
        if asked > stores:
            raise CannotRun(
                f"resources.in_flight_mb: expected at most {int(stores) >> 20}, the size of the "
                f"object store, found {asked >> 20}"
            )
        return asked / stores
    wanted = BLOCKS_IN_FLIGHT * _sum(nodes, "CPU") * block_bytes(nodes)
    working = _sum([node for node in nodes if node.get("CPU")], "object_store_memory")
    return min(0.5, wanted / working) if working else 0.5


def nodes_now() -> list[dict[str, float]]:
    """The resources of each living node of the cluster: `CPU`, `GPU`, `memory` (bytes), ..."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_to_come() -> list[dict[str, float]]:
    """The resources of the nodes that an autoscaler may add, as far as the cluster knows."""
    nodes = []
    for resources, max_nodes in ray_compat.autoscaler_groups():
        is_bounded = 0 <= max_nodes <= MAX_GROUP_NODES  # -1: no bound
        nodes += [resources] * (max_nodes if is_bounded else MAX_GROUP_NODES)
    return nodes


def missing_resources(shares: Shares, nodes: Nodes, *, one_each: bool = False) -> list[str]:
    """Sentences on why the nodes cannot hold every task's actors and a worker that reads; or none.

    With `one_each` one actor of each task is enough: a run that has lost nodes continues with that.
    """
    cpus, gpus = _sum(nodes, "CPU"), _sum(nodes, "GPU")
    tasks = shares.tasks.items()
    actors = {name: 1 if one_each else task.actors for name, task in tasks}
    wanted_cpus = sum(actors[name] * task.num_cpus for name, task in tasks)
    wanted_gpus = sum(actors[name] * task.num_gpus for name, task in tasks)
    reading = shares.prepare_cpus
    missing = []
    if wanted_gpus > gpus:
        missing.append(f"the models ask for {wanted_gpus:g} GPUs, the cluster has {gpus:g}")
    if wanted_cpus + reading > cpus + 1e-6:
        missing.append(
            f"the models ask for {wanted_cpus:g} CPUs and reading for {reading:g}, "
            f"the cluster has {cpus:g}"
        )
    if missing:
        return missing
    needs = [(task.num_gpus, task.num_cpus) for name, task in tasks for _ in range(actors[name])]
    unplaced = _place([*needs, (0.0, reading)], nodes)
    if unplaced is None:
        return []
    num_gpus, num_cpus = unplaced
    if num_gpus and len(nodes) == 1:
        return [
            f"the models ask for {wanted_gpus:g} GPUs in parts that do not fit on {gpus:g}, as no "
            "actor can use parts of two GPUs"
        ]
    largest = max(node.get("CPU", 0.0) for node in nodes)
    return [
        f"the models' actors do not fit on the cluster's {len(nodes)} nodes, as each has one node: "
        f"none has space left for one of {num_cpus:g} CPUs"
        f"{f' and {num_gpus:g} GPUs' if num_gpus else ''}, the largest node has {largest:g} CPUs"
    ]


def _place(needs: Sequence[tuple[float, float]], nodes: Nodes) -> tuple[float, float] | None:
    """The first need (GPUs, CPUs) that fits on no node, placing the largest first; or None."""
    cpus = [node.get("CPU", 0.0) for node in nodes]
    gpus = [[1.0] * int(node.get("GPU", 0.0)) for node in nodes]
    # Nodes without GPUs first, to leave the others to the needs that ask for a GPU.
    order = sorted(range(len(nodes)), key=lambda node: len(gpus[node]))
    for need in sorted(needs, reverse=True):
        for node in order:
            rest = _take(need[0], gpus[node])
            if rest is not None and cpus[node] >= need[1] - 1e-6:
                gpus[node] = rest
                cpus[node] -= need[1]
                break
        else:
            return need
    return None


def _take(need: float, gpus: Sequence[float]) -> list[float] | None:
    """The free parts of a node's GPUs after taking `need`, or None if it does not fit. A part of a
    GPU is taken from a single one."""
    rest = list(gpus)
    for _ in range(math.ceil(need)):
        part = min(1.0, need)
        gpu = next((n for n, free in enumerate(rest) if free >= part - 1e-6), None)
        if gpu is None:
            return None
        rest[gpu] -= part
    return rest


def _part_of_a_gpu(gpus: float, tasks: int) -> float:
    """The part of a GPU for each task's actor, such that all fit and none needs two GPUs."""
    if not gpus or tasks <= gpus:
        return min(1.0, gpus)
    return _floor(1 / math.ceil(tasks / max(1, int(gpus))))


def _sum(nodes: Nodes, resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _claim_leaving_free(free_cpus: float, nodes: Nodes, *, at_least: float) -> float:
    """A claim of CPUs such that a node full of such actors still has `free_cpus`, if there is one.

    When nodes die, Ray restarts their actors on the others until those are full. If no worker could
    read then, the run would stall.
    """
    sizes = {round(100 * cpus) for node in nodes if (cpus := node.get("CPU", 0.0)) >= free_cpus}
    smallest = round(100 * at_least)
    for claim in range(smallest, 2 * smallest + 1):
        if all(size % claim >= 100 * free_cpus for size in sizes):
            return claim / 100
    return at_least


def _floor(cpus: float) -> float:
    return max(0.05, int(cpus * 100) / 100)
