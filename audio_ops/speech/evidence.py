"""Evidence that a recogniser invented a text, for each of its segments."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from audio_ops.signal.segment import FRAME_S
from audio_ops.speech.options import Options
from audio_ops.speech.phrases import is_credit, is_phrase, plain
from audio_ops.speech.transcript import Segment, Transcript
from audio_ops.tasks import Clip

SPEECH = 128  # probability (uint8) from which a frame is speech: a half
MIN_SPEECH_S = 0.25  # the voice detector's own minimum; less is a click or a chord
STRETCH = 400  # characters, about 30 s of speech
COPIES = re.compile(r"(.+?)\1{2,}")
MIN_COPIED = 0.4  # songs: up to a third
REPEATS = 3  # segments of equal text in one window from which they are judged as one text
# A phrase is doubtful from this probability of no speech, and said faster than that. (Speech has up
# to 19 characters a second.)
WEAK_NO_SPEECH, PHRASE_CHARS_PER_S = 0.3, 20.0
# Probability of a language in a window of some seconds beside another in the next. (Whisper base:
# 0.67 and 0.70 for windows that have two languages each; short prompts, alone, are misread at 0.6.)
MIXED_LANGUAGE = 0.5
# Seconds of speech in a window that tell its language: set beside another, and of several in a clip.
# (Whisper base misreads 41 of 103 prompts under 1.5 s, with probabilities of up to 0.99; of 40 of up
# to 3 s five, three of them with a half or more; of 49 longer ones one, with less.)
LANGUAGE_S, MIXED_LANGUAGE_S = 1.5, 3.0
# The reasons for a segment, in the order in which they are named; `mixed_languages` is the clip's.
REASONS = (
    *("no_speech", "low_probability", "loop", "too_fast", "phrase"),
    *("not_a_transcript", "wrong_language"),
)


def compression_ratio(text: str) -> float:
    """How well zlib compresses the text, with a byte for each character: a loop compresses well.

    Of English it is OpenAI's ratio. That counts bytes of UTF-8, of which characters of most other
    scripts have two or three, alike in all but the last: plain Hindi, Thai, Tamil, Bengali,
    Georgian and Burmese have 2.4 to 3.1, here 1.4 to 1.6 like English. The highest over the text's
    stretches. 0 for no text.
    """
    return max(map(_compression, _stretches(text)), default=0.0)


def is_loop(text: str, max_compression_ratio: float | None) -> bool:
    """Whether a stretch of the text compresses better than that, and two fifths of it or more are
    copies, three or more, one behind the other.

    Speakers count, list and repeat themselves on purpose: such text has ratios of up to 4, but no
    three copies in succession.
    """
    return max_compression_ratio is not None and any(
        _compression(part) > max_compression_ratio and _copied(part) >= MIN_COPIED
        for part in _stretches(text)
    )


def _stretches(text: str) -> list[str]:
    """Parts of about 400 characters. A longer text compresses better without being a loop, and a
    loop in a long one must not be averaged away."""
    count = max(round(len(text) / STRETCH), 1)
    edges = [len(text) * n // count for n in range(count + 1)]
    return [text[start:stop] for start, stop in pairwise(edges) if start < stop]


def _compression(text: str) -> float:
    encoded = _byte_per_character(text)
    return len(encoded) / len(zlib.compress(encoded))


def _copied(text: str) -> float:
    """The share of the text that consists of copies in succession, whatever their case and
    punctuation."""
    words = f"{plain(text) or text} "  # notes (♪♪♪) are neither letters nor digits
    return sum(len(copies[0]) for copies in COPIES.finditer(words)) / len(words)


def _byte_per_character(text: str) -> bytes:
    """Each character as a byte of its own, as far as these suffice. ASCII stays."""
    if text.isascii():
        return text.encode()
    numbers: dict[str, int] = {}
    return bytes(numbers.setdefault(character, len(numbers) % 256) for character in text)


def segment_evidence(
    segments: Sequence[Segment], speech: np.ndarray | None, options: Options
) -> list[dict[str, Any]]:
    """The entries of the column `segments` of one clip, with the evidence for each.

    speech: probability of speech per 32 ms of the clip, uint8 (frames,), 255 = certain.

    - `no_speech`: the model's own probability that nobody speaks in the segment's window; None if
      it has none.
    - `speech_ratio`: share of the frames that the voice detector takes for speech (probability of a
      half and more); None if it did not run.
    - `compression_ratio`: see the function of that name; of the repeats together, if the window
      repeats this text in at least three segments.
    - `chars_per_s`: characters of text per second of sound, of a second at least.
    - `suspect`: the reasons to distrust the text; none for a good or an empty one.
    """
    entries = []
    in_windows = _speech_in_windows(segments, speech)
    for segment, text in zip(segments, _with_repeats(segments), strict=True):
        length_s = segment.end_s - segment.start_s
        voiced = None if speech is None else _voiced(speech, segment.start_s, segment.end_s)
        evidence = {
            "no_speech": segment.no_speech,
            "speech_ratio": None if voiced is None else float(np.mean(voiced)),
            "compression_ratio": compression_ratio(text),
            "chars_per_s": len(segment.text) / max(length_s, 1.0),
        }
        speech_s = None if voiced is None else float(np.sum(voiced)) * FRAME_S
        entries.append(
            {
                "start_s": segment.start_s,
                "end_s": segment.end_s,
                "text": segment.text,
                "score": segment.score,
                "speaker": segment.speaker,
                "language": segment.language,
                "detected_language": segment.detected_language,
                "language_probability": segment.language_probability,
                **evidence,
                "suspect": [
                    *_reasons(segment, evidence, speech_s, text, options),
                    *_of_language(segment, in_windows[segment.window], options),
                ],
            }
        )
    return entries


def _reasons(
    segment: Segment,
    evidence: Mapping[str, Any],
    speech_s: float | None,
    with_repeats: str,
    options: Options,
) -> list[str]:
    """Those of `REASONS` that hold for the text of one segment, whatever its language."""
    if not segment.text.strip():
        return []
    unsure = _under(segment.score, options.min_score)
    needed_s = MIN_SPEECH_S
    if options.max_chars_per_s is not None:
        needed_s = max(needed_s, len(segment.text) / options.max_chars_per_s)
    is_silent = _under(evidence["speech_ratio"], options.min_speech_ratio)
    holds = {
        "no_speech": (is_silent and _under(speech_s, needed_s))
        or (unsure and _over(evidence["no_speech"], options.max_no_speech)),
        "low_probability": unsure,
        "loop": is_loop(with_repeats, options.max_compression_ratio),
        "too_fast": _over(evidence["chars_per_s"], options.max_chars_per_s),
    }
    is_weak = (
        any(holds.values())
        or _over(evidence["no_speech"], WEAK_NO_SPEECH)
        or _under(speech_s, len(segment.text) / PHRASE_CHARS_PER_S)
    )
    holds["phrase"] = options.phrases and (
        is_credit(segment.text) or (is_weak and is_phrase(segment.text))
    )
    holds["not_a_transcript"] = not segment.is_transcript
    return [reason for reason in REASONS if holds.get(reason)]


def _of_language(segment: Segment, speech_s: float, options: Options) -> list[str]:
    """`wrong_language` if it holds for a segment, whose window has so many seconds of speech."""
    is_other = bool(segment.text.strip()) and segment.detected_language != segment.language
    is_sure = speech_s >= LANGUAGE_S and _is_sure(segment, options.min_language_probability)
    return ["wrong_language"] if is_other and is_sure else []


def _speech_in_windows(segments: Sequence[Segment], speech: np.ndarray | None) -> dict[int, float]:
    """Seconds of speech in the segments of each window, by its number; without a voice detector
    seconds of sound."""
    seconds: dict[int, float] = {}
    for segment in segments:
        voiced = None if speech is None else _voiced(speech, segment.start_s, segment.end_s)
        length_s = segment.end_s - segment.start_s
        own_s = length_s if voiced is None else float(np.sum(voiced)) * FRAME_S
        seconds[segment.window] = seconds.get(segment.window, 0.0) + own_s
    return seconds


def is_to_retry(segments: Sequence[Segment], options: Options) -> bool:
    """Whether another transcription of the window with these segments may be better: its text is
    suspect for what it is, and not because nobody speaks or for its language."""
    found = {r for e in segment_evidence(segments, None, options) for r in e["suspect"]}
    return bool(found - {"wrong_language"}) and "no_speech" not in found


def _is_sure(segment: Segment, threshold: float | None) -> bool:
    """Whether the language that the model detects has this probability."""
    probability = segment.language_probability
    return probability is not None and threshold is not None and probability >= threshold


def clip_evidence(
    transcript: Transcript,
    segments: Sequence[Mapping[str, Any]],
    clip: Clip,
    options: Options,
) -> dict[str, Any]:
    """The evidence columns of one clip, whose `segment_evidence` is `segments`.

    `compression_ratio` is the highest of the segments', and `suspect` names each reason that any of
    them has, and `mixed_languages` if segments that are good so far were detected in several
    languages, each more likely than all others together and in some seconds of speech.
    """
    found = {reason for segment in segments for reason in segment["suspect"]}
    speech, duration_s = clip.speech, clip.duration_s
    in_windows = _speech_in_windows(transcript.segments, speech)
    languages = {
        segment.detected_language
        for segment, entry in zip(transcript.segments, segments, strict=True)
        if entry["text"].strip()
        and not entry["suspect"]
        and in_windows[segment.window] >= MIXED_LANGUAGE_S
        and _is_sure(segment, MIXED_LANGUAGE)
    }
    is_mixed = len(languages) > 1 and not (options.language or options.translate)
    return {
        "speech_ratio": float(np.mean(speech >= SPEECH))
        if speech is not None and speech.size
        else None,
        "no_speech": transcript.no_speech,
        "compression_ratio": max((s["compression_ratio"] for s in segments), default=0.0),
        "chars_per_s": len(transcript.text) / duration_s if duration_s > 0 else 0.0,
        "suspect": [
            *(reason for reason in REASONS if reason in found),
            *(["mixed_languages"] if is_mixed else []),
        ],
    }


def _voiced(speech: np.ndarray, start_s: float, end_s: float) -> np.ndarray | None:
    """Whether each frame from `start_s` to `end_s` is speech, at least of one frame; None without
    any."""
    start = min(int(start_s / FRAME_S), max(len(speech) - 1, 0))
    stop = max(int(np.ceil(end_s / FRAME_S)), start + 1)
    frames = speech[start:stop]
    return frames >= SPEECH if frames.size else None


def _with_repeats(segments: Sequence[Segment]) -> list[str]:
    """Each segment's text, or the texts that its window repeats, if it is one of these: Whisper's
    loops often are a short segment many times."""
    keys = [(segment.window, plain(segment.text)) for segment in segments]
    counts = Counter(keys)
    repeats: dict[int, list[str]] = {}
    for segment, key in zip(segments, keys, strict=True):
        if counts[key] >= REPEATS:
            repeats.setdefault(segment.window, []).append(segment.text)
    return [
        " ".join(repeats[segment.window]) if counts[key] >= REPEATS else segment.text
        for segment, key in zip(segments, keys, strict=True)
    ]


def _under(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value < threshold


def _over(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value > threshold
