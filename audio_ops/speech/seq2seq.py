"""Encoder-decoders other than Whisper: Moonshine, Speech2Text, SpeechT5, speech encoder-decoders.

Long sound is cut in pauses into windows of at most `MAX_S` that do not overlap: transformers'
pipeline chunks by a stride, which these models' texts then hold twice. A clip that fits one window
gets the pipeline's text for the same settings.

Windows of less than 0.1 s have an empty text: they are too short for a word, and these models
answer noise with words.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, load, load_model
from audio_ops.inference.features import compute_on
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.inference.wav2vec2 import is_masked
from audio_ops.signal.segment import cut_at_quiet
from audio_ops.speech.languages import no_languages
from audio_ops.speech.options import Options
from audio_ops.speech.sampling import check_sampling, seeded_by_sound
from audio_ops.speech.tokens import TokenLogProbabilities, keep_draws
from audio_ops.speech.transcript import (
    Segment,
    Transcript,
    WindowTranscript,
    geometric_mean,
    join_windows,
)
from audio_ops.speech.vocabulary import CONFIG, GENERATION, check_ids, check_start_and_end
from audio_ops.tasks import Clip, Window

TIMESTAMPS = ("none",)
OPTIONS = ("num_beams", "max_new_tokens", "generate")
languages = no_languages
START = ("decoder_start_token_id", "bos_token_id")  # with one of these tokens `generate` begins
TOKENS = (*START, "eos_token_id", "forced_bos_token_id", "suppress_tokens")
MIN_S = 0.1
# The longest sound that each was made for. Moonshine was trained on 4 to 30 s
# (https://arxiv.org/abs/2410.15608) and its 194 tokens are those of 30 s; Speech2Text takes 6,000
# frames of 10 ms, but LibriSpeech and MuST-C end near 30 s, as does SpeechT5's LibriSpeech; speech
# encoder-decoders differ.
MAX_S = {
    "moonshine": 30.0,
    "moonshine_streaming": 30.0,
    "speech-encoder-decoder": 30.0,
    "speech_to_text": 30.0,
    "speecht5": 30.0,
}
# Samples of which the model takes a multiple: its processor pads to it, and the pipeline fails.
MULTIPLE = {"moonshine_streaming": 80}
MODEL_TYPES = tuple(MAX_S)
PIPELINE_NEW_TOKENS = 256  # the pipeline's own limit for a checkpoint that sets none


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint cannot do what the options ask for."""
    config = checkpoint.json("config.json")
    found = config.get("architectures") or []
    # Another head's checkpoint would load too, with random weights for the decoder.
    endings = ("ForConditionalGeneration", "ForSpeechToText", "SpeechEncoderDecoderModel")
    if not any(name.endswith(endings) for name in found):
        raise ValueError(
            f"model: expected an architecture that ends in {' or '.join(endings)}, found {found} "
            f"in {checkpoint.name}"
        )
    check_sampling(options, checkpoint)
    checkpoint.extractor_settings()
    _check_tokens(checkpoint, config)


def _check_tokens(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """ValueError if tokens that the files name are missing or beyond the vocabulary."""
    check_start_and_end(checkpoint, START)
    decoder = config.get("decoder") or config
    size = decoder.get("vocab_size")
    if size is None:
        return
    generation = checkpoint.json(GENERATION)
    said, file = (generation, GENERATION) if generation else (decoder | config, CONFIG)
    check_ids(((f"{file}: {key}", said.get(key)) for key in TOKENS), size, checkpoint)
    languages = list((generation.get("text_decoder_lang_to_code_id") or {}).values())
    check_ids([(f"{GENERATION}: text_decoder_lang_to_code_id", languages)], size, checkpoint)


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 16_000))


