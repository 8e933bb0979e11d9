"""Who gets how much of the cluster. Worked out so that no stage can starve another.

Ray schedules by claimed CPUs. Model actors hold theirs to the end, so if they claimed them all,
reading would wait for a CPU that never comes free: on two cores, whole-CPU stages hang for ever.
A part is therefore kept back for the stages that read and decode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs import ray_compat
from jobs.config import Config

ACTOR_BYTES = 3 << 30  # torch, a model of some hundred million parameters and a batch
BLOCKS_IN_FLIGHT = 4  # per CPU: two that are read (one is handed on), two that wait for a model
NODES_LOOKED_AT = 64  # of a group that may grow without bound

Nodes = Sequence[Mapping[str, float]]


class CannotRun(Exception):
    """The cluster lacks what the config asks for. Exit code 2."""


@dataclass(frozen=True)
class TaskShare:
    """One task's actors: how many at least and at most, the claim of each, torch's threads, seconds
    of audio a batch if the config says so."""

    actors: int
    most_actors: int
    num_cpus: float
    num_gpus: float
    threads: int
    batch_s: float | None

    @property
    def device(self) -> str:
        """What the actors' models run on, as torch names it."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True)
class Shares:
    """What each stage gets: CPUs per worker that reads and decodes; the tasks' actors."""

    prepare_cpus: float
    tasks: dict[str, TaskShare]


def share_out(config: Config, nodes: Nodes, worth: int = 1 << 30, may_come: Nodes = ()) -> Shares:
    """Divide what the cluster's nodes have (see `nodes_now`) among the stages.

    Without GPUs a task gets an actor of one thread per CPU: decoding text step by step is many
    small operations, over which a second thread gains little, and waits for ever if another
    process has its core. Fewer, wider ones where memory is short or no more are `worth` their start.
    An actor has one node: claims that nobody asked for shrink until all have room.

    Raises CannotRun, saying what is missing, if the config's own figures do not fit, on the nodes
    that an autoscaler `may_come` with neither.
    """
    room = [*nodes, *may_come]
    for fill in (room, ()):
        for cuts in range(30):
            shares = _divide(config, nodes, worth, 0.9**cuts, fill)
            if not lacking(shares, room):
                return shares
    missing = lacking(_divide(config, nodes, worth, 1.0), room)
    raise CannotRun(f"resources: {'; '.join(missing)}: lower `resources` or start a larger cluster")


def _divide(config: Config, nodes: Nodes, worth: int, part: float, may_fill: Nodes = ()) -> Shares:
    """Shares of the nodes' sum, of which a default claim of CPUs is cut to `part`, and raised again
    to what leaves room for reading on each node that it `may_fill`, see `_leaving_room`."""
    cpus, gpus = _sum(nodes, "CPU"), _sum(nodes, "GPU")
    asked = config.resources
    small = cpus < 8
    prepare_cpus = asked.prepare_cpus or (0.25 if small or not gpus else 1.0)
    # A worker that reads, and a little more: where they are small, a second one.
    kept_back = max(prepare_cpus + min(prepare_cpus, 0.25), cpus / 8 if not gpus else cpus / 2)
    share = (cpus - kept_back) / len(config.tasks)
    room = (_sum(nodes, "memory") or 1 << 60) / ACTOR_BYTES / len(config.tasks)
    gpus_each = gpus / len(config.tasks)
    default_gpus = _part_of_a_gpu(gpus, len(config.tasks))
    tasks: dict[str, TaskShare] = {}
    for name in config.tasks:
        wish = asked.tasks.get(name)
        pool = wish and wish.actors
        each = wish and wish.num_cpus
        num_gpus = wish.num_gpus if wish and wish.num_gpus is not None else default_gpus
        if num_gpus:
            actors = max(1, int(gpus_each / num_gpus))
        else:
            most = share / each if each else cpus / len(config.tasks) if small else share
            actors = max(1, int(min(most, room, worth)))
        if pool:  # of a pool that may grow, each actor claims what it would if all had come
            actors = max(pool.min, min(pool.max, actors))
        num_cpus = share / actors
        num_cpus = each or _floor(part * (min(1.0, num_cpus) if num_gpus else num_cpus))
        if not each and not num_gpus:
            num_cpus = _leaving_room(num_cpus, prepare_cpus, may_fill)
        tasks[name] = TaskShare(
            pool.min if pool else actors,
            pool.max if pool else actors,
            num_cpus,
            num_gpus,
            threads=max(1, round(num_cpus) if num_gpus or not small else round(cpus / actors)),
            batch_s=wish.batch_s if wish else None,
        )
    return Shares(prepare_cpus, tasks)


