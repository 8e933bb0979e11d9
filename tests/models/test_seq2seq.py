"""Texts of Moonshine, Speech2Text and speech encoder-decoders are those of transformers' pipeline."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    each_made_once,
    tiny_moonshine,
    tiny_speech2text,
    tiny_speech_encoder_decoder,
)
from hearing import RATE, label, labeller, sound
from recognisers import tiny_moonshine_streaming, tiny_speecht5
from safetensors.torch import load_file, save_file

from audio_ops.tasks import Clip

MODELS: dict[str, Callable[[Path], Path]] = {
    "moonshine": tiny_moonshine,
    "speech_to_text": tiny_speech2text,
    "speecht5": tiny_speecht5,
    "moonshine_streaming": tiny_moonshine_streaming,
    "encoder-decoder": tiny_speech_encoder_decoder,
    "encoder-decoder group norm": lambda folder: tiny_speech_encoder_decoder(folder, "group"),
}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The checkpoint of that name, made once."""
    return each_made_once(tmp_path_factory, lambda folder, name: MODELS[name](folder))


@functools.cache
def pipeline_of(folder: Path) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("automatic-speech-recognition", model=str(folder), dtype=torch.float32)


def pipeline_text(folder: Path, wave: np.ndarray, **generate: Any) -> str:
    pipe = pipeline_of(folder)
    if pipe.model.config.model_type == "moonshine_streaming":
        # As on its page: the pipeline does not pad to the multiple of samples that it takes.
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(folder)
        inputs = processor(wave, sampling_rate=RATE, return_attention_mask=True)
        tokens = pipe.model.generate(**inputs, **{"num_beams": 1, **generate})
        return str(processor.decode(tokens[0], skip_special_tokens=True)).strip()
    said = pipe(wave.copy(), generate_kwargs={"num_beams": 1, **generate})
    text: str = said["text"]
    return text.strip()


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_the_pipelines_and_do_not_depend_on_the_batch(made: Made, name: str) -> None:
    sounds = [
        sound(1.0, 200),
        sound(2.37, 900),
        sound(0.41, 3000),
        sound(1.0, 700),
        sound(1.7, 300),
    ]
    model = labeller(made(name))
    assert model.model.equal_lengths == (name != "encoder-decoder")
    clips = [Clip(wave, len(wave) / RATE) for wave in sounds]
    mixed: list[Any] = model.label(clips)
    backwards: list[Any] = model.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = model.label([clip])
        assert isinstance(alone, dict)
        assert found["text"] == alone["text"] == turned["text"]
        assert found["text"] == pipeline_text(made(name), clip.waveform)
        assert found["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert turned["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert found["segments"][0]["text"] == found["text"]
        assert found["segments"][0]["end_s"] == pytest.approx(clip.duration_s, abs=1e-3)
    # Two of the clips are of one length and much alike.
    assert len({found["text"] for found in mixed}) >= len(clips) - 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"max_new_tokens": 5}, {"generate": {"repetition_penalty": 1.7}}],
    ids=["beams", "limit", "generate"],
)
def test_generate_settings_are_the_pipelines(
    made: Made, name: str, options: dict[str, Any]
) -> None:
    waves = [sound(1.3, 900), sound(1.3, 250)]
    found = label(made(name), *waves, **options)
    generate = {key: value for key, value in options.items() if key != "generate"}
    generate |= options.get("generate", {})
    for wave, columns in zip(waves, found, strict=True):
        assert columns["text"] == pipeline_text(made(name), wave, **generate)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["moonshine", "encoder-decoder"])
