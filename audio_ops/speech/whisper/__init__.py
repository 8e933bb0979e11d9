"""Whisper, any size and language, in transformers' format.

check.py        whether a checkpoint fits the options, without torch
prompt.py       language and task, as the options and the checkpoint say
settings.py     its tokens and limits, read once when it is loaded
model.py        the loaded model: windows -> transcripts, some of them in several passes
log_mel.py      waveforms -> log-mel features on the model's device
encoder.py      log-mel features -> states; language and silence
generation.py   states -> tokens, in batches that shrink as rows finish
retry.py        windows with suspect texts -> other transcripts, from sampled tokens
segments.py     tokens -> segments and words, without torch

Windows of at most 30 s, cut in pauses, are independent of each other: each has its own language,
and no window's text is a prompt for the next (which is what makes Whisper's loops contagious). The
option `prompt`, or a clip's own from `prompt_column`, precedes each window.

The texts are those of transformers' pipeline on the same checkpoint, with two intended differences.
The task's token is always part of the prompt; the pipeline leaves it out if neither the call nor
the checkpoint sets a language or a task. And with timestamps the sound is followed to its own end, as OpenAI's code does, not to
the end of the 30 s of padding, for which Whisper can only invent text.

Whisper's encoder takes 30 s, however short the sound is. With `window: guarded` short windows get
a shorter encoder: twice as fast, since the encoder takes the largest part of the time. Now and then
that makes Whisper loop or break off, which shows in the text's compression, its probability or its
length; such windows are transcribed again in full. Under 15 s it loops on every second clip.
"""

from __future__ import annotations

from audio_ops.speech.whisper.check import check as check
from audio_ops.speech.whisper.check import languages as languages
from audio_ops.speech.whisper.check import sample_rate as sample_rate
from audio_ops.speech.whisper.model import Model as Model

MODEL_TYPES = ("whisper",)
TIMESTAMPS = ("none", "segment", "word")
OPTIONS = (
    *("language", "translate", "prompt", "prompt_column", "window", "retry_temperatures"),
    *("num_beams", "max_new_tokens", "generate"),
)
