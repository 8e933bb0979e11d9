"""Texts and times of CTC models of every architecture are those of transformers' pipeline."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import each_made_once, tiny_ctc
from hearing import RATE, label, labeller, sound
from transformers import Wav2Vec2CTCTokenizer

from audio_ops.inference.granite import Granite5Features
from audio_ops.inference.runner import available_device
from audio_ops.inference.transformers_compat import mask_group_norm
from audio_ops.inference.wav2vec2 import accepts_padding
from audio_ops.speech import ctc
from audio_ops.speech.frames import LOG_MEL
from audio_ops.tasks import Clip

LAYER: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # seeds under which they have much to say
    **{kind: (kind, {"seed": 2}) for kind in ctc.MODEL_TYPES},
    **{kind: (kind, {"seed": 0}) for kind in ("data2vec-audio", "sew-d")},
    "wav2vec2-bert": ("wav2vec2-bert", {"seed": 1}),
    "wav2vec2 layer norm": ("wav2vec2", {**LAYER, "seed": 4}),
    "hubert layer norm": ("hubert", {**LAYER, "seed": 1}),
    "wavlm layer norm": ("wavlm", LAYER),
    "hubert batch norm": ("hubert", {**LAYER, "conv_pos_batch_norm": True}),
    "wav2vec2-bert adapter": ("wav2vec2-bert", {"add_adapter": True, "num_adapter_layers": 1}),
}
MASKED = {
    *("wav2vec2 layer norm", "hubert layer norm", "wavlm layer norm"),
    *("wav2vec2-bert", *LOG_MEL),
}
if available_device() != "cpu":  # group norm leaves the padding out
    MASKED |= {"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The checkpoint of that name, made once."""
    return each_made_once(
        tmp_path_factory, lambda folder, name: tiny_ctc(folder, MODELS[name][0], **MODELS[name][1])
    )


def test_a_padded_batch_is_transcribed_as_each_clip_alone_where_group_norm_ignores_padding(
    made: Made,
) -> None:
    for name in ("wav2vec2", "hubert", "wavlm", "unispeech"):
        model = labeller(made(name)).model.family  # type: ignore[attr-defined]
        assert mask_group_norm(model.model), f"{name} has renamed its first convolution's layers"
        model.equal_lengths = False
        sounds = [sound(seconds, 300) for seconds in (2.0, 0.31, 1.17)]
        for together, wave in zip(model(sounds), sounds, strict=True):
            (alone,) = model([wave])
            assert together.tokens.tolist() == alone.tokens.tolist()
            assert together.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


def test_padded_batches_need_a_group_norm_that_can_be_masked(made: Made) -> None:
    model = labeller(made("wav2vec2")).model.family.model  # type: ignore[attr-defined]
    config = model.config.to_dict()
    assert not accepts_padding(model, config, "cpu")
    assert accepts_padding(model, config, "cuda")
    del model.base_model.feature_extractor  # as if transformers had renamed it
    assert not accepts_padding(model, config, "cuda")


@pytest.fixture(scope="module")
def mms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    languages = {"eng": "abcdef", "fra": "uvwxyz"}
    return tiny_ctc(tmp_path_factory.mktemp("mms"), "wav2vec2", languages=languages, **LAYER)


def pipeline_of(folder: Path, dtype: str = "float32") -> Any:
    from transformers import pipeline

    if json.loads((folder / "config.json").read_text())["model_type"] == "granite_speech5_ctc":
        return GraniteSpeech5(folder, dtype)
    return pipeline("automatic-speech-recognition", model=str(folder), dtype=dtype, device="cpu")


class GraniteSpeech5:
    """What its page does, as its own extractor, and so the pipeline, wants torchaudio."""

    def __init__(self, folder: Path, dtype: str):
        from transformers import AutoModelForCTC, AutoTokenizer

        self.model: Any = AutoModelForCTC.from_pretrained(folder, dtype=dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, wave: np.ndarray) -> dict[str, Any]:
        features = Granite5Features({}, "cpu")([wave])
        inputs = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in features.items()
        }
        return {"text": self.tokenizer.decode(self.model.generate(**inputs)[0])}


