"""Voxtral Realtime's texts are those of its processor and `generate`, as on its page; and what Mistral's
recognisers need besides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pycountry
import pytest
from hearing import label, labeller, sound
from mistral import realtime_page, tiny_voxtral, tiny_voxtral_realtime

from audio_ops.speech.prompted.kinds import VOXTRAL
from audio_ops.tasks import Clip

RATE = 16_000
SOUNDS = [sound(1.0, 200), sound(2.37, 900), sound(0.41, 3000), sound(1.0, 700), sound(1.7, 300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_voxtral_realtime(tmp_path_factory.mktemp("realtime"))


def test_texts_are_the_pages_and_do_not_depend_on_the_batch(folder: Path) -> None:
    model = labeller(folder)
    clips = [Clip(wave, len(wave) / RATE) for wave in SOUNDS]
    mixed: list[Any] = model.label(clips)
    backwards: list[Any] = model.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = model.label([clip])
        assert isinstance(alone, dict)
        text, score = realtime_page(folder, clip.waveform)
        assert found["text"] == alone["text"] == turned["text"] == text != ""
        each = [found["score"], alone["score"], turned["score"]]
        assert each == pytest.approx([score] * 3, abs=1e-4)
    assert len({found["text"] for found in mixed}) > 2


def test_what_is_too_short_has_no_text(folder: Path) -> None:
    empty, found = label(folder, sound(0.05, 300), SOUNDS[0])
    assert (empty["text"], empty["score"], empty["segments"]) == ("", None, [])
    assert found["text"] != ""


@pytest.mark.parametrize("options", [{"timestamps": "word"}, {"num_beams": 2}, {"language": "de"}])
def test_what_it_lacks_is_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected .* voxtral_realtime"):
        labeller(folder, **options)


def test_another_models_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Other"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected architecture VoxtralRealtimeForCond"):
        labeller(tmp_path)


@pytest.mark.parametrize("make", [tiny_voxtral, tiny_voxtral_realtime])
@pytest.mark.parametrize("found", ["none", "1.8.0"])
def test_without_mistral_common_it_is_refused_with_what_to_install(
    make: Any, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    if found == "none":
        monkeypatch.setitem(sys.modules, "mistral_common", None)  # type: ignore[arg-type]
    else:
        monkeypatch.setattr("audio_ops.inference.extras.version", lambda _: found)
    with pytest.raises(ValueError, match="model: expected the package mistral-common") as refused:
        labeller(tmp_path)
    assert f'found {found}: pip install "earmark[mistral]"' in str(refused.value)


def test_languages_of_voxtral_are_those_that_mistral_common_takes() -> None:
    codes = {country.alpha_2 for country in pycountry.languages if hasattr(country, "alpha_2")}
    assert set(VOXTRAL) == codes
