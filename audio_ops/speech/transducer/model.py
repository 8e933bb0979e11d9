"""A loaded transducer: windows -> transcripts."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, load, load_model
from audio_ops.inference.finite import not_finite
from audio_ops.signal.segment import cut_at_quiet
from audio_ops.speech.options import Options
from audio_ops.speech.transcript import Transcript, WindowTranscript, join_windows
from audio_ops.speech.transducer.check import prompts, sample_rate
from audio_ops.speech.transducer.decoder import Decoder
from audio_ops.speech.transducer.words import Reader
from audio_ops.tasks import Clip, Window

if TYPE_CHECKING:
    import torch

MAX_S = 40.0


class Model:
    """A loaded transducer.

    `score` is the geometric mean probability of the tokens, without the blanks. A window of less
    than 20 ms has an empty text.
    """

    is_generative = True
    translates = False
    equal_lengths = False  # masks undo padding everywhere in these encoders

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        from transformers import AutoFeatureExtractor, AutoTokenizer

        self.extractor = load(AutoFeatureExtractor, checkpoint, options)
        self.model = load_model(self._model_class(checkpoint), checkpoint, options, device)
        self.device, self.dtype = device, self.model.dtype
        self.turn = threading.Lock() if device != "cpu" else nullcontext()  # see whisper/model.py
        self.decoder = Decoder(self.model)
        self.sample_rate = sample_rate(options, checkpoint)
        self.prompt = prompts(checkpoint)[options.language] if options.language else None
        factor = self.model.config.encoder_config.subsampling_factor
        self.reader = Reader(
            tokenizer=load(AutoTokenizer, checkpoint, options),
            timestamps=options.timestamps,
            frame_s=self.extractor.hop_length * factor / self.sample_rate,
            has_durations=self.decoder.durations is not None,
            language=options.language,
        )
        # Parakeet's extractor divides by its mel frames less one.
        self.shortest: int = 2 * self.extractor.hop_length

    def _model_class(self, checkpoint: Checkpoint) -> Any:
        import transformers

        has_durations = checkpoint.json("config.json")["model_type"] == "parakeet_tdt"
        name = "AutoModelForTDT" if has_durations else "AutoModelForRNNT"
        return getattr(transformers, name)

    def windows(self, clip: Clip) -> list[Window]:
        cuts = cut_at_quiet(len(clip.waveform), self.sample_rate, MAX_S, clip.speech, clip.waveform)
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

        transcripts: list[WindowTranscript | ClipError] = [self.reader([], 0.0)] * len(waveforms)
        long = [n for n, wave in enumerate(waveforms) if len(wave) >= self.shortest]
        if not long:
            return transcripts
        with self.turn, torch.inference_mode():
            each = self.decoder(*self._encode([waveforms[n] for n in long]))
        for n, emissions in zip(long, each, strict=True):
            transcripts[n] = (
                not_finite("token probabilities")
                if emissions is None
                else self.reader(emissions, len(waveforms[n]) / self.sample_rate)
            )
        return transcripts

    def _encode(
        self, waveforms: Sequence[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """The encoder's frames `(windows, frames, width)`, how many each window has, and how many
        steps its decoder may take."""
        import torch

        inputs = self.extractor(
            list(waveforms), sampling_rate=self.sample_rate, return_tensors="pt"
        ).to(self.device, self.dtype)
        if self.prompt is not None:
            prompt = torch.full((len(waveforms),), self.prompt, device=self.device)
            inputs["prompt_ids"] = prompt
        encoded = self.model.get_audio_features(**inputs)
        # Of the window alone, with a last frame that is partly padding, as `generate` counts.
        mels = [len(wave) // self.extractor.hop_length + 1 for wave in waveforms]
        return (
            encoded.pooler_output,
            encoded.attention_mask.sum(-1),
            self.decoder.max_steps(mels),
        )
