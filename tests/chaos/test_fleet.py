"""A fleet of machines with GPUs, which come and go, and one driver that commits what they label.

32 nodes on one machine take 11 GiB (a node 0.3: Ray's three processes, an actor and an idle worker) and on
two busy cores 7 minutes, most of it for the start of 150 processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fleet
import numpy as np
import pytest
from runs import Job, earmark
from sounds import encode
from test_cluster import Running, actors, drain

NODES = 32
CLIPS = 4_800
CLIPS_PER_BLOCK = 10

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head of four CPUs, on which the driver runs and clips are read; ends with all its nodes."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", fleet.WORKERS_PATH)  # of the workers on each node
    head = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 512 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.mark.chaos
def test_a_fleet_whose_nodes_come_and_go_labels_each_clip_once(
    cluster: Any, tmp_path: Path, classifier: Path
) -> None:
    def node() -> Any:
        """A machine with a GPU, whose only CPU its model takes."""
        return cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20, wait=False)

    nodes = [node() for _ in range(NODES * 3 // 4)]
    cluster.wait_for_nodes(300)
    job = Job(
        tmp_path,
        classifier,
        resources={
            "clips_per_block": CLIPS_PER_BLOCK,
            "prepare_cpus": 1.5,  # more than a machine with a GPU has
            "tasks": {"kind": {"num_gpus": 1, "num_cpus": 1, "actors": {"min": 1, "max": NODES}}},
        },
    )
    for n in range(CLIPS):
        sound = np.full(1_600 + n, 0.25, np.float32)
        (job.audio / f"{n:05}.wav").write_bytes(encode(sound, fleet.RATE, "wav"))
    line = [sys.executable, fleet.__file__, str(job.config)]
    run = Running(job, cluster.address, line=line)
    try:
        run.wait_for(lambda: len(job.files()) >= len(nodes), "the first labels")
        nodes += [node() for _ in range(NODES - len(nodes))]
        run.wait_for(lambda: any(map(actors, nodes[NODES * 3 // 4 :])), "an actor on a new node")
        for gone in nodes[: NODES // 4]:
            cluster.remove_node(gone, allow_graceful=False)
            before = len(job.files())
            run.wait_for(lambda: len(job.files()) > before, "labels after the death of a node")  # noqa: B023
        drain(cluster, nodes[NODES // 4])
        cluster.remove_node(nodes[NODES // 4], allow_graceful=False)
        result = run.end()
    finally:
        run.process.kill()
        run.process.wait()
    assert result.code == 0, result.text
    assert f"{CLIPS:,} found = 0 already done + {CLIPS:,} labelled + 0 failed" in result.text
    labels = {name: row["kind_label"] for name, row in job.by_name().items()}
    assert labels == {f"{n:05}.wav": str(1_600 + n) for n in range(CLIPS)}
    verified = earmark("verify", job.table)
    assert verified.returncode == 0, verified.stdout
