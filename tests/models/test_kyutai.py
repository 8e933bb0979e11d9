"""Texts of Kyutai's recogniser are those of its processor and `generate`, as on its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hearing import label, labeller, sound
from prompted import tiny_kyutai

from audio_ops.tasks import Clip

RATE = 24_000
SOUNDS = [sound(1.5, 300), sound(2.25, 700), sound(1.5, 900), sound(0.6, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kyutai(tmp_path_factory.mktemp("kyutai"))


def test_texts_are_the_pages_and_do_not_depend_on_the_batch(folder: Path) -> None:
    from transformers import AutoProcessor, KyutaiSpeechToTextForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model: Any = KyutaiSpeechToTextForConditionalGeneration.from_pretrained(folder)
    special = torch.tensor(processor.tokenizer.all_special_ids)
    recogniser = labeller(folder)
    clips = [Clip(wave, len(wave) / RATE) for wave in SOUNDS]
    mixed: list[Any] = recogniser.label(clips)
    backwards: list[Any] = recogniser.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = recogniser.label([clip])
        assert isinstance(alone, dict)
        inputs = processor(audio=clip.waveform, sampling_rate=RATE)
        output = model.generate(**inputs, return_dict_in_generate=True, output_scores=True)
        text = processor.batch_decode(output.sequences, skip_special_tokens=True)[0]
        assert found["text"] == alone["text"] == turned["text"] == text.strip() != ""
        scores = model.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )[0]
        is_text = ~torch.isin(output.sequences[0, -len(scores) :], special)
        expected = scores[is_text].mean().exp().item()
        each = [found["score"], alone["score"], turned["score"]]
        assert each == pytest.approx([expected] * 3, abs=1e-4)
    assert len({found["text"] for found in mixed}) > 2


def test_what_it_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_beams: expected nothing for a kyutai_speech_to_text"):
        labeller(folder, num_beams=2)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Other"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected architecture KyutaiSpeechToTextForCond"):
        labeller(tmp_path)


def test_what_is_too_short_has_no_text(folder: Path) -> None:
    empty, found = label(folder, sound(0.1, 300), SOUNDS[0])  # 0.07 s at this rate
    assert (empty["text"], empty["score"], empty["segments"]) == ("", None, [])
    assert found["text"] != ""
