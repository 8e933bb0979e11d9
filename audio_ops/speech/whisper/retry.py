"""Transcribes windows with suspect texts again, at rising temperatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.speech.evidence import is_to_retry
from audio_ops.speech.options import Options
from audio_ops.speech.sampling import seeded_by_sound
from audio_ops.speech.transcript import WindowTranscript, join_windows
from audio_ops.speech.whisper.generation import Generator
from audio_ops.speech.whisper.settings import Settings
from audio_ops.tasks import Window

Transcribe = Callable[[np.ndarray, Generator], WindowTranscript | ClipError]


class Retries:
    """The `retry_temperatures`, each with its generator."""

    def __init__(self, model: Any, settings: Settings, options: Options, sample_rate: int):
        self.options, self.sample_rate = options, sample_rate
        self.generators = {
            temperature: Generator(model, settings.at_temperature(temperature))
            for temperature in options.retry_temperatures
        }

    def with_previous(self, previous: tuple[int, ...]) -> Retries:
        """These retries with other tokens ahead of each window."""
        other = copy(self)
        other.generators = {
            temperature: generator.with_settings(replace(generator.settings, previous=previous))
            for temperature, generator in self.generators.items()
        }
        return other

    def __call__(
        self,
        waveforms: Sequence[np.ndarray],
        transcripts: list[WindowTranscript | ClipError],
        transcribe: Transcribe,
    ) -> list[WindowTranscript | ClipError]:
        """The windows' transcripts or, where one is suspect, the first that is not."""
        if not self.generators:
            return transcripts
        return [
            self.retry(waveform, transcript, transcribe)
            if isinstance(transcript, WindowTranscript)
            else transcript
            for waveform, transcript in zip(waveforms, transcripts, strict=True)
        ]

    def retry(
        self, waveform: np.ndarray, transcript: WindowTranscript, transcribe: Transcribe
    ) -> WindowTranscript:
        """Of one window alone, so that it does not depend on the neighbours in a batch."""
        generators = self.generators if self._is_suspect(waveform, transcript) else {}
        for temperature, generator in generators.items():
            with seeded_by_sound(waveform, round(1000 * temperature)):
                again = transcribe(waveform, generator)
            if isinstance(again, WindowTranscript) and not self._is_suspect(waveform, again):
                return replace(again, redone=True)
        return replace(transcript, redone=bool(transcript.redone))

    def _is_suspect(self, waveform: np.ndarray, transcript: WindowTranscript) -> bool:
        whole = join_windows([Window(0, len(waveform))], [transcript], self.sample_rate)
        return is_to_retry(whole.segments, self.options)
