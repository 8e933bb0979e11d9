"""Whole runs with a Ray of their own whose parts are killed, or that are started at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import IN_USE, Signal
from runs import PATHS, Job
from tables import existing
from test_kill import Running, commits, start  # noqa: F401  # the fixture

from jobs.reports.verify import verify

pytestmark = pytest.mark.timeout(3600)

CLIPS = 60
Start = Callable[..., Running]


@pytest.fixture
def job(tmp_path: Path, classifier: Path) -> Job:
    """Many blocks of few clips, each committed as it comes."""
    resources = {"clips_per_block": 2, "commit_every_s": 0}
    job = Job(tmp_path, classifier, resources=resources)
    job.sounds(CLIPS, seconds=1.0)
    return job


def assert_exact(job: Job, count: int = CLIPS) -> None:
    """Every clip once and labelled, to both readers, in a table that is whole."""
    rows = job.by_name()
    assert set(rows) == {f"clip{n:03}.wav" for n in range(count)}
    assert {row["status"] for row in rows.values()} == {"ok"}
    report = verify(existing(job.table))
    assert report.is_intact, (report.faults, report.leftovers)


def kill_workers(run: Running, job: Job, names: dict[str, int], moments: random.Random) -> int:
    """Kill that many of the processes with these names, one whenever something more is committed."""
    killed = 0
    while sum(names.values()) and run.process.poll() is None:
        alive = {
            pid: name
            for pid, line in run.processes().items()
            for name, left in names.items()
            if left and name in line
        }
        if not alive:
            time.sleep(0.01)
            continue
        pid = moments.choice(sorted(alive))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            names[alive[pid]] -= 1
            killed += 1
        run.wait_for(commits(job, job.committed() + 1), "one more commit")
    return killed


@pytest.mark.chaos
def test_runs_outlive_thirty_kills_of_workers_and_actors(job: Job, start: Start) -> None:
    """Ray names a process after what it does; a model's actor is a MapWorker."""
    moments, killed, round_ = random.Random(11), 0, 0
    while killed < 30:
        round_ += 1
        run = start(job, "--relabel", "--set", f"tasks.kind.top_k={round_ % 5 + 1}")
        names = {"ReadClips": 4, "MapWorker": 4}
        killed += kill_workers(run, job, names, moments)
        result = run.end()
        assert result.code == 0, result.text
        run.leaves_nothing()
        assert_exact(job)
        assert round_ <= 15, killed


# `earmark run` that sends itself a signal where `faults.rig` is told to.
RIGGED = """
import sys
from faults import Signal, rig

rig({send})
from jobs.exit_codes import exit_with
from jobs.label import main
exit_with(main(sys.argv[1:]))
"""
IN_DRIVER = ("taking", "saying who", "commit", "compaction", "removal", "letting go")


@pytest.mark.chaos
@pytest.mark.parametrize(
    "kill",
    [
        Signal(point, after)
        for point in ("creating", "changing settings", "rewriting", *IN_DRIVER)
        for after in (False, True)
    ],
    ids=str,
)
def test_a_whole_run_that_was_killed_goes_on(
    job: Job,
    start: Start,
    kill: Signal,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = []
    if kill.point in ("changing settings", "rewriting"):
        assert job.run().code == 0
        options = ["--relabel", "--set", "tasks.kind.top_k=2"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
    run = start(
        job, *options, program=[sys.executable, "-c", RIGGED.format(send=f"Signal{kill[:3]}")]
    )
    assert run.end().code == -signal.SIGKILL
    run.leaves_nothing()
    overrides = options[2:]
    result = job.run(*overrides, relabel=bool(options))
    assert result.code == 0, result.text
    assert_exact(job)
    assert "nothing to do" in job.run(*overrides).text


@pytest.mark.chaos
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("count", [2, 8])
def test_of_whole_runs_started_at_once_one_labels(
    job: Job,
    start: Start,
    count: int,
    exists: bool,
    local_ray: None,
) -> None:
    if exists:
        assert job.run("input.path=" + str(job.audio / "clip00*.wav")).code == 0
    runs = [start(job) for _ in range(count)]
    results = [run.end() for run in runs]
    labelled = [r for r in results if "labelled +" in r.text]
    others = [r for r in results if r not in labelled]
    assert len(labelled) == 1 and labelled[0].code == 0, results
    assert all(r.code == IN_USE or "nothing to do" in r.text for r in others), results
    assert_exact(job)


@pytest.mark.chaos
def test_a_driver_that_slept_while_another_took_over_ends_with_75(
    job: Job,
    start: Start,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers go on while it sleeps, and write what nobody may commit any more."""
    run = start(job)
    run.wait_for(commits(job, 4), "some commits")
    os.kill(run.process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.table.lease.HOLDER_IS_DEAD_S", 0.0)
        result = job.run()
    assert result.code == 0, result.text
    os.kill(run.process.pid, signal.SIGCONT)
    late = run.end()
    assert late.code == IN_USE, late.text
    assert "was taken over" in late.text
    run.leaves_nothing()
    assert_exact(job)
