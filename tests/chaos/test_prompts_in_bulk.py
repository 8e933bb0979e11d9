"""Whisper base on hundreds of Debian's prompts in five languages; prints the figures of docs/models.md.

.venv/bin/python -m pytest -m chaos -s tests/chaos/test_prompts_in_bulk.py
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jiwer
import numpy as np
import pytest
import soundfile
from hearing import labeller
from real_speech import NEAR_TIE, HalfPrecisionOfGpus, clip_of, gap, recorded

from audio_ops.label import Label
from audio_ops.speech.normal import plain
from audio_ops.tasks import Clip
from jobs.bench.testbed import prompts, transcripts, whisper_base

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

LANGUAGES = ("en", "es", "fr", "it", "ru")
MANY, FEW = 40, 10  # prompts of each language, evenly spaced: most are a word or a letter
MAX_CER = 0.2  # of a text that is right but for a letter


class Prompt(NamedTuple):
    clip: Clip
    text: str  # as Debian has it; "" where nobody speaks
    name: str


@cache
def spoken(language: str, count: int) -> list[Prompt]:
    folder = prompts(language)
    files = [f for f in sorted(folder.rglob("*.wav")) if soundfile.info(f).frames]
    texts = transcripts(folder)
    picks = np.linspace(0, len(files) - 1, count).round().astype(int)
    names = [str(files[n].relative_to(folder / "sounds").with_suffix("")) for n in picks]
    return [
        Prompt(clip_of(files[n], speech=True), texts.get(name, ""), name)
        for n, name in zip(picks, names, strict=True)
    ]


@cache
def model(dtype: str, options: tuple[tuple[str, str], ...]) -> Label:
    return recorded(labeller(whisper_base(), dtype=dtype, **dict(options)))


def labels(language: str, count: int, dtype: str, /, **options: str) -> list[dict[str, Any]]:
    """In batches of clips that differ in length."""
    clips = [prompt.clip for prompt in spoken(language, count)]
    with HalfPrecisionOfGpus():
        return [
            row
            for at in range(0, count, 10)
            for row in model(dtype, tuple(options.items())).label(clips[at : at + 10])
        ]


def is_right(prompt: Prompt, row: Mapping[str, Any], language: str) -> bool:
    text = plain(prompt.text, language)
    return bool(text) and jiwer.cer(text, plain(row["text"], language)) <= MAX_CER


@pytest.mark.parametrize("how", ["detected", "given"])
def test_right_texts_are_hardly_ever_suspect_and_those_of_silence_always_are(how: str) -> None:
    right, accused, flagged, speech = 0, [], [], 0
    for language in LANGUAGES:
        options = {"language": language} if how == "given" else {}
        rows = labels(language, MANY, "auto", **options)
        for prompt, row in zip(spoken(language, MANY), rows, strict=True):
            if row["speech_ratio"] == 0:
                assert row["suspect"] or not row["text"], (language, prompt.name, row["text"])
                continue
            speech += 1
            right += is_right(prompt, row, language)
            if row["suspect"]:
                flagged.append((language, prompt.name, prompt.text, row["text"], row["suspect"]))
            if row["suspect"] and is_right(prompt, row, language):
                accused.append(prompt.name)
    print(f"\nlanguage {how}: {speech} prompts with speech, {len(flagged)} suspect;", end=" ")
    print(f"{right} right, {len(accused)} of them suspect", *flagged, sep="\n  ")
    assert right > 0.6 * speech
    assert len(accused) <= 0.01 * right


@pytest.mark.parametrize("how", ["detected", "given"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_changes_texts_in_near_ties_alone(dtype: str, how: str) -> None:
    ties, count = [], 0
    for language in LANGUAGES:
        options = {"language": language, "timestamps": "segment"} if how == "given" else {}
        exact = labels(language, FEW, "float32", **options)
        found = labels(language, FEW, dtype, **options)
        for prompt, ours, wanted in zip(spoken(language, FEW), found, exact, strict=True):
            count += 1
            assert ours["no_speech"] == pytest.approx(wanted["no_speech"], abs=0.1)
            if ours["text"] == wanted["text"]:
                assert ours["language"] == wanted["language"]
                continue
            nats, tokens = float("nan"), ""
            if ours["language"] == wanted["language"]:
                models = [model(kind, tuple(options.items())) for kind in ("float32", dtype)]
                nats, tokens = gap(*models, prompt.clip, ours["text"], wanted)
                assert nats < NEAR_TIE, (prompt.name, tokens, ours["text"], wanted["text"])
            else:  # the likeliest of a hundred languages for a word
                assert wanted["segments"][0]["language_probability"] < 0.5, prompt.name
            texts = ours["text"], wanted["text"]
            ties.append((language, prompt.name, *texts, tokens, round(nats, 2)))
    print(f"\n{dtype}, language {how}: {count} prompts, {len(ties)} near-ties", *ties, sep="\n  ")
    assert len(ties) <= 0.2 * count
