"""Nodes that come, go, or share no disk while a run goes on."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import Job
from test_cluster import CLIPS, Running, actors, add_other_disk, cluster, drain, job, start  # noqa: F401  # fixtures

pytestmark = pytest.mark.timeout(900)


@pytest.mark.chaos
def test_a_run_grows_onto_new_nodes_and_outlives_those_that_die(
    job: Job, cluster: Any, start: Callable[..., Running]
) -> None:
    clips = 200
    job.sounds(clips, seconds=20.0)
    windows = {"window_s": 0.2, "hop_s": 0.01}  # many: nodes come and go while the model works
    job.write(tasks={"kind": job.sections["tasks"]["kind"] | windows})
    run = start(job)  # on the head alone, which has room for one actor
    run.wait_for(lambda: job.committed() >= 5, "the first labels")
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    run.wait_for(lambda: any(map(actors, nodes)), "an actor on a new node")
    nodes.sort(key=actors)
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    before = job.committed()
    run.wait_for(lambda: job.committed() >= before + 5, "labels after the death of a node")
    drain(cluster, nodes[0])
    cluster.remove_node(nodes[0], allow_graceful=False)
    result = run.end()
    assert result.code == 0, result.text
    assert f"{clips} found = 0 already done + {clips} labelled + 0 failed" in result.text
    rows = job.by_name()
    assert set(rows) == {f"clip{n:03}.wav" for n in range(clips)}
    assert {row["status"] for row in rows.values()} == {"ok"}


@pytest.mark.chaos
def test_a_run_that_lost_its_only_large_node_says_so_and_ends(
    job: Job, cluster: Any, start: Callable[..., Running]
) -> None:
    large = cluster.add_node(num_cpus=2)
    wish = {"actors": 1, "num_cpus": 1.5}
    job.write(
        resources=job.sections["resources"] | {"tasks": {"kind": wish}, "stalled_after_s": 60}
    )
    run = start(job)
    run.wait_for(lambda: job.committed() >= 5, "the first labels")
    cluster.remove_node(large, allow_graceful=False)
    result = run.end()
    assert result.code == 1, result.text
    assert "waiting for nodes: the models ask for 1.5 CPUs and reading for 0.25" in result.text
    assert "resources.stalled_after_s" in result.text
    assert "MapBatches(ModelActor)" in result.text  # the stage that stands still
    assert 1 <= len(job.rows()) < CLIPS  # what was finished is committed
    [summary] = (job.table / "_runs").iterdir()
    summed = json.loads(summary.read_text())
    assert (summed["stopped"], summed["exit_code"]) == ("stalled", 1)
    assert summed["clips"]["labelled"] == len(job.rows())


@pytest.mark.chaos
@pytest.mark.parametrize("what", ["output.path", "input.path", "tasks.kind.model"])
def test_a_node_that_joins_later_and_does_not_share_a_path_ends_the_run(
    job: Job,
    classifier: Path,
    what: str,
    start: Callable[..., Running],
    add_other_disk: Callable[[Path], None],
) -> None:
    """Rather than to commit rows that nobody can read, or errors of clips that are all right."""
    disk = job.folder / "disk"
    job.sounds(200, seconds=20.0)
    windows = {"window_s": 0.2, "hop_s": 0.004}  # so many that more actors are wanted
    job.write(tasks={"kind": job.sections["tasks"]["kind"] | windows})
    shutil.copytree(job.audio, disk / "audio")
    shutil.copytree(classifier, disk / "model")
    path = {"output.path": "table", "input.path": "audio", "tasks.kind.model": "model"}[what]
    table = disk / "table" if what == "output.path" else job.table
    run = start(job, f"--set={what}={disk / path}")
    run.wait_for(lambda: len(list(table.glob("_delta_log/*.json"))) >= 4, "the first labels")
    add_other_disk(disk)
    result = run.end()
    assert result.code == 1, result.text
    assert f"node {socket.gethostname()}" in result.text
    assert what.split(".")[-1] in result.text
    rows = pq.read_table(table).to_pylist()
    assert 0 < len(rows) < 200 and {row["status"] for row in rows} == {"ok"}
