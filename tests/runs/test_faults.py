"""Runs that are killed at every point where it could matter; then the next one, and every row."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import (
    IN_USE,
    PATIENCE_S,
    Signal,
    Work,
    assert_exact,
    assert_unchanged,
    context,
    end,
    run,
    start,
)
from runs import PATHS, ROOT
from s3 import S3, s3  # noqa: F401  # the fixture
from s3_proxy import Proxy, flaky
from tables import existing

from jobs.reports.verify import verify

pytestmark = pytest.mark.timeout(1800)

Place = Callable[[], dict[str, Any]]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.chaos)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Where a new table may lie."""
    if request.param == "local":
        return {"path": str(tmp_path / "table")}
    s3: S3 = request.getfixturevalue("s3")
    bucket = f"faults-{uuid.uuid4().hex[:8]}"
    s3.bucket(bucket)
    return {"path": f"s3://{bucket}/table", "storage_options": s3.resolved}


ONCE = ("taking", "saying who", "compaction", "letting go")
OFTEN = ("writing", "commit", "rewriting", "removal")
KILLS = [Signal(point, after) for point in ONCE for after in (False, True)]
KILLS += [Signal(point, after, nth) for point in OFTEN for after in (False, True) for nth in (1, 2)]
LABEL_KILLS = [
    *(Signal("creating", after) for after in (False, True)),
    *(k if k.nth == 1 else pytest.param(k, marks=pytest.mark.chaos) for k in KILLS),
]
RELABEL_KILLS = [
    *(Signal("changing settings", after) for after in (False, True)),
    *(pytest.param(kill, marks=pytest.mark.chaos) for kill in KILLS),
]


def killed(work: Work, kill: Signal) -> None:
    """A run is killed there, and nothing that a reader has seen is lost, doubled or changed."""
    before = work.rows() if work.table() else None
    assert end(start(work, kill)) == -signal.SIGKILL, f"it never came to {kill}"
    if work.table() is None:
        return
    between = work.rows()
    if before:
        assert_unchanged(before, between)
    report = verify(existing(work.path, work.storage_options))
    assert not report.faults
    assert run(work) == 0
    assert_unchanged(between, work.rows())
    assert_exact(work)


@pytest.mark.parametrize("kill", LABEL_KILLS, ids=str)
def test_a_run_that_was_killed_goes_on(place: dict[str, Any], kill: Signal) -> None:
    """New clips, some that have changed since they were labelled, and a task that is new to all."""
    work = Work(**place)
    if kill.point != "creating":
        assert run(replace(work, clips=40)) == 0
    killed(replace(work, changed=35, mood=1), kill)


@pytest.mark.parametrize("kill", RELABEL_KILLS, ids=str)
def test_a_relabelling_that_was_killed_goes_on(place: dict[str, Any], kill: Signal) -> None:
    """Of all clips by a task and one that reads its labels, and a first labelling of some."""
    work = Work(**place, mood=1)
    assert run(replace(work, clips=40)) == 0
    killed(replace(work, setting=2), kill)


DROP_KILLS = [
    Signal(p, after) for p in ("dropping", "changing settings") for after in (False, True)
]


@pytest.mark.parametrize("kill", [*DROP_KILLS, Signal("rewriting")], ids=str)
def test_a_drop_that_was_killed_goes_on(place: dict[str, Any], kill: Signal) -> None:
    work = Work(**place, mood=1)
    assert run(work) == 0
    work = replace(work, mood=0, clips=120)
    assert run(replace(work, clips=110)) == 0
    assert work.rows()["mood_label"].null_count == 20
    killed(replace(work, drop=("mood",)), kill)
    assert "mood_label" not in work.rows().column_names
    assert "left" not in existing(work.path, work.storage_options).settings()


