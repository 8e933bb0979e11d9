"""Kyutai's streaming recogniser, read offline: a codec's tokens of each frame of sound (80 ms) go in, and
a token of text comes out, most of them padding between words.

The texts are those of the checkpoint's processor and `generate`, as on the model's page. It generates to
the end of the sound and no further, some frames behind it. Windows of a batch are of one length, since
the codec has no mask. `score` is of the tokens that are text.

Times follow from the tokens' places, as in Kyutai's own script (scripts/stt_from_file_pytorch.py of
kyutai-labs/delayed-streams-modeling): a word begins behind the token that ends the padding before it,
and ends where the next word does so; both are earlier than their tokens by the checkpoint's delay.

Sound is cut in pauses into windows of at most 30 s, the span that its attention slides over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, expect_architecture, load
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.speech import seq2seq
from audio_ops.speech.languages import no_languages
from audio_ops.speech.options import Options
from audio_ops.speech.seq2seq import sample_rate as sample_rate
from audio_ops.speech.tokens import TokenLogProbabilities, of_text
from audio_ops.speech.transcript import TimedText, TimedWord, WindowTranscript, score_of, sentences

MODEL_TYPES = ("kyutai_speech_to_text",)
TIMESTAMPS = ("none", "segment", "word")
OPTIONS: tuple[str, ...] = ()
languages = no_languages
MAX_S = 30.0
END_OF_PADDING = 0  # the token ahead of a word, in all of Kyutai's vocabularies
LAST_S = 1.0  # the most that a last word without such a token behind it lasts
ARCHITECTURE = "KyutaiSpeechToTextForConditionalGeneration"


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint is no recogniser."""
    expect_architecture(checkpoint, ARCHITECTURE)
    checkpoint.extractor_settings()


class Model(seq2seq.Model):
    """A loaded Kyutai recogniser with its codec."""

    new_tokens = None  # as many as there are frames

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        super().__init__(options, checkpoint, device)
        self.max_s, self.equal_lengths = MAX_S, True
        self.timestamps = options.timestamps
        self.frame_s = self.model.config.frame_size / self.sample_rate
        silence_s = self.extractor.audio_silence_prefix_seconds or 0.0
        self.delay_s = silence_s + (self.extractor.audio_delay_seconds or 0.0)

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

    def transcribe_windows(
        self, waveforms: Sequence[np.ndarray]
    ) -> list[WindowTranscript | ClipError]:
        """Transcripts of one batch of windows."""
        from transformers import LogitsProcessorList

        probabilities = TokenLogProbabilities(self.model.generation_config)
        output: Any = self.model.generate(
            **self._inputs(waveforms),
            logits_processor=LogitsProcessorList(probabilities.processors),
        )
        each = probabilities.log_probabilities(output.sequences, None)
        return [
            self._read(row[probabilities.prompt :], scores, len(waveform) / self.sample_rate)
            for row, scores, waveform in zip(
                output.sequences.tolist(), each, waveforms, strict=True
            )
        ]

    def _read(
        self, tokens: Sequence[int], log_probabilities: Sequence[float], length_s: float
    ) -> WindowTranscript | ClipError:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        own = list(log_probabilities)
        if text.strip():
            own = of_text(tokens, log_probabilities, self.tokenizer)
        if not own or not are_finite(own):
            return not_finite("token probabilities")
        whole = self._transcript(text, own, length_s)
        if self.timestamps == "none" or not whole.segments:
            return whole
        words = [self._timed(word, length_s) for word in self._words(tokens, log_probabilities)]
        if self.timestamps == "word":
            segments = [replace(whole.segments[0], words=[word.timed for word in words])]
        else:
            segments = sentences(words)
        return replace(whole, segments=segments)

    def _words(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> list[Spelled]:
        """Tokens from one piece that begins with ▁ to the next, and the frames that they take."""
        special, second = set(self.tokenizer.all_special_ids), round(LAST_S / self.frame_s)
        words: list[Spelled] = []
        begins = None  # behind the token that ended the padding
        for frame, (token, score) in enumerate(zip(tokens, log_probabilities, strict=False)):
            if token in (END_OF_PADDING, self.tokenizer.eos_token_id):
                if words and words[-1].stop is None:
                    words[-1].stop = frame
                begins = frame + 1 if token == END_OF_PADDING else None
            if token in special:
                continue
            if not words or self.tokenizer.convert_ids_to_tokens(token).startswith("▁"):
                start = frame if begins is None else begins
                if words and words[-1].stop is None:
                    words[-1].stop = start
                words.append(Spelled(start, [], []))
            words[-1].tokens.append(token)
            words[-1].log_probabilities.append(score)
            words[-1].stop = begins = None
        if words and words[-1].stop is None:
            words[-1].stop = min(len(tokens), words[-1].start + second)
        return words

    def _timed(self, word: Spelled, length_s: float) -> TimedWord:
        frames = (word.start, word.stop or word.start)
        start_s, end_s = (
            round(min(max(frame * self.frame_s - self.delay_s, 0.0), length_s), 3)
            for frame in frames
        )
        text = self.tokenizer.decode(word.tokens, skip_special_tokens=True).strip()
        score = score_of(word.log_probabilities)
        timed = TimedText(start_s=start_s, end_s=end_s, text=text, score=score)
        return TimedWord(timed, word.log_probabilities)


@dataclass
class Spelled:
    """A word's tokens, and the frames from and up to which it is written."""

    start: int
    tokens: list[int]
    log_probabilities: list[float]
    stop: int | None = None
