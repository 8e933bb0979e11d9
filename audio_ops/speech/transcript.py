"""Transcripts of windows, and the transcript of a clip that they make up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypedDict

from audio_ops.tasks import Window

# Languages written without spaces, as Whisper calls them and as SeamlessM4T and MMS do.
UNSPACED = {
    *("zh", "yue", "ja", "th", "lo", "my", "km", "bo", "dz"),
    *("cmn", "cmn_Hant", "jpn", "tha", "lao", "mya", "khm", "bod", "dzo"),
    *("zho", "chi", "wuu", "nan", "hak", "hsn", "gan", "lzh", "bur", "tib", "shn", "nod", "khb"),
}
SENTENCE_ENDS = (".", "?", "!")  # as in NeMo's segment times


class TimedText(TypedDict):
    """A word or character with its times in seconds and its geometric mean token
    probability, 0 to 1."""

    start_s: float
    end_s: float
    text: str
    score: float


@dataclass(frozen=True)
class Segment:
    """A part of a transcript, of one window, with its times in seconds.

    `score` is the geometric mean probability of its tokens. The fields behind `words` are its
    window's: `language` is that of the text, `detected_language` what the model detects, even
    where `language` is set, with its probability.
    """

    start_s: float
    end_s: float
    text: str
    score: float
    words: list[TimedText] = field(default_factory=list)
    window: int = 0  # the number of its window in the clip
    language: str | None = None
    detected_language: str | None = None
    language_probability: float | None = None
    no_speech: float | None = None
    speaker: str | None = None  # as the model calls them, in each window anew
    is_transcript: bool = True  # no remark of a chat model, nor its own request


@dataclass(frozen=True)
class WindowTranscript:
    """The transcript of one window. Times count from the window's start."""

    text: str
    log_probability: float  # summed over the generated tokens, the end-of-text token included
    tokens: int
    segments: list[Segment]
    language: str | None = None
    detected_language: str | None = None
    language_probability: float | None = None  # of the detected language
    no_speech: float | None = None
    complete: bool = True  # the model generated an end of text; it was not cut off at a limit
    redone: bool | None = None  # transcribed again; None without `guarded` or `retry_temperatures`


@dataclass(frozen=True)
class Transcript:
    """The transcript of one clip. Times count from the clip's start.

    `score` is the geometric mean probability of all tokens, 0 to 1, or None without tokens.
    `no_speech` is the model's own probability that nobody speaks, None if it has none.
    """

    text: str
    score: float | None
    segments: list[Segment]
    language: str | None = None
    no_speech: float | None = None
    redone: bool | None = None  # at least one window was transcribed again

    @property
    def words(self) -> list[TimedText]:
        return [word for segment in self.segments for word in segment.words]


class TimedWord(NamedTuple):
    """A word with its times in the window, and the log probabilities of its tokens."""

    timed: TimedText
    log_probabilities: Sequence[float]


def sentences(words: Sequence[TimedWord]) -> list[Segment]:
    """A segment for each sentence: words up to and with one that ends it."""
    parts: list[list[TimedWord]] = [[]]
    for word in words:
        parts[-1].append(word)
        if word.timed["text"].endswith(SENTENCE_ENDS):
            parts.append([])
    return [
        Segment(
            start_s=part[0].timed["start_s"],
            end_s=part[-1].timed["end_s"],
            text=" ".join(word.timed["text"] for word in part),
            score=score_of([one for word in part for one in word.log_probabilities]),
        )
        for part in parts
        if part
    ]


def score_of(log_probabilities: Sequence[float]) -> float:
    """The score of tokens with these log probabilities; 0 without any."""
    return geometric_mean(sum(log_probabilities), len(log_probabilities)) or 0.0


def geometric_mean(log_probability: float, tokens: int) -> float | None:
    """The score of `tokens` tokens whose log probabilities sum to `log_probability`."""
    return math.exp(log_probability / tokens) if tokens else None


def join_windows(
    windows: Sequence[Window], transcripts: Sequence[WindowTranscript], sample_rate: int
) -> Transcript:
    """A clip's transcript from its windows, which follow each other without overlap.

    `language` is the one with the largest share of the clip; `no_speech` is the mean over time.
    """
    seconds = [(window.stop - window.start) / sample_rate for window in windows]
    language = _main_language(transcripts, seconds)
    redone = [part.redone for part in transcripts if part.redone is not None]
    return Transcript(
        text=join_texts([part.text for part in transcripts], language),
        score=geometric_mean(
            sum(part.log_probability for part in transcripts),
            sum(part.tokens for part in transcripts),
        ),
        segments=[
            _placed(segment, number, part, window.start / sample_rate)
            for number, (part, window) in enumerate(zip(transcripts, windows, strict=True))
            for segment in part.segments
        ],
        language=language,
        no_speech=_mean_no_speech(transcripts, seconds),
        redone=any(redone) if redone else None,
    )


def join_texts(texts: Sequence[str], language: str | None) -> str:
    """The texts of successive parts as one, without the empty ones."""
    parts = [text.strip() for text in texts]
    return ("" if language in UNSPACED else " ").join(part for part in parts if part)


def _main_language(transcripts: Sequence[WindowTranscript], seconds: Sequence[float]) -> str | None:
    by_language: dict[str | None, float] = {}
    for part, length_s in zip(transcripts, seconds, strict=True):
        by_language[part.language] = by_language.get(part.language, 0.0) + length_s
    return max(by_language, key=lambda code: by_language[code])


def _mean_no_speech(
    transcripts: Sequence[WindowTranscript], seconds: Sequence[float]
) -> float | None:
    known = [
        (part.no_speech, length_s)
        for part, length_s in zip(transcripts, seconds, strict=True)
        if part.no_speech is not None
    ]
    total_s = sum(length_s for _, length_s in known)
    return sum(p * length_s for p, length_s in known) / total_s if total_s else None


def _placed(segment: Segment, number: int, part: WindowTranscript, offset_s: float) -> Segment:
    """A segment of the clip's window `number`, which begins at `offset_s`.

    A window's only segment has the window's score: that of a word without its end of text is too
    low (Whisper base's "Transferred.": 0.36 instead of 0.43).
    """
    score = geometric_mean(part.log_probability, part.tokens) if len(part.segments) == 1 else None
    return replace(
        segment,
        start_s=round(segment.start_s + offset_s, 3),
        end_s=round(segment.end_s + offset_s, 3),
        text=segment.text.strip(),
        score=segment.score if score is None else score,
        words=[_moved(word, offset_s) for word in segment.words],
        window=number,
        language=part.language,
        detected_language=part.detected_language,
        language_probability=part.language_probability,
        no_speech=part.no_speech,
    )


def _moved(piece: TimedText, offset_s: float) -> TimedText:
    return TimedText(
        start_s=round(piece["start_s"] + offset_s, 3),
        end_s=round(piece["end_s"] + offset_s, 3),
        text=piece["text"].strip(),
        score=piece["score"],
    )
