"""A language may be written as a code in any case, with or without a region, or as its English name, and
is accepted or refused in the same way by every family that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import each_made_once, tiny_seamless, tiny_whisper
from hearing import label, labeller, sound
from prompted import PROMPTED
from recognisers import tiny_transducer

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.speech.languages import code_among
from audio_ops.tasks.automatic_speech_recognition import Options, check, with_codes

TASK = "automatic-speech-recognition"
Made = Callable[[str], Path]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "whisper": tiny_whisper,
    "English-only whisper": lambda folder: tiny_whisper(folder, multilingual=False),
    "nemotron3_5_asr": lambda folder: tiny_transducer(folder, "nemotron3_5_asr"),
    **{name: PROMPTED[name] for name in ("canary", "cohere_asr", "fun_asr_nano", "qwen3_asr")},
    "voxtral": PROMPTED["voxtral"],
}
REGIONS = {"nemotron3_5_asr"}  # its codes have them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return each_made_once(tmp_path_factory, lambda folder, name: MAKERS[name](folder))


WRITTEN = ["en", "EN", "English", "english", "en-US", "en_us", "<|en|>"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_language_is_known_however_it_is_written(made: Made, name: str) -> None:
    checkpoint = find_checkpoint(str(made(name)))
    for written in WRITTEN:
        options = Options(task=TASK, model=checkpoint.name, language=written)
        check(options, checkpoint)
        found = with_codes(options, checkpoint).language
        assert found == ("en-US" if name in REGIONS else "en"), written


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_language_is_refused(made: Made, name: str) -> None:
    checkpoint = find_checkpoint(str(made(name)))
    for written in ("elvish", "", "english-", "e"):
        options = Options(task=TASK, model=checkpoint.name, language=written)
        with pytest.raises(ValueError, match=f"language: expected .* found '{written}'"):
            check(options, checkpoint)


def test_the_language_of_a_translation_is_known_too(made: Made, tmp_path: Path) -> None:
    wave = sound(1.0, 300)
    options = {"language": "German", "target_language": "fr-CA"}
    assert label(made("canary"), wave, **options) == label(
        made("canary"), wave, language="de", target_language="fr"
    )
    seamless = tiny_seamless(tmp_path, 1)
    assert labeller(seamless, tgt_lang="ENG").model.options.tgt_lang == "eng"  # type: ignore[attr-defined]


def test_a_language_of_several_regions_has_to_name_one() -> None:
    assert code_among("en-GB", ["en-US", "en-GB"]) == "en-GB"
    assert code_among("en", ["en-US", "en-GB"]) is None
    assert code_among("de", ["en-US", "de-DE"]) == "de-DE"
    assert code_among("zh-TW", ["zh", "zh-tw"]) == "zh-tw"
    assert code_among("Castilian", ["es"]) == "es"
