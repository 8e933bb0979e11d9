"""Speech -> text, its times, its language, and evidence against it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.checkpoint_files import check_files
from audio_ops.speech import Family, Recogniser, families, family_of, wer
from audio_ops.speech.evidence import clip_evidence, segment_evidence
from audio_ops.speech.languages import code_among
from audio_ops.speech.options import Options as Options
from audio_ops.speech.options import check_options
from audio_ops.speech.refused import refusal
from audio_ops.speech.transcript import join_texts
from audio_ops.tasks import Clip, Reporting, WantsSpeech, Window

LANGUAGES = ("language", "target_language", "tgt_lang")  # options


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint's family cannot do what the options ask for."""
    family = _family(checkpoint)
    model_type = checkpoint.json("config.json")["model_type"]
    if options.timestamps not in family.TIMESTAMPS:
        having = [n for n, other in families().items() if options.timestamps in other.TIMESTAMPS]
        raise ValueError(
            f"timestamps: expected {' or '.join(family.TIMESTAMPS)} for a {model_type} checkpoint, "
            f"found {options.timestamps!r}, which {_with_types(having)} has"
        )
    for name, value in _family_options(options):
        if name not in family.OPTIONS:
            having = [n for n, other in families().items() if name in other.OPTIONS]
            raise ValueError(
                f"{name}: expected nothing for a {model_type} checkpoint, found {value!r}, which "
                f"{_with_types(having)} has"
            )
    check_options(options)
    family.check(with_codes(options, checkpoint), checkpoint)
    check_files(options, checkpoint, tokenizer=True)


def with_codes(options: Options, checkpoint: Checkpoint) -> Options:
    """The options with each language as the checkpoint's own code for it; a language that the checkpoint
    does not know stays as it is written."""
    written = {name: getattr(options, name) for name in LANGUAGES}
    named = {name: language for name, language in written.items() if language is not None}
    if not named:
        return options
    known = list(_family(checkpoint).languages(checkpoint))
    codes = {name: code_among(language, known) or language for name, language in named.items()}
    return options.model_copy(update=codes)


def _family_options(options: Options) -> Iterator[tuple[str, Any]]:
    """The options that only some families have, where they differ from the default."""
    some_have = {name for family in families().values() for name in family.OPTIONS}
    for name, field in Options.model_fields.items():
        value = getattr(options, name)
        if name in some_have and value != field.get_default(call_default_factory=True):
            yield name, value


def _with_types(names: Sequence[str]) -> str:
    """Families by name, each with the model types that it runs."""
    types = {name: ", ".join(families()[name].MODEL_TYPES) for name in names}
    return " or ".join(
        name if name == listed else f"{name} ({listed})" for name, listed in types.items()
    )


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz of the sound that the model takes."""
    return _family(checkpoint).sample_rate(options, checkpoint)


def wants_speech(options: Options) -> WantsSpeech:
    """Always: the share of speech is evidence for every clip, and long clips are cut in pauses."""
    return "always"


def columns(options: Options) -> dict[str, pa.DataType]:
    """The task's columns; `words` with word or character times alone, those of `speech/wer.py` with
    a reference alone."""
    timed = {
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "text": pa.string(),
        "score": pa.float32(),
    }
    of_segments = {
        "speaker": pa.string(),
        "language": pa.string(),
        "detected_language": pa.string(),
        "language_probability": pa.float32(),
        "no_speech": pa.float32(),
        "speech_ratio": pa.float32(),
        "compression_ratio": pa.float32(),
        "chars_per_s": pa.float32(),
        "suspect": pa.list_(pa.string()),
    }
    words = pa.list_(pa.struct(timed))
    return {
        "text": pa.string(),
        "score": pa.float32(),
        "language": pa.string(),
        "segments": pa.list_(pa.struct({**timed, **of_segments})),
        **({"words": words} if options.timestamps in ("word", "char") else {}),
        **({"redone": pa.bool_()} if _may_redo(options) else {}),
        **(wer.COLUMNS if options.reference is not None else {}),
        "speech_ratio": pa.float32(),
        "no_speech": pa.float32(),
        "compression_ratio": pa.float32(),
        "chars_per_s": pa.float32(),
        "suspect": pa.list_(pa.string()),
    }


def _may_redo(options: Options) -> bool:
    return options.window == "guarded" or bool(options.retry_temperatures)


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
    """The checkpoint's recogniser; adds evidence to its transcripts and compares them with the
    reference."""

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        self.options = options = with_codes(options, checkpoint)
        self.family: Recogniser = _family(checkpoint).Model(options, checkpoint, device)
        self.sample_rate = self.family.sample_rate
        self.is_generative = self.family.is_generative
        self.equal_lengths = self.family.equal_lengths
        self.word_errors = wer.WordErrors() if options.reference is not None else None

    def windows(self, clip: Clip) -> list[Window]:
        return self.family.windows(clip)

    def padded_s(self, samples: int) -> float:
        return self.family.padded_s(samples)

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        return self.family(waveforms, group)

    def join(self, clip: Clip, windows: Sequence[Window], outputs: Sequence[Any]) -> dict[str, Any]:
        transcript = self.family.join(clip, windows, outputs)
        segments = segment_evidence(transcript.segments, clip.speech, self.options)
        signs = clip_evidence(transcript, segments, clip, self.options)
        text, words = transcript.text, transcript.words
        if self.options.suspect == "drop" and any(segment["suspect"] for segment in segments):
            segments = [{**s, "text": ""} if s["suspect"] else s for s in segments]
            text = join_texts([segment["text"] for segment in segments], transcript.language)
            pairs = zip(transcript.segments, segments, strict=True)
            words = [word for part, entry in pairs if entry["text"] for word in part.words]
        return {
            "text": text,
            "score": transcript.score,
            "language": transcript.language,
            "segments": segments,
            "words": words,
            **({"redone": transcript.redone} if _may_redo(self.options) else {}),
            **signs,
            **self._errors(clip, text, transcript.language),
        }

    def _errors(self, clip: Clip, text: str, language: str | None) -> dict[str, Any]:
        """The columns of `wer.py`; {} without a reference. One that cannot be compared costs the
        clip its error rates, and none of its labels."""
        column = self.options.reference
        if self.word_errors is None or column is None:
            return {}
        written = self.options.reference_language or ("en" if self.family.translates else language)
        try:
            return self.word_errors(clip.row.get(column), text, written)
        except Exception as error:  # a normaliser of words and numbers meets any text here
            return {"reference_error": f"{column}: {error}"}


def _family(checkpoint: Checkpoint) -> Family:
    found = checkpoint.json("config.json").get("model_type")
    family = family_of(found)
    if family is None:
        known = (name for family in families().values() for name in family.MODEL_TYPES)
        raise ValueError(refusal(checkpoint, known))
    return family
