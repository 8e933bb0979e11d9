"""Clips that kill models and decoders, in bulk."""

from __future__ import annotations

from pathlib import Path

import pytest
from poison import constant
from test_poison import left_over, site, until  # noqa: F401  # the fixture
from test_poison_in_runs import check_rows, poisoned_job, run_poisoned


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_run_outlives_two_clips_of_one_block_that_kill_its_model(
    tmp_path: Path, site: Path, classifier: Path
) -> None:
    job, harms = poisoned_job(tmp_path / "job", classifier, 100, segfault=1, model_exit=1)
    (job.audio / "00051.wav").write_bytes(constant(0.25))  # beside the last one
    harms["00051.wav"] = "model gpu"
    done = run_poisoned(job, site)
    assert done.returncode == 0, done.stdout + done.stderr
    check_rows(job, 100, harms)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_model_that_dies_of_everything_ends_the_run(
    tmp_path: Path, site: Path, classifier: Path
) -> None:
    job, _ = poisoned_job(tmp_path / "job", classifier, 40, model_exit=1)
    (site / "all").touch()
    done = run_poisoned(job, site, "resources.tasks.kind.actors=1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "tasks.kind: the model's process died 10 times in a row" in done.stdout
    until(lambda: not left_over(site))


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_ten_thousand_clips_and_one_poison(tmp_path: Path, site: Path, classifier: Path) -> None:
    for harm in ("segfault", "exit", "loop", "memory", "model_segfault"):
        job, harms = poisoned_job(tmp_path / harm, classifier, 10_000, **{harm: 1})
        done = run_poisoned(job, site, "audio.decode_timeout_s=30", "audio.decode_memory_mb=256")
        assert done.returncode == 0, done.stdout + done.stderr
        check_rows(job, 10_000, harms)