def looked_at(work: Work, seen: Any) -> Any:
    """The rows by now, if there is a table: none of those `seen` before has changed, and whatever
    became of the last run, nothing is wrong but what it left behind.
    """
    if work.table() is None:
        return seen
    rows = work.rows()
    if seen is not None:
        assert_unchanged(seen, rows)
    assert not verify(existing(work.path, work.storage_options)).faults
    return rows


def killed_at_random(work: Work, kills: int, span_s: float) -> None:
    """Runs are killed one after another, each at most `span_s` after its start, until all is done
    often enough; whenever one comes to its end, the next one labels everything anew."""
    moments = random.Random(7)
    seen = None
    while kills:
        process = start(work)
        process.join(moments.uniform(0, span_s))
        process.kill()
        if end(process) == 0:
            assert_exact(work)
            work = replace(work, setting=work.setting + 1)
            continue
        kills -= 1
        seen = looked_at(work, seen)
    assert run(work) == 0
    assert_exact(work)


def test_runs_killed_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    work = Work(str(tmp_path / "table"), clips=2_000, per_file=100)
    killed_at_random(work, kills=8, span_s=0.7)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.chaos)])
def test_of_runs_with_different_settings_at_once_one_labels(
    place: dict[str, Any], count: int, exists: bool
) -> None:
    works = [Work(**place, setting=n) for n in range(1, count + 1)]
    if exists:
        assert run(Work(**place, clips=40, setting=0)) == 0
    gate = context.Barrier(count)
    processes = [start(work, gate=gate) for work in works]
    codes = [end(process) for process in processes]
    assert sorted(codes) == [0] + [IN_USE] * (count - 1)
    assert_exact(works[codes.index(0)])


SLEEPS = [
    *(Signal(p, number=signal.SIGSTOP) for p in ("commit", "rewriting", "compaction", "listing")),
    Signal("writing", after=True, number=signal.SIGSTOP),
    Signal("removal", number=signal.SIGSTOP),
]