def test_score_is_the_generated_tokens_mean_probability(made: Made, name: str, beams: int) -> None:
    """transformers' own account of it, which keeps every score of every step."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq

    waves, folder = [sound(1.3, 900), sound(1.3, 250), sound(1.3, 4000)], made(name)
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    inputs = AutoFeatureExtractor.from_pretrained(folder)(
        waves, sampling_rate=RATE, return_tensors="pt", padding=True, return_attention_mask=True
    )
    output = model.generate(
        inputs["input_values"],
        attention_mask=inputs["attention_mask"],
        num_beams=beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    each = model.compute_transition_scores(
        output.sequences,
        output.scores,
        getattr(output, "beam_indices", None),
        normalize_logits=beams == 1,
    )
    found = label(folder, *waves, num_beams=beams)
    lengths = []
    for row, columns in enumerate(found):
        generated = output.sequences[row, 1:].tolist()
        length = generated.index(2) + 1 if 2 in generated else len(generated)
        lengths.append(length)
        expected = torch.exp(each[row, :length].mean()).item()
        assert columns["score"] == pytest.approx(expected, abs=1e-5)
    assert min(lengths) > 2


def test_long_sound_is_cut_in_pauses_and_transcribed_once(made: Made) -> None:
    first, pause, second = sound(20.0, 400), np.zeros(RATE, np.float32), sound(19.0, 700)
    wave = np.concatenate([first, pause, second])
    (found,) = label(made("moonshine"), wave)
    segments = found["segments"]
    assert [s["start_s"] for s in segments] == [0, pytest.approx(20.5, abs=0.6)]
    assert all(s["end_s"] - s["start_s"] <= 30 for s in segments)
    assert segments[-1]["end_s"] == 40
    assert all(a["end_s"] == b["start_s"] for a, b in itertools.pairwise(segments))
    cut = round(segments[1]["start_s"] * RATE)
    halves = [pipeline_text(made("moonshine"), part) for part in (wave[:cut], wave[cut:])]
    assert found["text"] == " ".join(halves)
    assert [s["text"] for s in segments] == halves


def test_a_tenth_of_a_second_has_no_text(made: Made) -> None:
    for name in MODELS:
        empty, found = label(made(name), sound(0.05, 300), sound(0.6, 900))
        assert (empty["text"], empty["score"], empty["segments"]) == ("", None, [])
        assert found["text"] == pipeline_text(made(name), sound(0.6, 900))
        (barely,) = label(made(name), sound(0.1, 300))
        assert isinstance(barely, dict)


@pytest.mark.parametrize("name", MODELS)
def test_silence_is_labelled(made: Made, name: str) -> None:
    silence, voice = np.zeros(RATE, np.float32), sound(1.0, 400)
    first, second = label(made(name), silence, voice)
    assert isinstance(first["text"], str)
    assert second["text"] == label(made(name), voice)[0]["text"]


def test_drawn_tokens_are_the_same_in_every_batch(made: Made) -> None:
    waves = [sound(1.0, 200), sound(1.0, 900), sound(1.0, 3000)]
    settings: dict[str, Any] = {"generate": {"do_sample": True, "temperature": 2.0}}
    together = label(made("encoder-decoder"), *waves, **settings)
    alone = [label(made("encoder-decoder"), wave, **settings)[0] for wave in waves]
    assert [found["text"] for found in together] == [found["text"] for found in alone]
    greedy = label(made("encoder-decoder"), *waves)
    assert [found["text"] for found in together] != [found["text"] for found in greedy]


WARPED: list[dict[str, Any]] = [
    {"temperature": 0.3},
    {"top_k": 3, "temperature": 2.0},
    {"top_p": 0.5},
    {"min_p": 0.4},
    {"top_h": 0.4},
    {"typical_p": 0.5},
    {"epsilon_cutoff": 0.004},
    {"eta_cutoff": 0.3, "renormalize_logits": True},
]


@pytest.mark.parametrize("settings", WARPED, ids=[next(iter(one)) for one in WARPED])
@pytest.mark.parametrize("name", ["moonshine", "speech_to_text"])
def test_score_is_of_the_distribution_that_tokens_were_drawn_from(
    made: Made, name: str, settings: dict[str, Any]
) -> None:
    """transformers' own account of it."""
    import torch

    wave = sound(1.3, 900)
    chosen = {"generate": {"do_sample": True, **settings}, "max_new_tokens": 12}
    (found,) = label(made(name), wave, **chosen)
    model: Any = labeller(made(name), **chosen).model.family
    inputs = model._inputs([wave])
    torch.manual_seed(zlib.crc32(wave.tobytes()))
    output = model.model.generate(**inputs, output_scores=True)
    drawn = model.model.compute_transition_scores(
        output.sequences, output.scores, normalize_logits=True
    )
    assert (
        found["text"]
        == model.tokenizer.decode(output.sequences[0], skip_special_tokens=True).strip()
    )
    assert found["score"] == pytest.approx(drawn.mean().exp().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["moonshine", "encoder-decoder"])
def test_what_is_certain_to_be_drawn_scores_one(made: Made, name: str) -> None:
    (found,) = label(made(name), sound(1.0, 300), generate={"do_sample": True, "top_k": 1})
    assert found["score"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"timestamps": "word"},
            "timestamps: expected none for a moonshine checkpoint, found 'word', which ctc .* or whisper has",
        ),
        ({"timestamps": "char"}, r"found 'char', which ctc \("),
        (
            {"timestamps": "segment"},
            "found 'segment', which kyutai .* or transducer .* or whisper has",
        ),
        (
            {"language": "en"},
            "language: expected nothing for a moonshine checkpoint, found 'en', which .*whisper has",
        ),
        ({"chunk_length_s": 9}, r"chunk_length_s: .* which ctc \(.*wav2vec2.*\) has"),
        ({"target_lang": "eng"}, "target_lang: .* which ctc"),
        ({"num_beams": 2, "generate": {"do_sample": True}}, "num_beams: expected 1 beside"),
    ],
)
def test_what_the_family_lacks_is_refused_by_name(
    made: Made, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        labeller(made("moonshine"), **options)


def test_a_checkpoint_that_samples_goes_with_no_beams(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "sampling"
    shutil.copytree(made("moonshine"), folder)
    said = json.loads((folder / "generation_config.json").read_text()) | {"do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"num_beams: expected 1 beside do_sample of generation_c"):
        labeller(folder, num_beams=2)
    labeller(folder, num_beams=2, generate={"do_sample": False})


@pytest.mark.parametrize("name", ["moonshine", "encoder-decoder"])
def test_a_checkpoint_that_lacks_weights_is_not_loaded(
    made: Made, tmp_path: Path, name: str
) -> None:
    """transformers would fill in random ones, and the texts would be nonsense."""
    folder = tmp_path / "cut"
    shutil.copytree(made(name), folder)
    weights = load_file(folder / "model.safetensors")
    dropped = next(key for key in weights if "decoder.layers.1.fc1" in key or "mlp.fc1" in key)
    del weights[dropped]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"expected all weights of .* found none for {dropped}"):
        labeller(folder)
