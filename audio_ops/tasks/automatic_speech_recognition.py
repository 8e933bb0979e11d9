"""Speech -> text, its times, its language, and what speaks against it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.checkpoint_files import check_files
from audio_ops.speech import wer
from audio_ops.speech.evidence import LOOP, UNSURE, evidence
from audio_ops.tasks import Clip, Reporting, TaskOptions, WantsSpeech, Window

# `model_type` in a checkpoint's config.json -> the file in audio_ops/speech that runs it.
FAMILIES = {
    "whisper": "whisper",
    "data2vec-audio": "ctc",
    "hubert": "ctc",
    "parakeet_ctc": "ctc",
    "sew": "ctc",
    "sew-d": "ctc",
    "unispeech": "ctc",
    "unispeech-sat": "ctc",
    "wav2vec2": "ctc",
    "wav2vec2-bert": "ctc",
    "wav2vec2-conformer": "ctc",
    "wavlm": "ctc",
    "moonshine": "seq2seq",
    "speech-encoder-decoder": "seq2seq",
    "speech_to_text": "seq2seq",
    "seamless_m4t": "seamless",
    "seamless_m4t_v2": "seamless",
}
# Options that not every family has -> the families that do.
FAMILY_OPTIONS = {
    "language": ["whisper"],
    "translate": ["whisper"],
    "window": ["whisper"],
    "num_beams": ["whisper", "seq2seq", "seamless"],
    "max_new_tokens": ["whisper", "seq2seq", "seamless"],
    "generate": ["whisper", "seq2seq", "seamless"],
    "chunk_length_s": ["ctc"],
    "stride_length_s": ["ctc"],
    "target_lang": ["ctc"],
    "tgt_lang": ["seamless"],
}

# What `generate` takes: the settings of transformers' GenerationConfig that decide what is said.
GENERATE: dict[str, type | tuple[type, ...]] = {
    "bad_words_ids": list,
    "begin_suppress_tokens": list,
    "do_sample": bool,
    "early_stopping": (bool, str),
    "epsilon_cutoff": float,
    "eta_cutoff": float,
    "exponential_decay_length_penalty": list,
    "length_penalty": float,
    "max_initial_timestamp_index": int,
    "min_length": int,
    "min_new_tokens": int,
    "min_p": float,
    "no_repeat_ngram_size": int,
    "renormalize_logits": bool,
    "repetition_penalty": float,
    "suppress_tokens": list,
    "temperature": float,
    "top_h": float,
    "top_k": int,
    "top_p": float,
    "typical_p": float,
}
# Settings of GenerationConfig that have an option of their own here.
OWN_OPTIONS = {
    "language": "language",
    "task": "translate",
    "return_timestamps": "timestamps",
    "return_token_timestamps": "timestamps",
    "num_beams": "num_beams",
    "max_new_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
}


class Options(TaskOptions):
    """Settings of `automatic-speech-recognition`. FAMILY_OPTIONS says which family has which option.

    A row whose evidence is beyond a threshold names the reason in `suspect`. A threshold that is
    None is not applied.
    """

    language: str | None = None
    """Language of the speech, as the checkpoint's own code (`de`); detected per clip if left out."""
    translate: bool = False
    """Translate into English instead of transcribing."""
    timestamps: Literal["none", "segment", "word", "char"] = "none"
    """Times to add to the text. Whisper has `segment` and `word`, CTC models have `word` and
    `char` (Parakeet `word` alone), the others none."""
    window: Literal["full", "guarded"] = "full"
    """`full`: the 30 s of context that Whisper was trained with. `guarded`: less context for short
    clips, which is faster; texts that come out badly are transcribed again in full (`redone`)."""
    num_beams: int = Field(1, ge=1)
    """Beams of the search; 1 is greedy."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Tokens per window at the most; the model's own limit if left out."""
    generate: dict[str, Any] = Field(default_factory=dict)
    """Further settings of transformers' `generate` by name."""
    chunk_length_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Longer sound is cut into overlapping windows of this length; 30 s if left out."""
    stride_length_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Overlap on each side of a window, cut off again before the windows' logits are joined; a
    sixth of `chunk_length_s` if left out."""
    target_lang: str | None = None
    """Language of an MMS adapter (`fra`)."""
    tgt_lang: str | None = None
    """Language of the text, in the checkpoint's three letters (`arb`): speech in that language is
    transcribed, all other speech is translated into it."""
    reference: str | None = None
    """Column with the true text. Adds word and character error rates."""
    reference_language: str | None = None
    """Language of the reference, if the model neither detects nor is given it (a CTC model, say)."""
    suspect: Literal["keep", "drop"] = "keep"
    """`drop` empties the text of a suspect row."""
    min_speech_ratio: float | None = Field(0.1, ge=0, le=1)
    """Less speech in the sound than this share makes a text suspect (`no_speech`)."""
    max_no_speech: float | None = Field(0.6, ge=0, le=1)
    """So does a higher `no_speech` probability of Whisper, with a score under `min_score`."""
    max_compression_ratio: float | None = Field(LOOP, gt=0)
    """A text that compresses better repeats itself (`loop`)."""
    min_score: float | None = Field(UNSURE, ge=0, le=1)
    """A lower score makes a text suspect (`low_probability`)."""
    max_chars_per_s: float | None = Field(30.0, gt=0)
    """More characters per second of sound make a text suspect (`too_fast`)."""


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint's family cannot do what is asked."""
    family = _family(checkpoint)
    model_type = checkpoint.json("config.json")["model_type"]
    if options.timestamps not in family.TIMESTAMPS:
        having = [f for f in FAMILIES.values() if options.timestamps in _module(f).TIMESTAMPS]
        raise ValueError(
            f"timestamps: expected {' or '.join(family.TIMESTAMPS)} for a {model_type} checkpoint, "
            f"found {options.timestamps!r}, which {_having(having)} has"
        )
    for name, having in FAMILY_OPTIONS.items():
        value, field = getattr(options, name), Options.model_fields[name]
        if (
            value != field.get_default(call_default_factory=True)
            and FAMILIES[model_type] not in having
        ):
            raise ValueError(
                f"{name}: expected nothing for a {model_type} checkpoint, found {value!r}, which "
                f"{_having(having)} has"
            )
    for name, value in options.generate.items():
        if name in OWN_OPTIONS:
            raise ValueError(
                f"generate.{name}: expected the task's own option {OWN_OPTIONS[name]!r} to set it, "
                f"found {value!r}"
            )
        if name not in GENERATE:
            raise ValueError(
                f"generate.{name}: expected one of {', '.join(GENERATE)}, found {name!r}"
            )
        kind = GENERATE[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds:
            kinds += (int,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise ValueError(f"generate.{name}: expected {names}, found {value!r}")
    if options.reference_language is not None and options.reference is None:
        raise ValueError(
            f"reference_language: expected a reference beside it, found {options.reference_language!r}"
        )
    if "temperature" in options.generate and not options.generate.get("do_sample"):
        raise ValueError(
            "generate.temperature: expected do_sample: true beside it, without which it does nothing"
        )
    family.check(options, checkpoint)
    check_files(options, checkpoint, tokenizer=True)


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the model hears."""
    rate: int = _family(checkpoint).sample_rate(options, checkpoint)
    return rate


def wants_speech(options: Options) -> WantsSpeech:
    """Always: the share of speech is evidence for every clip, and cuts long ones."""
    return "always"


def columns(options: Options) -> dict[str, pa.DataType]:
    """The task's columns; `words` only where asked for, those of `speech/wer.py` with a reference."""
    pieces = pa.list_(
        pa.struct(
            {
                "start_s": pa.float64(),
                "end_s": pa.float64(),
                "text": pa.string(),
                "score": pa.float32(),
            }
        )
    )
    return {
        "text": pa.string(),
        "score": pa.float32(),
        "language": pa.string(),
        "segments": pieces,
        **({"words": pieces} if options.timestamps in ("word", "char") else {}),
        **({"redone": pa.bool_()} if options.window == "guarded" else {}),
        **(wer.COLUMNS if options.reference is not None else {}),
        "speech_ratio": pa.float32(),
        "no_speech": pa.float32(),
        "compression_ratio": pa.float32(),
        "chars_per_s": pa.float32(),
        "suspect": pa.list_(pa.string()),
    }


def reporting(options: Options) -> Reporting:
    """Reports read the text, its score and the reasons to distrust it."""
    return Reporting(
        "recognition",
        label=None,
        text="text",
        score="score",
        suspect="suspect",
        reference_is_text=True,
    )


class Model:
    """The checkpoint's family; what it hears gets evidence and is compared with the reference."""

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        self.options = options
        self.family = _family(checkpoint).Model(options, checkpoint, device)
        self.sample_rate: int = self.family.sample_rate
        self.is_generative: bool = self.family.is_generative
        self.equal_lengths: bool = self.family.equal_lengths
        self.word_errors = (
            wer.WordErrors(checkpoint.json("normalizer.json"))
            if options.reference is not None
            else None
        )

    def windows(self, clip: Clip) -> list[Window]:
        windows: list[Window] = self.family.windows(clip)
        return windows

    def padded_s(self, samples: int) -> float:
        seconds: float = self.family.padded_s(samples)
        return seconds

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        outputs: list[Any] = self.family(waveforms, group)
        return outputs

    def join(self, clip: Clip, windows: Sequence[Window], outputs: Sequence[Any]) -> dict[str, Any]:
        said = self.family.join(clip, windows, outputs)
        against = evidence(said, clip, self.options)
        dropped = self.options.suspect == "drop" and bool(against["suspect"])
        text = "" if dropped else said.text
        return {
            "text": text,
            "score": said.score,
            "language": said.language,
            "segments": [] if dropped else said.segments,
            "words": [] if dropped else said.words,
            **({"redone": said.redone} if self.options.window == "guarded" else {}),
            **against,
            **self._judged(clip, text, said.language),
        }

    def _judged(self, clip: Clip, text: str, heard: str | None) -> dict[str, Any]:
        if self.word_errors is None or self.options.reference is None:
            return {}
        language = self.options.reference_language or ("en" if self.options.translate else heard)
        return self.word_errors(clip.row[self.options.reference], text, language)


def _family(checkpoint: Checkpoint) -> ModuleType:
    found = checkpoint.json("config.json").get("model_type")
    if found not in FAMILIES:
        raise ValueError(
            f"model: expected a speech recognition checkpoint ({', '.join(sorted(FAMILIES))}), "
            f"found model_type {found!r} in {checkpoint.name}"
        )
    return _module(FAMILIES[found])


def _module(family: str) -> ModuleType:
    return import_module(f"audio_ops.speech.{family}")


def _having(families: Iterable[str]) -> str:
    """The families by name, each with the model types that it runs."""
    types = {f: ", ".join(t for t in FAMILIES if FAMILIES[t] == f) for f in families}
    return " or ".join(f if f == t else f"{f} ({t})" for f, t in types.items())
