"""Whether a Whisper checkpoint fits the options, from its JSON files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.weights import check_rows
from audio_ops.speech.options import Options, check_one_prompt
from audio_ops.speech.sampling import check_sampling
from audio_ops.speech.vocabulary import (
    CONFIG,
    GENERATION,
    check_ids,
    check_names,
    check_start_and_end,
)
from audio_ops.speech.whisper.prompt import (
    forced_ids,
    ids_by_name,
    is_multilingual,
    languages_of,
    prompt_of,
    with_timestamps,
)

NEEDS = {  # of generation_config.json, by the value of `timestamps`
    "segment": ("no_timestamps_token_id",),
    "word": ("no_timestamps_token_id", "alignment_heads"),
}
# Settings of generation_config.json on which transformers' pipeline fails, and what has no effect.
FAILING = {
    "num_return_sequences": 1,
    "stop_strings": [],
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "dola_layers": None,
}
LONGEST_PROMPT = 4  # tokens: start, language, task, no timestamps


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if this Whisper cannot do what the options ask for."""
    config, generation = checkpoint.json(CONFIG), checkpoint.json(GENERATION)
    found = config.get("architectures") or []
    if any(name.endswith("ForAudioClassification") for name in found):  # it has no decoder
        raise ValueError(
            "model: expected architecture WhisperForConditionalGeneration, found "
            f"{found} in {checkpoint.source}"
        )
    if is_multilingual(checkpoint):
        _check_languages(options, checkpoint, generation)
    else:
        _check_english_alone(options)
    check_sampling(options)
    _check_search(checkpoint)
    options = _check_timestamps(options, checkpoint)
    if options.prompt is not None and "<|" in options.prompt:
        raise ValueError(
            f"prompt: expected words without Whisper's special tokens, found {options.prompt!r}"
        )
    check_one_prompt(options)
    limit = config.get("max_target_positions", 448) - LONGEST_PROMPT
    has_prompt = options.prompt or options.prompt_column
    limit -= config.get("max_target_positions", 448) // 2 - 1 if has_prompt else 0
    if options.max_new_tokens is not None and options.max_new_tokens > limit:
        raise ValueError(
            f"max_new_tokens: expected at most {limit}, all that this Whisper's decoder holds beside "
            f"its prompt, found {options.max_new_tokens}"
        )
    prompt_of(options, checkpoint)
    _check_vocabulary(options, checkpoint)
    if options.timestamps == "word":
        _check_alignment_heads(checkpoint)


def _check_search(checkpoint: Checkpoint) -> None:
    """ValueError for settings of the checkpoint with which `generate` fails on every sound."""
    for key, plain in FAILING.items():
        found = checkpoint.json(GENERATION).get(key)
        if found not in (None, plain):
            raise ValueError(
                f"model: expected no {key} in {GENERATION} of {checkpoint.source}, with which "
                f"transformers' generate fails for a Whisper, found {found!r}: remove it there"
            )


def _check_timestamps(options: Options, checkpoint: Checkpoint) -> Options:
    """The options with the checkpoint's timestamps. ValueError if it has none, or for what cannot
    stand beside them."""
    followed = with_timestamps(options, checkpoint)
    found = f"{options.timestamps!r}"
    if followed is not options:
        found = f"return_timestamps in {GENERATION} (`timestamps: none` overrides it)"
    is_plain = followed.timestamps == "none" and options.num_beams == 1
    if options.window == "guarded" and (not is_plain or options.generate.get("do_sample")):
        raise ValueError(
            "window: expected full beside timestamps, num_beams or do_sample, for which short "
            f"windows have not been shown to hold, found 'guarded', and as timestamps {found}"
        )
    for key in NEEDS.get(followed.timestamps, ()):
        if checkpoint.json(GENERATION).get(key) is None:
            raise ValueError(
                f"timestamps: expected none, as {GENERATION} in {checkpoint.source} has no {key}, "
                f"found {found}"
            )
    return followed


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
    languages = languages_of(checkpoint)
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


def _check_vocabulary(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if a token of the checkpoint's files is beyond its vocabulary, or missing."""
    check_start_and_end(checkpoint, ["decoder_start_token_id"])
    size = checkpoint.json(CONFIG).get("vocab_size")
    if size is None:
        return
    check_ids(_ids(checkpoint), size, checkpoint)
    check_names(_names(checkpoint), checkpoint)
    check_rows(checkpoint, ("decoder.embed_tokens.weight",), size, "vocab_size")
    last = checkpoint.json(GENERATION).get("no_timestamps_token_id") == size - 1
    if options.timestamps != "none" and last:
        raise ValueError(
            f"timestamps: expected none, as the vocabulary in {checkpoint.source} ends with the "
            f"token for no timestamps, found {options.timestamps!r}"
        )


def _ids(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """`file: key` and the token ids that it holds, one or several."""
    config, generation = checkpoint.json(CONFIG), checkpoint.json(GENERATION)
    for key in ("lang_to_id", "task_to_id"):
        yield f"{GENERATION}: {key}", list((generation.get(key) or {}).values())
    for key in ("suppress_tokens", "begin_suppress_tokens", "no_timestamps_token_id"):
        yield f"{GENERATION}: {key}", generation.get(key)
    for key in ("decoder_start_token_id", "eos_token_id"):
        file = GENERATION if generation.get(key) is not None else CONFIG
        yield f"{file}: {key}", (generation if file == GENERATION else config).get(key)
    file, forced = forced_ids(checkpoint)
    yield f"{file}: forced_decoder_ids", [pair[1] for pair in forced if isinstance(pair, list)]


def _names(checkpoint: Checkpoint) -> Iterator[tuple[str, str, Any]]:
    """`file: key`, a token, and its id there: with those of another size of Whisper, say, a task's id
    would be that of the other task."""
    for name, id in ids_by_name(checkpoint, "lang_to_id").items():
        yield f"{GENERATION}: lang_to_id", name, id
    for name, id in ids_by_name(checkpoint, "task_to_id").items():
        yield f"{GENERATION}: task_to_id", f"<|{name}|>", id
    if (last := checkpoint.json(GENERATION).get("no_timestamps_token_id")) is not None:
        yield f"{GENERATION}: no_timestamps_token_id", "<|notimestamps|>", last


def _check_alignment_heads(checkpoint: Checkpoint) -> None:
    config = checkpoint.json(CONFIG)
    layers, heads = config.get("decoder_layers", 4), config.get("decoder_attention_heads", 6)
    listed = checkpoint.json(GENERATION)["alignment_heads"]
    wrong = [
        pair
        for pair in listed
        if not isinstance(pair, list)
        or [type(number) for number in pair] != [int, int]
        or not (0 <= pair[0] < layers and 0 <= pair[1] < heads)
    ]
    if wrong or not listed:
        raise ValueError(
            f"timestamps: expected alignment_heads in {GENERATION} of {checkpoint.source} as pairs of "
            f"a layer under {layers} and a head under {heads}, all that this decoder has, found "
            f"{', '.join(map(str, wrong[:3])) or 'none'}: take the file from the checkpoint that this "
            "one was trained from, or leave word times out"
        )


def languages(checkpoint: Checkpoint) -> Iterable[str]:
    """The codes that `language` takes."""
    return languages_of(checkpoint) or ("en",)


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects: 16 kHz for every Whisper so far."""
    rate: int = checkpoint.extractor_settings().get("sampling_rate", 16_000)
    return rate
