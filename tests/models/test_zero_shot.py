"""CLAP, fused and not, against transformers' own pipeline and feature extractor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from checkpoints import tiny_clap

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.tasks import Clip
from audio_ops.tasks import zero_shot_audio_classification as task

RATE = 48_000
NAMES = ("dog", "a church bell far away", "rain", "speech")


@pytest.fixture(scope="module", params=["unfused", "fused"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clap(tmp_path_factory.mktemp(request.param), fused=request.param == "fused")


@pytest.fixture(scope="module")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clap(tmp_path_factory.mktemp("clap"))


def sound(seconds: float, frequency: float = 440.0) -> np.ndarray:
    """A noisy, swelling tone as float32 `(samples,)`."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(int(frequency)).standard_normal(len(time))
    tone = 0.3 * np.sin(2 * np.pi * frequency * time) + 0.1 * noise * np.sin(3 * time)
    return tone.astype(np.float32)


def options(folder: Path | str = "m", **changes: Any) -> task.Options:
    settings = {"model": str(folder), "candidate_labels": NAMES, "dtype": "float32", **changes}
    return task.Options(task="zero-shot-audio-classification", **settings)


def labeller(folder: Path, **changes: Any) -> Label:
    made, checkpoint = options(folder, **changes), find_checkpoint(str(folder))
    task.check(made, checkpoint)
    return Label("sound", made, checkpoint, device=available_device(), batch_s=1e6)


def labels(folder: Path, *sounds: np.ndarray, row: Any = None, **changes: Any) -> list[Any]:
    clips = [Clip(wave, len(wave) / RATE, row=row or {}) for wave in sounds]
    return labeller(folder, **changes).label(clips)


def pipeline_of(folder: Path) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("zero-shot-audio-classification", model=str(folder), dtype=torch.float32)


