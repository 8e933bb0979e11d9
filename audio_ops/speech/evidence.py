"""Evidence that a recogniser invented a text."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from audio_ops.speech.options import Options
from audio_ops.speech.transcript import Transcript
from audio_ops.tasks import Clip

STRETCH = 400  # characters, about 30 s of speech


def compression_ratio(text: str) -> float:
    """Bytes per zlib-compressed byte, as in OpenAI's Whisper: a loop compresses well.

    The highest over stretches of 400 characters (a longer text compresses better without being
    a loop, and a loop in a long one must not be averaged away). 0 for no text.
    """
    stretches = [text[i : i + STRETCH] for i in range(0, max(len(text) - STRETCH // 2, 1), STRETCH)]
    encoded = [stretch.encode() for stretch in stretches if stretch]
    return max((len(part) / len(zlib.compress(part)) for part in encoded), default=0.0)


def evidence(transcript: Transcript, clip: Clip, options: Options) -> dict[str, Any]:
    """The evidence columns of one clip.

    - `speech_ratio`: share of the 32 ms frames that the voice detector takes for speech
      (probability of a half and more); None if it did not run.
    - `no_speech`: the model's own probability that nobody speaks; None if it has none.
    - `compression_ratio`: see the function of that name.
    - `chars_per_s`: characters of text per second of sound.
    - `suspect`: the reasons to distrust the text; none for a good row or an empty text.

    The reasons, with the thresholds' defaults. They were chosen with Whisper tiny.en on 406 telephone
    prompts (3 of which they flag) and on silence, beeps, noise, hum and music (all flagged):

    - `no_speech`: speech_ratio under 0.1 (prompts: 0.14 and more, even a lone "L"; the others:
      0.00), or, as in OpenAI's code, no_speech over 0.6 with a score under min_score.
    - `low_probability`: score under 0.37, OpenAI's average log probability of -1 (text invented
      for music: mostly 0.07 to 0.24; for silence 0.69, it is very sure of its "you").
    - `loop`: compression_ratio over 2.4, OpenAI's threshold (prompts: up to 1.98).
    - `too_fast`: over 30 characters a second (prompts: up to 19).
    """
    speech_ratio = None
    if clip.speech is not None and clip.speech.size:
        speech_ratio = float(np.mean(clip.speech >= 128))
    ratio = compression_ratio(transcript.text)
    chars_per_s = len(transcript.text) / clip.duration_s if clip.duration_s > 0 else 0.0
    unsure = _under(transcript.score, options.min_score)
    silent = _under(speech_ratio, options.min_speech_ratio) or (
        unsure and _over(transcript.no_speech, options.max_no_speech)
    )
    reasons = {
        "no_speech": silent,
        "low_probability": unsure,
        "loop": _over(ratio, options.max_compression_ratio),
        "too_fast": _over(chars_per_s, options.max_chars_per_s),
    }
    return {
        "speech_ratio": speech_ratio,
        "no_speech": transcript.no_speech,
        "compression_ratio": ratio,
        "chars_per_s": chars_per_s,
        "suspect": [
            reason for reason, holds in reasons.items() if holds and transcript.text.strip()
        ],
    }


def _under(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value < threshold


def _over(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value > threshold
