"""Assumptions about transformers beyond its documentation, one test each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import tiny_ctc, tiny_moonshine, tiny_seamless, tiny_whisper
from hearing import RATE, label, labeller, sound
from recognisers import tiny_transducer

from audio_ops.inference import transformers_compat as compat
from audio_ops.inference.wav2vec2 import conv_frames
from audio_ops.speech.frames import LOG_MEL, frames_of


def states_of(model: Any, count: int, frames: int = 3000) -> torch.Tensor:
    """Encoder states of noise."""
    noise = torch.randn(count, 80, frames, generator=torch.Generator().manual_seed(0))
    return compat.encode_whisper(model.model.encoder, noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Any:
    from transformers import WhisperForConditionalGeneration

    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def test_whispers_encoder_is_its_modules_in_order(whisper: Any) -> None:
    encoder, noise = whisper.model.encoder, torch.randn(2, 80, 3000)
    expected = encoder(noise).last_hidden_state
    assert torch.equal(compat.encode_whisper_in_steps(encoder, noise), expected)
    assert compat.encode_whisper(encoder, noise[:, :, :1000]).shape == (2, 500, expected.shape[2])


@torch.inference_mode()
def test_generation_mixin_generates_from_encoder_states_and_goes_on_from_a_cache(
    whisper: Any,
) -> None:
    states = states_of(whisper, 3)
    start = torch.full((3, 1), whisper.generation_config.decoder_start_token_id)
    first = whisper(encoder_outputs=(states,), decoder_input_ids=start, use_cache=True)
    settings = {"return_dict_in_generate": True, "num_beams": 1, "max_new_tokens": 6}
    plain = compat.generate_from_states(whisper, states, decoder_input_ids=start, **settings)
    alone = compat.encoder_keys_alone(first.past_key_values)
    assert alone.get_seq_length() == 0
    cached = compat.generate_from_states(
        whisper, states, decoder_input_ids=start, past_key_values=alone, **settings
    )
    assert torch.equal(cached.sequences, plain.sequences)

    cut = compat.generate_from_states(
        whisper, states, decoder_input_ids=start, **{**settings, "max_new_tokens": 2}
    )
    rows, begun = [0, 2], cut.sequences[[0, 2]]
    for cache in (compat.rows_of_cache(cut.past_key_values, rows, start.device), None):
        rest = compat.generate_from_states(
            whisper,
            states[rows],
            decoder_input_ids=begun,
            decoder_attention_mask=torch.ones_like(begun),
            past_key_values=cache,
            **{**settings, "max_new_tokens": 4},
        )
        assert torch.equal(rest.sequences, plain.sequences[rows])


def test_a_cache_of_another_kind_is_computed_again() -> None:
    assert compat.encoder_keys_alone(object()) is None
    assert compat.rows_of_cache(object(), [0], torch.device("cpu")) is None


@pytest.mark.parametrize("missing", ["encoder_keys_alone", "rows_of_cache"])
def test_without_a_cache_whisper_gives_the_same_labels(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves = [sound(seconds, hz) for seconds, hz in ((1.0, 200), (2.4, 900), (0.4, 3000), (5, 300))]
    expected = label(folder, *waves)
    module = "encoder" if missing == "encoder_keys_alone" else "generation"
    monkeypatch.setattr(f"audio_ops.speech.whisper.{module}.{missing}", lambda *_: None)
    for found, wanted in zip(label(folder, *waves), expected, strict=True):
        assert (found["text"], found["language"]) == (wanted["text"], wanted["language"])
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)


@torch.inference_mode()
def test_token_end_times_come_from_the_attention_to_the_sound(folder: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    model: Any = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.generation_config.num_beams = 1
    start = torch.full((2, 1), model.generation_config.decoder_start_token_id)
    output = compat.generate_from_states(
        model,
        states_of(model, 2),
        decoder_input_ids=start,
        return_dict_in_generate=True,
        output_attentions=True,
        max_new_tokens=8,
    )
    times = compat.token_end_times(model, output, 1, prompt=1, length=8, frames=200)
    assert len(times) == 8 and times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 2.0
    assert compat.token_end_times(model, output, 1, prompt=1, length=8, frames=1) == [0.0] * 8


def test_tokens_make_words_and_know_their_places(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.encode(" ab, cd", add_special_tokens=False)
    words = compat.words_of(tokenizer, tokens, "en")
    assert [text for text, _ in words] == [" ab,", " cd"]
    assert [place for _, places in words for place in places] == list(range(len(tokens)))
    spaceless = compat.words_of(tokenizer, tokens, "ja")
    assert len(spaceless) > len(words)


def test_languages_have_names_and_codes() -> None:
    assert compat.language_code("german") == "de"
    assert compat.language_code("de") == "de"


def test_the_english_normalizer_is_whispers() -> None:
    assert compat.english_normalizer({"colour": "color"})("The Colour, it's") == "the color it is"


@pytest.mark.parametrize("ends", [5, [5, 6], [5, 6, 7]])
def test_a_beam_search_chooses_among_the_tokens_that_are_kept(
    whisper: Any, ends: int | list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GenerationMixin

    kept: list[int] = []
    original = GenerationMixin._get_top_k_continuations

    def watched(self: Any, *args: Any, **settings: Any) -> Any:
        kept.append(settings["beams_to_keep"])
        return original(self, *args, **settings)

    monkeypatch.setattr(GenerationMixin, "_get_top_k_continuations", watched)
    start = torch.full((1, 1), whisper.generation_config.decoder_start_token_id)
    compat.generate_from_states(
        whisper,
        states_of(whisper, 1),
        decoder_input_ids=start,
        num_beams=3,
        eos_token_id=ends,
        max_new_tokens=3,
    )
    config = type("Config", (), {"eos_token_id": ends, "num_beams": 3})
    assert set(kept) == {compat.tokens_kept_by_beam_search(config)}


@pytest.mark.parametrize("version", [1, 2])
def test_seamless_has_one_adapter_layer_with_two_convolutions(version: int, tmp_path: Path) -> None:
    family: Any = labeller(tiny_seamless(tmp_path, version), tgt_lang="eng").model.family  # type: ignore[attr-defined]
    assert not family.equal_lengths
    encoder = family.model.speech_encoder
    assert compat.mask_adapter_padding(encoder, lambda: torch.tensor([1]))
    encoder.adapter.layers[0].residual_conv_by_another_name = encoder.adapter.layers[
        0
    ].residual_conv
    del encoder.adapter.layers[0].residual_conv
    assert not compat.mask_adapter_padding(encoder, lambda: torch.tensor([1]))
    encoder.adapter = None
    assert compat.mask_adapter_padding(encoder, lambda: torch.tensor([1]))
    assert not compat.mask_adapter_padding(object(), lambda: torch.tensor([1]))


def test_wav2vec2s_first_norm_is_a_group_norm(tmp_path: Path) -> None:
    from transformers import AutoModelForCTC

    grouped = AutoModelForCTC.from_pretrained(tiny_ctc(tmp_path / "group", "wav2vec2"))
    layered = AutoModelForCTC.from_pretrained(
        tiny_ctc(tmp_path / "layer", "wav2vec2", feat_extract_norm="layer")
    )
    assert compat.mask_group_norm(grouped)
    assert not compat.mask_group_norm(layered)
    assert not compat.mask_group_norm(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "unispeech", "unispeech-sat", "wavlm"])
def test_frames_are_counted_as_transformers_counts_them(kind: str, tmp_path: Path) -> None:
    family: Any = labeller(tiny_ctc(tmp_path, kind)).model.family  # type: ignore[attr-defined]
    config = family.model.config
    for samples in (400, 719, 720, 16_000, 123_457):
        expected = int(family.model._get_feat_extract_output_lengths(samples))
        assert conv_frames(samples, config.conv_kernel, config.conv_stride) == expected


@pytest.mark.parametrize("kind", LOG_MEL)
def test_frames_of_log_mels_are_counted_as_transformers_counts_them(
    kind: str, tmp_path: Path
) -> None:
    family: Any = labeller(tiny_ctc(tmp_path, kind)).model.family  # type: ignore[attr-defined]
    for samples in range(family.shortest, 64_000, 1597):
        inputs = family.extractor(
            [np.zeros(samples, np.float32)],
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
        )
        expected = int(family.model._get_subsampling_output_length(inputs["attention_mask"].sum()))
        assert frames_of(kind, family.encoder, samples, family.extractor) == expected
    assert frames_of(kind, family.encoder, family.shortest, family.extractor) == 1


def test_an_extractor_with_another_filter_bank_stays_as_it_is() -> None:
    from transformers import ASTFeatureExtractor, SeamlessM4TFeatureExtractor

    for kind in (ASTFeatureExtractor, SeamlessM4TFeatureExtractor):
        extractor: Any = kind()
        assert compat.replace_filter_bank(extractor, lambda _: "another")
        assert extractor._extract_fbank_features == "another"
    assert not compat.replace_filter_bank(object(), lambda _: "another")


def test_a_processor_is_called_behind_temperature_and_its_kin(tmp_path: Path) -> None:
    """transformers calls a caller's own ahead of them."""
    from transformers import AutoModelForSpeechSeq2Seq, LogitsProcessorList

    class Last:
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.allowed = int(scores.isfinite().sum())
            return scores

    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_moonshine(tmp_path))
    for hooked in (False, True):
        if hooked:
            compat.call_last(model, Last)
        last = Last()
        model.generate(
            torch.zeros(1, 16_000),
            do_sample=True,
            top_k=3,
            max_new_tokens=2,
            logits_processor=LogitsProcessorList([last]),
        )
        assert (last.allowed == 3) == hooked


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["parakeet_tdt", "parakeet_rnnt", "nemotron3_5_asr"])
def test_a_transducer_is_its_modules(kind: str, tmp_path: Path) -> None:
    import transformers

    folder, tokens = tiny_transducer(tmp_path, kind), torch.tensor([[3, 4, 9], [5, 7, 3]])
    name = "AutoModelForTDT" if kind == "parakeet_tdt" else "AutoModelForRNNT"
    model: Any = getattr(transformers, name).from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor([sound(1.0, 300)] * 2, sampling_rate=RATE, return_tensors="pt")
    expected = model(**inputs, decoder_input_ids=tokens).logits  # (rows, frames, tokens, scores)
    frames = model.get_audio_features(**inputs).pooler_output
    state = None
    for step in range(3):
        predicted, state = compat.predict_next(model, tokens[:, step], state)
        found = compat.joint_scores(model, frames[:, 6], predicted)
        assert torch.allclose(found, expected[:, 6, step], atol=1e-5)
    assert compat.frames_of_mels(model, [101]) == [frames.shape[1]]
