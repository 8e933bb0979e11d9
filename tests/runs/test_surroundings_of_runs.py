"""A whole run where little of what usually surrounds a process is there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

from runs import ROOT, Job, command


def test_a_run_needs_neither_home_nor_audience_nor_short_paths_nor_a_clean_folder(
    tmp_path: Path, classifier: Path
) -> None:
    """In a folder whose modules have the names of ours and of our libraries."""
    job = Job(tmp_path, classifier)
    job.sounds(3)
    project, temporary = tmp_path / "project", tmp_path / ("long" * 20)
    (project / "jobs").mkdir(parents=True)
    temporary.mkdir()
    for name in ("jobs/__init__.py", "audio_ops.py", "yaml.py", "pyarrow.py"):
        (project / name).write_text("raise RuntimeError('the user\\'s own module was imported')\n")
    unset = {"HOME", "USER", "LOGNAME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "RAY_TMPDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    summary = tmp_path / "summary.json"
    run = shlex.join([*command("run", job.config, "--summary", summary)])
    done = subprocess.run(
        ["bash", "-c", f"{run} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        cwd=project,
        env=environment | {"HOME": "/dev/null", "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no log in the home folder") and done.stderr == ""
    document = json.loads(summary.read_text())
    assert document["exit_code"] == 0 and document["clips"]["ok"] == 3
    log = Path(document["log"])
    assert log.is_relative_to(temporary)
    assert "TMPDIR is too long for Ray's sockets" in log.read_text()
    assert len(job.rows()) == 3
