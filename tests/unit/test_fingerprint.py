"""Settings with which a table's labels were made, and changes of the code that make them stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_classifier, tiny_whisper
from prompted import tiny_qwen3
from runs import Job

from jobs.config_file import load_config
from jobs.fingerprints import LATER_OPTIONS, changes, difference, settings
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
    assert made_with["one"]["reference_version"] == {"compared": 3}


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_options_that_came_later_continue_a_table_that_knows_none(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Unless they are set."""
    task: dict[str, Any] = {"task": "automatic-speech-recognition", **options}
    task["model"] = str(tiny_whisper(tmp_path / "whisper"))
    job = Job(tmp_path, tmp_path / "whisper")
    job.write(tasks={"words": task})
    config = load_config(job.config)
    options_now = config.tasks["words"]
    made_with = settings(config, find_models(config, job.config))["tasks"]["words"]
    later = LATER_OPTIONS["automatic-speech-recognition"]
    assert set(type(options_now).model_fields) - {"revision"} == {*made_with, *later}
    assert not set(made_with) & set(later)
    checkpoints = find_models(config, job.config)
    for name in later:
        value: Any = name == "punctuation" or "x"
        changed = options_now.model_copy(update={name: value})
        anew = config.model_copy(update={"tasks": {"words": changed}})
        assert settings(anew, checkpoints)["tasks"]["words"] == {**made_with, name: value}


def test_a_recognisers_new_labels_change_its_own_tables_alone(tmp_path: Path) -> None:
    """Their suspects are found by segment; a classifier's labels are as they were."""
    tiny_whisper(tmp_path / "whisper")
    tiny_classifier(tmp_path / "wav2vec2", "wav2vec2")
    job = Job(tmp_path, tmp_path / "whisper")
    tasks = {
        "words": {"task": "automatic-speech-recognition", "model": str(tmp_path / "whisper")},
        "kind": {"task": "audio-classification", "model": str(tmp_path / "wav2vec2")},
    }
    job.write(tasks=tasks)
    config = load_config(job.config)
    both = settings(config, find_models(config, job.config))
    assert list(both["task_version"]) == ["words"]
    before = {key: value for key, value in both.items() if key != "task_version"}
    [line] = difference(before, both)
    assert line == (
        'task_version.words: absent in the table, "suspects are found by segment, 3" in this run'
    )
    assert changes(before, both) == {"words": [line]}  # and `kind` is done
    job.write(tasks={"kind": tasks["kind"]})
    config = load_config(job.config)
    assert "task_version" not in settings(config, find_models(config, job.config))


RAW = {"encoding": "mulaw", "sample_rate": 8000}


@pytest.mark.parametrize(
    ("said", "options", "left"),
    [
        ({}, {}, None),
        ({"return_timestamps": True}, {}, ["timestamps"]),
        ({"return_timestamps": True}, {"timestamps": "none"}, None),
        ({"task": "translate"}, {}, ["translate"]),
        ({"task": "translate"}, {"translate": False}, None),
        ({"task": "transcribe"}, {}, None),
    ],
)
def test_an_option_that_is_left_to_the_checkpoint_is_not_its_default(
    tmp_path: Path, said: dict[str, Any], options: dict[str, Any], left: list[str] | None
) -> None:
    """A config that sets `translate: false` has other labels than one that leaves it out."""
    folder = tiny_whisper(tmp_path / "whisper")
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | said))
    task: dict[str, Any] = {"task": "automatic-speech-recognition", "model": str(folder)}
    job = Job(tmp_path, folder)
    job.write(tasks={"words": task | options})
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    assert made_with.get("left_to_checkpoint") == (left and {"words": left})


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ({}, {}),
        ({"on_damage": "keep", "max_damage": 0.1}, {}),
        ({"on_damage": "error"}, {"on_damage": "error"}),
        ({"max_damage": 0.5}, {"max_damage": 0.5}),
        ({"on_damage": "error", "max_damage": 0.5}, {"on_damage": "error"}),
        (
            {"raw": {"extensions": ["u"]} | RAW},
            {"raw": [{"extensions": ["u"], "channels": 1} | RAW]},
        ),
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


@pytest.mark.parametrize(("options", "is_changed"), [({}, True), ({"max_new_tokens": 99}, False)])
def test_texts_that_were_cut_off_are_not_those_of_this_version(
    tmp_path: Path, options: dict[str, Any], is_changed: bool
) -> None:
    """Qwen3-ASR's windows of up to 3 minutes had no more than 512 tokens."""
    task: dict[str, Any] = {"task": "automatic-speech-recognition", "dtype": "float32", **options}
    tasks = {}
    for name, make in {"asked": tiny_qwen3, "words": tiny_whisper}.items():
        tasks[name] = task | {"model": str(make(tmp_path / name))}
    job = Job(tmp_path, tmp_path / "words")
    job.write(tasks=tasks)
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    assert made_with.get("limit_version") == ({"asked": 2} if is_changed else None)
