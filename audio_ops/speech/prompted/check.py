"""Whether a prompted recogniser's checkpoint fits the options, from its JSON files alone."""

from __future__ import annotations

from collections.abc import Iterable

from audio_ops.inference.checkpoint import Checkpoint, expect_architecture
from audio_ops.inference.extras import check_extra
from audio_ops.speech.options import Options, check_one_prompt
from audio_ops.speech.prompted.kinds import KINDS
from audio_ops.speech.vocabulary import CONFIG

ASKED = ("language", "target_language", "punctuation", "prompt", "prompt_column")


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint is no recogniser or its request has no place for an option."""
    config = checkpoint.json(CONFIG)
    expect_architecture(checkpoint, KINDS[config["model_type"]].architecture)
    _check_request(options, config["model_type"])
    if KINDS[config["model_type"]].request == "mistral":
        check_mistral_common(checkpoint)
    if options.num_beams > 1 and options.generate.get("do_sample"):
        raise ValueError(
            f"num_beams: expected 1 beside generate.do_sample, found {options.num_beams}"
        )
    checkpoint.extractor_settings()


def check_mistral_common(checkpoint: Checkpoint) -> None:
    """ValueError without the package that reads the tokenizers of Mistral's recognisers."""
    # MISTRAL_COMMON_MIN_VERSION of transformers/utils/import_utils.py
    check_extra("mistral", "mistral-common", f"reads the tokenizer of {checkpoint.name}", "1.11.5")


def _check_request(options: Options, model_type: str) -> None:
    kind = KINDS[model_type]
    for name in ASKED:
        value = getattr(options, name)
        if value is not None and name.removesuffix("_column") not in kind.options:
            having = [other for other, its in KINDS.items() if name in its.options]
            raise ValueError(
                f"{name}: expected none, as the request of {model_type} has no place for it, found "
                f"{value!r}, which {', '.join(having)} have"
            )
    check_one_prompt(options)
    for name in ("language", "target_language"):
        value = getattr(options, name)
        if value is not None and value not in kind.languages:
            known = ", ".join(sorted(kind.languages))
            raise ValueError(f"{name}: expected one of {known}, found {value!r}")
    if options.language is None and "language" in kind.options and kind.request == "call":
        known = ", ".join(sorted(kind.languages))
        raise ValueError(
            f"language: expected the language of the speech, one of {known}, which {model_type} "
            "has to be told, found none"
        )


def languages(checkpoint: Checkpoint) -> Iterable[str]:
    """The codes that `language` and `target_language` take."""
    return KINDS[checkpoint.json(CONFIG)["model_type"]].languages


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 16_000))
