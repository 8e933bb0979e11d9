"""The cluster that a run works on: joined, or started on this machine and ended with the run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import import_module

from jobs import ray_compat
from jobs.config import Config
from jobs.console import Console
from jobs.ray_address import HeadWatch, ray_address
from jobs.resources import CannotRun
from jobs.stop import Stop, Stopped, outlasting_the_terminal

IMPORTED_MEANWHILE = ("jobs.planned_reads", "jobs.workers.model_actor")  # 0.6 s
ACTOR_STARTS = 3  # of a model that cannot be loaded, after which the run ends


@contextmanager
def running_ray(config: Config, console: Console, stop: Stop) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine and end it afterwards."""
    address = ray_address()
    ray_compat.set_environment(joins_cluster=bool(address))
    import ray

    starts = not ray.is_initialized()
    if not starts:
        refuse_own_store(config)
    if starts:
        console.progress(f"joining the Ray cluster at {address}" if address else "starting Ray")
        with (
            ray_compat.own_packages_first(),
            outlasting_the_terminal(),
            ThreadPoolExecutor(1) as meanwhile,
        ):
            # This thread waits for other processes.
            imported = [meanwhile.submit(import_module, name) for name in IMPORTED_MEANWHILE]
            _start(address, config.resources.object_store_mb, console)
            stop.rearm()
        for module in imported:
            module.result()
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0  # a block is many clips: never skip one
    context.execution_no_progress_timeout_s = config.resources.stalled_after_s
    ray_compat.set_actor_starts(context, ACTOR_STARTS)
    head = HeadWatch(ray.get_runtime_context().gcs_address, stop.lose, stop.give_up)
    try:
        if stop.signal:  # it came while Ray started
            raise Stopped
        alone = starts and not address
        with ray_compat.no_cluster_services() if alone else nullcontext():
            yield
    except Exception as error:
        if not head.is_there():
            stop.lose(head.error)
            raise head.error from error
        raise
    finally:
        head.end()
        if starts and not stop.lost:  # without its head Ray would wait for an answer
            console.progress("ending Ray")
            ray.shutdown()


def refuse_own_store(config: Config) -> None:
    """Raise CannotRun if the config sizes the object store of a Ray that runs already."""
    if object_store_mb := config.resources.object_store_mb:
        raise CannotRun(
            "resources.object_store_mb: expected none where Ray runs already (RAY_ADDRESS), with "
            f"stores of their size, found {object_store_mb}: use resources.in_flight_mb"
        )


def _start(address: str | None, object_store_mb: int | None, console: Console) -> None:
    import ray

    if not address:
        for line in ray_compat.fit_to_machine():
            console.say(line)
    for tries_left in (2, 1, 0):
        try:  # without "local" Ray would join whatever cluster it finds on this machine
            services = nullcontext() if address else ray_compat.no_idle_services()
            with ray_compat.no_sigterm_handler(), services:
                ray.init(
                    address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    num_cpus=None if address else ray_compat.part_of_a_cpu(),
                    object_store_memory=object_store_mb and object_store_mb << 20,
                )
            return
        except Exception as error:
            if address and isinstance(error, (ConnectionError, RuntimeError, ValueError)):
                raise CannotRun(
                    f"RAY_ADDRESS: expected a cluster to join at {address}, found "
                    f"{ray_compat.first_line(error)}"
                ) from error
            if address or not tries_left or not ray_compat.is_slow_start(error):
                raise
            console.progress("starting Ray again, as it took too long")
