"""Real kills at many moments; then the same command again, and every clip is there once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import PATHS, ROOT, Job, Result, command
from test_table import by_id, opened

pytestmark = pytest.mark.timeout(1800)  # on two cores that others use as well

CLIPS = 24
PATIENCE_S = 400


class Running:
    """`earmark run`, or another program, as a process group of its own, with a Ray of its own."""

    def __init__(self, job: Job, *arguments: str, program: Sequence[str] = ()):
        self.mark = f"EARMARK_TEST={job.folder}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        self.said = job.folder / f"said-{time.monotonic_ns()}"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*(program or command("run")), str(job.config), *arguments],
                cwd=ROOT,
                env=os.environ | {name: value},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, reached: Callable[[], object], what: str) -> None:
        self._poll(lambda: reached() or self.process.poll() is not None, what)

    def end(self) -> Result:
        self._poll(lambda: self.process.poll() is not None, "the end of the run")
        return Result(self.process.returncode, self.said.read_text(errors="replace"))

    def processes(self) -> dict[int, str]:
        """All that this run has started and that still lives, by the mark in their environment."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (folder / "environ").read_bytes()
                if self.mark.encode() in environment.split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace").strip()
        return found

    def named(self, part: str) -> int | None:
        """The process whose command line has `part` in it."""
        return next((pid for pid, line in self.processes().items() if part in line), None)

    def leaves_nothing(self) -> None:
        """Wait until none of the run's processes is left."""
        self._poll(lambda: not self.processes(), lambda: f"the end of {self.processes()}")

    def stop(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _poll(self, reached: Callable[[], object], what: str | Callable[[], str]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not reached():
            if time.monotonic() > until:
                text = what if isinstance(what, str) else what()
                pytest.fail(f"waited {PATIENCE_S} s for {text}\n{self.said.read_text()}")
            time.sleep(0.005)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts runs, and leaves none of their processes behind, whatever the test comes to."""
    runs: list[Running] = []

    def starter(job: Job, *arguments: str, program: Sequence[str] = ()) -> Running:
        runs.append(Running(job, *arguments, program=program))
        return runs[-1]

    yield starter
    for run in runs:
        run.stop()


@pytest.fixture
def job(tmp_path: Path, classifier: Path) -> Job:
    """Many blocks of one clip, each committed as it comes, and one actor, which is slow to start."""
    job = Job(
        tmp_path,
        classifier,
        resources={"clips_per_block": 1, "commit_every_s": 0, "tasks": {"kind": {"actors": 1}}},
    )
    job.sounds(CLIPS, seconds=4.0)
    return job


def commits(job: Job, count: int) -> Callable[[], bool]:
    """Whether that many commits were made. A run makes two before the first of any labels."""
    return lambda: job.committed() >= count


def goes_on(job: Job, local_ray: None) -> None:
    """Run again: every clip exactly once, and nothing is left to do."""
    result = job.run("resources.clips_per_block=64")
    assert result.code == 0, result.text
    rows = job.by_name()
    assert set(rows) == {f"clip{n:03}.wav" for n in range(CLIPS)}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "nothing to do" in job.run().text


TIDY = f"""
import sys
sys.path[:0] = {PATHS!r}
from pathlib import Path
from test_table import labelled, opened, written
table = opened(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    table.commit(written(table, labelled({{f"{{n}}": None for n in [number]}})))
table.tidy()
"""


@pytest.mark.parametrize("compacted", [False, True])
def test_a_driver_killed_while_it_tidies_loses_nothing(tmp_path: Path, compacted: bool) -> None:
    """Before and after the files are made one, which leaves the old ones to be removed."""
    count, table = 30, tmp_path / "table"
    with subprocess.Popen(
        [sys.executable, "-c", TIDY, str(tmp_path), str(count)], cwd=ROOT
    ) as process:
        pattern, wanted = ("*-c000.*parquet", 1) if compacted else ("part-*.parquet", count)
        while len(list(table.glob(pattern))) < wanted and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    again = opened(tmp_path)
    again.tidy()
    again.release()
    assert again.is_tidy()
    assert len(by_id(again)) in (count - 1, count)  # the last one may not have been committed
    assert len(pq.read_table(table)) == len(by_id(again))


@pytest.mark.chaos
def test_a_run_outlives_a_killed_model_actor(job: Job, start: Callable[..., Running]) -> None:
    run = start(job)
    run.wait_for(commits(job, 3), "the first labels")
    actor = run.named("MapWorker") or run.named("(Label)")
    if actor:  # else the run was over before
        os.kill(actor, signal.SIGKILL)
    result = run.end()
    assert result.code == 0, result.text
    assert f"{CLIPS} found = 0 already done + {CLIPS} labelled + 0 failed" in result.text
    assert len(job.rows()) == CLIPS
    run.leaves_nothing()


IN_ONE_TASK = """
import sys
from jobs import label, planned_reads
planned_reads.MOST_TASKS = 1
sys.exit(label.main(sys.argv[1:]))
"""


@pytest.mark.chaos
@pytest.mark.parametrize("blocks", [1, 6])
def test_a_run_outlives_readers_that_die_again_and_again(
    job: Job, start: Callable[..., Running], blocks: int
) -> None:
    """Also if a clip cannot be read the second time: its table may have been labelled already."""
    kills, clips = 6, 60
    for n in range(clips):
        job.sound(f"clip{n:03}.wav", 150 + 37 * n, seconds=20.0 + 2 * n)
    job.write(
        resources={
            "clips_per_block": clips // blocks,
            "commit_every_s": 0,
            "in_flight_mb": 1,  # each table waits until a model takes it
            "tasks": {"kind": {"actors": 1}},
        }
    )
    run = start(job, program=[sys.executable, "-c", IN_ONE_TASK])
    for kill in range(kills):
        run.wait_for(lambda: run.named("ray::ReadClips"), f"reader {kill}")
        if kill == 0:
            run.wait_for(commits(job, 3), "the first labels")
            (job.audio / "clip000.wav").write_bytes(b"no sound")
        elif kill > 1:
            time.sleep(0.3)
        if reader := run.named("ray::ReadClips"):
            os.kill(reader, signal.SIGKILL)
            run.wait_for(lambda: reader not in run.processes(), "its end")
    result = run.end()
    assert result.code == 0, result.text
    assert f"{clips} found = 0 already done + {clips} labelled + 0 failed" in result.text
    assert {row["status"] for row in job.rows().values()} == {"ok"}


@pytest.mark.chaos
def test_a_relabelling_that_was_killed_goes_on(
    job: Job, start: Callable[..., Running], local_ray: None
) -> None:
    assert job.run("resources.clips_per_block=64").code == 0
    before = job.by_name()
    earlier = job.committed()
    run = start(job, "--relabel", "--set", "tasks.kind.top_k=2")
    run.wait_for(commits(job, earlier + 3), "some relabelled clips, after two commits of its own")
    run.process.kill()
    assert run.end().code == -signal.SIGKILL  # and Ray's agents outlive it by a minute
    now = ("tasks.kind.top_k=2", "resources.clips_per_block=64")
    assert job.run(*now).code == 0  # now the table's own settings
    after = job.by_name()
    assert set(after) == set(before)
    assert all(len(row["kind_labels"]) == 2 for row in after.values())
    assert len({row["kind_fingerprint"] for row in after.values()}) == 1


@pytest.mark.parametrize(
    ("number", "code", "to_group"),
    [
        pytest.param(signal.SIGINT, 130, True, marks=pytest.mark.chaos, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, False, id="sigterm"),
    ],
)
def test_a_signal_commits_what_is_finished_and_ends_the_run(
    job: Job,
    start: Callable[..., Running],
    local_ray: None,
    number: signal.Signals,
    code: int,
    to_group: bool,
) -> None:
    run = start(job)
    run.wait_for(commits(job, 4), "commit 4")
    if to_group:  # as a terminal does
        os.killpg(run.process.pid, number)
    else:
        run.process.send_signal(number)
    result = run.end()
    assert result.code == code, result.text
    assert "the same command continues" in result.text
    assert len(job.rows()) >= 2  # and both readers agree
    run.leaves_nothing()
    if to_group:  # after a SIGTERM: see test_submit.py
        goes_on(job, local_ray)


@pytest.mark.chaos
def test_a_signal_while_ray_starts_ends_the_run_as_well(
    job: Job, start: Callable[..., Running]
) -> None:
    run = start(job)
    run.wait_for(lambda: run.named("gcs_server"), "Ray's first process")
    run.process.send_signal(signal.SIGTERM)
    assert run.end().code == 143
    run.leaves_nothing()
    assert not (job.table / "_earmark" / "holder.json").exists()


def test_a_second_signal_ends_it_at_once(job: Job, start: Callable[..., Running]) -> None:
    run = start(job)
    run.wait_for(commits(job, 2), "the table to be held")
    for _ in range(200):
        if run.process.poll() is not None:
            break
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert run.end().code == 130
    run.leaves_nothing()
