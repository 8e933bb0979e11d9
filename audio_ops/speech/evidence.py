"""Evidence that a recogniser invented a text, for each of its segments."""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audio_ops.signal.segment import FRAME_S
from audio_ops.speech.options import Options
from audio_ops.speech.transcript import Segment, Transcript

SPEECH = 128  # probability (uint8) from which a frame is speech: a half
MIN_SPEECH_S = 0.25  # the voice detector's own minimum; less is a click or a chord
STRETCH = 400  # characters, about 30 s of speech
REPEATS = 3  # segments of equal text in one window from which they are judged as one text
# The reasons for a segment, in the order in which they are named; `mixed_languages` is the clip's.
REASONS = ("no_speech", "low_probability", "loop", "too_fast")


def compression_ratio(text: str) -> float:
    """How well zlib compresses the text, with a byte for each character: a loop compresses well.

    Of English it is OpenAI's ratio. That counts bytes of UTF-8, of which characters of most other
    scripts have two or three, alike in all but the last: plain Hindi and Thai exceed its threshold.
    The highest over stretches of 400 characters (a longer text compresses better without being a
    loop, and a loop in a long one must not be averaged away). 0 for no text.
    """
    stretches = [text[i : i + STRETCH] for i in range(0, max(len(text) - STRETCH // 2, 1), STRETCH)]
    encoded = [_byte_per_character(stretch) for stretch in stretches if stretch]
    return max((len(part) / len(zlib.compress(part)) for part in encoded), default=0.0)


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
    loops = _loops(segments)
    entries = []
    for segment, loop in zip(segments, loops, strict=True):
        length_s = segment.end_s - segment.start_s
        voiced = None if speech is None else _voiced(speech, segment.start_s, segment.end_s)
        evidence = {
            "no_speech": segment.no_speech,
            "speech_ratio": None if voiced is None else float(np.mean(voiced)),
            "compression_ratio": loop,
            "chars_per_s": len(segment.text) / max(length_s, 1.0),
        }
        speech_s = None if voiced is None else float(np.sum(voiced)) * FRAME_S
        entries.append(
            {
                "start_s": segment.start_s,
                "end_s": segment.end_s,
                "text": segment.text,
                "score": segment.score,
                "language": segment.language,
                "detected_language": segment.detected_language,
                "language_probability": segment.language_probability,
                **evidence,
                "suspect": _reasons(segment, evidence, speech_s, options),
            }
        )
    return entries


def _reasons(
    segment: Segment, evidence: Mapping[str, Any], speech_s: float | None, options: Options
) -> list[str]:
    """Those of `REASONS` that hold for one segment."""
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
        "loop": _over(evidence["compression_ratio"], options.max_compression_ratio),
        "too_fast": _over(evidence["chars_per_s"], options.max_chars_per_s),
    }
    return [reason for reason in REASONS if holds[reason]]


def clip_evidence(
    transcript: Transcript,
    segments: Sequence[Mapping[str, Any]],
    speech: np.ndarray | None,
    duration_s: float,
) -> dict[str, Any]:
    """The evidence columns of one clip, whose `segment_evidence` is `segments`.

    `compression_ratio` is the highest of the segments', and `suspect` names each reason that any of
    them has.
    """
    found = {reason for segment in segments for reason in segment["suspect"]}
    return {
        "speech_ratio": float(np.mean(speech >= SPEECH))
        if speech is not None and speech.size
        else None,
        "no_speech": transcript.no_speech,
        "compression_ratio": max((s["compression_ratio"] for s in segments), default=0.0),
        "chars_per_s": len(transcript.text) / duration_s if duration_s > 0 else 0.0,
        "suspect": [reason for reason in REASONS if reason in found],
    }


def _voiced(speech: np.ndarray, start_s: float, end_s: float) -> np.ndarray | None:
    """Whether each frame from `start_s` to `end_s` is speech, at least of one frame; None without
    any."""
    start = min(int(start_s / FRAME_S), max(len(speech) - 1, 0))
    stop = max(int(np.ceil(end_s / FRAME_S)), start + 1)
    frames = speech[start:stop]
    return frames >= SPEECH if frames.size else None


def _loops(segments: Sequence[Segment]) -> list[float]:
    """Each segment's compression ratio. Whisper's loops often repeat a short segment many times:
    these are compressed together."""
    keys = [(segment.window, plain(segment.text)) for segment in segments]
    counts = Counter(keys)
    repeated = [counts[key] >= REPEATS for key in keys]
    texts: dict[int, list[str]] = {}
    for segment, is_repeated in zip(segments, repeated, strict=True):
        if is_repeated:
            texts.setdefault(segment.window, []).append(segment.text)
    ratios = {window: compression_ratio(" ".join(parts)) for window, parts in texts.items()}
    return [
        max(compression_ratio(segment.text), ratios[segment.window] if is_repeated else 0.0)
        for segment, is_repeated in zip(segments, repeated, strict=True)
    ]


def plain(text: str) -> str:
    """The text's letters, marks and digits in lower case, in words with a space between them."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(letters).split())


def _under(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value < threshold


def _over(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value > threshold
