"""NaN and Inf in whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hearing import sound
from runs import Job
from sounds import encode
from test_families import ASR, FAMILIES
from test_not_finite import ENTRANCES, HELP, change


def test_a_run_goes_on_past_a_clip_that_overflows(tmp_path: Path, local_ray: None) -> None:
    folder = tmp_path / "moonshine"
    folder.mkdir()
    change(FAMILIES["moonshine"].make(folder), ENTRANCES["moonshine"])
    job = Job(
        tmp_path, folder, tasks={"said": {"task": ASR, "model": str(folder), "dtype": "float16"}}
    )
    waves = {"tone.wav": sound(1.0, 300), "silence.wav": np.zeros(16_000, np.float32)}
    for name, wave in waves.items():
        (job.audio / name).write_bytes(encode(wave[None], 16_000, "wav"))
    result = job.run("max_error_fraction=0.5")
    assert result.code == 0, result.text
    rows = job.by_name()
    assert HELP in rows["tone.wav"]["said_error"]
    assert (rows["tone.wav"]["said_text"], rows["tone.wav"]["said_score"]) == (None, None)
    assert (rows["tone.wav"]["status"], rows["tone.wav"]["error_kind"]) == ("error", "model")
    assert rows["silence.wav"]["status"] == "ok" and rows["silence.wav"]["said_score"] > 0
