"""Text that real Whispers invent is found, segment by segment, and real speech is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
from hearing import RATE, labeller

from audio_ops.label import Label
from audio_ops.signal.voice import speech_probability
from audio_ops.tasks import Clip
from jobs.bench.testbed import prompts, whisper_base
from jobs.demo import recordings, whisper_tiny_en

LANGUAGES = ("en", "es", "fr")
PROMPTS = ("agent-incorrect", "conf-onlyone")  # each 3 to 7 s
SILENCE = np.zeros(75 * RATE, np.float32)


def clip(*sounds: np.ndarray) -> Clip:
    sound = np.concatenate(sounds).astype(np.float32)
    return Clip(sound, len(sound) / RATE, speech_probability(sound))


def recording(name: str) -> np.ndarray:
    sound: np.ndarray = librosa.load(recordings() / f"{name}.wav", sr=RATE)[0]
    return sound


def prompt(language: str, name: str) -> np.ndarray:
    sound: np.ndarray = librosa.load(next(prompts(language).rglob(f"{name}.wav")), sr=RATE)[0]
    return sound


def nobody(seconds: float) -> dict[str, np.ndarray]:
    at = np.arange(round(seconds * RATE)) / RATE
    random = np.random.default_rng(0)
    slow = np.sin(2 * np.pi * 0.4 * at) ** 2
    return {
        "silence": 0 * at,
        "noise": 0.1 * random.standard_normal(len(at)),
        "hum": sum(0.1 / n * np.sin(2 * np.pi * 50 * n * at) for n in (1, 2, 3, 5)),
        "music": slow * sum(0.1 * np.sin(2 * np.pi * hz * at) for hz in (220, 277.2, 329.6, 440)),
    }


def kept_and_dropped(label: Label, clips: list[Clip]) -> list[list[dict[str, Any]]]:
    """The clips' labels without and with `suspect: drop`, transcribed once."""
    model: Any = label.model
    cuts = [model.windows(clip) for clip in clips]
    outputs = [
        model([clip.waveform[window.start : window.stop] for window in windows], None)
        for clip, windows in zip(clips, cuts, strict=True)
    ]
    labels = []
    for options in (model.options, model.options.model_copy(update={"suspect": "drop"})):
        model.options = options
        labels.append([model.join(*parts) for parts in zip(clips, cuts, outputs, strict=True)])
    return labels


@pytest.fixture(scope="module")
def base() -> Path:
    return whisper_base()


@pytest.mark.parametrize("timestamps", ["none", "segment", "word"])
def test_invented_text_between_two_talks_is_dropped_and_the_talks_stay(timestamps: str) -> None:
    first, last = recording("clone-test"), recording("beckett")
    clips = [clip(first, SILENCE, last), clip(first, nobody(75)["music"], last)]
    label = labeller(whisper_tiny_en(), dtype="auto", timestamps=timestamps)
    kept, dropped = kept_and_dropped(label, clips)
    for before, after in zip(kept, dropped, strict=True):
        assert before["suspect"] == after["suspect"] and "no_speech" in after["suspect"]
        texts = [s["text"] for s in before["segments"] if not s["suspect"]]
        assert after["text"] == " ".join(texts) != before["text"]
        assert after["text"].startswith("I do") and after["text"].endswith("Fail better.")
        assert len(after["segments"]) == len(before["segments"])
        assert {bool(s["text"]) for s in after["segments"] if s["suspect"]} == {False}
        if timestamps == "word":
            assert " ".join(word["text"] for word in after["words"]) == after["text"]


def test_a_sentence_in_a_minute_of_silence_is_all_that_stays() -> None:
    sentence = clip(SILENCE[: 30 * RATE], recording("clone-test"), SILENCE[: 35 * RATE])
    [row] = labeller(whisper_tiny_en(), dtype="auto", suspect="drop").label([sentence])
    assert row["text"].startswith("I do. I think that America") and len(row["text"]) < 60


@pytest.fixture(scope="module")
def of_base(base: Path) -> Label:
    return labeller(base, dtype="auto")


def test_what_base_invents_for_silence_noise_hum_and_music_is_suspect(of_base: Label) -> None:
    for row in of_base.label([clip(sound) for sound in nobody(5).values()]):
        assert row["suspect"] or not row["text"]


def test_prompts_in_several_languages_are_not_suspect(of_base: Label) -> None:
    clips = [clip(prompt(language, name)) for language in LANGUAGES for name in PROMPTS]
    assert [row["suspect"] for row in of_base.label(clips)] == [[]] * len(clips)


def test_several_languages_in_a_recording_are_a_sign_against_it(of_base: Label) -> None:
    pause = SILENCE[: RATE // 2]
    parts = {
        language: np.concatenate(
            [part for name in PROMPTS for part in (prompt(language, name), pause)]
        )
        for language in LANGUAGES
    }
    twice = [np.tile(part, 2)[: 20 * RATE] for part in parts.values()]
    mixed, english = of_base.label([clip(twice[0], twice[2]), clip(twice[0], twice[0])])
    assert "mixed_languages" in mixed["suspect"] and "mixed_languages" not in english["suspect"]
    assert {s["language"] for s in mixed["segments"]} == {"en", "fr"}
    assert all(0.5 < s["language_probability"] <= 1 for s in mixed["segments"])
