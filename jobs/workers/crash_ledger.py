"""Which clip killed which model process, how much each process has done, and how far readers came.

`CrashLedger` holds it in an actor of its own beside the driver, so that whatever kills the models'
nodes spares it; `TaskLedger` is one model actor's connection to it, `ReadLedger` one reader's.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ActorWork(NamedTuple):
    """The work of one actor so far."""

    first_at: float  # `time.time` when it got its first table
    last_at: float  # and when it had labelled its last one
    input_s: float  # seconds of audio that its model got
    padded_s: float  # with padding


@dataclass
class Reading:
    """A block of a read task: Ray starts the task again if its process dies, or if what it read is
    lost."""

    cuts: list[int] = field(default_factory=list)  # the rows of each table that it handed on
    node: str = ""  # on which it is in progress
    deaths: int = 0  # of its process, since it last made progress


class CrashLedger:
    """The state of `audio_ops.crash_guard.CrashLedger` for all actors of a run."""

    def __init__(self) -> None:
        self.in_progress: dict[str, tuple[Sequence[str], bool]] = {}  # clip_ids, alone: by call
        self.deaths: dict[str, dict[str, int]] = {}  # by call and clip_id
        self.starts: Counter[str] = Counter()  # of an actor's process since its last label
        self.work: dict[str, dict[str, ActorWork]] = {}  # by task and actor
        self.readings: dict[str, Reading] = {}  # by read task and block

    def started(self, actor: str) -> int:
        self.starts[actor] += 1
        return self.starts[actor]

    def enter(self, call: str) -> dict[str, int]:
        clips, alone = self.in_progress.pop(call, ((), False))
        deaths = self.deaths.setdefault(call, {})
        for clip in clips:
            deaths[clip] = deaths.get(clip, 0) + 1 if alone else max(deaths.get(clip, 0), 1)
        return deaths

    def working_on(self, actor: str, call: str, clip_ids: Sequence[str], alone: bool) -> None:
        _, was_alone = self.in_progress.get(call, ((), False))
        if was_alone:
            self.starts[actor] = 0
        self.in_progress[call] = clip_ids, alone

    def leave(self, actor: str, call: str) -> None:
        self.starts[actor] = 0
        self.in_progress.pop(call, None)
        self.deaths.pop(call, None)

    def worked(self, actor: str, task: str, work: ActorWork) -> None:
        """Keep an actor's work; if its process died before, the counts are those of its last one."""
        known = self.work.setdefault(task, {})
        first_at = min(work.first_at, known.get(actor, work).first_at)
        known[actor] = work._replace(first_at=first_at)

    def begin_reading(self, task: str, node: str) -> tuple[list[int], int]:
        """The rows of each table that the task handed on before, and how often its process has died.

        A process that went with its whole node, as spot machines do, is no death.
        """
        reading = self.readings.setdefault(task, Reading())
        if reading.node and _is_alive(reading.node):
            reading.deaths += 1
        reading.node = node
        return reading.cuts, reading.deaths

    def cut(self, task: str, rows: int) -> None:
        reading = self.readings[task]
        reading.cuts.append(rows)
        reading.deaths = 0

    def end_reading(self, task: str) -> None:
        self.readings[task].node = ""

    def all_work(self) -> dict[str, list[ActorWork]]:
        return {task: list(actors.values()) for task, actors in self.work.items()}


class TaskLedger:
    """One task's and one actor's connection to the ledger: `audio_ops.crash_guard.CrashLedger`."""

    def __init__(self, ledger: Any, task: str):
        import ray

        self._ledger, self._task = ledger, task
        self._actor = ray.get_runtime_context().get_actor_id() or ""

    def started(self) -> int:
        """Count a start of this actor's process; returns how many there were since its last label."""
        starts: int = _result(self._ledger.started.remote(self._actor))
        return starts

    def enter(self, call: str) -> dict[str, int]:
        deaths: dict[str, int] = _result(self._ledger.enter.remote(f"{self._task} {call}"))
        return deaths

    def working_on(self, call: str, clip_ids: Sequence[str], alone: bool) -> None:
        recorded = self._ledger.working_on.remote(
            self._actor, f"{self._task} {call}", clip_ids, alone
        )
        if clip_ids:  # the process may die of them, after they are recorded
            _result(recorded)

    def leave(self, call: str) -> None:
        self._ledger.leave.remote(self._actor, f"{self._task} {call}")

    def worked(self, work: ActorWork) -> None:
        self._ledger.worked.remote(self._actor, self._task, work)


class ReadLedger:
    """The connection to the ledger of one of a read task's blocks. Ray keeps a task's id when it starts
    it again."""

    def __init__(self, ledger: Any, block: int):
        import ray

        context = ray.get_runtime_context()
        self._ledger, self._task = ledger, f"{context.get_task_id()} {block}"
        self._node = context.get_node_id()

    def begin(self) -> tuple[list[int], int]:
        """The rows of each of the block's tables that the task handed on before, and how often its
        process has died since it last made progress."""
        before: tuple[list[int], int] = _result(
            self._ledger.begin_reading.remote(self._task, self._node)
        )
        return before

    def cut(self, rows: int) -> None:
        """Record the rows of the next table, which is handed on after that."""
        _result(self._ledger.cut.remote(self._task, rows))

    def end(self) -> None:
        self._ledger.end_reading.remote(self._task)


def start_ledger() -> Any:
    """Start the actor of a run's CrashLedger on the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(CrashLedger).options(scheduling_strategy=here, **options).remote()


def end_ledger(ledger: Any) -> dict[str, list[ActorWork]]:
    """End the actor; returns the work of each task's actors, or {} if the actor is gone."""
    import ray

    try:
        work: dict[str, list[ActorWork]] = ray.get(ledger.all_work.remote(), timeout=30)
    except ray.exceptions.RayError:
        traceback.print_exc()
        return {}
    ray.kill(ledger)  # it would outlive a run that has joined another's Ray
    return work


def _is_alive(node_id: str) -> bool:
    import ray

    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def _result(reference: Any) -> Any:
    import ray

    return ray.get(reference)
