"""Transducers: Parakeet TDT and RNN-T, and NVIDIA's streaming Nemotron, read offline.

check.py     whether a checkpoint fits the options, without torch
decoder.py   the encoder's frames -> tokens, in batches that finished rows leave
model.py     the loaded model: windows -> transcripts
words.py     tokens -> text, words and sentences with their times, without torch

An encoder makes a frame of 80 ms. A small recurrent network predicts from the tokens so far, and a
joint network chooses the next token of a frame, or the blank, which leads to the next frame; a TDT
model also says how many frames to go on. The texts are those of transformers' pipeline, and times
those of the checkpoint's processor, as in NeMo: a token lasts for its predicted frames (TDT) or for
one (RNN-T).

Long sound is cut in pauses into windows of at most 40 s: NVIDIA cuts it into 30 to 40 s for these
encoders (https://arxiv.org/abs/2509.14128).
"""

from __future__ import annotations

from audio_ops.speech.transducer.check import check as check
from audio_ops.speech.transducer.check import languages as languages
from audio_ops.speech.transducer.check import sample_rate as sample_rate
from audio_ops.speech.transducer.model import Model as Model

MODEL_TYPES = ("nemotron3_5_asr", "nemotron_asr_streaming", "parakeet_rnnt", "parakeet_tdt")
TIMESTAMPS = ("none", "segment", "word")
OPTIONS = ("language",)
