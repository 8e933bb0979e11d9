"""Every use of Ray that its documentation does not promise, as seen in Ray 2.60.

Each names the upstream place; tests/runs/test_ray_compat.py says which assumption broke.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray.data

# `_private/runtime_env/working_dir.py` unpacks a job's working directory there, and the node deletes
# it later. Each upload with other content gets another folder.
UPLOAD = re.compile(r".*/runtime_resources/working_dir_files/[^/]+(?=/|$)")
# Ray Data's tables as they are: no rebatching, no copy.
WHOLE_TABLES: dict[str, Any] = {
    "batch_size": None,
    "batch_format": "pyarrow",
    "zero_copy_batch": True,
}

_by_size: dict[str, Any] = {}  # Ray's own way to cut, see `whole_tables`


def set_environment(joins_cluster: bool) -> None:
    """Set variables that Ray reads when it starts, unless the user has set them."""
    # `_private/accelerators`: actors without GPUs are given an empty CUDA_VISIBLE_DEVICES.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # `ray_config_def.h`: after its default of 1 s, idle workers that read would be gone by the time
    # the models are loaded.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    if not joins_cluster:
        # `data/_internal/cluster_autoscaler`: V1 asks for nodes in fractions of a CPU and rounds what
        # is left to whole CPUs: 1.28 of a machine's two are one reader instead of two.
        os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")


@contextmanager
def no_idle_services() -> Iterator[None]:
    """Inside of the `with`, `ray.init` starts a node without three processes that a run never uses.

    `_private/node.py`: `Node.start_api_server` (the dashboard's server, started even with
    `include_dashboard=False`, and waited for), `start_monitor` (the autoscaler of a cluster of one
    node) and `start_log_monitor` (for `log_to_driver`). They are 3 CPU seconds of a run's start and
    1 s of its end. Where the methods are gone, everything is started.
    """
    try:
        from ray._private.node import Node
    except ImportError:
        yield
        return
    names = ("start_api_server", "start_monitor", "start_log_monitor")
    methods = {name: vars(Node)[name] for name in names if name in vars(Node)}
    for name in methods:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


def is_slow_start(error: Exception) -> bool:
    """Whether `ray.init` gave up after its own 30 s (`_private/node.py`), as on a busy machine."""
    return "timed out during startup" in str(error)


def set_in_flight_fraction(context: ray.data.DataContext, fraction: float) -> None:
    """Limit the part of the object stores that blocks between the stages may take.

    `data/context.py`: `override_object_store_memory_limit_fraction`; by default half.
    """
    context.override_object_store_memory_limit_fraction = fraction


def set_actor_starts(context: ray.data.DataContext, deaths: int) -> None:
    """Limit how many actors in a row may die in `__init__` before the run ends.

    `data/context.py`: `max_consecutive_actor_init_deaths`.
    """
    context.max_consecutive_actor_init_deaths = deaths


@dataclass(frozen=True)
class ActorPool:
    """How a pool of actors runs a class: its size, its claims, its environment."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float
    queued_blocks: int | None  # at one actor; None: Ray's default
    env_vars: Mapping[str, str] = field(default_factory=dict)


def map_with_actors(
    dataset: ray.data.Dataset, actor: type, arguments: Mapping[str, Any], pool: ActorPool
) -> ray.data.Dataset:
    """`dataset.map_batches(actor, ...)` on whole tables, two calls at a time in each actor.

    `data/dataset.py`: `map_batches_internal`, since `map_batches` refuses `batch_size=None` for
    actors with GPUs. Without it only those with GPUs are refused.
    """
    from ray.data import ActorPoolStrategy

    run: Callable[..., ray.data.Dataset]
    run = getattr(dataset, "map_batches_internal", dataset.map_batches)
    return run(
        actor,
        fn_constructor_kwargs=dict(arguments),
        compute=ActorPoolStrategy(
            min_size=pool.min_size,
            max_size=pool.max_size,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=pool.queued_blocks,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        runtime_env={"env_vars": dict(pool.env_vars)},
        max_restarts=-1,
        max_task_retries=-1,
        **WHOLE_TABLES,
    )


@contextmanager
def whole_tables() -> Iterator[None]:
    """While this lasts, datasets that begin pass tables on as functions yield them, neither cut nor
    joined by their size: a task that Ray starts again has to yield the same clips in each table.

    `data/_internal/output_buffer.py`: `OutputBlockSizeOption.of(disable_block_shaping=True)`, with
    which Ray plans other stages. Without it Ray cuts by size, and `Progress` drops what comes twice.
    """
    try:
        from ray.data._internal.output_buffer import OutputBlockSizeOption

        kind: Any = OutputBlockSizeOption
        whole = kind(disable_block_shaping=True)
        _by_size.setdefault("of", kind.__dict__["of"])
    except (ImportError, KeyError, TypeError):
        yield
        return
    kind.of = staticmethod(lambda *_, **__: whole)
    try:
        yield
    finally:
        kind.of = _by_size["of"]


def end_datasets() -> None:
    """End all running datasets of this process. Their threads would start Ray anew after its end.

    `data/_internal/execution/streaming_executor.py`: `StreamingExecutor` is a thread with
    `shutdown(force)`. Where that is gone, a dataset ends when its iterator is collected.
    """
    try:
        from ray.data._internal.execution.streaming_executor import StreamingExecutor
    except ImportError:
        return
    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)


def stalled_stages(error: BaseException) -> list[str] | None:
    """Ray's line on each stage if a dataset made no progress for too long, else None.

    `data/exceptions.py`: `ExecutionTimeoutError`, whose message lists the stages.
    """
    from ray.data import exceptions

    kind = getattr(exceptions, "ExecutionTimeoutError", None)
    if kind is None or not isinstance(error, kind):
        return None
    return re.findall(r"^  - (.+)", str(error), re.M)


def autoscaler_groups() -> list[tuple[dict[str, float], int]]:
    """The resources of a node and the largest number of nodes (-1: no bound) of each group of nodes
    that an autoscaler may start; empty where it has told the cluster of none.

    `_private/state.py`: `get_cluster_config`, and `autoscaler.proto`: `ClusterConfig`.
    """
    try:
        from ray._private import state

        config = state.state.get_cluster_config()
    except (ImportError, AttributeError):
        return []
    groups = config.node_group_configs if config else ()
    return [(dict(group.resources), group.max_count) for group in groups]


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message; of an error in a worker, the one that began
    it there.

    `exceptions.py`: a `RayTaskError`'s text is the worker's traceback, which begins with `ray::`,
    followed by those of the errors that were raised from it.
    """
    lines = [line for line in str(error).partition("\n\nThe above")[0].splitlines() if line.strip()]
    if lines and "ray::" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
