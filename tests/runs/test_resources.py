"""Shares of the cluster: every machine can run, or is told what it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT, Job, earmark

from jobs.config import Config
from jobs.config_file import load_config
from jobs.resources import CannotRun, Shares, missing_resources, part_in_flight, share_out
from jobs.workers.model_actor import environment


def config(folder: Path, count: int = 1, **resources: Any) -> Config:
    path = folder / "job.yaml"
    task = {"task": "audio-classification", "model": "x"}
    content = {
        "input": {"path": "/in"},
        "tasks": {f"task{n}": task for n in range(count)},
        "output": {"path": "/out"},
        "resources": resources,
    }
    path.write_text(yaml.safe_dump(content))
    return load_config(path)


def claimed(shares: Shares) -> tuple[float, float]:
    """CPUs and GPUs that the models hold to the end."""
    tasks = shares.tasks.values()
    return (
        sum(task.actors * task.num_cpus for task in tasks),
        sum(task.actors * task.num_gpus for task in tasks),
    )


@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("cpus", [1, 2, 4, 7, 8, 16, 64, 200])
def test_reading_always_finds_a_cpu_beside_the_models(
    tmp_path: Path, cpus: int, tasks: int, gpus: int
) -> None:
    shares = share_out(config(tmp_path, tasks), [{"CPU": cpus, "GPU": gpus}])
    held_cpus, held_gpus = claimed(shares)
    assert held_cpus + shares.prepare_cpus <= cpus + 1e-6
    assert held_gpus <= gpus + 1e-6
    for task in shares.tasks.values():
        assert task.actors >= 1 and task.num_cpus > 0 and task.threads >= 1
        assert bool(task.num_gpus) == bool(gpus)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_small_machine_gives_its_model_an_actor_per_cpu(tmp_path: Path, cpus: int) -> None:
    [task] = share_out(config(tmp_path), [{"CPU": cpus}]).tasks.values()
    assert (task.actors, task.threads) == (cpus, 1)


def test_actors_are_no_more_than_are_worth_it_and_then_have_all_threads(tmp_path: Path) -> None:
    [task] = share_out(config(tmp_path), [{"CPU": 4}], 1).tasks.values()
    assert (task.actors, task.threads) == (1, 4)


def test_actors_are_no_more_than_memory_has_room_for(tmp_path: Path) -> None:
    [task] = share_out(config(tmp_path), [{"CPU": 64, "memory": 32 << 30}]).tasks.values()
    assert 8 <= task.actors <= 11
    assert 4 <= task.threads <= 8
    assert task.actors * task.threads <= 64


def test_each_gpu_gets_an_actor(tmp_path: Path) -> None:
    shares = share_out(config(tmp_path), [{"CPU": 64, "GPU": 8}])
    [task] = shares.tasks.values()
    assert (task.actors, task.num_gpus) == (8, 1)


def test_tasks_share_a_gpu_that_is_alone(tmp_path: Path) -> None:
    shares = share_out(config(tmp_path, 2), [{"CPU": 8, "GPU": 1}])
    assert [(task.actors, task.num_gpus) for task in shares.tasks.values()] == [(1, 0.5)] * 2


def test_the_configs_own_figures_are_taken(tmp_path: Path) -> None:
    wish = {"actors": 3, "num_cpus": 0.5, "batch_s": 12}
    shares = share_out(config(tmp_path, tasks={"task0": wish}, prepare_cpus=0.5), [{"CPU": 4}])
    [task] = shares.tasks.values()
    assert (task.actors, task.num_cpus, task.batch_s, shares.prepare_cpus) == (3, 0.5, 12, 0.5)


@pytest.mark.parametrize(
    ("available", "resources", "missing"),
    [
        ({"CPU": 2}, {"tasks": {"task0": {"num_gpus": 2}}}, "ask for 2 GPUs, the cluster has 0"),
        ({"CPU": 8, "GPU": 1}, {"tasks": {"task0": {"num_gpus": 1, "actors": 2}}}, "2 GPUs"),
        ({"CPU": 2}, {"tasks": {"task0": {"num_cpus": 2}}}, "ask for 2 CPUs and reading for 0.25"),
        ({"CPU": 2}, {"tasks": {"task0": {"num_cpus": 1, "actors": 2}}}, "the cluster has 2"),
        ({"CPU": 2}, {"prepare_cpus": 3}, "reading for 3"),
        ({"GPU": 1}, {}, "the cluster has 0"),
    ],
)
def test_what_cannot_be_had_is_refused_and_named(
    tmp_path: Path, available: dict[str, float], resources: dict[str, Any], missing: str
) -> None:
    with pytest.raises(CannotRun) as caught:
        share_out(config(tmp_path, **resources), [available])
    assert missing in str(caught.value)
    assert "resources" in str(caught.value)


CLUSTERS = [
    [{"CPU": 2}] * 4,
    [{"CPU": 1}] * 9,
    [{"CPU": 16}, {"CPU": 2}, {"CPU": 2}],
    [{"CPU": 4}, *[{"CPU": 8, "GPU": 1}] * 3],
    [{"CPU": 2}, {"CPU": 2, "GPU": 4}],
    [{"CPU": 64}] * 20,
    [{"CPU": 16}, *[{"CPU": 4, "GPU": 1}] * 8],
]


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize(
    "nodes",
    [
        *([{"CPU": cpus}] for cpus in (2, 4, 7, 8, 16, 64)),
        [{"CPU": 2}] * 4,
        [{"CPU": 1}] * 9,
        [{"CPU": 4}, *[{"CPU": 16}] * 8],
        [{"CPU": 0}, *[{"CPU": 64}] * 3],
    ],
)
def test_actors_of_nodes_that_died_leave_room_to_read(
    tmp_path: Path, nodes: list[dict[str, float]], tasks: int
) -> None:
    """However many of them Ray starts on a node that is left."""
    shares = share_out(config(tmp_path, tasks), nodes)
    claims = {task.num_cpus for task in shares.tasks.values()}
    for left in (node["CPU"] for node in nodes if node["CPU"]):
        while any(claim <= left + 1e-6 for claim in claims):
            left -= next(claim for claim in claims if claim <= left + 1e-6)
        assert left >= shares.prepare_cpus - 1e-6, shares


@pytest.mark.parametrize("useful", [1, 1 << 30])
@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("nodes", CLUSTERS)
def test_every_actor_finds_a_node_and_reading_too(
    tmp_path: Path, nodes: list[dict[str, float]], tasks: int, useful: int
) -> None:
    """By a placement of its own: the actors one by one onto the emptiest node that has room."""
    shares = share_out(config(tmp_path, tasks), nodes, useful)
    free = [[node["CPU"], node.get("GPU", 0)] for node in nodes]
    needs = [
        (task.num_gpus, task.num_cpus) for task in shares.tasks.values() for _ in range(task.actors)
    ]
    for num_gpus, num_cpus in sorted(needs, reverse=True):
        fitting = [n for n in free if n[0] >= num_cpus - 1e-6 and n[1] >= num_gpus - 1e-6]
        assert fitting, (shares, free)
        node = min(fitting) if num_gpus else min(fitting, key=lambda n: (n[1], n[0]))
        node[0] -= num_cpus
        node[1] -= num_gpus
    assert max(cpus for cpus, _ in free) >= shares.prepare_cpus - 1e-6


@pytest.mark.parametrize(
    ("nodes", "wish", "missing"),
    [
        ([{"CPU": 2}] * 4, {"num_cpus": 4}, "4 CPUs, the largest node has 2 CPUs"),
        ([{"CPU": 8, "GPU": 1}] * 2, {"num_gpus": 2}, "8 CPUs"),
        ([{"CPU": 8}, {"CPU": 1, "GPU": 1}], {"num_gpus": 1, "num_cpus": 2}, "and 1 GPUs"),
    ],
)
def test_an_actor_too_large_for_every_node_is_refused_and_named(
    tmp_path: Path, nodes: list[dict[str, float]], wish: dict[str, float], missing: str
) -> None:
    with pytest.raises(CannotRun) as caught:
        share_out(config(tmp_path, tasks={"task0": wish}), nodes)
    assert f"do not fit on the cluster's {len(nodes)} nodes" in str(caught.value)
    assert missing in str(caught.value)


def test_an_actor_may_wait_for_a_node_that_an_autoscaler_can_add(tmp_path: Path) -> None:
    wish = {"num_gpus": 1, "actors": {"min": 1, "max": 8}}
    asks = config(tmp_path, tasks={"task0": wish})
    with pytest.raises(CannotRun):
        share_out(asks, [{"CPU": 8}])
    [task] = share_out(asks, [{"CPU": 8}], future_nodes=[{"CPU": 8, "GPU": 1}] * 8).tasks.values()
    assert (task.actors, task.max_actors, task.num_gpus) == (1, 8, 1)


def test_a_pool_that_may_grow_leaves_room_to_do_so(tmp_path: Path) -> None:
    wish = {"actors": {"min": 1, "max": 4}}
    [task] = share_out(config(tmp_path, tasks={"task0": wish}), [{"CPU": 2}]).tasks.values()
    assert (task.actors, task.max_actors) == (1, 4)
    assert 2 * task.num_cpus <= 2


def test_a_run_whose_nodes_went_lacks_what_no_node_has(tmp_path: Path) -> None:
    shares = share_out(config(tmp_path, 2), [{"CPU": 4}, {"CPU": 8, "GPU": 4}])
    assert missing_resources(shares, [{"CPU": 4}, {"CPU": 8, "GPU": 2}], one_each=True) == []
    [missing] = missing_resources(shares, [{"CPU": 4}], one_each=True)
    assert "GPUs, the cluster has 0" in missing


def test_two_gpus_on_a_machine_with_none_fail_at_once_with_exit_2(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(1)
    result = job.run("resources.tasks.kind.num_gpus=2")
    assert result.code == 2
    assert "the models ask for 2 GPUs, the cluster has 0" in result.text
    assert job.run("resources.tasks.kind.num_gpus=2").code == 2  # and not 75: the table was let go


@pytest.mark.parametrize("cpus", [1, pytest.param(4, marks=pytest.mark.chaos)])
def test_a_run_ends_on_a_machine_of_few_cpus(tmp_path: Path, classifier: Path, cpus: int) -> None:
    job = Job(tmp_path, classifier)
    task = job.sections["tasks"]["kind"]
    job.write(tasks={"kind": task, "mood": task} if cpus == 1 else {"kind": task})
    job.sounds(6)
    done = run_on(f"num_cpus={cpus}", job, "resources.clips_per_block=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["status"] for row in job.rows().values()} == {"ok"}
    assert len(job.rows()) == 6


def run_on(
    machine: str, job: Job, *overrides: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The job as a process of its own, on a Ray that counts what `machine` says."""
    script = (
        "import ray, sys;"
        f"ray.init('local', {machine}, include_dashboard=False, log_to_driver=False,"
        " object_store_memory=128 << 20, logging_level='ERROR');"
        "from jobs.exit_codes import exit_with; from jobs.label import run;"
        "code = run(sys.argv[1], sys.argv[2:]); ray.shutdown(); exit_with(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, str(job.config), *overrides],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


NOTES = """
import os
names = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "CUDA_VISIBLE_DEVICES")
line = " ".join(str(os.environ.get(name)) for name in names)
with open({file!r}, "a") as notes:
    notes.write(line + "\\n")
"""


def test_a_task_without_gpus_sees_none_and_runs_on_the_cpu(
    tmp_path: Path, classifier: Path
) -> None:
    """Nor does what decodes, on a node with two GPUs."""
    job = Job(tmp_path, classifier, resources={"tasks": {"kind": {"num_gpus": 0}}})
    job.sounds(2)
    notes = tmp_path / "notes"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOTES.format(file=str(notes)))
    paths = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    done = run_on("num_cpus=2, num_gpus=2", job, PYTHONPATH=paths, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["status"] for row in job.rows().values()} == {"ok"}
    started = {line.rstrip("\n") for line in notes.read_text().splitlines()}
    assert f"1 {1 << 40} " in started  # a model's actor
    assert f"None {16 << 20} " in started  # a process that decodes
    assert "None None 0,1" in started  # and the driver


