"""Drivers that are killed again and again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from deltalake import DeltaTable
from runs import Job
from test_kill import Running, commits, goes_on, job, start  # noqa: F401  # fixtures

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.chaos
def test_a_driver_killed_again_and_again_loses_nothing_and_leaves_no_process(
    job: Job, start: Callable[..., Running], local_ray: None
) -> None:
    """While Ray starts, after some labels; at last the whole group."""
    done: set[str] = set()
    for more, kill in ((1, os.kill), (3, os.kill), (4, os.killpg)):
        run = start(job)
        run.wait_for(commits(job, job.committed() + more), f"{more} more commits")
        kill(run.process.pid, signal.SIGKILL)
        assert run.end().code == -signal.SIGKILL
        run.leaves_nothing()
        ids = DeltaTable(str(job.table)).to_pyarrow_table(columns=["clip_id"])["clip_id"]
        assert done <= set(ids.to_pylist())  # what is committed stays
        assert len(ids) == len(set(ids.to_pylist()))
        done |= set(ids.to_pylist())
    goes_on(job, local_ray)
