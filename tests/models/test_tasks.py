"""The promises of every task, whatever its model: a clip's labels are its own, and so are its faults."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from checkpoints import tiny_clap, tiny_classifier, tiny_whisper
from sounds import encode, tone

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import Budget, available_device, default_batch_s
from audio_ops.label import Label
from audio_ops.prepare import prepare
from audio_ops.tasks import load_task, task_names

SOUNDS = [(180.0, 0.5), (900.0, 1.3), (300.0, 0.2), (1500.0, 0.9), (420.0, 2.1)]  # Hz, seconds


def options_of(task: str, folder: Path) -> dict[str, Any]:
    """The least that a config has to say of each task."""
    if task == "automatic-speech-recognition":
        return {"model": str(tiny_whisper(folder)), "language": "de"}
    if task == "zero-shot-audio-classification":
        return {"model": str(tiny_clap(folder)), "candidate_labels": ["rain", "an engine"]}
    if task == "audio-classification":
        return {"model": str(tiny_classifier(folder, "wav2vec2", feat_extract_norm="layer"))}
    raise AssertionError(f"no model here for the task {task}: add one, so that it is tested")


@pytest.fixture(scope="module", params=task_names())
def label(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Label:
    given = options_of(request.param, tmp_path_factory.mktemp("model") / "checkpoint")
    return made(request.param, given)


def made(task: str, given: dict[str, Any]) -> Label:
    options = load_task(task).Options(task=task, dtype="float32", **given)
    return Label(
        "t", options, find_checkpoint(options.model), device=available_device(), batch_s=10_000.0
    )


def prepared(label: Label, sounds: list[bytes]) -> pa.Table:
    """Encoded sounds as the task's actor gets them."""
    clips = [({"clip_id": str(n)}, io.BytesIO(sound)) for n, sound in enumerate(sounds)]
    [table] = prepare(
        clips,
        schema=pa.schema([("clip_id", pa.string())]),
        rates=[label.model.sample_rate],
        max_clip_s=60.0,
        want_speech="always",
    )
    return table


def wavs() -> list[bytes]:
    return [encode(tone(seconds, hz=hz), 16_000, "wav") for hz, seconds in SOUNDS]


def labels(label: Label, sounds: list[bytes]) -> list[dict[str, Any]]:
    """The task's columns of each clip, and nothing else."""
    rows = label(prepared(label, sounds)).to_pylist()
    return [{k: v for k, v in row.items() if k.startswith("t_")} for row in rows]


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of a float32 that a batch adds up in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, abs=1e-4)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def test_a_clip_alone_is_labelled_as_among_others(label: Label) -> None:
    together = labels(label, wavs())
    alone = [labels(label, [sound])[0] for sound in wavs()]
    assert all(row["t_error"] is None for row in together)
    assert same(together, alone), (together, alone)
    assert not all(same(together[0], row) for row in together[1:]), "the model tells nothing apart"


@pytest.mark.parametrize("task", task_names())
def test_what_config_json_says_of_outputs_and_attention_changes_no_label(
    tmp_path: Path, task: str
) -> None:
    given = options_of(task, tmp_path / "checkpoint")
    expected = labels(made(task, given), wavs())
    config = Path(given["model"]) / "config.json"
    written = json.loads(config.read_text())
    said = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    for more in (said, {"attn_implementation": "flash_attention_2"}):
        config.write_text(json.dumps(written | more))
        assert same(labels(made(task, given), wavs()), expected)


def test_the_order_of_clips_changes_no_label(label: Label) -> None:
    assert same(labels(label, wavs()), labels(label, wavs()[::-1])[::-1])


def test_the_budget_of_a_batch_changes_no_label(label: Label) -> None:
    together = labels(label, wavs())
    label.runner.budget, budget = Budget(1.0), label.runner.budget
    try:
        assert same(together, labels(label, wavs()))
    finally:
        label.runner.budget = budget


def test_a_batch_has_a_budget_though_the_config_names_none(label: Label) -> None:
    on_cpu, on_gpu = (default_batch_s(label.model, device) for device in ("cpu", "cuda"))
    assert 0 < on_cpu < on_gpu


def test_a_clip_that_was_not_decoded_costs_its_neighbours_nothing(label: Label) -> None:
    sounds = wavs()
    broken = [*sounds[:2], b"no sound", *sounds[2:]]
    rows = labels(label, broken)
    assert all(value is None for value in rows.pop(2).values())
    assert same(rows, labels(label, sounds))


def test_a_clip_on_which_the_model_fails_is_an_error_alone(label: Label) -> None:
    model = label.model
    clips = label.clips(prepared(label, wavs()))
    doomed = len(clips[3].waveform)  # type: ignore[union-attr]

    class Failing:
        """The real model, which breaks on one length of sound."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def __call__(self, waveforms: Any, group: Any) -> Any:
            if any(len(waveform) == doomed for waveform in waveforms):
                raise RuntimeError("broken on purpose")
            return model(waveforms, group)

    expected = label.label(clips)
    label.runner.model = Failing()  # type: ignore[assignment]
    try:
        found = label.label(clips)
    finally:
        label.runner.model = model
    assert isinstance(found[3], ClipError) and found[3].kind == "model"
    assert same(found[:3] + found[4:], expected[:3] + expected[4:])


def test_what_is_returned_is_what_the_schema_says(label: Label) -> None:
    table = label(prepared(label, wavs()))
    for column, type_ in label.columns.items():
        assert table.schema.field(f"t_{column}").type == type_
        assert column in label.label(label.clips(prepared(label, wavs()[:1])))[0]  # type: ignore[operator]
