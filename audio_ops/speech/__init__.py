"""Families of speech recognisers, one file each, behind the task automatic-speech-recognition.

A family's file holds `TIMESTAMPS`, the values of `timestamps` that it can do; `check(options,
checkpoint)` and `sample_rate(options, checkpoint)` as a task has them (no torch, no
transformers); and `Model`, which is a task's model (`audio_ops.tasks.Model`) except that `join`
gives a `Transcript`. A family that cuts at pauses hears windows as `Heard` and joins them with
`join_heard`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from audio_ops.tasks import Window

# Languages written without spaces, as Whisper calls them and as SeamlessM4T and MMS do.
UNSPACED = {
    *("zh", "yue", "ja", "th", "lo", "my", "km"),
    *("cmn", "cmn_Hant", "jpn", "tha", "lao", "mya", "khm"),
}


class Piece(TypedDict):
    """A stretch of text with its times in seconds and its geometric mean token probability."""

    start_s: float
    end_s: float
    text: str
    score: float


@dataclass(frozen=True)
class Heard:
    """What a model heard in one window. Times count from the window's start."""

    text: str
    log_probability: float  # summed over the generated tokens, the end-of-text token included
    tokens: int
    segments: list[Piece]
    words: list[Piece] = field(default_factory=list)
    language: str | None = None
    no_speech: float | None = None
    complete: bool = True  # the model came to an end of itself, not to its limit
    redone: bool | None = None  # heard again in full; None for a model that always does


@dataclass(frozen=True)
class Transcript:
    """What was said in one clip. Times count from the clip's start.

    `score` is the geometric mean probability of all tokens, 0 to 1, or None where there were
    none. `no_speech` is the model's own probability that nobody speaks, if it has one.
    """

    text: str
    score: float | None
    segments: list[Piece]
    words: list[Piece] = field(default_factory=list)
    language: str | None = None
    no_speech: float | None = None
    redone: bool | None = None  # some window was heard again in full


def geometric_mean(log_probability: float, tokens: int) -> float | None:
    """The score of `tokens` tokens whose log probabilities sum to `log_probability`."""
    return math.exp(log_probability / tokens) if tokens else None


def join_heard(windows: Sequence[Window], heard: Sequence[Heard], sample_rate: int) -> Transcript:
    """A clip's transcript from its windows, which follow each other without overlap.

    `language` is the one with the most seconds; `no_speech` is the mean over time.
    """
    seconds = [(window.stop - window.start) / sample_rate for window in windows]
    by_language: dict[str | None, float] = {}
    for part, length_s in zip(heard, seconds, strict=True):
        by_language[part.language] = by_language.get(part.language, 0.0) + length_s
    language = max(by_language, key=lambda code: by_language[code])
    certain = [
        (p.no_speech, s) for p, s in zip(heard, seconds, strict=True) if p.no_speech is not None
    ]
    total_s = sum(s for _, s in certain)
    texts = [part.text.strip() for part in heard]
    offsets_s = [window.start / sample_rate for window in windows]
    return Transcript(
        text=("" if language in UNSPACED else " ").join(text for text in texts if text),
        score=geometric_mean(sum(p.log_probability for p in heard), sum(p.tokens for p in heard)),
        segments=[_moved(s, o) for p, o in zip(heard, offsets_s, strict=True) for s in p.segments],
        words=[_moved(w, o) for p, o in zip(heard, offsets_s, strict=True) for w in p.words],
        language=language,
        no_speech=sum(p * s for p, s in certain) / total_s if total_s else None,
        redone=any(p.redone for p in heard) if any(p.redone is not None for p in heard) else None,
    )


def _moved(piece: Piece, offset_s: float) -> Piece:
    return Piece(
        start_s=round(piece["start_s"] + offset_s, 3),
        end_s=round(piece["end_s"] + offset_s, 3),
        text=piece["text"].strip(),
        score=piece["score"],
    )
