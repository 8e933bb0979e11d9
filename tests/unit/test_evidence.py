"""Evidence against invented text, for each segment: no model is needed to judge a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from prose import PROSE, REFRAINS

from audio_ops.speech.evidence import clip_evidence, compression_ratio, is_loop, segment_evidence
from audio_ops.speech.options import Options
from audio_ops.speech.phrases import PHRASES, is_credit, is_phrase
from audio_ops.speech.transcript import Segment, Transcript
from audio_ops.tasks import Clip

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


def clip_of(length_s: float, heard: np.ndarray | None = None) -> Clip:
    return Clip(np.zeros(1, np.float32), length_s, heard)


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
    silent = ["no_speech", "phrase"]
    assert found == [[], silent, ["no_speech", "low_probability", "phrase"], []]
    assert [entry["speech_ratio"] for entry in entries] == pytest.approx(
        [0.75, 0, 0, 0.95], abs=0.01
    )
    clip = clip_evidence(Transcript("", None, segments), entries, clip_of(95, heard), options())
    assert clip["suspect"] == ["no_speech", "low_probability", "phrase"]
    assert clip["speech_ratio"] == pytest.approx(34 / 95, abs=0.01)


@pytest.mark.parametrize(
    ("text", "spoken_s", "is_suspect"),
    [
        (TALK, 2.8, False),  # 9 % of the window
        ("Yes.", 0.4, False),
        ("Yes.", 0.1, True),  # a click
        (TALK + PROSE["en"][:150], 2.8, True),  # more than can be said in that time
        ("And so it goes.", 0.0, True),
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


@pytest.mark.parametrize("language", PROSE)
def test_plain_prose_is_no_loop_in_any_script(language: str) -> None:
    assert 0.9 < compression_ratio(PROSE[language]) < 1.7
    assert suspects([segment(0, 30, PROSE[language])], speech(30, (0, 30))) == [[]]


@pytest.mark.parametrize("language", PROSE)
@pytest.mark.parametrize("gap", [" ", "", ". ", "\n"])
def test_a_loop_is_one_in_every_script(language: str, gap: str) -> None:
    sentence = PROSE[language][:30].strip()
    loop = gap.join([sentence] * 8)
    assert suspects([segment(0, 30, loop)], speech(30, (0, 30))) == [["loop"]]
    behind_prose = PROSE[language] + gap + gap.join([sentence] * 30)
    assert "loop" in suspects([segment(0, 300, behind_prose)], speech(300, (0, 300)))[0]
    assert suspects([segment(0, 30, loop)], None, max_compression_ratio=None) == [[]]


def test_five_minutes_of_prose_and_refrains_are_no_loop() -> None:
    for talk in (" ".join(REFRAINS), "\n".join(PROSE.values()), *REFRAINS):
        assert not is_loop(talk, 2.4)
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert not is_loop(", ".join(f"{a} hundred and {b}" for a in numbers for b in numbers), 2.4)
    saints = [
        "Michael",
        "Gabriel",
        "Raphael",
        "Joseph",
        "Peter",
        "Paul",
        "Andrew",
        "James",
        "John",
        "Thomas",
        "Philip",
    ]
    assert compression_ratio(" ".join(f"Saint {saint}, pray for us." for saint in saints)) > 2.4
    assert not is_loop(" ".join(f"Saint {saint}, pray for us." for saint in saints), 2.4)


@pytest.mark.parametrize(
    "text",
    ["you " * 12, "♪" * 60, "ha" * 40, "No, no, no. " * 10, "Thank you. Bye. " * 12, "." * 200],
)
def test_short_loops_and_signs_are_loops(text: str) -> None:
    assert is_loop(text, 2.4)


def test_a_loop_may_end_a_long_text() -> None:
    """The last 200 characters of a text of 600 count as much as the first 400."""
    assert is_loop(PROSE["en"][:300] + "I'm going to go. " * 17, 2.4)


def test_segments_that_a_window_repeats_are_one_loop_and_its_others_are_none() -> None:
    looping = [segment(n, n + 1, "I'm going to go to the next one.", window=1) for n in range(30)]
    talk = [segment(60, 70, TALK, window=1), segment(80, 90, looping[0].text, window=2)]
    found = suspects([*looping, *talk], speech(90, (0, 90)), max_chars_per_s=None)
    assert found == [["loop"]] * 30 + [[], []]
    alternating = [segment(n, n + 1, ("And so it goes.", "And then?")[n % 2]) for n in range(20)]
    assert suspects(alternating, speech(20, (0, 20))) == [["loop"]] * 20


@pytest.mark.parametrize(
    "text",
    [
        "Untertitel der Amara.org-Community",
        " Sous-titres réalisés para la communauté d'Amara.org",
        "Subtítulos realizados por la comunidad de Amara.org",
        "Legendas pela comunidade Amara.org",
        "字幕由Amara.org社区提供",
        "Napisy stworzone przez społeczność Amara.org",
        "Субтитры сделал DimaTorzok",
        "Редактор субтитров А.Синецкая Корректор А.Егорова",
        "Untertitelung des ZDF, 2020",
        "Untertitel im Auftrag des ZDF für funk, 2017",
        "Sous-titrage ST' 501",
        "Altyazı M.K.",
        "Thank you. Subtitles by the Amara.org community",
    ],
)
def test_credits_of_subtitles_are_suspect_whatever_the_evidence(text: str) -> None:
    assert suspects([segment(0, 5, text, 0.99)], speech(5, (0, 5))) == [["phrase"]]
    assert suspects([segment(0, 5, text, 0.99)], speech(5, (0, 5)), phrases=False) == [[]]
    assert not is_credit(f"{text} {TALK}") and not is_credit(f"{TALK} {text}")


def all_phrases() -> list[str]:
    content = yaml.safe_load(PHRASES.read_text(encoding="utf-8"))
    return [phrase for phrases in content["phrases"].values() for phrase in phrases]


@pytest.mark.parametrize("phrase", all_phrases())
def test_phrases_that_people_say_are_suspect_where_the_evidence_is_weak(phrase: str) -> None:
    spoken, silent = speech(5, (0, 5)), speech(5)
    text = f" {phrase.capitalize()}!"
    assert suspects([segment(0, 5, text)], spoken) == [[]]
    assert suspects([segment(0, 5, text, no_speech=0.4)], spoken) == [["phrase"]]
    assert suspects([segment(0, 5, text, 0.2)], spoken) == [["low_probability", "phrase"]]
    assert suspects([segment(0, 5, text)], silent) == [["no_speech", "phrase"]]
    assert is_phrase(text * 2) and not is_phrase(text + TALK)


def test_a_word_that_begins_like_a_phrase_is_none() -> None:
    for text in ("your", "Byes", "Thank your father", "", "..."):
        assert not is_phrase(text) and not is_credit(text)


def test_a_long_text_of_phrases_is_read_at_once() -> None:
    assert is_phrase("Bye. " * 5000) and not is_phrase("bye " * 5000 + "then")


@pytest.mark.parametrize(
    ("detected", "probability", "found"),
    [("de", 0.95, []), ("fr", 0.96, ["wrong_language"]), ("fr", 0.6, []), (None, None, [])],
)
def test_another_language_than_the_one_that_is_set_is_suspect(
    detected: str | None, probability: float | None, found: list[str]
) -> None:
    part = segment(
        0, 30, TALK, language="de", detected_language=detected, language_probability=probability
    )
    assert suspects([part], speech(30, (0, 30))) == [found]
    assert suspects([part], speech(30, (0, 30)), min_language_probability=None) == [[]]


@pytest.mark.parametrize(("spoken_s", "found"), [(1.4, []), (1.6, ["wrong_language"])])
def test_a_word_does_not_tell_its_language(spoken_s: float, found: list[str]) -> None:
    """Whisper base: "I-A-X." (1.1 s), set as Spanish, is English to 96 %."""
    parts = [
        segment(*times, "I-A-X.", language="es", detected_language="en", language_probability=0.96)
        for times in ((0, 5), (5, 9))
    ]
    heard = speech(9, (4, 4 + spoken_s / 2), (6, 6 + spoken_s / 2))
    assert suspects(parts, heard, min_speech_ratio=None) == [found, found]
    assert suspects(parts[:1], heard, min_speech_ratio=None) == [[]]  # alone, of the other half


def test_windows_in_several_languages_are_a_sign_of_their_clip() -> None:
    def of_clip(*parts: tuple[str, float, str], last_s: float = 30, **changed: Any) -> list[str]:
        segments = [
            segment(
                *(30 * n, 30 * n + 30, text),
                language=language,
                detected_language=language,
                language_probability=probability,
                window=n,
            )
            for n, (language, probability, text) in enumerate(parts)
        ]
        heard = speech(30 * len(parts), (0, 30 * len(parts) - 30 + last_s))
        entries = segment_evidence(segments, heard, options(**changed))
        clip = clip_of(30.0 * len(parts), heard)
        found = clip_evidence(Transcript("", None, segments), entries, clip, options(**changed))
        reasons: list[str] = found["suspect"]
        assert "mixed_languages" not in [r for entry in entries for r in entry["suspect"]]
        return reasons

    assert of_clip(("en", 0.99, TALK), ("fr", 0.95, TALK)) == ["mixed_languages"]
    assert of_clip(("en", 0.99, TALK), ("fr", 0.95, "Oui."), last_s=3.2) == ["mixed_languages"]
    assert of_clip(("en", 0.99, TALK), ("fr", 0.95, "Oui."), last_s=2.8) == []
    assert of_clip(("en", 0.99, TALK), ("en", 0.95, TALK)) == []
    assert of_clip(("en", 0.99, TALK), ("fr", 0.4, TALK)) == []
    assert of_clip(("en", 0.99, TALK), ("nn", 0.95, "so it goes " * 20)) == ["loop"]
    assert of_clip(("en", 0.99, TALK), ("fr", 0.95, "")) == []
    assert of_clip(("en", 0.99, TALK), ("fr", 0.95, TALK), translate=True) == []