class Model:
    """A loaded encoder-decoder.

    `score` is the geometric mean probability of the generated tokens, end of text included, under
    the distribution that they were chosen from.
    """

    is_generative = True
    translates = False
    max_s: float
    language: str | None = None
    new_tokens: int | None = PIPELINE_NEW_TOKENS  # at most, for a checkpoint that sets no limit

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        extractor, self.tokenizer = self._processors(checkpoint, options)
        self.extractor = compute_on(device, extractor)
        self.model = load_model(self._model_class(), checkpoint, options, device)
        self.device, self.dtype = device, self.model.dtype
        self.turn = threading.Lock() if device != "cpu" else nullcontext()  # see whisper/model.py
        self.sample_rate = sample_rate(options, checkpoint)
        config = checkpoint.json("config.json")
        self.max_s = MAX_S.get(config["model_type"], 0.0)
        multiple = MULTIPLE.get(config["model_type"])
        self.padding = (
            {"pad_to_multiple_of": multiple} if multiple else {}
        )  # else the extractor's own
        # Moonshine's group norm runs over time, padding included; Speech2Text convolves over it.
        self.equal_lengths = not is_masked(config.get("encoder") or {})
        self.model.generation_config = self._generation_config(options)
        keep_draws(self.model)

    def _model_class(self) -> Any:
        from transformers import AutoModelForSpeechSeq2Seq

        return AutoModelForSpeechSeq2Seq

    def _processors(self, checkpoint: Checkpoint, options: Options) -> tuple[Any, Any]:
        """The feature extractor and the tokenizer, found as the pipeline finds them."""
        from transformers import AutoFeatureExtractor, AutoTokenizer

        return (
            load(AutoFeatureExtractor, checkpoint, options),
            load(AutoTokenizer, checkpoint, options),
        )

    def _generation_config(self, options: Options) -> Any:
        """The checkpoint's generation config with the options, and the pipeline's limit."""
        config = deepcopy(self.model.generation_config)
        limit = options.max_new_tokens or config.max_new_tokens
        if limit is None and config.max_length is None:
            limit = self.new_tokens
        if limit is not None:
            config.max_length = None
        for name, value in options.generate.items():
            setattr(config, name, value)
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id
        config.update(
            num_beams=options.num_beams, max_new_tokens=limit, return_dict_in_generate=True
        )
        return config

    def windows(self, clip: Clip) -> list[Window]:
        cuts = cut_at_quiet(
            len(clip.waveform), self.sample_rate, self.max_s, clip.speech, clip.waveform
        )
        return [Window(start, stop) for start, stop in cuts]

    def padded_s(self, samples: int) -> float:
        return samples / self.sample_rate

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[WindowTranscript]
    ) -> Transcript:
        return join_windows(windows, outputs, self.sample_rate)

    def __call__(
        self, waveforms: Sequence[np.ndarray], group: Hashable = None
    ) -> list[WindowTranscript | ClipError]:
        import torch

        empty = WindowTranscript(
            text="", log_probability=0.0, tokens=0, segments=[], language=self.language
        )
        transcripts: list[WindowTranscript | ClipError] = [empty] * len(waveforms)
        long = [n for n, wave in enumerate(waveforms) if len(wave) >= MIN_S * self.sample_rate]
        samples = self.model.generation_config.do_sample
        # Sampled tokens would depend on the neighbours: each alone, seeded by its own sound.
        batches = [[n] for n in long] if samples else [long] if long else []
        for batch in batches:
            sounds = [waveforms[n] for n in batch]
            seeded = seeded_by_sound(sounds[0]) if samples else nullcontext()
            with self.turn, seeded, torch.inference_mode():
                for n, transcript in zip(batch, self.transcribe_windows(sounds), strict=True):
                    transcripts[n] = transcript
        return transcripts

    def transcribe_windows(
        self, waveforms: Sequence[np.ndarray]
    ) -> list[WindowTranscript | ClipError]:
        """Transcripts of one batch of windows."""
        return [
            self._transcript(text, log_probabilities, len(waveform) / self.sample_rate)
            if log_probabilities and are_finite(log_probabilities)
            else not_finite("token probabilities")
            for waveform, (text, log_probabilities) in zip(
                waveforms, self.generate(self._inputs(waveforms)), strict=True
            )
        ]

    def _transcript(
        self, text: str, log_probabilities: Sequence[float], length_s: float
    ) -> WindowTranscript:
        total, tokens = sum(log_probabilities), len(log_probabilities)
        score = geometric_mean(total, tokens) or 0.0
        return WindowTranscript(
            text=text,
            log_probability=total,
            tokens=tokens,
            segments=[Segment(0.0, length_s, text, score)] if text.strip() else [],
            language=self.language,
        )

    def _inputs(self, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
        """The features and their attention mask, as `generate` takes them."""
        inputs: Any = self.extractor(
            list(waveforms),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
            padding=True,
            return_attention_mask=True,
            **self.padding,
        )
        if (features := inputs.get("input_features")) is not None:
            # Speech2Text's are divided by the deviation of each band, which in silence is 0.
            inputs["input_features"] = features.where(features.isfinite(), 0.0)
        inputs = inputs.to(self.device, self.dtype)
        # A speech encoder-decoder calls its input `inputs`, whatever its encoder calls it.
        main = self.model.main_input_name
        return {main if name.startswith("input") else name: x for name, x in inputs.items()}

    def generate(self, inputs: dict[str, Any]) -> list[tuple[str, list[float]]]:
        """Each row's text, and the log probabilities of its tokens, the end of text included."""
        from transformers import LogitsProcessorList

        probabilities = TokenLogProbabilities(self.model.generation_config)
        output: Any = self.model.generate(
            **inputs, logits_processor=LogitsProcessorList(probabilities.processors)
        )
        beams = getattr(output, "beam_indices", None)
        each = probabilities.log_probabilities(output.sequences, beams)
        return [
            (self.tokenizer.decode(row, skip_special_tokens=True), log_probabilities)
            for row, log_probabilities in zip(output.sequences.tolist(), each, strict=True)
        ]
