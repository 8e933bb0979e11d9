"""Transcripts against true texts, counted by hand and by jiwer itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jiwer
import pytest
from checkpoints import tiny_whisper
from runs import ROOT
from sounds import tone

from audio_ops.inference import transformers_compat as compat
from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.speech.wer import WordErrors
from audio_ops.tasks import Clip, load_task


@pytest.fixture(scope="module")
def compare() -> WordErrors:
    return WordErrors()


@pytest.mark.parametrize(
    ("reference", "text", "language", "words", "word_edits"),
    [
        ("The cat sat on the mat.", "the cat sat on the mat", "en", 6, 0),
        ("the cat sat on the mat", "the cat sat mat", "en", 6, 2),
        ("the cat sat", "the big cat sat down", "en", 3, 2),
        ("the cat sat", "a cat ran off", "en", 3, 3),
        ("the cat", "", "en", 2, 2),
        ("", "thanks for watching", "en", 0, 3),
        ("", "", "en", 0, 0),
        ("[noise]", "you", "en", 0, 1),
        ("Mr. Smith won't pay twenty dollars", "mister smith will not pay $20", "en", 6, 0),
        ("Mr. Smith won't pay", "mister smith will not pay", "de", 5, 3),
        ("a grey colour", "a grey color", "en", 3, 0),
        ("a grey colour", "a grey color", "fr", 3, 1),
        ("Straße, 5!", "straße 5", "de", 2, 0),
        ("你好世界", "你好时界", "zh", 4, 1),
        ("你好世界", "你好时界", None, 4, 1),
        ("Hello there", "hello  there ", None, 2, 0),
    ],
)
def test_words_are_counted_after_a_normaliser(
    compare: WordErrors,
    reference: str,
    text: str,
    language: str | None,
    words: int,
    word_edits: int,
) -> None:
    found = compare(reference, text, language)
    assert (found["edits"]["words"], found["edits"]["word_edits"]) == (words, word_edits)
    assert found["wer"] == pytest.approx(word_edits / max(words, 1))


def test_characters_are_counted_with_their_spaces(compare: WordErrors) -> None:
    found = compare("ab cd", "ab  ce", "de")
    assert found["edits"]["characters"] == 5 and found["edits"]["character_edits"] == 1
    assert found["cer"] == pytest.approx(0.2)
    assert compare("", "ab c", "de")["cer"] == 4
    assert compare("", "", "de")["cer"] == 0


@pytest.mark.parametrize("code", ["en", "eng", "EN", "en-US", "en_GB", "english"])
def test_english_goes_by_many_codes(compare: WordErrors, code: str) -> None:
    assert compare("It's Dr. No", "it is doctor no", code)["wer"] == 0


@pytest.mark.parametrize("code", ["zh", "zh-TW", "cmn", "cmn_Hant", "ja", "jpn", "th", "yue"])
def test_languages_without_spaces_are_compared_by_letters(compare: WordErrors, code: str) -> None:
    found = compare("你好 ab", "你好 ac", code)
    assert found["compared_by"] == "characters"
    assert found["edits"] == {"words": 4, "word_edits": 1, "characters": 4, "character_edits": 1}


def test_no_reference_gives_nothing(compare: WordErrors) -> None:
    assert compare(None, "text", "en") == {}


def test_rates_are_those_of_jiwer(compare: WordErrors) -> None:
    pairs = [
        ("It was the best of times, it was the worst of times.", "it was the blessed times"),
        ("Ever tried, ever failed. No matter!", "every tribe ever failed no matter no matter"),
        ("Fail better", "fail better"),
    ]
    found = [compare(reference, text, "en") for reference, text in pairs]
    english = compat.english_normalizer({})  # no word here is spelled in two ways
    normal = [(english(reference).strip(), english(text).strip()) for reference, text in pairs]
    for one, (reference, text) in zip(found, normal, strict=True):
        assert one["wer"] == pytest.approx(jiwer.wer(reference, text))
        assert one["cer"] == pytest.approx(jiwer.cer(reference, text))
    references, texts = map(list, zip(*normal, strict=True))
    edits = [one["edits"] for one in found]
    for rate, count, of in (
        (jiwer.wer, "word_edits", "words"),
        (jiwer.cer, "character_edits", "characters"),
    ):
        whole = sum(e[count] for e in edits) / sum(e[of] for e in edits)
        assert whole == pytest.approx(rate(references, texts))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


def heard(whisper: Path, reference: str | None, **options: Any) -> dict[str, Any]:
    task = load_task("automatic-speech-recognition")
    chosen = task.Options(
        task="automatic-speech-recognition", model=str(whisper), reference="said", **options
    )
    checkpoint = find_checkpoint(str(whisper))
    task.check(chosen, checkpoint)
    model = task.Model(chosen, checkpoint, available_device())
    clip = Clip(tone(1.0)[0], 1.0, row={"said": reference})
    windows = model.windows(clip)
    outputs = model([clip.waveform[w.start : w.stop] for w in windows], windows[0].group)
    columns: dict[str, Any] = model.join(clip, windows, outputs)
    assert set(columns) <= set(task.columns(chosen)) | {"words"}
    return columns


def test_a_recognisers_row_is_compared_with_its_reference(whisper: Path) -> None:
    text = heard(whisper, None, language="de")["text"]
    assert text.strip()
    same, other = heard(whisper, text, language="de"), heard(whisper, "x", language="de")
    assert same["wer"] == same["cer"] == 0
    assert other["wer"] >= 1 and other["text"] == text
    assert "wer" not in heard(whisper, None, language="de")


def test_what_is_compared_is_the_text_in_the_row(whisper: Path) -> None:
    options = {"language": "de", "min_score": 1.0}
    dropped = heard(whisper, "one two", **options, suspect="drop")
    assert dropped["suspect"] and dropped["text"] == ""
    assert dropped["edits"]["word_edits"] == 2 and dropped["wer"] == 1.0
    kept = heard(whisper, "one two", **options, suspect="keep")
    assert kept["suspect"] and kept["text"] and kept["edits"]["character_edits"] > 0


@pytest.mark.parametrize(
    ("options", "normal"),
    [
        ({"language": "de"}, "it won t"),
        ({"language": "en"}, "it will not"),
        ({"language": "de", "translate": True}, "it will not"),
        ({"language": "de", "reference_language": "en"}, "it will not"),
        ({"language": "en", "reference_language": "de"}, "it won t"),
    ],
)
def test_the_normaliser_goes_by_the_language_of_the_text(
    whisper: Path, options: dict[str, Any], normal: str
) -> None:
    edits = heard(whisper, "It won't.", **options)["edits"]
    assert (edits["words"], edits["characters"]) == (3, len(normal))


def test_english_spelling_does_not_depend_on_the_checkpoints_files(whisper: Path) -> None:
    """transformers 5 saves no normalizer.json."""
    assert not (whisper / "normalizer.json").exists()
    british = heard(whisper, "the colour of grey programmes", language="en")["edits"]
    assert british["characters"] == len("the color of gray programs")


@pytest.mark.parametrize("reference", ["9" * 5000, '["one", "two"]'])
def test_a_reference_that_cannot_be_compared_is_named_and_costs_no_label(
    whisper: Path, reference: str
) -> None:
    row = heard(whisper, reference, language="en")
    assert row["text"] and row["reference_error"].startswith("said: ") and "wer" not in row
    assert len(row["reference_error"]) < 200


def test_a_language_for_no_reference_is_refused(whisper: Path) -> None:
    task = load_task("automatic-speech-recognition")
    options = task.Options(
        task="automatic-speech-recognition", model=str(whisper), reference_language="en"
    )
    with pytest.raises(ValueError, match="reference_language: expected a reference beside it"):
        task.check(options, find_checkpoint(str(whisper)))


def test_counting_and_conditions_are_no_part_of_a_worker_that_decodes() -> None:
    script = (
        "import sys, jobs.workers.read, jobs.table.write, audio_ops.tasks.automatic_speech_recognition;"
        "print(sorted({'jiwer', 'duckdb', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
