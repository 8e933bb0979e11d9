"""Kyutai's streaming recogniser, read offline: a codec's tokens of each frame of sound (80 ms) go in, and
a token of text comes out, most of them padding between words.

The texts are those of the checkpoint's processor and `generate`, as on the model's page. It generates to
the end of the sound and no further, some frames behind it. Windows of a batch are of one length, since
the codec has no mask. `score` is of the tokens that are text.

Sound is cut in pauses into windows of at most 30 s, the span that its attention slides over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from audio_ops.inference.checkpoint import Checkpoint, load
from audio_ops.speech import seq2seq
from audio_ops.speech.options import Options
from audio_ops.speech.seq2seq import sample_rate as sample_rate
from audio_ops.speech.tokens import TokenLogProbabilities
from audio_ops.speech.vocabulary import CONFIG

MODEL_TYPES = ("kyutai_speech_to_text",)
TIMESTAMPS = ("none",)
OPTIONS: tuple[str, ...] = ()
MAX_S = 30.0
ARCHITECTURE = "KyutaiSpeechToTextForConditionalGeneration"


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint is no recogniser."""
    found = checkpoint.json(CONFIG).get("architectures") or []
    if ARCHITECTURE not in found:
        raise ValueError(
            f"model: expected architecture {ARCHITECTURE}, found {found} in {checkpoint.name}"
        )
    checkpoint.extractor_settings()


class Model(seq2seq.Model):
    """A loaded Kyutai recogniser with its codec."""

    new_tokens = None  # as many as there are frames

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        super().__init__(options, checkpoint, device)
        self.max_s, self.equal_lengths = MAX_S, True

    def _model_class(self) -> Any:
        import transformers

        return getattr(transformers, ARCHITECTURE)

    def _processors(self, checkpoint: Checkpoint, options: Options) -> tuple[Any, Any]:
        from transformers import AutoProcessor

        processor = load(AutoProcessor, checkpoint, options)
        return processor.feature_extractor, processor.tokenizer

    def _inputs(self, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
        inputs = self.extractor(
            list(waveforms), sampling_rate=self.sample_rate, return_tensors="pt"
        )
        return dict(inputs.to(self.device))  # the codec stays in float32

    def generate(self, inputs: dict[str, Any]) -> list[tuple[str, list[float]]]:
        """Each row's text, and the log probabilities of its tokens, those between words included."""
        from transformers import LogitsProcessorList

        probabilities = TokenLogProbabilities(self.model.generation_config)
        output: Any = self.model.generate(
            **inputs, logits_processor=LogitsProcessorList(probabilities.processors)
        )
        each = probabilities.log_probabilities(output.sequences, None)
        special = set(self.tokenizer.all_special_ids)
        texts = []
        for row, log_probabilities in zip(output.sequences.tolist(), each, strict=True):
            tokens = row[probabilities.prompt :]
            own = [p for t, p in zip(tokens, log_probabilities, strict=True) if t not in special]
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            texts.append((text, own if own and text.strip() else log_probabilities))
        return texts
