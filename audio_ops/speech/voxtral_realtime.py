"""Voxtral Realtime, Mistral's streaming recogniser, read offline: sound goes in by frames of 80 ms, and a
token of text comes out of each, most of them padding between words.

The texts are those of the checkpoint's processor and `generate`, as on the model's page. It generates to
the end of the sound and no further, some frames behind it. Encoder and decoder look back alone, so what
follows a window in a batch does not change its text. `score` is of the tokens that are text.

A word is written some frames after it was spoken, as many as the checkpoint's delay and the word's own
length make: its pages say of no token when its word begins, so there are no times.

Sound is cut in pauses into windows of at most 30 s. A window takes a step for each 80 ms, so that short
windows, side by side in a batch, are faster than a long one; and the encoder looks back by 15 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from audio_ops.inference.checkpoint import Checkpoint, expect_architecture, load
from audio_ops.speech import seq2seq
from audio_ops.speech.languages import no_languages
from audio_ops.speech.options import Options
from audio_ops.speech.prompted.check import check_mistral_common
from audio_ops.speech.seq2seq import sample_rate as sample_rate
from audio_ops.speech.tokens import TokenLogProbabilities, of_text

MODEL_TYPES = ("voxtral_realtime",)
TIMESTAMPS = ("none",)
OPTIONS: tuple[str, ...] = ()
languages = no_languages
MAX_S = 30.0
ARCHITECTURE = "VoxtralRealtimeForConditionalGeneration"


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint is no recogniser, or without the package for its tokenizer."""
    expect_architecture(checkpoint, ARCHITECTURE)
    check_mistral_common(checkpoint)
    checkpoint.extractor_settings()


class Model(seq2seq.Model):
    """A loaded Voxtral Realtime."""

    new_tokens = None  # as many as there are frames

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        super().__init__(options, checkpoint, device)
        self.max_s, self.equal_lengths = MAX_S, False

    def _model_class(self) -> Any:
        import transformers

        return getattr(transformers, ARCHITECTURE)

    def _processors(self, checkpoint: Checkpoint, options: Options) -> tuple[Any, Any]:
        from transformers import AutoProcessor

        self.processor = load(AutoProcessor, checkpoint, options)
        return None, self.processor.tokenizer

    def _inputs(self, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
        """The requests of all windows, which are of one length, and their log-mel frames, padded."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        each = [
            self.processor(waveform, sampling_rate=self.sample_rate, return_tensors="pt")
            for waveform in waveforms
        ]
        frames = [inputs["input_features"][0].T for inputs in each]
        return {
            "input_ids": torch.cat([inputs["input_ids"] for inputs in each]).to(self.device),
            "attention_mask": torch.cat([i["attention_mask"] for i in each]).to(self.device),
            "input_features": pad_sequence(frames, batch_first=True)
            .transpose(1, 2)
            .to(self.device, self.dtype),
            "num_delay_tokens": each[0]["num_delay_tokens"],
            "frames": [len(one) for one in frames],
        }

    def generate(self, inputs: dict[str, Any]) -> list[tuple[str, list[float]]]:
        """Each row's text, and the log probabilities of its tokens, those between words left out."""
        from transformers import LogitsProcessorList

        probabilities = TokenLogProbabilities(self.model.generation_config)
        per_token = self.model.config.audio_length_per_tok
        lengths = [-(-frames // per_token) for frames in inputs.pop("frames")]  # with the request
        output: Any = self.model.generate(
            **inputs, logits_processor=LogitsProcessorList(probabilities.processors)
        )
        each = probabilities.log_probabilities(output.sequences, None)
        texts = []
        for row, scores, length in zip(output.sequences.tolist(), each, lengths, strict=True):
            tokens = row[probabilities.prompt : length][: len(scores)]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            texts.append((text, of_text(tokens, scores, self.tokenizer)))
        return texts