def times(pieces: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    return [(p["text"], round(p["start_s"], 3), round(p["end_s"], 3)) for p in pieces]


def pipeline_times(answer: dict[str, Any]) -> list[tuple[str, float, float]]:
    return [
        (
            chunk["text"],
            round(float(chunk["timestamp"][0]), 3),
            round(float(chunk["timestamp"][1]), 3),
        )
        for chunk in answer["chunks"]
    ]


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
    assert model.model.equal_lengths == (name not in MASKED)
    clips = [Clip(wave, len(wave) / RATE) for wave in sounds]
    mixed: list[Any] = model.label(clips)
    backwards: list[Any] = model.label(clips[::-1])[::-1]
    pipe = pipeline_of(made(name))
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = model.label([clip])
        assert isinstance(alone, dict)
        assert found["text"] == alone["text"] == turned["text"] == pipe(clip.waveform)["text"]
        assert found["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert turned["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert 0 < found["score"] <= 1
    assert len({found["text"] for found in mixed}) == len(clips)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert layer norm", "wav2vec2-bert", "sew"])
@pytest.mark.parametrize(("chunk_s", "stride_s"), [(1.0, None), (1.5, 0.0), (1.83, 0.31)])
def test_long_sound_is_joined_as_in_the_pipeline(
    made: Made, name: str, chunk_s: float, stride_s: float | None
) -> None:
    waves = [sound(7.77, 400), sound(1.2, 900), sound(2.0, 600)]
    found = label(made(name), *waves, chunk_length_s=chunk_s, stride_length_s=stride_s)
    pipe = pipeline_of(made(name))
    for wave, columns in zip(waves, found, strict=True):
        answer = pipe(wave.copy(), chunk_length_s=chunk_s, stride_length_s=stride_s)
        assert columns["text"] == answer["text"]
    assert found[0]["text"] != pipe(waves[0])["text"]  # the chunks matter


@pytest.mark.parametrize("name", ["wav2vec2", "hubert layer norm", "wav2vec2-bert", "sew-d"])
@pytest.mark.parametrize("kind", ["word", "char"])
def test_times_are_the_pipelines(made: Made, name: str, kind: str) -> None:
    short, long = sound(2.3, 900), sound(5.1, 400)
    pipe = pipeline_of(made(name))
    (found,) = label(made(name), short, timestamps=kind)
    assert times(found["words"]) == pipeline_times(pipe(short, return_timestamps=kind))
    (found,) = label(made(name), long, timestamps=kind, chunk_length_s=1.5)
    expected = pipe(long, return_timestamps=kind, chunk_length_s=1.5)
    assert times(found["words"]) == pipeline_times(expected)
    assert len(found["words"]) > 4
    joined = "" if kind == "char" else " "
    assert joined.join(word["text"] for word in found["words"]).split() == found["text"].split()


def test_sound_over_thirty_seconds_is_chunked_by_default(made: Made) -> None:
    wave = sound(41.0, 400)
    (found,) = label(made("wav2vec2"), wave)
    assert found["text"] == pipeline_of(made("wav2vec2"))(wave, chunk_length_s=30)["text"]
    assert [(s["start_s"], s["end_s"]) for s in found["segments"]] == [(0, 25), (25, 41)]


def test_each_window_is_a_segment_and_no_word_is_cut(made: Made) -> None:
    wave = sound(9.0, 400)
    (found,) = label(made("wav2vec2-bert"), wave, chunk_length_s=1.5, timestamps="word")
    segments, words = found["segments"], found["words"]
    assert len(segments) == 9
    assert " ".join(segment["text"] for segment in segments) == " ".join(found["text"].split())
    assert all(a["end_s"] == b["start_s"] for a, b in itertools.pairwise(segments))
    assert (segments[0]["start_s"], segments[-1]["end_s"]) == (0, 9)
    for segment in segments:
        inside = [w for w in words if segment["start_s"] <= w["start_s"] < segment["end_s"]]
        assert " ".join(word["text"] for word in inside) == segment["text"]


def test_a_script_without_spaces_is_cut_at_the_seams(tmp_path: Path) -> None:
    """Without a delimiter all is one word; its segments must not all be the first one's."""
    from safetensors.torch import load_file, save_file

    folder = tiny_ctc(tmp_path / "unspaced", "wav2vec2", seed=2)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"][4] = -100.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (found,) = label(folder, sound(20.0, 400), chunk_length_s=6)
    assert " " not in found["text"]
    assert len(found["segments"]) == 5
    assert "".join(segment["text"] for segment in found["segments"]) == found["text"]


def test_score_is_the_mean_of_each_tokens_most_certain_frame(made: Made) -> None:
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForCTC

    wave, folder = sound(1.5, 900), made("wav2vec2 layer norm")
    model = AutoModelForCTC.from_pretrained(folder)
    inputs = AutoFeatureExtractor.from_pretrained(folder)(
        wave, sampling_rate=RATE, return_tensors="pt"
    )
    with torch.no_grad():
        frames = model(**inputs).logits[0].log_softmax(-1).max(-1)
    runs = itertools.groupby(
        zip(frames.indices.tolist(), frames.values.tolist(), strict=True), lambda f: f[0]
    )
    best = [max(value for _, value in run) for token, run in runs if token != 0]
    (found,) = label(folder, wave, timestamps="char")
    assert found["score"] == pytest.approx(np.exp(np.mean(best)), abs=1e-5)
    assert [char["score"] for char in found["words"]] == pytest.approx(np.exp(best), abs=1e-5)


def test_a_clip_shorter_than_a_frame_has_no_text(made: Made) -> None:
    for name in ("wav2vec2", "wavlm layer norm", "wav2vec2-bert", *LOG_MEL, "sew"):
        tiny, good = sound(0.009, 300), sound(0.6, 900)
        empty, found = label(made(name), tiny, good)
        assert empty["text"] == ""
        assert empty["score"] is None
        assert empty["segments"] == []
        assert found["text"] == pipeline_of(made(name))(good)["text"]
        shortest = labeller(made(name)).model.family.shortest  # type: ignore[attr-defined]
        (barely,) = label(made(name), sound(0.2, 300)[:shortest])
        assert isinstance(barely, dict)


def test_an_adapter_is_loaded_with_its_vocabulary(mms: Path) -> None:
    wave = sound(2.0, 900)
    pipe = pipeline_of(mms)
    said = {}
    for language in ("eng", "fra"):
        pipe.tokenizer.set_target_lang(language)
        pipe.model.load_adapter(language)
        (found,) = label(mms, wave, target_lang=language)
        assert found["text"] == pipe(wave)["text"]
        assert found["language"] == language
        said[language] = found["text"]
    assert set(said["eng"]) <= set("abcdef ")
    assert set(said["fra"]) <= set("uvwxyz ")
    assert all(len(text.split()) > 2 for text in said.values())
    (default,) = label(mms, wave)
    assert (default["text"], default["language"]) == (said["eng"], "eng")


def test_an_adapter_that_is_not_there_is_found_before_the_run(mms: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target_lang: expected one of eng, fra, found 'deu'"):
        label(mms, target_lang="deu")
    bare = tiny_ctc(tmp_path / "bare", "wav2vec2", languages={"eng": "ab", "fra": "uv"}, **LAYER)
    (bare / "adapter.fra.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter\.fra\.safetensors in .*bare, found none"):
        label(bare, target_lang="fra")
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("target_lang")
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="target_lang: expected one of eng, fra, as"):
        label(bare)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"timestamps": "segment"}, "timestamps: expected none or word or char for a wav2vec2"),
        ({"language": "en"}, "language: expected nothing for a wav2vec2 .* whisper has"),
        ({"translate": True}, "translate: .* which whisper has"),
        (
            {"num_beams": 4},
            r"num_beams: .* or seamless .* or seq2seq \(moonshine.* or whisper has",
        ),
        ({"max_new_tokens": 9}, "max_new_tokens: expected nothing"),
        ({"generate": {"top_k": 3}}, "generate: expected nothing"),
        ({"tgt_lang": "eng"}, r"tgt_lang: .* which seamless \(seamless_m4t, seamless_m4t_v2\) has"),
        ({"target_lang": "eng"}, "target_lang: expected none, as only a checkpoint with language"),
        ({"chunk_length_s": 2, "stride_length_s": 1}, "expected less than half of chunk_length_s"),
        ({"stride_length_s": 15}, "stride_length_s: expected less than half"),
        ({"chunk_length_s": 0.001}, "chunk_length_s: expected at least a frame of the model"),
    ],
)
def test_what_ctc_lacks_is_refused_by_name(
    made: Made, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        labeller(made("wav2vec2"), **options)


@pytest.mark.parametrize("kind", LOG_MEL)
def test_log_mel_encoders_have_word_times_and_no_others(made: Made, kind: str) -> None:
    with pytest.raises(ValueError, match=f"timestamps: expected none or word for a {kind}"):
        label(made(kind), timestamps="char")
    wave = sound(6.4, 400)
    (whole,) = label(made(kind), wave, timestamps="word")
    assert " ".join(word["text"] for word in whole["words"]) == whole["text"]
    assert all(0 <= w["start_s"] < w["end_s"] <= 6.4 for w in whole["words"])
    frame_s = 0.04 if kind == "lasr_ctc" else 0.08
    assert all(round(w["start_s"] / frame_s, 6).is_integer() for w in whole["words"])
    starts = [word["start_s"] for word in whole["words"]]
    assert starts == sorted(starts)


def test_chunks_of_parakeet_cover_the_sound_once(made: Made) -> None:
    """The pipeline takes a frame for a sample there, and finds no text at all."""
    wave = sound(12.0, 400)
    model: Any = labeller(made("parakeet_ctc"), chunk_length_s=4.0, stride_length_s=0.8).model
    clip = Clip(wave, 12.0)
    windows = model.windows(clip)
    assert [(w.start / RATE, w.stop / RATE) for w in windows] == [
        (0, 4),
        (2.4, 6.4),
        (4.8, 8.8),
        (7.2, 11.2),
        (9.6, 12),
    ]
    frames = model([wave[w.start : w.stop] for w in windows], None)
    kept = []
    for number, (window, heard) in enumerate(zip(windows, frames, strict=True)):
        first = window.start // 1280
        places = range(first, first + len(heard.tokens))
        kept.append(places[model.family.chunks.kept(windows, number)])
    assert [place for part in kept for place in part] == list(range(150))


@pytest.mark.parametrize("is_old", [False, True])
def test_tokens_added_behind_a_vocabulary_are_outputs_as_of_most_fine_tuned_models(
    tmp_path: Path, is_old: bool
) -> None:
    """`vocab_size=len(tokenizer)`, with <s> and </s> behind [UNK] and [PAD], as in transformers' own
    fine-tuning examples; of 2021 the files name them in added_tokens.json alone."""
    vocabulary = {token: n for n, token in enumerate((*"abcdefghijk'", "|", "[UNK]", "[PAD]"))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|"
    )
    assert len(tokenizer) == len(vocabulary) + 2
    blank = tokenizer.pad_token_id
    folder = tiny_ctc(
        tmp_path / "model", "wav2vec2", seed=2, vocab_size=len(tokenizer), pad_token_id=blank
    )
    tokenizer.save_pretrained(folder)
    if is_old:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("added_tokens_decoder")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        added = {"<s>": len(vocabulary), "</s>": len(vocabulary) + 1}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    wave = sound(1.7, 300)
    (found,) = label(folder, wave)  # which checks the files first
    assert found["text"] == pipeline_of(folder)(wave)["text"] != ""


def test_a_language_model_is_reported_as_left_out(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_ctc(tmp_path / "with_lm", "wav2vec2", seed=2)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["processor_class"] = "Wav2Vec2ProcessorWithLM"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        (found,) = label(folder, sound(1.0, 900))
    assert "its language model is not used, decoding is greedy" in caplog.text
    assert found["text"] == label(made("wav2vec2"), sound(1.0, 900))[0]["text"]


def test_a_checkpoint_without_a_vocabulary_head_is_refused(made: Made, tmp_path: Path) -> None:
    folder = tiny_ctc(tmp_path / "headless", "wav2vec2")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Wav2Vec2Model"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"expected a \.\.\.ForCTC architecture, found \['Wav2Vec2Model'\]"
    ):
        label(folder)


def test_a_frame_of_padding_behind_parakeets_sound_is_not_read(made: Made) -> None:
    """The pipeline reads it (1.28 s: 16 frames of sound and one of padding), `generate` does not."""
    from transformers import AutoFeatureExtractor, AutoTokenizer, ParakeetForCTC

    folder, waves = made("parakeet_ctc"), [sound(1.28, 400), sound(2.56, 700)]
    model: Any = ParakeetForCTC.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    for wave, found in zip(waves, label(folder, *waves), strict=True):
        ids = model.generate(**extractor(wave, sampling_rate=RATE, return_tensors="pt"))[0]
        assert len(ids) % 16 == 1
        assert found["text"] == tokenizer.decode(ids)
