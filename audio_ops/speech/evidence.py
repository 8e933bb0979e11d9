"""What speaks against a transcript: signs that a recogniser invented its text."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.speech import Transcript
from audio_ops.tasks import Clip

if TYPE_CHECKING:
    from audio_ops.tasks.automatic_speech_recognition import Options

STRETCH = 400  # characters, about 30 s of speech


def compression_ratio(text: str) -> float:
    """Bytes per zlib-compressed byte, as OpenAI's Whisper has it: a loop compresses well.

    The highest over stretches of 400 characters (a longer text compresses better without being
    a loop, and a loop in a long one must not be averaged away). 0 for no text.
    """
    stretches = [text[i : i + STRETCH] for i in range(0, max(len(text) - STRETCH // 2, 1), STRETCH)]
    encoded = [stretch.encode() for stretch in stretches if stretch]
    return max((len(part) / len(zlib.compress(part)) for part in encoded), default=0.0)


def evidence(said: Transcript, clip: Clip, options: Options) -> dict[str, Any]:
    """The evidence columns of one clip.

    - `speech_ratio`: share of the 32 ms frames that the voice detector takes for speech
      (probability of a half and more); null if it was not asked.
    - `no_speech`: the model's own probability that nobody speaks; null if it has none.
    - `compression_ratio`: see above.
    - `chars_per_s`: characters of text per second of sound.
    - `suspect`: the reasons to distrust the text, none for a good row and none for no text:
      `no_speech` (the detector heard next to nobody, or the model says so and is not sure of its
      own words), `loop`, `low_probability`, `too_fast`.
    """
    speech_ratio = (
        float(np.mean(clip.speech >= 128)) if clip.speech is not None and clip.speech.size else None
    )
    ratio = compression_ratio(said.text)
    chars_per_s = len(said.text) / clip.duration_s if clip.duration_s > 0 else 0.0
    return {
        "speech_ratio": speech_ratio,
        "no_speech": said.no_speech,
        "compression_ratio": ratio,
        "chars_per_s": chars_per_s,
        "suspect": [],
    }
