"""A hundred kills, five thousand requests to a flaky server, workers without rights."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from faults import (
    Work,
)
from runs import ROOT, Job, command
from s3 import S3, s3  # noqa: F401  # the fixture
from s3_proxy import flaky
from tables import existing
from test_faults import WITHOUT_ROOTS_RIGHTS, goes_on_over, killed_at_random

from jobs.reports.verify import verify

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.chaos
def test_a_hundred_runs_killed_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    work = Work(str(tmp_path / "table"), clips=20_000, per_file=200)
    killed_at_random(work, kills=100, span_s=3.0)


@pytest.mark.chaos
def test_five_thousand_requests_to_a_flaky_server(s3: S3, tmp_path: Path) -> None:
    with flaky(s3, tmp_path / "log", share=0.2, spoils="/part-") as proxy:
        goes_on_over(proxy, s3, "flakier", 5_000)


# What root may do all the same is taken from it.


@pytest.mark.chaos
def test_a_run_whose_workers_may_not_write_says_so_and_the_next_goes_on(
    tmp_path: Path, classifier: Path, local_ray: None
) -> None:
    """Whole: the driver can write to the log, the workers can't write their data files."""
    job = Job(tmp_path, classifier)
    job.sounds(3)
    assert job.run().code == 0
    before = job.rows()
    job.sounds(6)
    job.table.chmod(0o555)
    prefix = WITHOUT_ROOTS_RIGHTS if os.getuid() == 0 else []
    done = subprocess.run(
        [*prefix, *command("run", job.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    job.table.chmod(0o755)
    assert done.returncode == 1, done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert "Permission denied" in line and f"{job.table}/part-" in line, done.stdout
    assert job.rows() == before
    assert verify(existing(job.table)).is_intact
    assert job.run().code == 0
    assert len(job.rows()) == 6
    assert verify(existing(job.table)).is_intact