def block_bytes(nodes: Nodes) -> int:
    """Of sound that travels together at the most. A GPU wants many clips at once, on CPUs smaller
    blocks keep all actors busy and are committed sooner."""
    return 128 << 20 if _sum(nodes, "GPU") else 16 << 20


def part_in_flight(config: Config, nodes: Nodes) -> float:
    """The part of the nodes' object stores that sound on its way between the stages may take.

    Ray would let it have half of them, and that fills with whatever is read ahead of the models.
    Nodes that join bring their own part. Raises CannotRun if the config wants more than there is.
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
    """What each living node of the cluster has: `CPU`, `GPU`, `memory` (bytes), ..."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_to_come() -> list[dict[str, float]]:
    """The resources of the nodes that an autoscaler may add, as far as the cluster knows."""
    nodes = []
    for resources, max_nodes in ray_compat.autoscaler_groups():
        is_bounded = 0 <= max_nodes <= NODES_LOOKED_AT  # -1: no bound
        nodes += [resources] * (max_nodes if is_bounded else NODES_LOOKED_AT)
    return nodes


def lacking(shares: Shares, nodes: Nodes, *, one_each: bool = False) -> list[str]:
    """What the nodes lack to hold every task's actors and beside them a worker that reads.

    With `one_each` a single actor of each task is enough: a run whose nodes went goes on with that.
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
            "actor can have some of one and some of another"
        ]
    largest = max(node.get("CPU", 0.0) for node in nodes)
    return [
        f"the models' actors do not fit on the cluster's {len(nodes)} nodes, as each has one node: "
        f"no room is left for one of {num_cpus:g} CPUs"
        f"{f' and {num_gpus:g} GPUs' if num_gpus else ''}, the largest node has {largest:g} CPUs"
    ]


def _place(needs: Sequence[tuple[float, float]], nodes: Nodes) -> tuple[float, float] | None:
    """The first (GPUs, CPUs) that finds no node when the largest go first, or None."""
    cpus = [node.get("CPU", 0.0) for node in nodes]
    gpus = [[1.0] * int(node.get("GPU", 0.0)) for node in nodes]
    order = sorted(
        range(len(nodes)), key=lambda node: len(gpus[node])
    )  # GPUs for those who need them
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
    """What is left of a node's GPUs, of which a part comes out of one, or None if there is no room."""
    rest = list(gpus)
    for _ in range(math.ceil(need)):
        part = min(1.0, need)
        gpu = next((n for n, free in enumerate(rest) if free >= part - 1e-6), None)
        if gpu is None:
            return None
        rest[gpu] -= part
    return rest


def _part_of_a_gpu(gpus: float, tasks: int) -> float:
    """What each task's actor gets of a GPU: so much that they all have room, none on two GPUs."""
    if not gpus or tasks <= gpus:
        return min(1.0, gpus)
    return _floor(1 / math.ceil(tasks / max(1, int(gpus))))


def _sum(nodes: Nodes, resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _leaving_room(num_cpus: float, rest: float, nodes: Nodes) -> float:
    """A claim, somewhat larger if it must be, that leaves `rest` on a node which it fills.

    Where nodes die Ray starts their actors on the others, as long as those have room. What reads
    for all of them must not be kept out by that, or the run stands still.
    """
    sizes = {round(100 * cpus) for node in nodes if (cpus := node.get("CPU", 0.0)) >= rest}
    least = round(100 * num_cpus)
    for claim in range(least, 2 * least + 1):
        if all(size % claim >= 100 * rest for size in sizes):
            return claim / 100
    return num_cpus


def _floor(cpus: float) -> float:
    return max(0.05, int(cpus * 100) / 100)