@pytest.mark.parametrize("sleep", SLEEPS, ids=str)
def test_a_run_that_slept_while_another_took_over_harms_nothing(
    place: dict[str, Any], sleep: Signal, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(**place)
    assert run(replace(work, clips=40)) == 0
    sleeper = start(replace(work, clips=80, changed=35), sleep)
    wait_until_stopped(sleeper)
    work = replace(work, changed=45)
    assert run(work) == IN_USE  # it was heard of a moment ago
    with monkeypatch.context() as patch:
        patch.setattr("jobs.table.lease.HOLDER_IS_DEAD_S", 0.0)
        assert run(work) == 0
    assert_exact(work)
    os.kill(sleeper.pid, signal.SIGCONT)
    # One that had nothing left to do but to remove what it had seen to be left over, does so.
    assert end(sleeper) == (0 if sleep.point == "removal" else IN_USE)
    assert_exact(work)


def wait_until_stopped(process: Any) -> None:
    until = time.monotonic() + PATIENCE_S
    while process.is_alive() and " T " not in Path(f"/proc/{process.pid}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert process.is_alive(), process.exitcode


def goes_on_over(flaky_s3: Proxy, s3: S3, bucket: str, requests: int) -> None:
    """Runs over the flaky server, each labelling everything anew once the one before is through,
    until it has been asked that often."""
    s3.bucket(bucket)
    direct = Work(f"s3://{bucket}/table", s3.resolved, changed=10)
    codes = []
    seen = None
    while flaky_s3.counts().requests < requests:
        codes.append(end(start(replace(direct, storage_options=flaky_s3.s3.resolved))))
        seen = looked_at(direct, seen)
        if codes[-1] == 0:
            assert_exact(direct)
            direct = replace(direct, setting=direct.setting + 1)
    assert run(direct) == 0
    assert_exact(direct)
    assert set(codes) <= {0, 1} and codes.count(1) <= len(codes) // 10, codes


@pytest.mark.chaos
def test_runs_over_a_flaky_server_end_and_go_on(s3: S3, tmp_path: Path) -> None:
    with flaky(s3, tmp_path / "log", share=0.2, spoils="/part-") as proxy:
        goes_on_over(proxy, s3, "flaky", 200)


@pytest.mark.chaos
def test_a_commit_whose_answer_is_lost_is_found_in_the_log(s3: S3, tmp_path: Path) -> None:
    """Of every commit of three runs: new clips, changed ones, other settings. Nor is any version
    read at the first try."""
    s3.bucket("lost")
    direct = Work("s3://lost/table", s3.resolved, clips=40)
    with flaky(s3, tmp_path / "log", spoils="_delta_log/") as proxy:
        more = replace(direct, clips=60, changed=10)
        for work in (direct, more, replace(more, setting=2)):
            assert end(start(replace(work, storage_options=proxy.s3.resolved))) == 0
            assert_exact(work)
        faults = proxy.counts().faults
    assert min(faults[fault] for fault in ("lost", "lost-500", "cut")) > 2, faults


WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
FULL_DISK = """
import os, subprocess, sys
from dataclasses import replace
from faults import Work, assert_exact, run
from tables import existing
from jobs.reports.verify import verify

folder = sys.argv[1]
mount = ["mount", "-t", "tmpfs", "-o"]
subprocess.run([*mount, "size=400k", "none", folder], check=True)
work = Work(f"{folder}/table", clips=40)
assert run(work) == 0
work = replace(work, clips=3_000, per_file=50)
committed = 40
for _ in range(2):  # the second finds even less room
    try:
        run(work)
        raise SystemExit("expected a full disk")
    except OSError as error:
        assert "No space left on device" in str(error) and work.path in str(error), str(error)
        assert len(str(error).splitlines()) == 1
    assert committed <= len(work.rows())
    committed = len(work.rows())
    assert not verify(existing(work.path)).faults
subprocess.run([*mount, "remount,size=64m", "none", folder], check=True)
assert run(work) == 0
assert_exact(work)
print(committed, flush=True)
os._exit(0)
"""
A_DISK_OF_ONES_OWN = ["unshare", "--map-root-user", "--mount"]


@pytest.mark.skipif(
    subprocess.run([*A_DISK_OF_ONES_OWN, "mount", "-t", "tmpfs", "none", "/mnt"]).returncode != 0,
    reason="this machine lets nobody mount a small disk of their own",
)
def test_a_full_disk_is_named_and_with_room_the_next_run_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [*A_DISK_OF_ONES_OWN, sys.executable, "-c", FULL_DISK, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *PATHS])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # what found room was committed


@pytest.mark.parametrize("part", ["", "_delta_log", "_earmark"])
def test_a_folder_that_may_not_be_written_any_more_is_named(tmp_path: Path, part: str) -> None:
    work = Work(str(tmp_path / "table"), clips=40)
    assert run(work) == 0
    before = work.rows()
    work = replace(work, clips=90, changed=10)
    Path(work.path, part).chmod(0o555)
    prefix = WITHOUT_ROOTS_RIGHTS if os.getuid() == 0 else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", f"import faults; faults.run(faults.{work})"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *PATHS])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    Path(work.path, part).chmod(0o755)
    last = done.stderr.strip().splitlines()[-1]
    assert "Permission denied" in last and str(Path(work.path, part)) in last, done.stderr
    assert work.rows().equals(before)
    assert verify(existing(work.path)).is_intact
    assert run(work) == 0
    assert_exact(work)


def test_what_a_killed_compaction_leaves_is_removed(tmp_path: Path) -> None:
    """delta-rs writes to a name with #1 behind it, which pyarrow takes for a data file."""
    work = Work(str(tmp_path / "table"))
    assert run(work) == 0
    Path(work.path, "part-00000-c000.zstd.parquet#1").write_bytes(b"half")
    assert not verify(existing(work.path)).is_intact
    assert run(work) == 0
    assert_exact(work)
