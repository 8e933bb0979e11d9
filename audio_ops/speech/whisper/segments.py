"""Generated tokens -> segments and words with their times. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from audio_ops.inference.transformers_compat import words_of
from audio_ops.speech.transcript import Segment, TimedText, WindowTranscript, score_of
from audio_ops.speech.whisper.settings import Settings

TIMESTAMP_S = 0.02  # from one timestamp token to the next: two frames


@dataclass(frozen=True)
class Generation:
    """The tokens generated for one window in one pass, without the end of text."""

    tokens: list[int]
    log_probabilities: list[float]  # of the tokens, and of the end of text if it is there
    end_times_s: list[float] | None  # of the tokens; None without word times
    ended: bool = True  # with an end of text; it was not cut off at a limit

    def followed_by(self, more: Generation) -> Generation:
        """This generation, which was cut off, and the one that goes on from there."""
        log_probabilities = self.log_probabilities + more.log_probabilities
        return Generation(self.tokens + more.tokens, log_probabilities, None, more.ended)

    def score(self, numbers: Sequence[int]) -> float:
        """The geometric mean probability of the tokens at these places."""
        return score_of([self.log_probabilities[n] for n in numbers])


@dataclass
class WindowState:
    """The transcript so far of a window of `length_s` seconds, `frames` frames of 10 ms."""

    frames: int
    length_s: float
    language: str | None = None
    detected_language: str | None = None
    language_probability: float | None = None  # of the detected language
    no_speech: float | None = None
    seek: int = 0  # frames transcribed
    complete: bool = True  # each pass ended with an end of text
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    @property
    def frames_left(self) -> int:
        return self.frames - self.seek

    @property
    def offset_s(self) -> float:
        return self.seek * TIMESTAMP_S / 2


@dataclass(frozen=True)
class SegmentReader:
    """Reads segments and words from tokens."""

    settings: Settings
    tokenizer: Any

    def extend(self, state: WindowState, generation: Generation) -> None:
        """Add what was generated from `state.seek` on, and move `seek` to where that stops."""
        tokens, frames = self._finished_part(generation.tokens, state.frames_left)
        start, begin_s = 0, state.offset_s
        limit_s = min(begin_s + frames * TIMESTAMP_S / 2, state.length_s)
        stamps = [n for n in range(len(tokens)) if self._is_timestamp(tokens[n])]
        for index in [*stamps, len(tokens)]:
            end_s = state.length_s
            if index < len(tokens):
                end_s = min(max(self._at_s(state, tokens[index]), begin_s), end_s)
            numbers = [n for n in range(start, index) if self.settings.is_text(tokens[n])]
            if numbers:
                text, score = self.text([tokens[n] for n in numbers]), generation.score(numbers)
                words = self._words(state, generation, numbers, limit_s)
                state.segments.append(Segment(begin_s, end_s, text, score, words))
            start, begin_s = index + 1, end_s
        state.tokens += [token for token in tokens if self.settings.is_text(token)]
        is_whole = len(tokens) == len(generation.tokens)
        state.log_probabilities += generation.log_probabilities[: None if is_whole else len(tokens)]
        state.seek += frames
        state.complete = state.complete and generation.ended

    def _finished_part(self, tokens: list[int], frames_left: int) -> tuple[list[int], int]:
        """The tokens that count, and the frames that they cover.

        A segment ends at a timestamp, and the next begins with one. Text behind the last of several
        segments may have been cut off: as in OpenAI's code it is dropped, and transcribed again from
        there on.
        """
        stamped = [self._is_timestamp(token) for token in tokens]
        pairs = [n for n in range(1, len(tokens)) if stamped[n - 1] and stamped[n]]
        if pairs and stamped[-2:] != [False, True]:
            stop = 2 * (tokens[pairs[-1] - 1] - self.settings.first_timestamp)
            if 0 < stop < frames_left:
                return tokens[: pairs[-1] + 1], stop
        return tokens, frames_left

    def _is_timestamp(self, token: int) -> bool:
        return self.settings.timestamps != "none" and token >= self.settings.first_timestamp

    def _at_s(self, state: WindowState, timestamp: int) -> float:
        return round(state.offset_s + (timestamp - self.settings.first_timestamp) * TIMESTAMP_S, 2)

    def _words(
        self, state: WindowState, generation: Generation, numbers: list[int], limit_s: float
    ) -> list[TimedText]:
        """The words that the tokens at `numbers` spell; none without word times. None ends behind
        `limit_s`, where the next pass begins: the last token before one may seem to fill the pause."""
        if generation.end_times_s is None:
            return []
        ends_s = [
            min(round(time_s + state.offset_s, 2), limit_s)
            for time_s in [0.0, *generation.end_times_s]
        ]
        tokens = [generation.tokens[n] for n in numbers]
        words = []
        for text, places in words_of(self.tokenizer, tokens, state.language):
            own = [numbers[place] for place in places]
            words.append(
                TimedText(
                    start_s=ends_s[own[0]],  # the end of the token before the first
                    end_s=ends_s[own[-1] + 1],
                    text=text,
                    score=generation.score(own),
                )
            )
        return words

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))

    def transcript(self, state: WindowState) -> WindowTranscript:
        return WindowTranscript(
            text=self.text(state.tokens),
            log_probability=sum(state.log_probabilities),
            tokens=len(state.log_probabilities),
            segments=state.segments,
            language=state.language,
            detected_language=state.detected_language,
            language_probability=state.language_probability,
            no_speech=state.no_speech,
            redone=False if self.settings.is_guarded else None,
            complete=state.complete,
        )
