"""Whisper's encoder, and the decoder's first step, which tells language and silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.inference.finite import finite_rows
from audio_ops.inference.transformers_compat import encode_whisper, encoder_keys_alone
from audio_ops.speech.whisper.log_mel import LogMel
from audio_ops.speech.whisper.settings import Settings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FirstStep:
    """The decoder's first step on a batch, one entry per window."""

    finite: list[bool]  # whether the model's numbers are finite so far
    languages: list[str | None]  # of the texts: set, or detected
    detected: list[tuple[str, float] | None]  # the likeliest language and its probability
    no_speech: Sequence[float | None]  # Whisper's own probability that nobody speaks
    cache: Any  # the encoder's keys and values, with which `generate` goes on, or None


class Encoder:
    """Encodes batches of waveforms with a loaded WhisperForConditionalGeneration."""

    def __init__(self, model: Any, settings: Settings, extractor: Any, device: str):
        self.model, self.settings = model, settings
        self.log_mel = LogMel(extractor, device)

    def features(self, waveforms: Sequence[np.ndarray], samples: int) -> torch.Tensor:
        """Log-mel features `(batch, mels, frames)` of waveforms padded to `samples`, in the model's
        number format."""
        return self.log_mel(waveforms, samples).to(self.model.dtype)

    def states(self, features: torch.Tensor) -> torch.Tensor:
        """Log-mel features `(batch, mels, frames)` -> hidden states `(batch, frames / 2, width)`.

        One by one on the CPU: a batch falls out of the caches (0.75 s a window instead of 0.54).
        """
        import torch

        at_once = features.shape[0] if features.is_cuda else 1
        encoder = self.model.model.encoder
        return torch.cat([encode_whisper(encoder, part) for part in features.split(at_once)])

    def states_from(self, features: torch.Tensor, seeks: Sequence[int]) -> torch.Tensor:
        """States of the features behind the first `seek` frames of each row, padded to all frames."""
        import torch
        from torch.nn.functional import pad

        rests = [pad(row[:, seek:], (0, seek)) for row, seek in zip(features, seeks, strict=True)]
        return self.states(torch.stack(rests))

    def first_step(self, states: torch.Tensor) -> FirstStep:
        """Language and silence, read as in OpenAI's code from the decoder's first step."""
        import torch

        settings, count = self.settings, states.shape[0]
        languages: list[str | None] = [settings.language] * count
        detected: list[tuple[str, float] | None] = [None] * count
        no_speech: Sequence[float | None] = [None] * count
        if settings.no_speech is None and not settings.detects_language:
            return FirstStep(finite_rows(states), languages, detected, no_speech, None)
        start = torch.full((count, 1), settings.start, device=states.device)
        use_cache = settings.num_beams == 1 and settings.timestamps != "word"
        step = self.model(encoder_outputs=(states,), decoder_input_ids=start, use_cache=use_cache)
        logits = step.logits[:, 0].float()
        if settings.no_speech is not None:
            no_speech = logits.softmax(-1)[:, settings.no_speech].tolist()
        if settings.languages:
            codes = list(settings.languages)
            among = logits[:, list(settings.languages.values())].softmax(-1).max(-1)
            places, probabilities = among.indices.tolist(), among.values.tolist()
            detected = [(codes[n], p) for n, p in zip(places, probabilities, strict=True)]
            if settings.detects_language:
                languages = [codes[n] for n in places]
        return FirstStep(
            finite_rows(logits.logsumexp(1, keepdim=True)),  # a token may be ruled out by -Inf
            languages,
            detected,
            no_speech,
            encoder_keys_alone(step.past_key_values) if use_cache else None,
        )
