"""A transducer's tokens -> text, words and sentences with their times. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audio_ops.speech.transcript import (
    Segment,
    TimedText,
    TimedWord,
    WindowTranscript,
    score_of,
    sentences,
)
from audio_ops.speech.transducer.decoder import Emission

# In times of TDT models these have no length, as in transformers' processor and in NeMo.
PUNCTUATION = frozenset("?'¡¿-:,%/.!")
LANGUAGE_TAG = re.compile(r"<([a-z]{2,3}-[A-Z]{2})>")  # which Nemotron 3.5 writes into its text


@dataclass(frozen=True)
class Reader:
    """Reads the text and the words of a window from its tokens."""

    tokenizer: Any
    timestamps: str  # none, segment or word
    frame_s: float
    has_durations: bool  # a TDT model
    language: str | None  # of all windows, if it is set

    def __call__(self, emissions: Sequence[Emission], length_s: float) -> WindowTranscript:
        emissions, language = self._without_tags(emissions)
        text = self._text(emissions)
        return WindowTranscript(
            text=text,
            log_probability=sum(one.log_probability for one in emissions),
            tokens=len(emissions),
            segments=self._segments(emissions, text, length_s) if text.strip() else [],
            language=self.language or language,
        )

    def _segments(self, emissions: Sequence[Emission], text: str, length_s: float) -> list[Segment]:
        """A segment for each sentence, or one for the window."""
        words = [] if self.timestamps == "none" else self._words(emissions, length_s)
        if self.timestamps != "segment":
            timed = [word.timed for word in words]
            return [Segment(0.0, length_s, text, _score(emissions), timed)]
        return sentences(words)

    def _without_tags(self, emissions: Sequence[Emission]) -> tuple[list[Emission], str | None]:
        """The tokens of the text, and the language that the last tag among them names."""
        text, language = [], None
        for one in emissions:
            if tag := LANGUAGE_TAG.fullmatch(self._piece(one)):
                language = tag[1]
            else:
                text.append(one)
        return text, language

    def _words(self, emissions: Sequence[Emission], length_s: float) -> list[TimedWord]:
        """Tokens from one piece that begins with ▁ to the next."""
        special = set(self.tokenizer.all_special_ids)
        words: list[list[Emission]] = []
        for one in emissions:
            if one.id in special:
                continue
            if not words or self._piece(one).startswith("▁"):
                words.append([])
            words[-1].append(one)
        return [self._timed(word, length_s) for word in words]

    def _timed(self, word: list[Emission], length_s: float) -> TimedWord:
        sized = [one for one in word[1:] if not self._is_punctuation(one)]
        last = [word[0], *sized][-1]
        stop = last.start + last.frames
        start_s, end_s = word[0].start * self.frame_s, stop * self.frame_s
        timed = TimedText(
            start_s=round(min(start_s, length_s), 3),
            end_s=round(min(end_s, length_s), 3),
            text=self._text(word).strip(),
            score=_score(word),
        )
        return TimedWord(timed, [one.log_probability for one in word])

    def _is_punctuation(self, emission: Emission) -> bool:
        """Whether it has no length."""
        return self.has_durations and self._piece(emission) in PUNCTUATION

    def _piece(self, emission: Emission) -> str:
        piece: str | None = self.tokenizer.convert_ids_to_tokens(emission.id)
        return piece or ""  # a vocabulary may be larger than its tokenizer's, and has no text there

    def _text(self, emissions: Sequence[Emission]) -> str:
        """As the pipeline decodes: equal tokens in succession are several."""
        text: str = self.tokenizer.decode(
            [one.id for one in emissions], skip_special_tokens=True, group_tokens=False
        )
        return text


def _score(emissions: Sequence[Emission]) -> float:
    return score_of([one.log_probability for one in emissions])
