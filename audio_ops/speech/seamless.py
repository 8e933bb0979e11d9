"""SeamlessM4T, first and second version: speech in some hundred languages -> text in one.

`tgt_lang` is the language of the text: speech in that language is transcribed, all other speech is
translated. Windows of one language share a batch.

Sound is cut in pauses into windows of at most 20 s. The model was trained on sentences of some
seconds and omits parts of longer sound; and chunks that overlap (the pipeline's `stride_length_s`)
would give text that has every overlap twice.

The text of a window is that of the model's own `generate` on the window alone.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from audio_ops.inference.checkpoint import Checkpoint, load
from audio_ops.inference.transformers_compat import mask_adapter_padding
from audio_ops.inference.wav2vec2 import FBANK_FRAME, FBANK_HOP
from audio_ops.speech import seq2seq
from audio_ops.speech.options import Options
from audio_ops.speech.seq2seq import sample_rate as sample_rate
from audio_ops.speech.vocabulary import GENERATION
from audio_ops.tasks import Clip, Window

MODEL_TYPES = ("seamless_m4t", "seamless_m4t_v2")
TIMESTAMPS = ("none",)
OPTIONS = (*seq2seq.OPTIONS, "tgt_lang")
MAX_S = 20.0


def languages(checkpoint: Checkpoint) -> Collection[str]:
    """The codes that `tgt_lang` takes."""
    known: dict[str, int] = checkpoint.json(GENERATION).get("text_decoder_lang_to_code_id") or {}
    return known


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError without a `tgt_lang` that this SeamlessM4T writes."""
    seq2seq.check(options, checkpoint)
    known = languages(checkpoint)
    if not known:
        raise ValueError(
            "model: expected a generation_config.json with text_decoder_lang_to_code_id, found "
            f"none in {checkpoint.name} (take the file from the checkpoint it was trained from)"
        )
    if options.tgt_lang not in known:
        raise ValueError(
            f"tgt_lang: expected the language of the text, one of {', '.join(sorted(known))}, "
            f"found {options.tgt_lang!r}"
        )


class Model(seq2seq.Model):
    """A loaded SeamlessM4T: its speech encoder and text decoder."""

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        self.language = options.tgt_lang
        self.version = 2 if checkpoint.json("config.json")["model_type"].endswith("v2") else 1
        super().__init__(options, checkpoint, device)
        self.max_s = MAX_S
        self.batch = threading.local()  # a call that overlaps with this one has its own lengths
        self.equal_lengths = not mask_adapter_padding(
            self.model.speech_encoder, lambda: self.batch.frames
        )

    def _model_class(self) -> Any:
        from transformers import SeamlessM4TForSpeechToText, SeamlessM4Tv2ForSpeechToText

        return SeamlessM4Tv2ForSpeechToText if self.version == 2 else SeamlessM4TForSpeechToText

    def _processors(self, checkpoint: Checkpoint, options: Options) -> tuple[Any, Any]:
        from transformers import AutoProcessor

        processor = load(AutoProcessor, checkpoint, options)
        return processor.feature_extractor, processor.tokenizer

    def windows(self, clip: Clip) -> list[Window]:
        return [Window(w.start, w.stop, self.language) for w in super().windows(clip)]

    def _inputs(self, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
        import torch

        frames = [(len(wave) - FBANK_FRAME) // FBANK_HOP + 1 for wave in waveforms]
        self.batch.frames = torch.tensor([-(-n // 2) for n in frames], device=self.device)
        return {**super()._inputs(waveforms), "tgt_lang": self.language}
