"""Every use of Ray that its documentation does not promise, as seen in Ray 2.60.

Each names the upstream place; tests/runs/test_ray_compat.py says which assumption broke.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from jobs.console import one_line

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
# The longest socket of a node below its folder, and the kernel's limit for its path.
SOCKET = "session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
_by_size: dict[str, Any] = {}  # Ray's own way to cut, see `whole_tables`


def set_environment(joins_cluster: bool) -> None:
    """Set variables that Ray reads when it starts, unless the user has set them."""
    # `_private/accelerators`: actors without GPUs are given an empty CUDA_VISIBLE_DEVICES.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # `ray_config_def.h`: after its default of 1 s, idle workers that read would be gone by the time
    # the models are loaded.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    if joins_cluster:
        # `ray_config_def.h`: this long after the head has gone, Ray ends the process, in the middle of
        # a last commit. `HeadWatch` is sooner.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
        # `_private/ray_constants.py`: with its 20 tries a head without a node is given up after minutes.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
    else:
        # `data/_internal/cluster_autoscaler`: V1 asks for nodes in fractions of a CPU and rounds what
        # is left to whole CPUs: 1.28 of a machine's two are one reader instead of two.
        os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")


@contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Inside of the `with`, attributes of `owner` have these values; those that it lacks are left out."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    for name in before:
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    pass


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
    with _replaced(Node, **dict.fromkeys(names, _nothing)):
        yield


@contextmanager
def no_cluster_services() -> Iterator[None]:
    """Inside of the `with`, Ray Data runs without two actors, which serve clusters with more users.

    `data/_internal/stats.py`: `_StatsActor`, whose figures the dashboard shows.
    `data/_internal/cluster_autoscaler`: the coordinator that divides a cluster's nodes among datasets and
    asks for more of them; until it has started, nothing is read. Each is 1.2 CPU seconds of a run's
    start. Where a name is gone, the actor is started.
    """
    try:
        from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
        from ray.data._internal.execution import streaming_executor
        from ray.data._internal.execution.interfaces import ExecutionResources
        from ray.data._internal.stats import _StatsManager
    except ImportError:
        yield
        return
    import ray

    class OneNode(ClusterAutoscaler):
        """All that this machine has, for the only dataset that runs on it."""

        def get_total_resources(self) -> ExecutionResources:
            return ExecutionResources.from_resource_dict(ray.cluster_resources())

        try_trigger_scaling = on_executor_shutdown = _nothing

    node = _replaced(streaming_executor, create_cluster_autoscaler=lambda *_, **__: OneNode())
    stats = _replaced(
        _StatsManager,
        gen_dataset_id_from_stats_actor=staticmethod(lambda: uuid4().hex),
        register_dataset_to_stats_actor=staticmethod(_nothing),
        update_execution_metrics=staticmethod(_nothing),
        update_iteration_metrics=staticmethod(_nothing),
    )
    with node, stats:
        yield


@contextmanager
def no_sigterm_handler() -> Iterator[None]:
    """Inside of the `with`, `ray.init` leaves the handler of SIGTERM as it is.

    `_private/utils.py`: `set_sigterm_handler`, for handlers that kill Ray's first processes and raise
    SystemExit wherever the start is. Where that was taken for a slow start, Ray was started again and
    the signal was lost. If the function is gone, `ray.init` sets its handlers.
    """
    from ray._private import utils

    with _replaced(utils, set_sigterm_handler=_nothing):
        yield


@contextmanager
def own_packages_first() -> Iterator[None]:
    """Inside of the `with`, `ray.init` tells the workers to import this package from where it is.

    `_private/worker.py`: `connect` puts the driver's current folder in front of the workers'
    `sys.path`, where a `jobs` (or `yaml.py`) of the user's would be imported in place of ours.
    """
    try:
        before = os.getcwd()
    except OSError:  # it was removed
        before = "/"
    os.chdir(Path(__file__).parent.parent)
    try:
        yield
    finally:
        os.chdir(before)


def fit_to_machine() -> list[str]:
    """Choose another folder for the Ray that is started here if the usual one is unusable; returns lines
    for the user about it. Where there is no home, give Ray the token that it would keep there.

    `_private/authentication/authentication_token_setup.py`: `~/.ray/auth_token`. `_private/node.py`:
    the paths of its sockets, `SOCKET` below its folder, may have 107 bytes.
    `_common/utils.py`: the folder is `ray` in `RAY_TMPDIR`, `TMPDIR` or `/tmp`.
    """
    home = os.path.expanduser("~")
    has_token = os.path.exists(os.path.join(home, ".ray", "auth_token"))
    if not has_token and not _is_writable(home) and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(n)), None)
    if name is None:
        return []
    usual = os.environ[name]
    is_long = len(os.fsencode(f"{usual}/ray/{SOCKET}")) > SOCKET_BYTES
    if not is_long and _is_writable(usual):
        return []
    other = next((f for f in ("/tmp", "/var/tmp", "/dev/shm") if _is_writable(f)), None)
    if other is None:
        return []
    os.environ["RAY_TMPDIR"] = other
    why = "too long for Ray's sockets" if is_long else "no folder that can be written to"
    return [f"{name} is {why}: Ray's files are in {other}/ray"]


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def part_of_a_cpu(cgroup: str = "/sys/fs/cgroup") -> int | None:
    """1 on a machine that may use less than a CPU, which Ray rounds to none; else None, and Ray counts.

    `_private/utils.py`: `get_num_cpus`.
    """
    quota = cpu_quota(cgroup)
    return 1 if quota is not None and quota < 1 else None


def cpu_quota(cgroup: str = "/sys/fs/cgroup") -> float | None:
    """The CPUs that the processes of this machine, or container, may use together, if that is limited."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = Path(cgroup, "cpu.max").read_text().split()
        return float(quota) / float(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (
            Path(cgroup, "cpu", f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period")
        )
        share = float(quota) / float(period)
        return share if share > 0 else None
    return None


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
    """End all running datasets of this process. Their threads would start Ray again after its end.

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
    that an autoscaler may start; empty if it has not registered any.

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
    return f"{type(error).__name__}: {one_line(error) if lines else ''}"
