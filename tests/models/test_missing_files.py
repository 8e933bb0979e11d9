"""A checkpoint that lacks files is refused before Ray starts, with what is missing and whence to take it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import tiny_ctc, tiny_moonshine, tiny_whisper
from runs import Job, earmark
from test_families import ASR, FAMILIES, Family
from test_half_precision import MODELS

from audio_ops.inference.checkpoint import Checkpoint, find_checkpoint
from audio_ops.inference.checkpoint_files import DEFAULTS, TOKENIZERS
from audio_ops.inference.extractor import EXTRACTORS
from audio_ops.speech import families
from audio_ops.tasks import load_task
from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.models import StoredCheckpoint
from jobs.preflight import find_models

TOKENIZER = {
    "tokenizer_config.json",
    *(file for sets in TOKENIZERS.values() for files in sets for file in files),
}
WITH_TOKENIZER = {
    name: family for name, family in MODELS.items() if family.task != "audio-classification"
}


def refusal(folder: Path, family: Family) -> str:
    """The message with which `earmark run` refuses (exit code 2) the checkpoint in a config."""
    config = folder.parent / "job.yaml"
    task = {"task": family.task, "model": str(folder), **family.options}
    sections = {
        "input": {"path": str(folder)},
        "tasks": {"it": task},
        "output": {"path": str(folder.parent / "table")},
    }
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        find_models(load_config(str(config)), config)
    return str(refused.value)


def made(tmp_path: Path, family: Family) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return family.make(folder)


def checked(folder: Path, family: Family) -> None:
    options = load_task(family.task).Options(task=family.task, model=str(folder), **family.options)
    load_task(family.task).check(options, Checkpoint(str(folder)))


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_a_checkpoint_without_its_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    family = MODELS[name]
    folder = made(tmp_path, family)
    checked(folder, family)
    for file in TOKENIZER:
        (folder / file).unlink(missing_ok=True)
    said = refusal(folder, family)
    if name == "mms":
        assert "target_lang: expected none, as only a checkpoint with language adapters" in said
    else:
        assert "tasks.it.model: expected a tokenizer (" in said
        assert f"found none in {folder}: copy it from the checkpoint" in said


def test_the_command_line_refuses_it_with_2_before_anything_starts(tmp_path: Path) -> None:
    folder = made(tmp_path, FAMILIES["whisper"])
    (folder / "tokenizer.json").unlink()
    job = Job(tmp_path, folder, tasks={"t": {"task": ASR, "model": str(folder)}})
    job.sounds(1)
    done = earmark("run", job.config)
    assert done.returncode == 2
    assert "expected a tokenizer (tokenizer.json, or vocab.json and merges.txt)" in done.stdout
    assert not job.table.exists()


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_without_its_feature_extractor_or_weights_is_refused(
    name: str, tmp_path: Path
) -> None:
    family = MODELS[name]
    folder = made(tmp_path, family)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    said = refusal(folder, family)
    assert "found only pytorch_model.bin, a pickle," in said and "save_pretrained" in said
    (folder / "pytorch_model.bin").rename(weights)
    for file in ("preprocessor_config.json", "processor_config.json"):
        (folder / file).unlink(missing_ok=True)
    assert "tasks.it.model: expected a feature extractor" in refusal(folder, family)


def test_the_command_that_is_named_converts_the_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    family = FAMILIES["moonshine"]
    folder = made(tmp_path, family)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    command = refusal(folder, family).partition("is converted with: ")[2]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        command, shell=True, check=True, capture_output=True, env=os.environ | {"PATH": path}
    )
    checked(folder, family)
    converted = load_file(folder / "model.safetensors")
    assert all(torch.equal(converted[name], weight) for name, weight in weights.items())


def test_shards_are_weights_and_a_missing_one_is_named(tmp_path: Path) -> None:
    from transformers import MoonshineForConditionalGeneration

    family = FAMILIES["moonshine"]
    folder = made(tmp_path, family)
    model = MoonshineForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    checked(folder, family)
    shards[1].unlink()
    assert shards[1].name in refusal(folder, family)


def test_a_tokenizer_may_be_of_other_files(tmp_path: Path) -> None:
    """Those of before tokenizer.json: both alone are refused, together transformers reads them."""
    from transformers import AutoTokenizer

    family = Family(tiny_whisper, ASR, {}, {})
    folder = made(tmp_path, family)
    fast = folder / "tokenizer.json"
    content = json.loads(fast.read_text(encoding="utf-8"))
    fast.unlink()
    vocabulary = json.dumps(content["model"]["vocab"])
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    assert "found only vocab.json" in refusal(folder, family)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    checked(folder, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("fail again").input_ids, skip_special_tokens=True) == (
        "fail again"
    )


def test_a_folder_of_a_store_is_refused_by_its_url(tmp_path: Path) -> None:
    folder = made(tmp_path, FAMILIES["whisper"])
    options = load_task(ASR).Options(task=ASR, model="s3://bucket/model")
    stored = StoredCheckpoint(str(folder), None, "s3://bucket/model", "listing")
    load_task(ASR).check(options, stored)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="found none in s3://bucket/model: copy it"):
        load_task(ASR).check(options, stored)


def test_half_a_tokenizer_is_none(tmp_path: Path) -> None:
    for name, file in (("speech_to_text", "vocab.json"), ("ctc", "vocab.json")):
        (tmp_path / name).mkdir()
        folder = made(tmp_path / name, MODELS[name])
        (folder / file).unlink()
        assert "expected a tokenizer (vocab.json" in refusal(folder, MODELS[name])


@pytest.mark.parametrize("make", [tiny_whisper, tiny_moonshine, lambda f: tiny_ctc(f, "hubert")])
def test_a_hub_id_is_looked_at_without_its_weights_being_fetched(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's cache, without a connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0" * 40
    folder = tmp_path / "hub" / "models--somebody--tiny" / "snapshots" / commit
    folder.mkdir(parents=True)
    make(folder)
    (folder / "model.safetensors").unlink()
    task = load_task(ASR)
    options, checkpoint = (
        task.Options(task=ASR, model="somebody/tiny"),
        Checkpoint("somebody/tiny", commit),
    )
    task.check(options, checkpoint)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(
        ValueError, match=r"hf download somebody/tiny --revision 0+ --local-dir tiny"
    ):
        task.check(options, checkpoint)
    (folder / "pytorch_model.bin").unlink()
    for file in TOKENIZER:
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="expected a tokenizer"):
        task.check(options, checkpoint)


def test_the_tokenizers_of_model_types_are_transformers() -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    types = [*(kind for family in families().values() for kind in family.MODEL_TYPES), "clap"]
    expected = {kind: TOKENIZER_MAPPING_NAMES.get(kind) for kind in types}
    assert {kind: DEFAULTS.get(kind) for kind in types} == expected


def test_the_feature_extractors_of_model_types_are_transformers() -> None:
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

    # Published checkpoints of wav2vec2-bert name another one than the default, which does not fit them.
    named = dict(FEATURE_EXTRACTOR_MAPPING_NAMES) | {"wav2vec2-bert": "SeamlessM4TFeatureExtractor"}
    assert {kind: named[kind] for kind in EXTRACTORS} == EXTRACTORS


# What lies where a config says that a model is, and what is said of it.
OTHERS = {
    "a Trainer's folder": ("run/checkpoint-9/config.json", "run", r"but in .*9: name that folder"),
    "the hub's cache": (
        "x/snapshots/a/config.json",
        "x",
        r"but in .*snapshots/a: name that folder",
    ),
    "another format": (
        "x/ggml-base.bin",
        "x",
        r"but ggml-base\.bin: name a checkpoint in transform",
    ),
    "a folder of folders": ("x/y/z.wav", "x", r"which has no files"),
    "a file": (
        "x.nemo",
        "x.nemo",
        r"found a file at .*x\.nemo: name its folder, or the checkpoint",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_there_in_place_of_a_checkpoint_is_said(name: str, tmp_path: Path) -> None:
    file, model, said = OTHERS[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(FileNotFoundError, match=said):
        find_checkpoint(str(tmp_path / model))
