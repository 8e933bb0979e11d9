"""A loaded prompted recogniser: windows -> transcripts."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.speech import seq2seq
from audio_ops.speech.generation import Generated, generate_dropping_finished
from audio_ops.speech.options import Options, prompt_in
from audio_ops.speech.prompted.answers import Turn, is_chat, read
from audio_ops.speech.prompted.kinds import KINDS
from audio_ops.speech.prompted.processors import processor_of
from audio_ops.speech.prompted.requests import Request, collate
from audio_ops.speech.transcript import Segment, WindowTranscript, geometric_mean
from audio_ops.speech.vocabulary import GENERATION
from audio_ops.tasks import Clip, Window

if TYPE_CHECKING:
    import torch


class Model(seq2seq.Model):
    """A loaded prompted recogniser.

    `score` is the geometric mean probability of the generated tokens, end of text included; those of
    a language, of speakers and of times count as well. Windows of less than 0.1 s have an empty
    text.
    """

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        self.options = options
        self.kind = KINDS[checkpoint.json("config.json")["model_type"]]
        self.new_tokens = self.kind.new_tokens
        super().__init__(options, checkpoint, device)
        # An extractor cuts what is longer than this.
        longest_s = checkpoint.extractor_settings().get("max_audio_clip_s")
        self.max_s = self.kind.max_s if longest_s is None else float(longest_s)
        self.equal_lengths = self.kind.equal_lengths
        is_limited = options.max_new_tokens or checkpoint.json(GENERATION).get("max_new_tokens")
        self.tokens_per_s = 0.0 if is_limited else self.kind.tokens_per_s
        self.language = options.target_language or options.language or self.kind.default_language
        self.translates = options.target_language == "en"
        self.batch = threading.local()  # a call that overlaps with this one has its own prompt
        self.request = Request(self.processor, self.kind, options, self.sample_rate)
        own: str | None = getattr(self.processor, "default_transcription_prompt", None)
        self.own_prompt = own or self.kind.default_prompt

    def _model_class(self) -> Any:
        import transformers

        return getattr(transformers, self.kind.architecture)

    def _processors(self, checkpoint: Checkpoint, options: Options) -> tuple[Any, Any]:
        self.processor: Any = processor_of(checkpoint, options)
        return None, self.processor.tokenizer

    def windows(self, clip: Clip) -> list[Window]:
        prompt = self.options.prompt
        if self.options.prompt_column is not None:
            prompt = prompt_in(clip, self.options.prompt_column)
        return [Window(w.start, w.stop, prompt) for w in super().windows(clip)]

    def padded_s(self, samples: int) -> float:
        seconds, step = samples / self.sample_rate, self.kind.padded_s
        return max(-(-seconds // step), 1.0) * step if step else seconds

    def __call__(
        self, waveforms: Sequence[np.ndarray], group: Hashable = None
    ) -> list[WindowTranscript | ClipError]:
        self.batch.prompt = group
        return super().__call__(waveforms, group)

    def limit(self, length_s: float) -> int:
        """The most tokens of a window's text."""
        config = self.model.generation_config
        if not self.tokens_per_s:
            return int(config.max_new_tokens)
        # A beam search that is cut off finds another text: all of its windows have one limit.
        seconds = length_s if config.num_beams == 1 else self.max_s
        return int(config.max_new_tokens + self.tokens_per_s * seconds)

    def transcribe_windows(
        self, waveforms: Sequence[np.ndarray]
    ) -> list[WindowTranscript | ClipError]:
        """Transcripts of one batch of windows, which share a prompt."""
        prompt: str | None = self.batch.prompt
        inputs = collate(
            [self.request(waveform, prompt) for waveform in waveforms],
            self.model.generation_config.pad_token_id,
            self.model.config.is_encoder_decoder,
        )
        limits = [self.limit(len(waveform) / self.sample_rate) for waveform in waveforms]
        each = generate_dropping_finished(self.model, self._encoded(inputs), limits)
        return [
            self._read(generated, len(waveform) / self.sample_rate, prompt)
            for generated, waveform in zip(each, waveforms, strict=True)
        ]

    def _encoded(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The inputs of `generate` on the model's device, an encoder-decoder's sound encoded."""
        moved: dict[str, Any] = {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        if not self.model.config.is_encoder_decoder:
            return {**moved, **self.kind.settings}
        sound = {key: moved.pop(key) for key in ("input_features", "attention_mask")}
        return {**moved, "encoder_outputs": self.model.get_encoder()(**sound)}

    def _read(
        self, generated: Generated, length_s: float, prompt: str | None
    ) -> WindowTranscript | ClipError:
        log_probabilities = generated.log_probabilities
        if not log_probabilities or not are_finite(log_probabilities):
            return not_finite("token probabilities")
        answer = read(self.processor, self.kind, generated.tokens)
        total, tokens = sum(log_probabilities), len(log_probabilities)
        score = geometric_mean(total, tokens) or 0.0
        asked = [one for one in (prompt, self.own_prompt) if one]
        turns = [turn for turn in answer.turns or [Turn(answer.text)] if turn.text.strip()]
        return WindowTranscript(
            text=answer.text,
            log_probability=total,
            tokens=tokens,
            segments=[
                Segment(
                    *times(turn, length_s),
                    turn.text,
                    score,
                    speaker=turn.speaker,
                    is_transcript=not is_chat(turn.text, asked),
                )
                for turn in turns
            ],
            language=self.language or answer.language,
        )


def times(turn: Turn, length_s: float) -> tuple[float, float]:
    """When a turn begins and ends, within its window; the whole window if the model does not say."""
    start_s = min(max(turn.start_s or 0.0, 0.0), length_s)
    end_s = length_s if turn.end_s is None else min(max(turn.end_s, start_s), length_s)
    return start_s, end_s