def test_an_actor_with_a_gpu_that_torch_cannot_use_ends_the_run_and_says_what_to_do(
    tmp_path: Path, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(2)
    done = run_on(
        "num_cpus=2, num_gpus=2", job, CUDA_VISIBLE_DEVICES="98,99"
    )  # no machine has them
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: RuntimeError: tasks.kind: expected a GPU on node" in done.stdout
    assert "resources.tasks.kind.num_gpus: 0 to run on CPUs" in done.stdout
    assert not job.files()
    [file] = (job.table / "_runs").glob("*.json")
    summary = json.loads(file.read_text())
    assert (summary["exit_code"], summary["stopped"]) == (1, "failed")
    assert "expected a GPU on node" in summary["error"] and summary["clips"]["left"] == 2


def store(cpus: float, mib: int, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "object_store_memory": mib << 20}


def test_sound_on_its_way_has_room_by_the_cpus_that_read_it(tmp_path: Path) -> None:
    default = config(tmp_path)
    assert part_in_flight(default, [store(2, 8192)]) == 128 / 8192
    assert part_in_flight(default, [store(2, 8192)] * 10) == 128 / 8192
    assert part_in_flight(default, [store(16, 32768, gpus=1)]) == 8192 / 32768
    assert part_in_flight(default, [store(64, 1024)]) == 0.5
    assert part_in_flight(default, [store(0, 4096), store(2, 8192)]) == 128 / 8192
    assert part_in_flight(default, [store(0, 4096)]) == 0.5  # a head whose workers are to come
    asked = config(tmp_path, in_flight_mb=1000)
    assert part_in_flight(asked, [store(2, 4000), store(2, 1000)]) == 0.2
    with pytest.raises(CannotRun, match=r"in_flight_mb: expected at most 900, .* found 1000"):
        part_in_flight(asked, [store(64, 900)])


def test_reading_waits_for_room(tmp_path: Path, local_ray: None, classifier: Path) -> None:
    """Else 77 MB of sound would be there before the model is."""
    import ray

    job = Job(tmp_path, classifier)
    first = job.sound("0.wav", 440, seconds=10)
    for number in range(1, 240):
        (job.audio / f"{number}.wav").hardlink_to(first)
    held, ended = [0.0], threading.Event()

    def watch() -> None:
        whole = ray.cluster_resources()["object_store_memory"]
        while not ended.wait(0.2):
            held.append(whole - ray.available_resources().get("object_store_memory", 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert job.run("resources.in_flight_mb=8", "resources.clips_per_block=8").code == 0
    finally:
        ended.set()
        watcher.join()
    assert len(job.rows()) == 240
    assert 0 < max(held) < 32e6


def test_an_object_store_has_the_size_that_the_config_gives_it(
    tmp_path: Path, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, resources={"object_store_mb": 96, "in_flight_mb": 97})
    job.sounds(2)
    refused = earmark("run", job.config)
    assert refused.returncode == 2
    assert "resources.in_flight_mb: expected at most 96, the size of the object" in refused.stdout


def test_a_clusters_object_store_is_not_for_the_config_to_size(
    tmp_path: Path, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, resources={"object_store_mb": 96})
    job.sounds(2)
    refused = earmark("run", job.config, env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"})
    assert refused.returncode == 2
    assert "resources.object_store_mb: expected none where Ray runs already" in refused.stdout


TOUCH = """
import resource, threading
import numpy as np

faults = []

def work():
    for _ in range(12):
        np.ones(12_500_000)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults[-1] - faults[1])
"""


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_models_process_on_cpus_keeps_the_memory_that_it_had(on_gpu: bool) -> None:
    variables = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment(1, on_gpu)
    said = subprocess.run([sys.executable, "-c", TOUCH], env=variables, capture_output=True)
    pages = int(said.stdout)
    assert pages > 10_000 if on_gpu else pages < 100
