"""A loaded Whisper: windows of waveforms -> their transcripts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, load, load_model
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.signal.segment import cut_at_quiet
from audio_ops.speech.evidence import compression_ratio
from audio_ops.speech.options import MAX_COMPRESSION_RATIO, MIN_SCORE, Options, prompt_in
from audio_ops.speech.sampling import seeded_by_sound
from audio_ops.speech.transcript import (
    Transcript,
    WindowTranscript,
    geometric_mean,
    join_windows,
)
from audio_ops.speech.whisper.encoder import Encoder
from audio_ops.speech.whisper.generation import (
    GenerationRequest,
    Generator,
    max_plausible_tokens,
)
from audio_ops.speech.whisper.prompt import prompt_of, with_timestamps
from audio_ops.speech.whisper.retry import Retries
from audio_ops.speech.whisper.segments import Generation, SegmentReader, WindowState
from audio_ops.speech.whisper.settings import previous_tokens, settings_of
from audio_ops.tasks import Clip, Window

if TYPE_CHECKING:
    import torch

MIN_FRAMES = 10  # 0.1 s of sound: a shorter rest of a window is not transcribed
SHORT_CONTEXTS_S = (15.0, 20.0, 25.0)  # of the encoder, for guarded windows
MARGIN_S = 5.0  # of silence behind the sound in a short context


class Group(NamedTuple):
    """Windows of a batch share it."""

    context_s: float  # of the encoder
    previous: tuple[int, ...]  # tokens ahead of each window


class Model:
    """A loaded Whisper."""

    is_generative = True
    equal_lengths = False  # each window is padded to 30 s of silence, on which Whisper was trained

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        from transformers import (
            AutoTokenizer,
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
        )

        options = with_timestamps(options, checkpoint)
        self.extractor = load(WhisperFeatureExtractor, checkpoint, options)
        self.tokenizer = load(AutoTokenizer, checkpoint, options)
        # Only eager attention returns its weights, from which the words' times are read.
        attention = {"attn_implementation": "eager"} if options.timestamps == "word" else {}
        self.model = load_model(
            WhisperForConditionalGeneration, checkpoint, options, device, **attention
        )
        prompt = prompt_of(options, checkpoint)
        self.settings = settings_of(options, prompt, self.model, self.tokenizer)
        self.translates = prompt.translates
        self.model.generation_config = self.settings.generation
        self.encoder = Encoder(self.model, self.settings, self.extractor, device)
        self.generator = Generator(self.model, self.settings)
        self.reader = SegmentReader(self.settings, self.tokenizer)
        self.turn = threading.Lock() if device != "cpu" else nullcontext()
        self.sample_rate: int = self.extractor.sampling_rate
        self.prompt_column = options.prompt_column
        self.retries = Retries(self.model, self.settings, options, self.sample_rate)
        self.whole_s = float(self.extractor.chunk_length)  # 30 s

    def windows(self, clip: Clip) -> list[Window]:
        samples, longest_s = len(clip.waveform), self.extractor.chunk_length
        cuts = cut_at_quiet(samples, self.sample_rate, longest_s, clip.speech, clip.waveform)
        previous = self.settings.previous
        if self.prompt_column is not None:
            prompt = prompt_in(clip, self.prompt_column)
            positions = self.model.config.max_target_positions
            previous = previous_tokens(prompt, self.tokenizer, positions)
        return [
            Window(start, stop, Group(self.padded_s(stop - start), previous))
            for start, stop in cuts
        ]

    def with_previous(self, previous: tuple[int, ...]) -> Model:
        """This model with other tokens ahead of each window."""
        other = copy(self)
        other.settings = replace(self.settings, previous=previous)
        other.generator = self.generator.with_settings(other.settings)
        other.retries = self.retries.with_previous(previous)
        return other

    def padded_s(self, samples: int) -> float:
        """The encoder's context in seconds for a window of so many samples."""
        needed_s = samples / self.sample_rate + MARGIN_S
        short_s = (context for context in SHORT_CONTEXTS_S if needed_s <= context < self.whole_s)
        return next(short_s, self.whole_s) if self.settings.is_guarded else self.whole_s

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[WindowTranscript]
    ) -> Transcript:
        return join_windows(windows, outputs, self.sample_rate)

    def __call__(
        self, waveforms: Sequence[np.ndarray], group: Hashable = None
    ) -> list[WindowTranscript | ClipError]:
        """Transcribe windows that share a context (see `padded_s`) and a prompt.

        On a GPU one call at a time: a step of the decoder is a hundred small kernels, which two
        threads launch more slowly than one.
        """
        import torch

        shared = group if isinstance(group, Group) else Group(self.whole_s, self.settings.previous)
        model = self
        if shared.previous != self.settings.previous:
            model = self.with_previous(shared.previous)
        with self.turn, torch.inference_mode():
            if model.settings.samples_tokens:
                return model.transcribe_each_alone(waveforms)
            transcripts = model.transcribe(waveforms, shared.context_s)
            return model.retries(waveforms, transcripts, model.transcribe_alone)

    def transcribe_alone(
        self, waveform: np.ndarray, generator: Generator
    ) -> WindowTranscript | ClipError:
        [transcript] = self.transcribe_windows([waveform], self.whole_s, generator)
        return transcript

    def transcribe_each_alone(
        self, waveforms: Sequence[np.ndarray]
    ) -> list[WindowTranscript | ClipError]:
        """Transcripts from sampled tokens, which would depend on the neighbours in a batch: each
        window alone, with a seed from its own sound."""
        transcripts = []
        for waveform in waveforms:
            with seeded_by_sound(waveform):
                transcripts += self.transcribe_windows([waveform], self.whole_s)
        return transcripts

    def transcribe(
        self, waveforms: Sequence[np.ndarray], context_s: float
    ) -> list[WindowTranscript | ClipError]:
        """Transcripts of windows in a context of `context_s`; those that a short context may have
        spoilt are transcribed again in full."""
        transcripts = self.transcribe_windows(waveforms, context_s)
        if context_s >= self.whole_s:
            return transcripts
        again = [n for n, transcript in enumerate(transcripts) if may_be_spoilt(transcript)]
        # In batches that take no more memory than the one before.
        size = max(1, int(len(waveforms) * context_s / self.whole_s))
        for rows in (again[at : at + size] for at in range(0, len(again), size)):
            full = self.transcribe_windows([waveforms[n] for n in rows], self.whole_s)
            for n, transcript in zip(rows, full, strict=True):
                transcripts[n] = (
                    replace(transcript, redone=True)
                    if isinstance(transcript, WindowTranscript)
                    else transcript
                )
        return transcripts

    def transcribe_windows(
        self,
        waveforms: Sequence[np.ndarray],
        context_s: float,
        generator: Generator | None = None,
    ) -> list[WindowTranscript | ClipError]:
        """Transcripts of windows, each padded to `context_s` seconds; by `self.generator`, unless
        another is given.

        With timestamps Whisper may stop before the sound does, at the end of a sentence: then the
        rest is transcribed from its last timestamp on, until all is.
        """
        features = self.encoder.features(waveforms, round(context_s * self.sample_rate))
        states = self.encoder.states(features)
        first = self.encoder.first_step(states)
        if not all(first.finite):
            return self._without_spoilt(waveforms, context_s, first.finite, generator)
        windows = [
            WindowState(
                frames=min(-(-len(waveform) // self.extractor.hop_length), features.shape[-1]),
                length_s=len(waveform) / self.sample_rate,
                language=language,
                detected_language=detected and detected[0],
                language_probability=detected and detected[1],
                no_speech=no_speech,
            )
            for waveform, language, detected, no_speech in zip(
                waveforms, first.languages, first.detected, first.no_speech, strict=True
            )
        ]
        generate = partial(one_pass, generator or self.generator)
        self._transcribe_to_the_end(generate, windows, features, (states, first.cache))
        return [
            self.reader.transcript(window)
            if are_finite(window.log_probabilities)
            else not_finite("token probabilities")
            for window in windows
        ]

    def _without_spoilt(
        self,
        waveforms: Sequence[np.ndarray],
        context_s: float,
        finite: Sequence[bool],
        generator: Generator | None,
    ) -> list[WindowTranscript | ClipError]:
        """Errors for the windows that are not finite, which would generate to the limit, and the
        others' transcripts."""
        good = [waveform for waveform, fine in zip(waveforms, finite, strict=True) if fine]
        others = iter(self.transcribe_windows(good, context_s, generator) if good else ())
        return [next(others) if fine else not_finite("encoder states") for fine in finite]

    def _transcribe_to_the_end(
        self,
        generate: Callable[[Sequence[WindowState], torch.Tensor, Any], list[Generation]],
        windows: list[WindowState],
        features: torch.Tensor,
        first: tuple[torch.Tensor, Any],
    ) -> None:
        """Extend windows until each is transcribed. `first` are states and cache of their starts."""
        left, (states, cache) = windows, first
        while left:
            for window, generation in zip(left, generate(left, states, cache), strict=True):
                self.reader.extend(window, generation)
            rows = [
                row
                for row, window in enumerate(windows)
                if window.frames_left >= MIN_FRAMES and are_finite(window.log_probabilities)
            ]
            left = [windows[row] for row in rows]
            if left:
                seeks = [window.seek for window in left]
                states, cache = self.encoder.states_from(features[rows], seeks), None


def one_pass(
    generator: Generator, windows: Sequence[WindowState], states: torch.Tensor, cache: Any
) -> list[Generation]:
    """What the generator writes for each window from its `seek` on."""
    settings = generator.settings
    prompts = [settings.prompt(window.language) for window in windows]
    frames = [window.frames_left for window in windows]
    limit = settings.max_new_tokens
    is_short = states.shape[1] < generator.model.config.max_source_positions
    if is_short:
        limit = min(limit, max_plausible_tokens(max(frames)))
    generations = generator(
        GenerationRequest(states, prompts, frames, limit, len(prompts[0]), cache)
    )
    if not is_short:
        return generations
    return [_within_limit(*pair) for pair in zip(generations, frames, strict=True)]


def _within_limit(generation: Generation, frames: int) -> Generation:
    """The generation, as one that has not ended if it is too long for its own window: then it is
    transcribed again in full, whatever the limit of its neighbours."""
    is_short = len(generation.tokens) < max_plausible_tokens(frames)
    return replace(generation, ended=generation.ended and is_short)


def may_be_spoilt(transcript: WindowTranscript | ClipError) -> bool:
    """Whether a short context may have spoilt this transcript."""
    if isinstance(transcript, ClipError):
        return True
    score = geometric_mean(transcript.log_probability, transcript.tokens)
    return (
        not transcript.complete
        or compression_ratio(transcript.text) > MAX_COMPRESSION_RATIO
        or (score is not None and score < MIN_SCORE)
    )