def assert_same(found: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert found["labels"] == [answer["label"] for answer in expected]
    assert found["scores"] == pytest.approx([answer["score"] for answer in expected], abs=1e-4)
    assert (found["label"], found["score"]) == (found["labels"][0], found["scores"][0])


def test_labels_are_the_pipelines_and_do_not_depend_on_the_batch(folder: Path) -> None:
    sounds = [sound(10, 200), sound(2.37, 900), sound(0.01), sound(7.3, 3000)]
    label, pipe = labeller(folder), pipeline_of(folder)
    clips = [Clip(wave, len(wave) / RATE) for wave in sounds]
    mixed: list[Any] = label.label(clips)
    backwards: list[Any] = label.label(clips[::-1])
    for index, clip in enumerate(clips):
        assert_same(mixed[index], pipe(clip.waveform, candidate_labels=list(NAMES)))
        alone: Any = label.label([clip])[0]
        for other in (alone, backwards[len(clips) - 1 - index]):
            assert other["labels"] == mixed[index]["labels"]
            assert other["scores"] == pytest.approx(mixed[index]["scores"], abs=1e-5)
    assert len({tuple(np.round(found["scores"], 3)) for found in mixed}) == len(clips)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_log_mel_is_the_feature_extractors(folder: Path, padding: str) -> None:
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor.from_pretrained(folder, padding=padding)
    silence = np.zeros(RATE, np.float32)
    sounds = [sound(10), sound(4.9, 100), sound(0.01), silence, 1e-4 * sound(3, 5000)]
    found = task.LogMel(extractor, available_device())(sounds).cpu()
    expected = extractor(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def test_a_fused_model_beside_an_extractor_that_crops_is_the_pipelines(tmp_path: Path) -> None:
    folder = tiny_clap(tmp_path, fused=True)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["truncation"] = "rand_trunc"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    wave = sound(2.0)
    (found,) = labels(folder, wave)
    assert_same(found, pipeline_of(folder)(wave, candidate_labels=list(NAMES)))


def test_template_makes_the_texts(unfused: Path) -> None:
    template, wave = "I hear {} now", sound(1)
    expected = pipeline_of(unfused)(
        wave, candidate_labels=list(NAMES), hypothesis_template=template
    )
    assert_same(labels(unfused, wave, hypothesis_template=template)[0], expected)
    assert labels(unfused, wave)[0]["scores"] != pytest.approx([e["score"] for e in expected])


def test_top_k_keeps_the_best(unfused: Path) -> None:
    every, best = labels(unfused, sound(1))[0], labels(unfused, sound(1), top_k=2)[0]
    assert len(every["labels"]) == len(NAMES)
    assert best["labels"] == every["labels"][:2] and best["scores"] == every["scores"][:2]


def logits_of(folder: Path, wave: np.ndarray) -> np.ndarray:
    """transformers' own `logits_per_audio` for a clip of at most 10 s."""
    import torch
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    texts = [f"This is a sound of {name}." for name in NAMES]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    features = extractor([wave], sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        outputs = ClapModel.from_pretrained(folder)(**tokens, **features)
    return outputs.logits_per_audio[0].numpy()


def test_multi_label_scores_do_not_depend_on_the_other_labels(unfused: Path) -> None:
    wave = sound(1)
    found = labels(unfused, wave, multi_label=True)[0]
    logits = dict(zip(NAMES, logits_of(unfused, wave), strict=True))
    for name, score in zip(found["labels"], found["scores"], strict=True):
        assert score == pytest.approx(1 / (1 + np.exp(-logits[name])), abs=1e-4)
        alone = labels(unfused, wave, multi_label=True, candidate_labels=[name])[0]
        assert alone["scores"] == pytest.approx([score], abs=1e-5)


def test_long_sound_is_pooled_over_windows_and_the_same_every_time(folder: Path) -> None:
    long = np.concatenate([sound(10, 300), sound(5, 2000)])
    parts = [logits_of(folder, long[: 10 * RATE]), logits_of(folder, long[-10 * RATE :])]
    for pool, pooled in (("mean", np.mean(parts, 0)), ("max", np.max(parts, 0))):
        scores = np.exp(pooled) / np.exp(pooled).sum()
        for state in (1, 2):  # what transformers' random crop would depend on
            np.random.seed(state)
            found = labels(folder, long, pool=pool, segments=True)[0]
            expected = dict(zip(NAMES, scores, strict=True))
            for name, score in zip(found["labels"], found["scores"], strict=True):
                assert score == pytest.approx(expected[name], abs=1e-4)
        times = [(segment["start_s"], segment["end_s"]) for segment in found["segments"]]
        assert times == [(0.0, 10.0), (5.0, 15.0)]
        best = [NAMES[int(part.argmax())] for part in parts]
        assert [segment["label"] for segment in found["segments"]] == best
    assert np.abs(parts[0] - parts[1]).max() > 1e-2


def test_every_window_costs_ten_seconds_and_no_sound_is_an_error(unfused: Path) -> None:
    label = labeller(unfused)
    assert label.model.padded_s(1) == label.model.padded_s(10 * RATE) == 10.0
    error = label.label([Clip(np.zeros(0, np.float32), 0.0)])[0]
    assert isinstance(error, ClipError) and error.kind == "too_short"


def test_references_are_candidate_labels(unfused: Path) -> None:
    wave = sound(1)
    logits = logits_of(unfused, wave)
    found = labels(unfused, wave, reference="truth", row={"truth": "rain"})[0]
    assert found["loss"] == pytest.approx(np.log(np.exp(logits).sum()) - logits[2], abs=1e-4)
    assert found["correct"] == (found["label"] == "rain") and found["reference_label"] == "rain"
    found = labels(unfused, wave, reference="truth", row={"truth": "wolf"})[0]
    assert "truth: expected a label ('dog'" in found["reference_error"]
    assert found["label"] in NAMES and found.get("loss") is None
    several = {"truth": ["dog", "rain"]}
    found = labels(unfused, wave, reference="truth", row=several, multi_label=True)[0]
    target = np.array([1, 0, 1, 0])
    loss = (np.log1p(np.exp(logits)) - logits * target).mean()
    assert found["loss"] == pytest.approx(loss, abs=1e-4)
    assert found["correct"] == (found["label"] in several["truth"])


def test_columns_hold_what_the_model_returns(unfused: Path) -> None:
    asked: dict[str, Any] = {"segments": True, "reference": "truth"}
    found = labels(unfused, sound(1), **asked, row={"truth": "dog"})[0]
    schema = task.columns(options(**asked))
    assert set(found) <= set(schema)
    for column, type_ in schema.items():
        assert pa.array([found.get(column)], type_).type == type_


@pytest.mark.parametrize(
    "changes",
    [
        {"candidate_labels": []},
        {"candidate_labels": ["dog", "dog"]},
        {"candidate_labels": ["dog", " "]},
        {"hypothesis_template": "a sound"},
        {"hypothesis_template": "{} and {}"},
        {"hypothesis_template": "a {label} {}"},
        {"hypothesis_template": "a {{}}"},
        {"top_k": 0},
    ],
)
def test_options_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        options(**changes)


def test_check_refuses_longer_windows_and_other_models(unfused: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window_s: expected at most 10 s"):
        labeller(unfused, window_s=11)
    config = json.loads((unfused / "config.json").read_text())
    for change in ({"model_type": "clvp"}, {"architectures": ["ClapAudioModelWithProjection"]}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match="model: expected model_type 'clap'"):
            task.check(options(), Checkpoint(str(tmp_path)))
