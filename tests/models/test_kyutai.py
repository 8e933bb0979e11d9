"""Texts of Kyutai's recogniser are those of its processor and `generate`, as on its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hearing import label, labeller, sound
from kyutai import PIECES, kyutai_page, tiny_kyutai

from audio_ops.tasks import Clip

RATE = 24_000
SOUNDS = [sound(1.5, 300), sound(2.25, 700), sound(1.5, 900), sound(0.6, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kyutai(tmp_path_factory.mktemp("kyutai"))


def test_texts_are_the_pages_and_do_not_depend_on_the_batch(folder: Path) -> None:
    recogniser = labeller(folder)
    clips = [Clip(wave, len(wave) / RATE) for wave in SOUNDS]
    mixed: list[Any] = recogniser.label(clips)
    backwards: list[Any] = recogniser.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = recogniser.label([clip])
        assert isinstance(alone, dict)
        text, score = kyutai_page(folder, clip.waveform)
        assert found["text"] == alone["text"] == turned["text"] == text != ""
        each = [found["score"], alone["score"], turned["score"]]
        assert each == pytest.approx([score] * 3, abs=1e-4)
    assert len({found["text"] for found in mixed}) > 2


SAID = [
    *("<pad>", "<unk>", "▁a", "<pad>", "<unk>", "▁be", "c", "▁see", "d.", "<pad>", "<pad>"),
    *("<unk>", "<pad>", "▁day", "<unk>", "e", "<pad>", "<pad>", "<pad>", "<unk>", "<unk>", "▁a"),
]
# Tokens of 80 ms, 0.5 s behind the sound: a word from its boundary on to the next word's, or to the
# next word where no boundary lies between them; the last up to the end of the tokens.
TIMED = [
    ("a", 0.0, 0.0),
    ("bec", 0.0, 0.06),
    ("seed.", 0.06, 0.38),
    ("daye", 0.46, 1.02),
    ("a", 1.18, 1.26),
]


@pytest.mark.parametrize("timestamps", ["none", "word", "segment"])
def test_times_follow_from_the_tokens_places(folder: Path, timestamps: str) -> None:
    model: Any = labeller(folder, timestamps=timestamps).model
    tokens = [PIECES.index(piece) for piece in SAID]
    found = model.family._read(tokens, [-0.1] * len(tokens), 2.0)
    assert found.text == "a bec seed. daye a"
    segments = [(s.text, s.start_s, s.end_s, s.score) for s in found.segments]
    words = [(w["text"], w["start_s"], w["end_s"]) for s in found.segments for w in s.words]
    likely = pytest.approx(0.905, abs=1e-3)
    if timestamps == "segment":
        assert segments == [("a bec seed.", 0.0, 0.38, likely), ("daye a", 0.46, 1.26, likely)]
    else:
        assert segments == [("a bec seed. daye a", 0.0, 2.0, likely)]
    assert words == (TIMED if timestamps == "word" else [])
    assert found.log_probability == pytest.approx(-0.8)


def test_a_last_word_lasts_a_second_at_most(folder: Path) -> None:
    model: Any = labeller(folder, timestamps="word").model
    tokens = [PIECES.index(piece) for piece in ("<unk>", "▁a", *["<pad>"] * 40)]
    found = model.family._read(tokens, [-0.1] * len(tokens), 9.0)
    [word] = found.segments[0].words
    assert (word["start_s"], word["end_s"]) == (0.0, pytest.approx(13 * 0.08 - 0.5))


def test_words_make_up_the_text_and_stay_within_the_sound(folder: Path) -> None:
    plain, timed, parts = (
        label(folder, *SOUNDS, timestamps=t) for t in ("none", "word", "segment")
    )
    for one, of_words, of_sentences in zip(plain, timed, parts, strict=True):
        assert one["text"] == of_words["text"] == of_sentences["text"]
        assert one["score"] == pytest.approx(of_words["score"])
        assert " ".join(w["text"] for w in of_words["words"]) == one["text"]
        assert " ".join(s["text"] for s in of_sentences["segments"]) == one["text"]
        times = [t for w in of_words["words"] for t in (w["start_s"], w["end_s"])]
        assert times == sorted(times)
        assert times[-1] <= one["segments"][0]["end_s"]


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
