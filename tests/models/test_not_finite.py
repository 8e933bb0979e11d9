"""NaN and Inf in a model are an error of the clip at fault, in every family, and of no other clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import tiny_ctc, tiny_whisper, whisper_tokens
from hearing import labeller, sound
from safetensors.torch import load_file, save_file
from test_evaluate import clip as row
from test_evaluate import make
from test_families import FAMILIES, Family, recogniser

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.label import Label
from audio_ops.tasks import Clip, load_task
from jobs.reports.drift import statistics
from jobs.reports.kept_totals import run_totals

Weights = dict[str, torch.Tensor]
HELP = "found NaN or Inf: set the task's dtype: float32"


def change(folder: Path, how: Callable[[Weights], None]) -> Path:
    """The checkpoint with other weights."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    how(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def loud(*prefixes: str, largest: float = 60_000) -> Callable[[Weights], None]:
    """Weights at the model's entrance under which all but silence overflows float16."""

    def enlarge(weights: Weights) -> None:
        names = [name for name in weights if name.startswith(prefixes)]
        assert names
        for name in names:
            weight = weights[name]
            if weight.ndim > 1:
                weight *= largest / weight.abs().max()
            elif name.endswith("bias"):
                weight.zero_()

    return enlarge


def quiet(weights: Weights) -> None:
    """Weights under which silence overflows, as of all sounds it is the farthest from 0 dB."""
    whisper = "model.encoder.conv1.weight"
    if whisper in weights:
        weights[whisper].fill_(-300.0)
        weights["model.encoder.conv2.weight"] *= 1e-4
    else:
        weights["audio_model.audio_encoder.patch_embed.proj.weight"].fill_(-60.0)


ENTRANCES: dict[str, Callable[[Weights], None]] = {
    "ctc": loud("wav2vec2.feature_extractor.conv_layers.0."),
    "parakeet": loud("encoder.subsampling.layers.0.", largest=3_000),
    "whisper": quiet,
    "whisper, language detected": quiet,
    "moonshine": loud("model.encoder.groupnorm.", "model.encoder.conv2."),
    "encoder_decoder": loud("encoder.feature_extractor.conv_layers.0."),
    "seamless_v1": loud("speech_encoder.feature_projection."),
    "seamless_v2": loud("speech_encoder.feature_projection."),
    "classifier": loud("hubert.feature_extractor.conv_layers.0."),
    "clap": quiet,
}
MODELS = {
    **FAMILIES,
    "whisper, language detected": recogniser(tiny_whisper),
    "parakeet": recogniser(lambda folder: tiny_ctc(folder, "parakeet_ctc")),
}


def labelled(family: Family, folder: Path, clips: list[Clip], dtype: str) -> list[Any]:
    options = {"model": str(folder), "dtype": dtype, **family.options}
    chosen = load_task(family.task).Options(task=family.task, **options)
    return Label("it", chosen, find_checkpoint(str(folder)), device="cpu", batch_s=1e6).label(clips)


@pytest.mark.parametrize("name", ENTRANCES)
def test_a_clip_that_overflows_float16_fails_alone_and_float32_helps(
    name: str, tmp_path: Path
) -> None:
    family = MODELS[name]
    change(family.make(tmp_path), ENTRANCES[name])
    length_s = 6.0 if family.task.startswith("zero") else 2.0  # CLAP hears 48 kHz
    tone, silence = sound(length_s, 300), np.zeros(round(length_s * 16_000), np.float32)
    clips = [Clip(wave, length_s) for wave in (tone, silence, tone, silence)]
    good = slice(1, None, 2) if ENTRANCES[name] is not quiet else slice(0, None, 2)
    bad = slice(1 - (good.start or 0), None, 2)
    found = labelled(family, tmp_path, clips, "float16")
    for failed in found[bad]:
        assert isinstance(failed, ClipError) and failed.kind == "model"
        assert HELP in failed.message
    assert all(isinstance(columns, dict) for columns in found[good]), found[good]
    assert found[good] == labelled(family, tmp_path, clips[good], "float16")
    assert all(
        isinstance(columns, dict) for columns in labelled(family, tmp_path, clips, "float32")
    )


def nan(name: str, *rows: int) -> Callable[[Weights], None]:
    """NaN in all of a weight, or in some rows of it."""

    def spoil(weights: Weights) -> None:
        weights[name][list(rows) if rows else slice(None)] = torch.nan

    return spoil


LATE = nan("model.decoder.embed_positions.weight", 9)  # at the sixth token or so
GERMAN = nan("model.decoder.embed_tokens.weight", 256 + whisper_tokens().index("<|de|>"))
DRAWN = {"generate": {"do_sample": True}}
DECODERS: dict[str, Callable[[Weights], None]] = {
    "moonshine": nan("model.decoder.norm.weight"),
    "speech_to_text": nan("model.decoder.layer_norm.weight"),
    "encoder_decoder": nan("decoder.model.decoder.layernorm_embedding.weight"),
    "seamless_v2": nan("text_decoder.layer_norm.weight"),
}
SPOILT = {
    "ctc": ("ctc", nan("lm_head.bias", 5), {}),
    "ctc with times": ("ctc", nan("lm_head.bias", 5), {"timestamps": "char"}),
    "whisper that detects": ("whisper", GERMAN, {}),
    "whisper": ("whisper", LATE, {"language": "fr"}),
    "whisper with beams": ("whisper", LATE, {"num_beams": 3}),
    "whisper with segments": ("whisper", LATE, {"timestamps": "segment"}),
    "whisper with words": ("whisper", LATE, {"timestamps": "word"}),
    "whisper with beams and words": ("whisper", LATE, {"timestamps": "word", "num_beams": 2}),
    "whisper in short windows": ("whisper", LATE, {"window": "guarded"}),
    "whisper that draws": ("whisper", LATE, DRAWN),
    **{name: (name, how, {}) for name, how in DECODERS.items()},
    **{f"{name} with beams": (name, how, {"num_beams": 3}) for name, how in DECODERS.items()},
    **{f"{name} that draws": (name, how, DRAWN) for name, how in DECODERS.items()},
}


@pytest.mark.parametrize("name", SPOILT)
def test_numbers_that_are_not_finite_are_no_text(name: str, tmp_path: Path) -> None:
    kind, how, options = SPOILT[name]
    family = FAMILIES[kind]
    if kind != "whisper":
        options = {**({} if kind == "ctc" else family.options), **options}
    folder = change(family.make(tmp_path), how)
    clips = [Clip(sound(seconds, 300), seconds) for seconds in (2.0, 1.1)]
    for failed in labeller(folder, **options).label(clips):
        assert isinstance(failed, ClipError) and failed.kind == "model", failed
        assert HELP in failed.message


def test_scores_that_are_not_finite_are_no_part_of_the_mean(tmp_path: Path) -> None:
    """Tables have them from runs before such rows were errors."""
    scores = [0.25, float("nan"), 0.75, float("inf"), None]
    table = make(tmp_path, [row(n, words_score=score) for n, score in enumerate(scores)])
    assert statistics(run_totals(table, "run"))["words"]["now"]["mean_score"] == pytest.approx(0.5)
