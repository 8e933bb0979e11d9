"""Families of speech recognisers, behind the task automatic-speech-recognition.

A file or folder here that declares `MODEL_TYPES` is a family, and fulfils the protocol `Family`,
which `_contract.py` has mypy check. The other files serve them and the task:

options.py      the task's options
sampling.py     options of sampling, and its random numbers, which depend on the sound alone
languages.py    languages as people write them
generation.py   `generate` for a batch, without the rows that have ended
frames.py       frames of CTC encoders on log-mel features
vocabulary.py   token ids in a checkpoint's JSON files, compared with its vocabulary
transcript.py   windows' transcripts, and the clip's that they make up
tokens.py       log probabilities of generated tokens
evidence.py     signs that a text was invented
phrases.py      texts that Whisper is known to invent, from invented_phrases.yaml
normal.py       texts without what a writer may leave out, for comparing them
wer.py          word and character errors against a reference
refused.py      model types of transformers that no family runs, and why

Importing any of these imports neither torch nor transformers: only a family's `Model()` does.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.speech.options import Options
from audio_ops.speech.transcript import Transcript
from audio_ops.tasks import Clip, Window


class Recogniser(Protocol):
    """A family's loaded model: `audio_ops.tasks.Model`, except that `join` returns a Transcript."""

    sample_rate: int
    is_generative: bool
    equal_lengths: bool
    translates: bool  # the text is English, whatever the language of the speech

    def windows(self, clip: Clip) -> list[Window]: ...

    def padded_s(self, samples: int) -> float: ...

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]: ...

    def join(self, clip: Clip, windows: Sequence[Window], outputs: Sequence[Any]) -> Transcript: ...


class Family(Protocol):
    """The contract that the module of a family fulfils."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:  # noqa: N802
        """The values of `model_type` in a checkpoint's config.json that it runs."""

    @property
    def TIMESTAMPS(self) -> tuple[str, ...]:  # noqa: N802
        """The values of the option `timestamps` that it takes."""

    @property
    def OPTIONS(self) -> tuple[str, ...]:  # noqa: N802
        """The options that it takes besides those that no family names here."""

    def languages(self, checkpoint: Checkpoint) -> Iterable[str]:
        """The codes of `language`, `target_language` and `tgt_lang`, as far as it has these options."""

    def check(self, options: Options, checkpoint: Checkpoint) -> None:
        """ValueError if the checkpoint does not fit the options, from its JSON files alone."""

    def sample_rate(self, options: Options, checkpoint: Checkpoint) -> int:
        """The rate in Hz of the sound that the model takes, from the JSON files alone."""

    def Model(  # noqa: N802
        self, options: Options, checkpoint: Checkpoint, device: str
    ) -> Recogniser:
        """Loads the checkpoint onto `device` (`cpu`, `cuda`)."""


@cache
def families() -> dict[str, Family]:
    """Every family by the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: import_module(f"{__name__}.{name}") for name in names if name[0] != "_"}
    return {
        name: cast(Family, module)
        for name, module in modules.items()
        if hasattr(module, "MODEL_TYPES")
    }


def family_of(model_type: str | None) -> Family | None:
    """The family that runs checkpoints of this `model_type`."""
    runs = (family for family in families().values() if model_type in family.MODEL_TYPES)
    return next(runs, None)
