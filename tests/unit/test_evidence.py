"""Evidence against invented text, for each segment: no model is needed to judge a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prose import PROSE

from audio_ops.speech.evidence import clip_evidence, segment_evidence
from audio_ops.speech.options import Options
from audio_ops.speech.transcript import Segment, Transcript

FRAME_S = 0.032
TALK = "We met at the station and walked along the river to the old mill."


def options(**changed: Any) -> Options:
    return Options(task="automatic-speech-recognition", model="m", **changed)


def speech(length_s: float, *spoken: tuple[float, float]) -> np.ndarray:
    """Probabilities of speech per frame, certain in the spans `spoken`."""
    at = np.arange(round(length_s / FRAME_S)) * FRAME_S
    inside = [(a <= at) & (at < b) for a, b in spoken] or [at < 0]
    return np.where(np.any(inside, 0), 255, 0).astype(np.uint8)


def segment(start_s: float, end_s: float, text: str, score: float = 0.8, **more: Any) -> Segment:
    return Segment(start_s, end_s, text, score, **more)


def suspects(segments: list[Segment], heard: np.ndarray | None, **changed: Any) -> list[list[str]]:
    return [entry["suspect"] for entry in segment_evidence(segments, heard, options(**changed))]


def test_each_segment_is_judged_by_its_own_part_of_the_sound() -> None:
    segments = [
        segment(0, 20, TALK),
        segment(20, 50, "you"),
        segment(50, 75, "Thank you.", 0.2),
        segment(75, 95, TALK),
    ]
    heard = speech(95, (0, 15), (76, 95))
    entries = segment_evidence(segments, heard, options())
    found = [entry["suspect"] for entry in entries]
    assert found == [[], ["no_speech"], ["no_speech", "low_probability"], []]
    assert [entry["speech_ratio"] for entry in entries] == pytest.approx(
        [0.75, 0, 0, 0.95], abs=0.01
    )
    clip = clip_evidence(Transcript("", None, segments), entries, heard, 95.0)
    assert clip["suspect"] == ["no_speech", "low_probability"]
    assert clip["speech_ratio"] == pytest.approx(34 / 95, abs=0.01)


@pytest.mark.parametrize(
    ("text", "spoken_s", "is_suspect"),
    [
        (TALK, 2.8, False),  # 9 % of the window
        ("Yes.", 0.4, False),
        ("Yes.", 0.1, True),  # a click
        (TALK + PROSE["en"][:150], 2.8, True),  # more than can be said in that time
        ("you", 0.0, True),
    ],
)
def test_a_sentence_in_much_silence_stays_and_an_invented_one_does_not(
    text: str, spoken_s: float, is_suspect: bool
) -> None:
    heard = speech(30, (10, 10 + spoken_s))
    assert suspects([segment(0, 30, text)], heard) == [["no_speech"] if is_suspect else []]
    assert suspects([segment(0, 30, text)], heard, min_speech_ratio=None) == [[]]


def test_without_a_voice_detector_nothing_is_silent_for_it() -> None:
    assert suspects([segment(0, 30, "you")], None) == [[]]


def test_whispers_own_silence_counts_beside_a_low_score_alone() -> None:
    heard = speech(5, (0, 5))
    for score, found in ((0.3, ["no_speech", "low_probability"]), (0.9, [])):
        assert suspects([segment(0, 5, TALK, score, no_speech=0.7)], heard) == [found]


def test_an_empty_text_is_not_suspect() -> None:
    assert suspects([segment(0, 5, "  ", 0.01)], speech(5)) == [[]]


@pytest.mark.parametrize("end_s", [0.0, 0.02])
def test_a_segment_without_length_is_judged_by_its_first_frame(end_s: float) -> None:
    assert suspects([segment(0, end_s, "Yes.")], speech(1, (0, 1))) == [[]]
    entries = segment_evidence([segment(9, 9, "Yes.")], speech(1, (0, 1)), options())
    assert entries[0]["speech_ratio"] == 1.0  # at the sound's end
    assert entries[0]["chars_per_s"] == 4
