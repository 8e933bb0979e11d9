"""Whisper base tells languages apart and transcribes them, in whatever number format it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import pytest
import torch
from hearing import RATE, labeller

from audio_ops.label import Label
from audio_ops.tasks import Clip
from jobs.bench.testbed import prompts, whisper_base

LANGUAGES = ("en", "es", "fr")
PROMPTS = ("agent-incorrect", "conf-onlyone")  # each 3 to 7 s
NEAR_TIE = 0.5  # nats between two tokens that rounding may exchange


@pytest.fixture(scope="module")
def base() -> Path:
    return whisper_base()


@pytest.fixture(scope="module")
def spoken() -> dict[str, list[Path]]:
    """A recording of each prompt in each language."""
    return {
        language: [next(prompts(language).rglob(f"{name}.wav")) for name in PROMPTS]
        for language in LANGUAGES
    }


@pytest.fixture(scope="module")
def clips(spoken: dict[str, list[Path]]) -> list[Clip]:
    """A prompt in each language."""
    sounds = [librosa.load(files[0], sr=RATE)[0] for files in spoken.values()]
    return [Clip(sound, len(sound) / RATE) for sound in sounds]


@pytest.fixture(scope="module")
def exact(base: Path) -> Label:
    return labeller(base, dtype="float32")


@pytest.fixture(scope="module")
def expected(exact: Label, clips: list[Clip]) -> list[Any]:
    return exact.label(clips)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_half_precision_changes_no_language_and_no_text(
    dtype: str, base: Path, clips: list[Clip], exact: Label, expected: list[Any]
) -> None:
    assert [row["language"] for row in expected] == list(LANGUAGES)
    found = labeller(base, dtype=dtype).label(clips)
    for clip, ours, wanted in zip(clips, found, expected, strict=True):
        assert ours["language"] == wanted["language"]
        assert ours["no_speech"] == pytest.approx(wanted["no_speech"], abs=0.1)
        if ours["text"] != wanted["text"]:
            assert gap(exact, clip, ours["text"], wanted) < NEAR_TIE, (ours["text"], wanted["text"])


def gap(exact: Label, clip: Clip, text: str, wanted: dict[str, Any]) -> float:
    """How much likelier, in nats, the float32 model finds its own token where the texts part."""
    family: Any = exact.model.family  # type: ignore[attr-defined]
    (ours, theirs) = (
        [*family.tokenizer.encode(f" {part}", add_special_tokens=False), family.settings.end]
        for part in (text, wanted["text"])
    )
    same = next(n for n, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) == 2)
    prompt = family.tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", f"<|{wanted['language']}|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    features = family.extractor(clip.waveform, sampling_rate=RATE, return_tensors="pt")
    device = family.model.device
    with torch.inference_mode():
        tokens = torch.tensor([[*prompt, *ours[:same]]], device=device)
        logits = family.model(**features.to(device), decoder_input_ids=tokens).logits
    return float(logits[0, -1, theirs[same]] - logits[0, -1, ours[same]])
