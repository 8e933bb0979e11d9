"""Languages that Whisper detects, in a whole run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from runs import Job
from test_languages import base, spoken  # noqa: F401  # fixtures


def test_a_run_at_its_default_dtype_says_which_language_is_spoken(
    base: Path, spoken: dict[str, list[Path]], tmp_path: Path, local_ray: None
) -> None:
    transcript = {"task": "automatic-speech-recognition", "model": str(base)}
    job = Job(tmp_path, base, tasks={"t": transcript})
    for language, files in spoken.items():
        for number, file in enumerate(files):
            shutil.copyfile(file, job.audio / f"{language}{number}.wav")
    result = job.run()
    assert result.code == 0, result.text
    rows = job.by_name()
    assert {name: row["t_language"] for name, row in rows.items()} == {
        name: name[:2] for name in rows
    }
    assert "enter your agent number" in rows["en0.wav"]["t_text"]
    assert "por favor" in rows["es0.wav"]["t_text"].lower()
    assert np.all([row["t_no_speech"] < 0.6 for row in rows.values()])
