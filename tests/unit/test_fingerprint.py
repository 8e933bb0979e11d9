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


def test_tasks_with_a_reference_are_compared_anew(tmp_path: Path) -> None:
    """And no others: their labels are as they were."""
    task: dict[str, Any] = {"task": "automatic-speech-recognition", "dtype": "float32"}
    task["model"] = str(tiny_whisper(tmp_path / "whisper"))
    job = Job(tmp_path, tmp_path / "whisper")
    made_with = {}
    for name, tasks in {
        "none": {"words": task},
        "one": {"words": task, "compared": task | {"reference": "said"}},
    }.items():
        job.write(tasks=tasks)
        config = load_config(job.config)
        made_with[name] = settings(config, find_models(config, job.config))
    assert "reference_version" not in made_with["none"]
    assert made_with["one"]["reference_version"] == {"compared": 2}


@pytest.mark.parametrize(("generate", "is_changed"), [({}, False), ({"do_sample": True}, True)])
def test_tokens_that_were_drawn_have_other_scores(
    tmp_path: Path, generate: dict[str, Any], is_changed: bool
) -> None:
    task = {"task": "automatic-speech-recognition", "dtype": "float32", "generate": generate}
    job = Job(tmp_path, tiny_whisper(tmp_path / "whisper"))
    job.write(tasks={"words": task | {"model": str(tmp_path / "whisper")}})
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    assert made_with.get("sampling_version") == ({"words": 2} if is_changed else None)
