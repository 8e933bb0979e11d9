"""Runs on a real Ray of several nodes, which come and go while the run goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, Job, Result, command

from jobs.resources import MAX_GROUP_NODES, nodes_to_come

pytestmark = pytest.mark.timeout(900)

CLIPS = 40
PATIENCE_S = 300


class Running:
    """`earmark run`, or another command `line`, as a process on a cluster."""

    def __init__(
        self, job: Job, address: str, *arguments: str, line: Sequence[str] | None = None
    ) -> None:
        self.said = job.folder / "said"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                line or command("run", job.config, *arguments),
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": address},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, reached: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, f"ended before {what}: {self.text()}"
            assert time.monotonic() < until, f"waited for {what}: {self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def end(self) -> Result:
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"waited for its end: {self.text()}")
        return Result(self.process.returncode, self.text())


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head of one CPU, on which the driver runs; ends with all its nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def start(cluster: Any) -> Iterator[Callable[..., Running]]:
    runs: list[Running] = []

    def starter(job: Job, *arguments: str) -> Running:
        runs.append(Running(job, cluster.address, *arguments))
        return runs[-1]

    yield starter
    for run in runs:
        run.process.kill()
        run.process.wait()


@pytest.fixture
def job(tmp_path: Path, classifier: Path) -> Job:
    """Many blocks of one clip, each committed as it comes."""
    job = Job(
        tmp_path,
        classifier,
        resources={
            "clips_per_block": 1,
            "commit_every_s": 0,
            "tasks": {"kind": {"actors": {"min": 1, "max": 4}}},
        },
    )
    job.sounds(CLIPS, seconds=20.0)
    return job


def actors(node: Any) -> int:
    """How many model actors live on a node."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            raylets = [p.process.pid for p in node.all_processes.get("raylet", ())]
            found += b"MapWorker" in line and int(parent) in raylets
    return found


def drain(cluster: Any, node: Any) -> None:
    """Announce that a node goes in a second, as a cloud does of a spot machine."""
    announcement = {
        "address": cluster.address,
        "node-id": node.node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "spot",
        "deadline-remaining-seconds": 1,
    }
    ray = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    options = [f"--{name}={value}" for name, value in announcement.items()]
    subprocess.run([*ray, *options], check=True, capture_output=True)


@pytest.fixture
def add_other_disk(cluster: Any, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Adds a node of one CPU to the head, with a disk of its own at the folder that is given."""
    nodes: list[subprocess.Popen[bytes]] = []
    said = tmp_path / "node"

    def add(folder: Path) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        with said.open("wb") as output:
            nodes.append(
                subprocess.Popen(
                    [
                        *("unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"'),
                        *(folder, *ray, f"--address={cluster.address}"),
                        "--object-store-memory=134217728",
                    ],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
        until = time.monotonic() + PATIENCE_S
        while sum(node["Alive"] for node in cluster.global_state.node_table()) < 2:
            assert nodes[-1].poll() is None and time.monotonic() < until, said.read_text()
            time.sleep(0.1)

    yield add
    for node in nodes:
        node.terminate()
        node.wait(60)


def test_local_paths_that_a_node_does_not_share_are_refused_before_the_run(
    job: Job,
    classifier: Path,
    start: Callable[..., Running],
    add_other_disk: Callable[[Path], None],
) -> None:
    disk = job.folder / "disk"
    shutil.copytree(job.audio, disk / "audio")
    shutil.copytree(classifier, disk / "model")
    add_other_disk(disk)
    elsewhere = {
        "output.path": disk / "table",
        "input.path": disk / "audio",
        "tasks.kind.model": disk / "model",
    }
    result = start(job, *(f"--set={key}={path}" for key, path in elsewhere.items())).end()
    assert result.code == 2, result.text
    for key in elsewhere:
        assert f"{key}: expected storage that node {socket.gethostname()} (" in result.text
    assert not list((disk / "table").glob("*.parquet"))
    assert not list((disk / "table" / "_earmark").iterdir())
    result = start(job).end()  # where all that it names is shared
    assert result.code == 0, result.text
    assert {row["status"] for row in job.rows().values()} == {"ok"} and len(job.rows()) == CLIPS
    assert {path.name for path in (job.table / "_earmark").iterdir()} == {"totals.parquet"}


def test_what_an_autoscaler_can_add_is_known(local_ray: None) -> None:
    """As Ray's autoscaler tells the cluster's store."""
    from ray._private.worker import global_worker
    from ray._raylet import (
        GCS_AUTOSCALER_CLUSTER_CONFIG_KEY as KEY,
    )
    from ray._raylet import (
        GCS_AUTOSCALER_STATE_NAMESPACE as NAMESPACE,
    )
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    assert nodes_to_come() == []
    groups = [
        NodeGroupConfig(name="gpu", max_count=3, resources={"CPU": 8, "GPU": 1}),
        NodeGroupConfig(name="none", max_count=0, resources={"CPU": 64}),
        NodeGroupConfig(name="any", max_count=-1, resources={"CPU": 2}),
    ]
    told = ClusterConfig(node_group_configs=groups).SerializeToString()
    store = global_worker.gcs_client
    store.internal_kv_put(KEY.encode(), told, True, NAMESPACE.encode())
    try:
        assert nodes_to_come() == [{"CPU": 8, "GPU": 1}] * 3 + [{"CPU": 2}] * MAX_GROUP_NODES
    finally:
        store.internal_kv_del(KEY.encode(), False, NAMESPACE.encode())
    assert nodes_to_come() == []
