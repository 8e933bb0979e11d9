"""Audio classifiers of every architecture against transformers' own pipeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from checkpoints import each_made_once, tiny_classifier

from audio_ops.classification import Classes
from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.tasks import Clip, Window
from audio_ops.tasks import audio_classification as task

RATE = 16_000
NAMES = ("dog", "cat", "rain", "music", "speech", "engine", "bird")  # tiny_classifier's
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in task.ARCHITECTURES},
    **{
        f"{model_type} layer norm": (model_type, LAYER)
        for model_type in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
    },
    "hubert batch norm": ("hubert", {**LAYER, "conv_pos_batch_norm": True}),
    "sew layer norm": ("sew", {"feat_extract_norm": "layer"}),
}
PADDED_TOGETHER = {
    "audio-spectrogram-transformer",
    "wav2vec2-bert",
    "whisper",
    *(f"{t} layer norm" for t in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")),
}

if available_device() != "cpu":  # group norm leaves the padding out
    PADDED_TOGETHER |= {"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint of a family, made once."""
    return each_made_once(
        tmp_path_factory,
        lambda folder, name: tiny_classifier(folder, FAMILIES[name][0], **FAMILIES[name][1]),
    )


def sound(seconds: float, frequency: float = 440.0) -> np.ndarray:
    """A noisy, swelling tone as float32 `(samples,)`."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(int(frequency)).standard_normal(len(time))
    tone = 0.3 * np.sin(2 * np.pi * frequency * time) + 0.1 * noise * np.sin(3 * time)
    return tone.astype(np.float32)


def labeller(folder: Path, batch_s: float = 1e6, **options: Any) -> Label:
    made = task.Options(
        task="audio-classification", model=str(folder), **{"dtype": "float32", **options}
    )
    checkpoint = find_checkpoint(str(folder))
    task.check(made, checkpoint)
    return Label("sound", made, checkpoint, device=available_device(), batch_s=batch_s)


def labels(folder: Path, *sounds: np.ndarray, row: Any = None, **options: Any) -> list[Any]:
    clips = [Clip(wave, len(wave) / RATE, row=row or {}) for wave in sounds]
    return labeller(folder, **options).label(clips)


def pipeline_of(folder: Path) -> Any:
    """transformers' pipeline. Its `top_k` counts only where it is called: without it, a call
    gives all labels, whatever was said when it was made."""
    import torch
    from transformers import pipeline

    return pipeline("audio-classification", model=str(folder), dtype=torch.float32)


def assert_same(found: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert found["labels"] == [answer["label"] for answer in expected]
    assert found["scores"] == pytest.approx([answer["score"] for answer in expected], abs=1e-4)
    assert (found["label"], found["score"]) == (found["labels"][0], found["scores"][0])


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_pipelines_and_do_not_depend_on_the_batch(family: Any, name: str) -> None:
    sounds = [sound(1.0, 200), sound(2.37, 900), sound(0.4, 3000), sound(1.0, 700), sound(0.07)]
    label = labeller(family(name), top_k=None)
    assert label.model.equal_lengths == (name not in PADDED_TOGETHER)
    clips = [Clip(wave, len(wave) / RATE) for wave in sounds]
    mixed: list[Any] = label.label(clips)
    backwards: list[Any] = label.label(clips[::-1])
    pipe = pipeline_of(family(name))
    for index, clip in enumerate(clips):
        assert_same(mixed[index], pipe(clip.waveform))
        alone: Any = label.label([clip])[0]
        for other in (alone, backwards[len(clips) - 1 - index]):
            assert other["labels"] == mixed[index]["labels"]
            assert other["scores"] == pytest.approx(mixed[index]["scores"], abs=1e-5)
    assert len({tuple(np.round(found["scores"], 3)) for found in mixed}) == len(clips)


def test_a_mask_is_made_where_the_extractor_would_make_none(family: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(family("wav2vec2 layer norm"), folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["return_attention_mask"] = False
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    sounds = [sound(1.0, 200), sound(2.37, 900)]
    pipe = pipeline_of(folder)
    for found, wave in zip(labels(folder, *sounds), sounds, strict=True):
        assert_same(found, pipe(wave, top_k=5))


def test_top_k_and_function_are_the_pipelines(family: Any) -> None:
    folder, wave = family("wav2vec2"), sound(1.0)
    for top_k in (1, 3, None, 99):
        assert_same(labels(folder, wave, top_k=top_k)[0], pipeline_of(folder)(wave, top_k=top_k))
    assert len(labels(folder, wave)[0]["labels"]) == 5
    for function in ("softmax", "sigmoid", "none"):
        expected = pipeline_of(folder)(wave, top_k=5, function_to_apply=function)
        assert_same(labels(folder, wave, function_to_apply=function)[0], expected)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_function_follows_the_problem_type(tmp_path: Path, problem_type: str) -> None:
    folder = tiny_classifier(tmp_path, "wav2vec2", problem_type=problem_type)
    assert_same(labels(folder, sound(1.0))[0], pipeline_of(folder)(sound(1.0), top_k=5))


@pytest.mark.parametrize(
    ("name", "window_s"), [("wav2vec2", 2.0), ("audio-spectrogram-transformer", None)]
)
def test_long_sound_is_the_mean_or_max_of_its_windows(
    family: Any, name: str, window_s: float | None
) -> None:
    folder = family(name)
    options: dict[str, Any] = {"window_s": window_s, "function_to_apply": "none", "top_k": None}
    window = labeller(folder, **options).model.windowing.window  # type: ignore[attr-defined]
    long = np.concatenate([sound(window / RATE, 300), sound(window / RATE, 2000)])[: -window // 3]
    parts = [long[:window], long[-window:]]
    scores = [
        dict(zip(p["labels"], p["scores"], strict=True)) for p in labels(folder, *parts, **options)
    ]
    for pool, function in (("mean", np.mean), ("max", np.max)):
        found = labels(folder, long, **options, pool=pool, segments=True)[0]
        for label, score in zip(found["labels"], found["scores"], strict=True):
            assert score == pytest.approx(function([part[label] for part in scores]), abs=1e-5)
        assert [(s["start_s"], s["end_s"]) for s in found["segments"]] == [
            (0.0, window / RATE),
            ((len(long) - window) / RATE, len(long) / RATE),
        ]
        best = [max(part, key=lambda label: part[label]) for part in scores]
        assert [segment["label"] for segment in found["segments"]] == best
    assert any(score != pytest.approx(scores[1][label]) for label, score in scores[0].items())


def test_windows_cover_the_sound_and_never_leave_a_rest(family: Any) -> None:
    windowing = labeller(family("wav2vec2"), window_s=2.0, hop_s=1.5).model.windowing  # type: ignore[attr-defined]
    spans = [(w.start / RATE, w.stop / RATE) for w in windowing(round(5.6 * RATE))]
    assert spans == [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0), (3.6, 5.6)]
    assert [w.stop for w in windowing(2 * RATE)] == [2 * RATE]
    assert [w.start for w in windowing(2 * RATE + 1)] == [0, 1]
    assert [w.start for w in windowing(round(3.5 * RATE))] == [0, round(1.5 * RATE)]


def test_default_window_is_what_the_model_hears_at_once(family: Any) -> None:
    longest = {"wav2vec2": 30.0, "whisper": 30.0, "audio-spectrogram-transformer": 10.255}
    for name, seconds in longest.items():
        label = labeller(family(name))
        whole = np.zeros(round(seconds * RATE), np.float32)
        assert len(label.model.windows(Clip(whole, seconds))) == 1
        assert len(label.model.windows(Clip(np.append(whole, whole[:1]), seconds))) == 2
        padded_s = 1.0 if name == "wav2vec2" else seconds
        assert label.model.padded_s(RATE) == padded_s


@pytest.mark.parametrize(
    ("name", "shortest"),
    [
        ("wav2vec2", 400),
        ("sew", 720),
        ("audio-spectrogram-transformer", 400),
        ("wav2vec2-bert", 560),
        ("whisper", 1),
    ],
)
def test_sound_under_one_frame_is_a_clip_error(family: Any, name: str, shortest: int) -> None:
    good, short = labels(family(name), sound(1.0)[:shortest], sound(1.0)[: shortest - 1])
    assert np.isfinite(good["scores"]).all()
    assert isinstance(short, ClipError)
    assert f"at least {shortest} samples" in str(short)


def test_reference_gives_cross_entropy_and_correctness(family: Any) -> None:
    import torch

    folder, wave = family("wav2vec2"), sound(1.0)
    raw = labels(folder, wave, function_to_apply="none", top_k=None)[0]
    logits = torch.tensor([dict(zip(raw["labels"], raw["scores"], strict=True))[n] for n in NAMES])
    for reference in ("rain", 2, 2.0, "2", "2.0", Decimal(2), ["rain"], '["rain"]', "[2.0]"):
        found = labels(folder, wave, reference="truth", row={"truth": reference})[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(2)).item()
        assert found["loss"] == pytest.approx(loss, abs=1e-4)
        assert found["correct"] == (found["label"] == "rain")
        assert found["reference_label"] == "rain"
        assert found.get("reference_error") is None
    top = labels(folder, wave, reference="truth", row={"truth": raw["label"]})[0]
    assert top["correct"] is True
    assert top["loss"] == pytest.approx(-np.log(top["score"]), abs=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"truth": "wolf"}, "expected a label ('dog', 'cat', 'rain', 'music', 'speech', ...)"),
        ({"truth": 7}, "id from 0 to 6, found 7"),
        ({"truth": -1}, "found -1"),
        ({"truth": 1.5}, "found 1.5"),
        ({"truth": True}, "found True"),
        ({"truth": [False]}, "found False"),
        ({"truth": "true"}, "found 'true'"),
        ({"truth": "2.5"}, "found '2.5'"),
        ({"truth": "9" * 5000}, "found '999"),
        ({"truth": f"[{'9' * 400}]"}, "too large"),
        ({"truth": "[" * 100_000}, "found '[[["),
        ({"truth": '["dog", "cat"]'}, "expected one label, found 2"),
        ({"truth": b"dog"}, "found b'dog'"),
        ({"truth": ["dog", "cat"]}, "expected one label, found 2"),
        ({"truth": {"label": "dog"}}, "found {'label': 'dog'}"),
        ({"text": "dog"}, "expected a column 'truth', found text"),
    ],
)
def test_unknown_reference_is_reported_in_its_row(
    family: Any, row: dict[str, Any], message: str
) -> None:
    found = labels(family("wav2vec2"), sound(1.0), reference="truth", row=row)[0]
    assert found["label"] in NAMES
    assert found.get("loss") is None and found.get("correct") is None
    assert found["reference_error"].startswith("truth: ") and message in found["reference_error"]
    assert len(found["reference_error"]) < 400


def test_null_reference_is_no_error(family: Any) -> None:
    found = labels(family("wav2vec2"), sound(1.0), reference="truth", row={"truth": None})[0]
    assert {"loss", "correct", "reference_error"}.isdisjoint(found)


@pytest.mark.parametrize("names", [("false", "true"), ("TRUE", "False")])
def test_a_boolean_is_the_label_of_its_name(names: tuple[str, str]) -> None:
    options = task.Options(task="audio-classification", model="m", reference="truth")
    classes = Classes(names, "softmax", "single_label", options, RATE)
    for reference in (True, "True", "true"):
        clip = Clip(sound(0.1), 0.1, row={"truth": reference})
        found = classes.columns(clip, [], [np.array([0, 1], np.float32)])
        assert found["reference_label"].lower() == "true"
        assert found["correct"] is (names[1] == "true")


def test_multi_label_references_are_lists(tmp_path: Path) -> None:
    import torch

    folder = tiny_classifier(tmp_path, "wav2vec2", problem_type="multi_label_classification")
    raw = labels(folder, sound(1.0), function_to_apply="none", top_k=None)[0]
    logits = torch.tensor([dict(zip(raw["labels"], raw["scores"], strict=True))[n] for n in NAMES])
    lists: tuple[Any, ...] = (["dog", "bird"], ["dog", 6], [raw["label"]], "dog", [])
    for reference in (*lists, *(json.dumps(r) for r in lists if isinstance(r, list))):
        found = labels(folder, sound(1.0), reference="truth", row={"truth": reference})[0]
        if isinstance(reference, str) and reference != "dog":
            reference = json.loads(reference)
        listed = reference if isinstance(reference, list) else [reference]
        names = [NAMES[r] if isinstance(r, int) else r for r in listed]
        target = torch.tensor([float(name in names) for name in NAMES])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target).item()
        assert found["loss"] == pytest.approx(loss, abs=1e-4)
        assert found["correct"] == (found["label"] in names if names else found["score"] < 0.5)
        assert found["reference_label"] is None


@pytest.mark.parametrize(
    ("logits", "reference", "correct"),
    [
        ([-3, -1, -2], [], True),  # nothing expected, nothing over a half
        ([-3, 1, -2], [], False),
        ([-3, 1, 2], ["dog"], False),
        ([-3, 1, 2], ["dog", "rain"], True),
    ],
)
def test_multi_label_is_correct_if_its_top_label_is_expected(
    logits: list[float], reference: list[str], correct: bool
) -> None:
    options = task.Options(task="audio-classification", model="m", reference="truth")
    classes = Classes(NAMES[:3], "sigmoid", "multi_label", options, RATE)
    clip = Clip(sound(0.1), 0.1, row={"truth": reference})
    assert classes.columns(clip, [], [np.array(logits, np.float32)])["correct"] is correct


@pytest.mark.parametrize(
    "reference", [[0, 1, 0], "[0, 1, 1]", [False, True, False], ["dog", "dog"]]
)
def test_a_zero_or_one_for_every_label_is_not_taken_for_ids(reference: Any) -> None:
    options = task.Options(task="audio-classification", model="m", reference="truth")
    classes = Classes(NAMES[:3], "sigmoid", "multi_label", options, RATE)
    clip = Clip(sound(0.1), 0.1, row={"truth": reference})
    found = classes.columns(clip, [], [np.zeros(3, np.float32)])
    assert found["reference_error"] and "loss" not in found and found["label"] == "dog"


def test_regression_gives_its_value_and_squared_error(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path, "hubert", ("valence",), problem_type="regression")
    found = labels(folder, sound(1.0), reference="truth", row={"truth": 0.25})[0]
    assert_same(found, pipeline_of(folder)(sound(1.0), top_k=5))
    assert found["label"] == "valence"
    assert found["loss"] == pytest.approx((found["score"] - 0.25) ** 2, abs=1e-5)
    assert found.get("correct") is None
    for reference, value in (
        ("0.25", 0.25),
        (True, 1.0),
        ("true", 1.0),
        ("False", 0.0),
        ("[0.5]", 0.5),
    ):
        found = labels(folder, sound(1.0), reference="truth", row={"truth": reference})[0]
        assert found["loss"] == pytest.approx((found["score"] - value) ** 2, abs=1e-5)
    for wrong in (10**400, "high", [0.1, 0.2], float("nan"), {"a": 1}):
        found = labels(folder, sound(1.0), reference="truth", row={"truth": wrong})[0]
        assert "expected 1 finite number(s)" in found["reference_error"]
    found = labels(folder, sound(1.0), reference="truth", row={"truth": 1e200})[0]
    assert "expected numbers near the outputs" in found["reference_error"]


def test_logits_that_are_not_finite_are_a_clip_error() -> None:
    options = task.Options(task="audio-classification", model="m")
    classes = Classes(NAMES, "softmax", "single_label", options, RATE)
    logits = [np.full(7, np.nan, np.float32)]
    with pytest.raises(ClipError, match="finite logits"):
        classes.columns(Clip(sound(0.1), 0.1), [], logits)


def test_columns_hold_what_the_model_returns(family: Any) -> None:
    options: dict[str, Any] = {"segments": True, "reference": "truth"}
    for truth in ("dog", "wolf"):
        found = labels(family("wav2vec2"), sound(1.0), **options, row={"truth": truth})[0]
        schema = task.columns(task.Options(task="audio-classification", model="m", **options))
        assert set(found) <= set(schema)
        for column, type_ in schema.items():
            assert pa.array([found.get(column)], type_).type == type_
    plain = task.columns(task.Options(task="audio-classification", model="m"))
    assert list(plain) == ["label", "score", "labels", "scores"]


def refuses(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        labeller(folder, **options)


def test_options_that_cannot_be_met_are_refused_before_loading(family: Any, tmp_path: Path) -> None:
    ast, wav2vec2 = family("audio-spectrogram-transformer"), family("wav2vec2")
    refuses(ast, "window_s: expected at most 10.255 s", window_s=30.0)
    refuses(wav2vec2, "window_s: expected at least 0.025 s", window_s=0.01)
    refuses(wav2vec2, "hop_s: expected one sample to window_s (1 s), found 2", window_s=1, hop_s=2)
    for wrong in ({"top_k": 0}, {"pool": "sum"}, {"function_to_apply": "relu"}, {"windows": 3}):
        refuses(wav2vec2, next(iter(wrong)), **wrong)
    one = tiny_classifier(tmp_path, "wav2vec2", ("valence",))
    refuses(one, "function_to_apply: expected sigmoid or none")
    assert labels(one, sound(1.0), function_to_apply="none")[0]["label"] == "valence"


def test_checkpoints_without_a_classifier_are_refused(family: Any, tmp_path: Path) -> None:
    config = json.loads((family("wav2vec2") / "config.json").read_text())
    settings = (family("wav2vec2") / "preprocessor_config.json").read_text()
    options = task.Options(task="audio-classification", model=str(tmp_path))

    def refused(message: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=re.escape(message)):
            task.check(options, Checkpoint(str(tmp_path)))

    refused("model: expected a feature extractor")
    (tmp_path / "preprocessor_config.json").write_text(settings)
    refused("found ['Wav2Vec2ForCTC']", architectures=["Wav2Vec2ForCTC"])
    refused("found model_type 'bert'", model_type="bert")


def test_a_checkpoint_that_lacks_its_head_is_not_loaded(family: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = family("wav2vec2")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("classifier")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refuses(tmp_path, "expected classifier.weight or classifier.dense.weight among the weights")
    kept["classifier.weight"] = weights["classifier.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refuses(tmp_path, "found none for classifier.bias")


def test_numbers_for_names_are_labels_as_text(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path, "wav2vec2")
    said = json.loads((folder / "config.json").read_text())
    said |= {"id2label": {str(n): 10 * n for n in range(7)}, "label2id": None}
    (folder / "config.json").write_text(json.dumps(said))
    wave = sound(1.0)
    (found,) = labels(folder, wave)
    assert found["labels"] == [str(answer["label"]) for answer in pipeline_of(folder)(wave)[:5]]
    assert pa.array([found["labels"]], columns_of(folder)["labels"])


def columns_of(folder: Path) -> dict[str, pa.DataType]:
    return task.columns(task.Options(task="audio-classification", model=str(folder)))


def test_outputs_of_one_name_are_one_label_to_a_reference() -> None:
    options = task.Options(task="audio-classification", model="m", reference="true")
    classes = Classes(["dog", "cat", "dog"], "softmax", "single_label", options, RATE)
    logits = np.array([0.0, 1.0, 2.0], np.float32)
    for reference in ("dog", 0, 2):
        clip = Clip(sound(0.1), 0.1, row={"true": reference})
        found = classes.columns(clip, [Window(0, 1600)], [logits])
        assert (found["label"], found["reference_label"], found["correct"]) == ("dog", "dog", True)
        assert found["loss"] == pytest.approx(
            -np.log((1 + np.e**2) / np.exp(logits).sum()), abs=1e-6
        )


def test_architectures_are_those_of_transformers() -> None:
    from transformers.models.auto import modeling_auto

    assert dict(modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES) == task.ARCHITECTURES


@pytest.mark.parametrize("name", ["audio_classification", "zero_shot_audio_classification"])
def test_importing_the_task_imports_no_torch(name: str) -> None:
    code = (
        f"import sys, audio_ops.tasks.{name}; print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
