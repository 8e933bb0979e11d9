"""Settings with which a table's labels were made, and changes of the code that make them stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_whisper
from runs import Job

from jobs.config_file import load_config
from jobs.plan import settings
from jobs.preflight import find_models


@pytest.mark.parametrize(("dtype", "is_changed"), [("float32", False), ("auto", True)])
def test_labels_that_whisper_made_in_half_precision_are_not_those_of_this_version(
    tmp_path: Path, dtype: str, is_changed: bool
) -> None:
    """Their languages were misread; those of float32, and of other models, are as they were."""
    task: dict[str, Any] = {"task": "automatic-speech-recognition", "dtype": dtype}
    job = Job(tmp_path, tiny_whisper(tmp_path / "whisper"))
    job.write(tasks={"words": task | {"model": str(tmp_path / "whisper")}})
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    assert made_with["label_version"] == 1
    assert made_with.get("half_precision_version") == ({"words": 2} if is_changed else None)


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ({}, {}),
        ({"on_damage": "keep", "max_damage": 0.1}, {}),
        ({"on_damage": "error"}, {"on_damage": "error"}),
        ({"max_damage": 0.5}, {"max_damage": 0.5}),
        ({"on_damage": "error", "max_damage": 0.5}, {"on_damage": "error"}),
    ],
)
def test_the_default_rules_for_damage_continue_a_table_that_knows_none(
    tmp_path: Path, audio: dict[str, Any], expected: dict[str, Any]
) -> None:
    task = {"task": "automatic-speech-recognition", "model": str(tmp_path / "whisper")}
    job = Job(tmp_path, tiny_whisper(tmp_path / "whisper"))
    job.write(tasks={"words": task}, audio=audio)
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    assert made_with["audio"] == {"max_clip_s": 14_400.0, **expected}
