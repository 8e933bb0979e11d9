"""Whether a Whisper checkpoint fits the options, from its JSON files alone."""

from __future__ import annotations

from typing import Any

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.speech.options import Options
from audio_ops.speech.whisper.settings import MULTILINGUAL_VOCABULARY

NEEDS = {  # of generation_config.json, by the value of `timestamps`
    "segment": ("no_timestamps_token_id",),
    "word": ("no_timestamps_token_id", "alignment_heads"),
}
LONGEST_PROMPT = 4  # tokens: start, language, task, no timestamps


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if this Whisper cannot do what the options ask for."""
    config, generation = checkpoint.json("config.json"), checkpoint.json("generation_config.json")
    if generation.get("is_multilingual", config.get("vocab_size", 0) >= MULTILINGUAL_VOCABULARY):
        _check_languages(options, checkpoint, generation)
    else:
        _check_english_alone(options)
    if options.window == "guarded" and (
        options.timestamps != "none" or options.num_beams > 1 or options.generate.get("do_sample")
    ):
        raise ValueError(
            "window: expected full beside timestamps, num_beams or do_sample, for which short "
            "windows have not been shown to hold, found 'guarded'"
        )
    for key in NEEDS.get(options.timestamps, ()):
        if generation.get(key) is None:
            raise ValueError(
                f"timestamps: expected none, as generation_config.json in {checkpoint.name} has no "
                f"{key}, found {options.timestamps!r}"
            )
    limit = config.get("max_target_positions", 448) - LONGEST_PROMPT
    if options.max_new_tokens is not None and options.max_new_tokens > limit:
        raise ValueError(
            f"max_new_tokens: expected at most {limit}, all that this Whisper's decoder holds beside "
            f"its prompt, found {options.max_new_tokens}"
        )


def _check_english_alone(options: Options) -> None:
    if options.language not in (None, "en"):
        raise ValueError(
            f"language: expected en or none, as this Whisper transcribes only English, "
            f"found {options.language!r}"
        )
    if options.translate:
        raise ValueError(
            "translate: expected false, as this Whisper transcribes only English, found true"
        )


def _check_languages(options: Options, checkpoint: Checkpoint, generation: dict[str, Any]) -> None:
    if options.language is None and not options.translate:
        return
    languages = [token.strip("<|>") for token in generation.get("lang_to_id") or {}]
    if not languages or not generation.get("task_to_id"):
        raise ValueError(
            f"{'language' if options.language else 'translate'}: expected a checkpoint whose "
            f"generation_config.json has lang_to_id and task_to_id, found none in "
            f"{checkpoint.name} (take the file from the checkpoint it was trained from)"
        )
    if options.language not in (None, *languages):
        raise ValueError(
            f"language: expected one of {', '.join(sorted(languages))}, found {options.language!r}"
        )


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects: 16 kHz for every Whisper so far."""
    rate: int = checkpoint.extractor_settings().get("sampling_rate", 16_000)
    return rate
