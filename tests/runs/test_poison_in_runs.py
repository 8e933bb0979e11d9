"""Clips that kill their decoder or their model, in a whole run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from poison import constant, wav
from runs import ROOT, Job, command
from test_poison import left_over, site, until  # noqa: F401  # the fixture


def poisoned_job(folder: Path, model: Path, clips: int, **harms: int) -> tuple[Job, dict[str, str]]:
    """A job over so many clips with two tasks, of which `kind` dies of what `other` survives.

    Returns it with the harm in each clip that has one, evenly strewn.
    """
    job = Job(folder, model, max_error_fraction=0.5)
    weak = job.sections["tasks"]["kind"]
    job.write(tasks={"kind": weak, "other": {**weak, "top_k": 2}})
    strewn = [harm.replace("_", " ") for harm, count in harms.items() for _ in range(count)]
    at = {n * clips // len(strewn): harm for n, harm in enumerate(strewn)}
    values = {"model segfault": 0.75, "model exit": 0.5, "model gpu": 0.25}
    for n in range(clips):
        harm = at.get(n, "")
        constant_value = values.get(harm)
        (job.audio / f"{n:05}.wav").write_bytes(
            wav(0.05, 100 + n % 1000, harm) if constant_value is None else constant(constant_value)
        )
    return job, {f"{n:05}.wav": harm for n, harm in at.items()}


def check_rows(job: Job, clips: int, harms: dict[str, str]) -> None:
    """Every clip has its row, each harmed one its error, and all others both labels."""
    rows = job.by_name()
    assert len(rows) == clips
    for name, row in rows.items():
        harm = harms.get(name, "")
        if not harm:
            assert row["status"] == "ok" and row["kind_label"] and row["other_label"], row
        elif harm.startswith("model"):
            assert row["status"] == "partial" and row["other_label"], row
            assert row["kind_error"].startswith("crashed: "), row
        else:
            kind = {"loop": "timeout", "memory": "memory"}.get(harm, "crashed")
            assert (row["status"], row["error_kind"]) == ("error", kind), row


def run_poisoned(job: Job, site: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    settings = [part for override in overrides for part in ("--set", override)]
    return subprocess.run(
        command("run", job.config, *settings),
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.timeout(1800)  # on two cores that others use as well
def test_a_run_outlives_poison_for_its_decoder_and_for_its_model(
    tmp_path: Path, site: Path, classifier: Path
) -> None:
    job, harms = poisoned_job(
        tmp_path / "job", classifier, 40, segfault=1, loop=1, memory=1, model_gpu=1
    )
    done = run_poisoned(job, site, "audio.decode_timeout_s=10", "audio.decode_memory_mb=256")
    assert done.returncode == 0, done.stdout + done.stderr
    check_rows(job, 40, harms)
    until(lambda: not left_over(site))
