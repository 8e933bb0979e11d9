"""Texts of transducers are those of transformers' pipeline, and their times those of the processor."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import each_made_once
from hearing import RATE, label, labeller, sound
from recognisers import tiny_transducer

from audio_ops.speech.transducer import MODEL_TYPES, decoder, model
from audio_ops.tasks import Clip

Made = Callable[[str], Path]
FRAME_S = 0.08


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The checkpoint of that model type, made once."""
    return each_made_once(tmp_path_factory, tiny_transducer)


@functools.cache
def pipeline_of(folder: Path) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("automatic-speech-recognition", model=str(folder), dtype=torch.float32)


def generated(folder: Path, wave: np.ndarray, **request: Any) -> tuple[Any, Any]:
    """The processor, and what `generate` returns for a sound, as on the model's page."""
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(wave, sampling_rate=RATE, **request)
    with torch.inference_mode():
        return processor, pipeline_of(folder).model.generate(**inputs)


SOUNDS = [sound(1.0, 200), sound(2.37, 900), sound(0.41, 3000), sound(1.0, 700), sound(3.2, 300)]


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_texts_are_the_pipelines_and_do_not_depend_on_the_batch(made: Made, kind: str) -> None:
    recogniser, pipe = labeller(made(kind)), pipeline_of(made(kind))
    clips = [Clip(wave, len(wave) / RATE) for wave in SOUNDS]
    mixed: list[Any] = recogniser.label(clips)
    backwards: list[Any] = recogniser.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = recogniser.label([clip])
        assert isinstance(alone, dict)
        assert found["text"] == alone["text"] == turned["text"]
        assert found["text"] == pipe(clip.waveform.copy())["text"].strip()
        assert found["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert turned["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert 0 < found["score"] <= 1
    assert len({found["text"] for found in mixed}) == len(clips)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_words_are_timed_as_by_the_processor(made: Made, kind: str) -> None:
    wave = SOUNDS[1]
    processor, output = generated(made(kind), wave)
    _, [pieces] = processor.decode(
        output.sequences, durations=output.durations, skip_special_tokens=True
    )
    words: list[list[Any]] = []
    for n, piece in enumerate(pieces):
        if not n or piece["token"].startswith(" "):
            words.append([])
        words[-1].append(piece)
    expected = [
        ("".join(p["token"] for p in word).strip(), word[0]["start"], word[-1]["end"])
        for word in words
    ]
    (found,) = label(made(kind), wave, timestamps="word")
    times = [(word["text"], word["start_s"], word["end_s"]) for word in found["words"]]
    assert times == [
        (text, pytest.approx(start, abs=2e-3), pytest.approx(min(end, 2.37), abs=2e-3))
        for text, start, end in expected
    ]
    assert len(times) > 2
    assert " ".join(text for text, *_ in times) == found["text"]
    assert len(found["segments"]) == 1


@pytest.mark.parametrize("kind", ["parakeet_tdt", "parakeet_rnnt"])
def test_score_is_the_tokens_mean_probability(made: Made, kind: str) -> None:
    """By the model's own forward pass over all frames and the tokens that it generated."""
    import torch

    wave, folder = SOUNDS[1], made(kind)
    processor, output = generated(folder, wave)
    whole = pipeline_of(folder).model
    tokens, blank = output.sequences[0], whole.config.blank_token_id
    frames = (output.durations[0].cumsum(0) - output.durations[0])[1:]
    emitted = tokens[1:] != blank
    text = tokens[1:][emitted]
    with torch.inference_mode():
        inputs = processor(wave, sampling_rate=RATE)
        logits = whole(**inputs, decoder_input_ids=torch.cat([tokens[:1], text])[None]).logits[0]
        scores = logits[..., : whole.config.vocab_size].log_softmax(-1)
    before = range(len(text))
    each = scores[frames[emitted], before, text]
    (found,) = label(folder, wave)
    assert found["score"] == pytest.approx(each.mean().exp().item(), abs=1e-5)
    assert len(text) > 4


@pytest.mark.parametrize("kind", ["parakeet_tdt", "parakeet_rnnt"])
def test_segments_are_sentences(made: Made, kind: str) -> None:
    """They end with a word that ends in . ? or !, as in NeMo."""
    (words,) = label(made(kind), SOUNDS[-1], timestamps="word")
    (found,) = label(made(kind), SOUNDS[-1], timestamps="segment")
    assert found["text"] == words["text"]
    texts = [segment["text"] for segment in found["segments"]]
    assert texts == [part.strip() for part in re.findall(r".+?(?:\.(?= |$)|$)", found["text"])]
    assert len(texts) > 1
    assert found["segments"][0]["start_s"] == words["words"][0]["start_s"]
    assert found["segments"][-1]["end_s"] == words["words"][-1]["end_s"]
    assert all(0 < segment["score"] <= 1 for segment in found["segments"])


def test_long_sound_is_cut_in_pauses_and_transcribed_once(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.MAX_S == 40
    monkeypatch.setattr(model, "MAX_S", 4.0)
    wave = np.concatenate([sound(2.5, 400), np.zeros(RATE // 2, np.float32), sound(2.4, 700)])
    (found,) = label(made("parakeet_tdt"), wave, timestamps="word")
    segments = found["segments"]
    assert [s["start_s"] for s in segments] == [0, pytest.approx(2.75, abs=0.4)]
    assert segments[-1]["end_s"] == 5.4
    assert all(a["end_s"] == b["start_s"] for a, b in itertools.pairwise(segments))
    cut = round(segments[1]["start_s"] * RATE)
    pipe = pipeline_of(made("parakeet_tdt"))
    halves = [pipe(part.copy())["text"].strip() for part in (wave[:cut], wave[cut:])]
    assert found["text"] == " ".join(halves)
    starts = [word["start_s"] for word in found["words"]]
    assert starts == sorted(starts)
    assert any(start > segments[1]["start_s"] for start in starts)


def test_nemotron_takes_a_language_and_says_which_it_finds(made: Made) -> None:
    folder, wave = made("nemotron3_5_asr"), SOUNDS[1]
    said = set()
    for language in ("en-US", "de-DE"):
        processor, output = generated(folder, wave, language=language)
        (found,) = label(folder, wave, language=language)
        assert found["text"] == processor.decode(output.sequences[0], skip_special_tokens=True)
        assert found["language"] == language
        said.add(found["text"])
    assert len(said) == 2
    for wave, found in zip(SOUNDS[:2], label(folder, *SOUNDS[:2]), strict=True):
        processor, output = generated(folder, wave)
        whole = processor.decode(output.sequences[0], skip_special_tokens=False)
        tags = re.findall("<(..-..)>", whole)
        assert tags and found["language"] == tags[-1]
        assert "<" not in found["text"]


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_what_is_too_short_has_no_text(made: Made, kind: str) -> None:
    empty, found = label(made(kind), sound(0.01, 300), SOUNDS[0])
    assert (empty["text"], empty["score"], empty["segments"]) == ("", None, [])
    assert found["text"] == pipeline_of(made(kind))(SOUNDS[0].copy())["text"].strip()
    (barely,) = label(made(kind), sound(0.02, 300))
    assert isinstance(barely, dict)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("parakeet_tdt", {"language": "en"}, "language: expected none, as of the transducers only"),
        ("nemotron3_5_asr", {"language": "fr"}, "language: expected one of auto, de-DE, en-US"),
        ("parakeet_tdt", {"timestamps": "char"}, "timestamps: expected none or segment or word"),
        ("parakeet_rnnt", {"num_beams": 2}, "num_beams: expected nothing for a parakeet_rnnt"),
    ],
)
def test_what_transducers_lack_is_refused_by_name(
    made: Made, kind: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        labeller(made(kind), **options)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["ParakeetForCTC"]}, r"expected a \.\.\.ForTDT or \.\.\.ForRNNT"),
        ({"blank_token_id": 99}, "found 99 as config.json: blank_token_id"),
        ({"durations": [0, 1, 2]}, "with a row for each of durations, in config.json says, found"),
    ],
)
def test_a_checkpoint_of_contradictions_is_refused(
    made: Made, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("parakeet_tdt"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=expected):
        labeller(folder)


def test_finished_rows_leave_the_batch(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plain = decoder.joint_scores

    def counted(model: Any, frames: Any, predicted: Any) -> Any:
        rows.append(len(frames))
        return plain(model, frames, predicted)

    monkeypatch.setattr(decoder, "joint_scores", counted)
    label(made("parakeet_rnnt"), *SOUNDS)
    assert rows[0] == len(SOUNDS)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 1
