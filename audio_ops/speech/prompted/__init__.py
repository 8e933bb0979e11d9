"""Recognisers that are asked: the request says the language, the spelling or a context.

kinds.py     what differs between the model types, a record each
processors.py  the checkpoint's processor, without torchaudio
requests.py  windows and options -> the processor's inputs, as on the model's page
answers.py   generated texts -> transcripts, with speakers and times where the model writes them
check.py     whether a checkpoint fits the options, without torch
model.py     the loaded model: windows -> transcripts

An encoder for sound with a decoder of its own (Canary, Cohere), or with a language model that reads
the sound between the words of a request (the others). The texts are those of the checkpoint's
processor and `generate`, as its page in transformers' documentation calls them: transformers'
pipeline does not know these requests.

Windows with one request share a batch, padded on the left for a language model, behind masks. Where a
mask does not undo padding, a batch's windows are of one length.
"""

from __future__ import annotations

from audio_ops.speech.prompted.check import check as check
from audio_ops.speech.prompted.check import languages as languages
from audio_ops.speech.prompted.check import sample_rate as sample_rate
from audio_ops.speech.prompted.kinds import KINDS
from audio_ops.speech.prompted.model import Model as Model

MODEL_TYPES = tuple(KINDS)
TIMESTAMPS = ("none",)
OPTIONS = (
    *("language", "target_language", "punctuation", "prompt", "prompt_column"),
    *("num_beams", "max_new_tokens", "generate"),
)
