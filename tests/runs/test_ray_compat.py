"""The assumptions about Ray behind `jobs/ray_compat.py`. Which one failed says what to mend there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
from runs import ROOT

from jobs import planned_reads, ray_compat
from jobs.workers.crash_ledger import ReadLedger, end_ledger, start_ledger

pytestmark = pytest.mark.usefixtures("local_ray")


def test_tasks_and_actors_get_whole_tables() -> None:

    class Adds:
        """Adds the number of rows that came in one table, and the variable that its process has."""

        def __init__(self, variable: str):
            import os

            self.variable = os.environ[variable]

        def __call__(self, table: pa.Table) -> pa.Table:
            rows = len(table)
            table = table.append_column("rows", pa.array([rows] * rows))
            return table.append_column("variable", pa.array([self.variable] * rows))

    def times(table: pa.Table, by: int, number: int) -> list[pa.Table]:
        return [pa.table({"n": [n * by for n in table["n"].to_pylist()]})]

    tables = [pa.table({"n": list(range(size))}) for size in (3, 1, 7)]
    pool = ray_compat.ActorPool(1, 1, 0.1, 0, 2, {"EARMARK_TEST": "set"})
    passed = planned_reads.dataset(tables, times, {"by": 10}, num_cpus=0.1)
    rows = ray_compat.map_with_actors(passed, Adds, {"variable": "EARMARK_TEST"}, pool).take_all()
    assert sorted((row["n"], row["rows"]) for row in rows) == sorted(
        (10 * n, size) for size in (3, 1, 7) for n in range(size)
    )
    assert {row["variable"] for row in rows} == {"set"}


@pytest.mark.parametrize(
    ("piece_bytes", "most_tasks", "numbers"),
    [
        (1, 9, [0, 0, 0, 0, 0]),
        (100, 9, [0, 0, 0, 0, 0]),
        (1 << 20, 9, [0, 0, 0, 0, 0]),
        (1 << 20, 3, [0, 1, 0, 1, 0]),
        (1 << 20, 1, [0, 1, 2, 3, 4]),
        (1, 1, [0, 0, 0, 0, 0]),
    ],
)
def test_each_block_of_a_plan_is_read_whole(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, most_tasks: int, numbers: list[int]
) -> None:
    """However many blocks lie in one object of Ray's store, and however many a task reads."""
    monkeypatch.setattr(planned_reads, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(planned_reads, "MOST_TASKS", most_tasks)
    sizes = (3, 1, 7, 2, 5)
    blocks = [pa.table({"n": pa.array(range(10 * n, 11 * n), pa.int64())}) for n in sizes]

    def reads(block: pa.Table, number: int) -> list[pa.Table]:
        return [pa.table({"block": [block["n"].to_pylist()], "number": [number]})]

    read = planned_reads.dataset(blocks, reads, {}, num_cpus=0.1)
    found = sorted((row["block"], row["number"]) for row in read.take_all())
    of_blocks = zip([block["n"].to_pylist() for block in blocks], numbers, strict=True)
    assert found == sorted(of_blocks)


def test_tables_are_passed_on_as_they_are_yielded() -> None:
    """Neither joined nor cut by their size, nor when the code that asks for it is over."""
    from ray.data import DataContext

    def parts(table: pa.Table, number: int) -> Iterator[pa.Table]:
        for rows in (1, 5, 30, 4):
            yield pa.table({"sound": [bytes(1 << 20)] * rows})

    context = DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 4 << 20
    try:
        sizes = []
        for way in (ray_compat.whole_tables, nullcontext):
            with way():
                tables = planned_reads.dataset([pa.table({"n": [1]})], parts, {}, num_cpus=0.1)
                batches = tables.iter_batches(batch_size=None, batch_format="pyarrow")
                sizes.append([len(batch) for batch in batches])
        assert sizes[0] == [1, 5, 30, 4] and sizes[1] != sizes[0] and sum(sizes[1]) == 40
    finally:
        context.target_max_block_size = before


def test_map_batches_internal_takes_what_actors_with_gpus_are_given() -> None:
    """`map_batches` itself refuses `batch_size=None` for them."""
    from ray.data import Dataset

    taken = inspect.signature(Dataset.map_batches_internal).parameters
    given = {*ray_compat.WHOLE_TABLES, "fn_constructor_kwargs", "compute", "num_gpus"}
    assert given <= taken.keys() and "ray_remote_args" in taken


def test_a_node_starts_without_services_that_a_run_never_uses() -> None:
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert [command for command in commands if "raylet" in command]
    for service in ("dashboard/dashboard.py", "monitor.py", "log_monitor.py"):
        assert not [command for command in commands if f"{service} " in command], service


STARTS = """
import signal, time
import psutil, pyarrow as pa, ray
from jobs import planned_reads, ray_compat

def handler(*_): pass

def actors():
    titles = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return sorted(name for name in ("_StatsActor", "_Autoscaling") if f"ray::{name}" in str(titles))

signal.signal(signal.SIGTERM, handler)
with ray_compat.no_sigterm_handler(), ray_compat.no_idle_services():
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=1)
assert signal.getsignal(signal.SIGTERM) is handler, signal.getsignal(signal.SIGTERM)
plan = [pa.table({"n": [n]}) for n in range(3)]
read = planned_reads.dataset(plan, lambda table, number: [table], {}, num_cpus=0.1)
with ray_compat.no_cluster_services():
    assert sorted(row["n"] for row in read.take_all()) == [0, 1, 2]
    assert not actors(), actors()
assert sorted(row["n"] for row in read.take_all()) == [0, 1, 2]
for _ in range(600):  # they start meanwhile
    if len(actors()) == 2:
        break
    time.sleep(0.1)
assert len(actors()) == 2, actors()
"""


def test_a_start_keeps_the_handler_of_sigterm_and_goes_without_actors_for_clusters() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_ending_datasets_ends_their_threads() -> None:
    import ray.data
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    def running() -> list[threading.Thread]:
        return [
            t for t in threading.enumerate() if isinstance(t, StreamingExecutor) and t.is_alive()
        ]

    def slow(table: pa.Table) -> pa.Table:
        import time

        time.sleep(0.2)
        return table

    tables = [pa.table({"n": [n]}) for n in range(50)]
    rows = iter(ray.data.from_arrow(tables).map_batches(slow, batch_format="pyarrow").iter_rows())
    next(rows)
    assert running()
    ray_compat.end_datasets()
    for thread in running():
        thread.join(60)
    assert not running()


def test_the_context_has_the_limits_that_are_set() -> None:
    from ray.data import DataContext

    context = DataContext()
    ray_compat.set_in_flight_fraction(context, 0.125)
    ray_compat.set_actor_starts(context, 7)
    fields = DataContext.__dataclass_fields__
    assert {
        "override_object_store_memory_limit_fraction",
        "max_consecutive_actor_init_deaths",
        "execution_no_progress_timeout_s",
        "max_errored_blocks",
        "target_max_block_size",
        "enable_progress_bars",
    } <= fields.keys()
    assert context.override_object_store_memory_limit_fraction == 0.125


def test_a_stalled_dataset_names_its_stages() -> None:
    from ray.data.exceptions import ExecutionTimeoutError

    error = ExecutionTimeoutError("no progress\n  - ReadRange: 3 tasks\n  - Map: 1 task\n")
    assert ray_compat.stalled_stages(error) == ["ReadRange: 3 tasks", "Map: 1 task"]
    assert ray_compat.stalled_stages(ValueError("other")) is None


def test_an_error_in_a_worker_is_the_one_that_began_it() -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    def fails() -> None:
        try:
            raise KeyError("what the user has to know")
        except KeyError as error:
            raise ValueError("later") from error

    with pytest.raises(ValueError, match="later") as caught:
        ray.get(fails.remote())
    assert ray_compat.first_line(caught.value) == "KeyError: 'what the user has to know'"
    assert ray_compat.first_line(OSError("one\ntwo")) == "OSError: one"


def test_a_cluster_without_an_autoscaler_has_no_groups() -> None:
    assert ray_compat.autoscaler_groups() == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ray._private.node", "timed out during startup"),
        ("ray._private.runtime_env.working_dir", "working_dir_files"),
        ("ray._private.accelerators.accelerator", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"),
        ("ray.data._internal.cluster_autoscaler", "RAY_DATA_CLUSTER_AUTOSCALER"),
    ],
)
def test_texts_and_names_that_are_recognised_stand_in_rays_sources(module: str, text: str) -> None:
    from importlib import import_module

    assert text in Path(inspect.getfile(import_module(module))).read_text(encoding="utf-8")


def test_an_upload_is_recognised_by_its_folder() -> None:
    path: Any = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123/audio/a.wav"
    assert re.fullmatch(ray_compat.UPLOAD, path.removesuffix("/audio/a.wav"))
    assert ray_compat.UPLOAD.match(path) and not ray_compat.UPLOAD.match("/data/audio/a.wav")


def test_each_block_of_a_read_task_has_its_own_tables_when_the_task_is_run_again() -> None:
    ledger = start_ledger()

    @ray.remote(num_cpus=0)
    def reads() -> list[list[tuple[list[int], int]]]:
        """Run the task twice: its process dies behind the second block's first table."""
        begun = []
        for _ in range(2):
            first, second = ReadLedger(ledger, 0), ReadLedger(ledger, 1)
            begun.append([first.begin()])
            first.cut(7)
            first.end()
            begun[-1].append(second.begin())
            second.cut(3)
        return begun

    assert ray.get(reads.remote()) == [[([], 0), ([], 0)], [([7], 0), ([3], 1)]]
    end_ledger(ledger)
