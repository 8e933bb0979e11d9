"""Whisper base tells languages apart and transcribes them, in whatever number format it computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hearing import labeller
from real_speech import NEAR_TIE, HalfPrecisionOfGpus, clip_of, gap, prompt, recorded

from audio_ops.inference.dtype import torch_dtype
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.tasks import Clip
from jobs.bench.testbed import whisper_base

LANGUAGES = ("en", "es", "fr")
PROMPTS = ("agent-incorrect", "conf-onlyone")  # each 3 to 7 s
GIVEN = {"language": "es", "timestamps": "segment"}


@pytest.fixture(scope="session")
def base() -> Path:
    return whisper_base()


@pytest.fixture(scope="module")
def spoken() -> dict[str, list[Path]]:
    """A recording of each prompt in each language."""
    return {language: [prompt(language, name) for name in PROMPTS] for language in LANGUAGES}


@pytest.fixture(scope="module")
def clips(spoken: dict[str, list[Path]]) -> dict[str, list[Clip]]:
    """A prompt in each language, and each prompt in one."""
    return {
        "detected": [clip_of(files[0]) for files in spoken.values()],
        "given": [clip_of(file) for file in spoken["es"]],
    }


Labels = Callable[[str, str], tuple[Label, list[Any]]]


@pytest.fixture(scope="module")
def labels(base: Path, clips: dict[str, list[Clip]]) -> Labels:
    """A number format, and how the language is known -> Whisper base, and its labels of the clips,
    all in one batch. `auto` is one of the other formats, and not labelled again."""

    @cache
    def of(dtype: str, how: str) -> tuple[Label, list[Any]]:
        label = recorded(labeller(base, dtype=dtype, **(GIVEN if how == "given" else {})))
        with HalfPrecisionOfGpus():
            return label, label.label(clips[how])

    return lambda dtype, how: of(
        str(torch_dtype(dtype, available_device())).removeprefix("torch."), how
    )


@pytest.mark.parametrize("how", ["detected", "given"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_half_precision_changes_no_language_and_no_text(
    dtype: str, how: str, labels: Labels, clips: dict[str, list[Clip]]
) -> None:
    exact, expected = labels("float32", how)
    if how == "detected":
        assert [row["language"] for row in expected] == list(LANGUAGES)
    other, found = labels(dtype, how)
    for clip, ours, wanted in zip(clips[how], found, expected, strict=True):
        assert ours["language"] == wanted["language"]
        assert ours["no_speech"] == pytest.approx(wanted["no_speech"], abs=0.1)
        if ours["text"] != wanted["text"]:
            nats, tokens = gap(exact, other, clip, ours["text"], wanted)
            assert nats < NEAR_TIE, (tokens, ours["text"], wanted["text"])
        elif len(ours["segments"]) == len(wanted["segments"]):
            for part, whole in zip(ours["segments"], wanted["segments"], strict=True):
                assert part["end_s"] == pytest.approx(whole["end_s"], abs=0.2)
