"""The head of a cluster dies under a run that has joined it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable
from runs import Job
from test_kill import Running, commits
from test_kill import start as start  # a fixture
from test_submit import free_ports

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_a_run_whose_head_has_died_says_so_and_keeps_what_is_committed(
    tmp_path: Path,
    classifier: Path,
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray itself would end it a minute later, without a word and without a summary."""
    job = Job(tmp_path, classifier, resources={"clips_per_block": 1, "commit_every_s": 0})
    job.sounds(400)
    port, client = free_ports(2)
    ray = Path(sys.executable).parent / "ray"
    options = [
        *("--num-cpus=2", "--include-dashboard=false", "--object-store-memory=268435456"),
        *(f"--port={port}", f"--ray-client-server-port={client}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    with (tmp_path / "head").open("wb") as said:
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", *options],
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        run = start(job, "--summary", str(tmp_path / "summary.json"))
        run.wait_for(commits(job, 6), "the first labels")
        assert run.process.poll() is None, run.said.read_text() + (tmp_path / "head").read_text()
        found = subprocess.run(["pgrep", "-f", f"gcs_server.*{port}"], capture_output=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
        result = run.end()
        assert result.code == 1, result.text
        told = re.search(
            r"error: the Ray cluster at .* is gone; (\d+) clips are committed", result.text
        )
        assert told, result.text
        committed = DeltaTable(str(job.table)).to_pyarrow_table()  # uncommitted files may lie there
        assert len(committed) == int(told[1]) > 0
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["exit_code"], summary["stopped"]) == (1, "failed")
        assert summary["clips"]["labelled"] == int(told[1])
        assert not (job.table / "_earmark" / "holder.json").exists()
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
