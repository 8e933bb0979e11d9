"""Whether a transducer's checkpoint fits the options, from its JSON files alone."""

from __future__ import annotations

from collections.abc import Iterable

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.weights import check_rows
from audio_ops.speech.options import Options
from audio_ops.speech.vocabulary import CONFIG, check_ids

PROCESSOR = "processor_config.json"


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint is no transducer or cannot do what the options ask for."""
    config = checkpoint.json(CONFIG)
    found = config.get("architectures") or []
    if not any(name.endswith(("ForTDT", "ForRNNT")) for name in found):
        # Another head's checkpoint would load too, with random weights for this one.
        raise ValueError(
            f"model: expected a ...ForTDT or ...ForRNNT architecture, found {found} in "
            f"{checkpoint.name}"
        )
    if options.language is not None:
        _check_language(options.language, checkpoint)
    size = config.get("vocab_size")
    if size is None:
        return
    check_ids([(f"{CONFIG}: blank_token_id", config.get("blank_token_id"))], size, checkpoint)
    durations = len(config.get("durations") or ())
    key = "vocab_size, with a row for each of durations," if durations else "vocab_size"
    check_rows(checkpoint, ("joint.head.weight",), size + durations, key)


def prompts(checkpoint: Checkpoint) -> dict[str, int]:
    """The number of each language that the model can be told, {} if it takes none."""
    known: dict[str, int] = checkpoint.json(PROCESSOR).get("prompt_dictionary") or {}
    return known


def languages(checkpoint: Checkpoint) -> Iterable[str]:
    """The codes that `language` takes."""
    return prompts(checkpoint)


def _check_language(language: str, checkpoint: Checkpoint) -> None:
    if checkpoint.json(CONFIG)["model_type"] != "nemotron3_5_asr":
        raise ValueError(
            "language: expected none, as of the transducers only nemotron3_5_asr takes one, found "
            f"{language!r} for {checkpoint.name}"
        )
    known = prompts(checkpoint)
    if not known:
        raise ValueError(
            f"language: expected a checkpoint with prompt_dictionary in {PROCESSOR}, found none in "
            f"{checkpoint.source}: copy the file from the checkpoint that this one was trained from"
        )
    if language not in known:
        raise ValueError(
            f"language: expected one of {', '.join(sorted(known))}, found {language!r}"
        )


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 16_000))
