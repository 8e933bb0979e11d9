"""SeamlessM4T writes what its own generate writes for each clip alone, in the language asked for."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import each_made_once, tiny_seamless
from hearing import RATE, label, labeller, sound

from audio_ops.tasks import Clip

Made = Callable[[int], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The checkpoint of that version, made once."""
    return each_made_once(tmp_path_factory, tiny_seamless)


@functools.cache
def transformers_own(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    return (
        AutoProcessor.from_pretrained(folder),
        AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.float32),
    )


def generated(folder: Path, wave: np.ndarray, **settings: Any) -> tuple[str, float]:
    """The text and its geometric mean token probability, by transformers' own generate."""
    processor, model = transformers_own(folder)
    inputs = processor(audio=wave, sampling_rate=RATE, return_tensors="pt")
    output = model.generate(
        **inputs, return_dict_in_generate=True, output_scores=True, **{"num_beams": 1, **settings}
    )
    beams = getattr(output, "beam_indices", None)
    each = model.compute_transition_scores(
        output.sequences, output.scores, beams, normalize_logits=beams is None
    )[0]
    row = output.sequences[0, -len(each) :].tolist() if beams is None else []
    length = row.index(3) + 1 if 3 in row else len(each)
    text: str = processor.decode(output.sequences[0], skip_special_tokens=True)
    return text.strip(), each[:length].mean().exp().item()


@pytest.mark.parametrize("language", ["eng", "arb"])
@pytest.mark.parametrize("version", [1, 2])
def test_texts_are_generates_own_and_do_not_depend_on_the_batch(
    made: Made, version: int, language: str
) -> None:
    """Lengths on both sides of a frame pair and of the adapter's eight frames, mixed."""
    seconds = [1.0, 2.37, 0.41, 1.01, 1.02, 1.03, 1.005, 3.3, 0.1, 1.16, 1.17]
    sounds = [sound(s, 200 + 300 * n) for n, s in enumerate(seconds)]
    model = labeller(made(version), tgt_lang=language)
    assert not model.model.equal_lengths
    clips = [Clip(wave, len(wave) / RATE) for wave in sounds]
    mixed: list[Any] = model.label(clips)
    backwards: list[Any] = model.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        text, score = generated(made(version), clip.waveform, tgt_lang=language)
        (alone,) = model.label([clip])
        assert isinstance(alone, dict)
        assert found["text"] == alone["text"] == turned["text"] == text
        for columns in (found, alone, turned):
            assert columns["score"] == pytest.approx(score, abs=1e-5)
        assert found["language"] == language
    assert len({found["text"] for found in mixed}) > 4


@pytest.mark.parametrize("version", [1, 2])
def test_the_padding_that_transformers_lets_in_is_kept_out(made: Made, version: int) -> None:
    """Padded in transformers itself, the encoder's states differ at a clip's end."""
    import torch

    family: Any = labeller(made(version), tgt_lang="eng").model.family  # type: ignore[attr-defined]
    short, long = sound(1.0, 200), sound(3.0, 900)
    with torch.inference_mode():
        states = [
            family.model.speech_encoder(**{k: v for k, v in inputs.items() if k != "tgt_lang"})[0]
            for inputs in (family._inputs([short]),)
        ]
        padded = family._inputs([short, long])
        padded.pop("tgt_lang")
        ours = family.model.speech_encoder(**padded)[0]
        for convolution in ("residual_conv", "self_attn_conv"):
            getattr(
                family.model.speech_encoder.adapter.layers[0], convolution
            )._forward_pre_hooks.clear()
        theirs = family.model.speech_encoder(**padded)[0]
    frames = states[0].shape[1]
    assert torch.allclose(ours[0, :frames], states[0][0], atol=1e-5)
    assert not torch.allclose(theirs[0, :frames], states[0][0], atol=1e-2)


def test_the_language_asked_for_changes_the_text(made: Made) -> None:
    wave = sound(2.0, 400)
    said = {code: label(made(2), wave, tgt_lang=code)[0] for code in ("eng", "arb", "fra")}
    assert len({found["text"] for found in said.values()}) == 3
    assert all(found["language"] == code for code, found in said.items())


@pytest.mark.parametrize("version", [1, 2])
def test_beams_and_limits_are_generates_own(made: Made, version: int) -> None:
    waves = [sound(1.3, 900), sound(2.0, 250)]
    found = label(made(version), *waves, tgt_lang="arb", num_beams=3, max_new_tokens=9)
    for wave, columns in zip(waves, found, strict=True):
        text, score = generated(made(version), wave, tgt_lang="arb", num_beams=3, max_new_tokens=9)
        assert columns["text"] == text
        assert columns["score"] == pytest.approx(score, abs=1e-5)


def test_long_sound_is_cut_in_pauses_and_transcribed_once(made: Made) -> None:
    wave = np.concatenate([sound(13.0, 400), np.zeros(RATE, np.float32), sound(17.0, 700)])
    (found,) = label(made(2), wave, tgt_lang="eng")
    segments = found["segments"]
    assert [s["start_s"] for s in segments] == [0, pytest.approx(13.5, abs=0.6)]
    assert all(s["end_s"] - s["start_s"] <= 20 for s in segments)
    cut = round(segments[1]["start_s"] * RATE)
    halves = [generated(made(2), part, tgt_lang="eng")[0] for part in (wave[:cut], wave[cut:])]
    assert found["text"] == " ".join(halves)


def test_windows_are_joined_without_a_space_where_none_are_written(tmp_path: Path) -> None:
    folder = tiny_seamless(tmp_path, 2, languages=("eng", "jpn"))
    wave = np.concatenate([sound(13.0, 400), np.zeros(RATE, np.float32), sound(17.0, 700)])
    (found,) = label(folder, wave, tgt_lang="jpn")
    parts = [segment["text"] for segment in found["segments"]]
    assert len(parts) == 2 and found["text"] == "".join(parts)


def test_windows_of_one_language_share_a_batch(made: Made) -> None:
    model = labeller(made(1), tgt_lang="fra").model
    wave = sound(45.0, 300)
    groups = [window.group for window in model.windows(Clip(wave, 45.0))]
    assert groups == ["fra"] * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "tgt_lang: expected the language of the text, one of arb, eng, fra, found None"),
        ({"tgt_lang": "ara"}, "tgt_lang: .* one of arb, eng, fra, found 'ara'"),
        ({"tgt_lang": "eng", "timestamps": "word"}, "timestamps: expected none for a seamless_m4t"),
        ({"tgt_lang": "eng", "language": "ar"}, "language: expected nothing .* whisper has"),
        ({"tgt_lang": "eng", "target_lang": "eng"}, r"target_lang: .* which ctc \("),
        ({"tgt_lang": "eng", "chunk_length_s": 9}, r"chunk_length_s: .* which ctc \("),
    ],
)
def test_what_the_family_lacks_is_refused_by_name(
    made: Made, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        labeller(made(1), **options)


def test_a_checkpoint_that_names_no_languages_is_refused(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made(1), tmp_path / "bare"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings.pop("text_decoder_lang_to_code_id")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"generation_config\.json with text_decoder_lang_to_code_id"
    ):
        labeller(folder, tgt_lang="eng")
