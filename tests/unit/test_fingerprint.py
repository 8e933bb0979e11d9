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
    ("said", "options", "prompt"),
    [
        ({}, {}, None),
        ({"language": "german", "task": "transcribe"}, {}, None),
        ({"task": "translate"}, {"translate": True}, None),
        ({"task": "translate"}, {}, [None, [262]]),
        ({"task": "translate"}, {"translate": False}, None),
        ({"forced_decoder_ids": [[1, 259], [2, 263]]}, {}, None),
        ({"forced_decoder_ids": [[1, 259], [2, 262]]}, {}, ["de", [262]]),
        ({"forced_decoder_ids": [[1, 259], [2, 262]]}, {"language": "de"}, None),
        ({"forced_decoder_ids": [[1, 259]], "task": "transcribe"}, {}, [None, [263]]),
    ],
)
def test_labels_are_stale_where_another_task_or_language_was_taken_from_the_checkpoint(
    tmp_path: Path, said: dict[str, Any], options: dict[str, Any], prompt: Any
) -> None:
    """Before, its task and the order of what it says of itself were passed over."""
    folder = tiny_whisper(tmp_path / "whisper", **said)
    job = Job(tmp_path, folder)
    task = {"task": "automatic-speech-recognition", "dtype": "float32", "model": str(folder)}
    job.write(tasks={"words": task | options})
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    assert made_with.get("prompts") == (prompt and {"words": prompt})
