"""Sampled tokens: what goes with them, and random numbers that depend on the sound alone."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.speech.options import OF_SAMPLING, Options
from audio_ops.speech.vocabulary import GENERATION

_TURN = threading.Lock()  # torch's generator is one for all threads of a process


@contextmanager
def seeded_by_sound(waveform: np.ndarray, salt: int = 0) -> Iterator[None]:
    """Seeds torch by this sound and `salt`, in one thread at a time, and restores its state."""
    import torch

    with _TURN, torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(waveform.tobytes(), salt))
        yield


def check_sampling(options: Options, checkpoint: Checkpoint | None = None) -> None:
    """ValueError for options that do not go with sampled tokens, or do nothing without them.

    checkpoint: one whose `do_sample` counts if the options have none. (Whisper's does not.)

    transformers' beam search adds up the scores behind `temperature`, `top_k` and their kin, which
    are the probabilities of no distribution: a text's score would mean nothing.
    """
    said = options.generate.get("do_sample")
    of_file = checkpoint.json(GENERATION).get("do_sample") if checkpoint else False
    if not (of_file if said is None else said):
        _check_none_of_sampling(options)
        return
    where = f"do_sample of {GENERATION}" if said is None else "generate.do_sample"
    if options.num_beams > 1:
        raise ValueError(
            f"num_beams: expected 1 beside {where}, as texts that are sampled in beams have no "
            f"probability, found {options.num_beams}"
        )
    if options.retry_temperatures:
        raise ValueError(
            f"retry_temperatures: expected none beside {where}, which samples every text, "
            f"found {list(options.retry_temperatures)}"
        )


def _check_none_of_sampling(options: Options) -> None:
    """ValueError for settings that would do nothing: retries sample too, but with a temperature of
    their own."""
    for name in OF_SAMPLING:
        is_idle = name == "temperature" or not options.retry_temperatures
        if name in options.generate and is_idle:
            raise ValueError(
                f"generate.{name}: expected do_sample: true beside it, without which it does nothing"
            )
