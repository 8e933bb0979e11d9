"""The prompt ahead of a Whisper's text, by the options and by the checkpoint's JSON files.

As `_retrieve_init_tokens` in transformers/models/whisper/generation_whisper.py makes it: `language`
and `task` of generation_config.json count, and only without both `forced_decoder_ids`, those of
generation_config.json ahead of those of config.json. What the pipeline fails on, or what makes no
sense to a Whisper, is a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.speech.languages import code_among
from audio_ops.speech.options import Options
from audio_ops.speech.vocabulary import CONFIG, GENERATION
from audio_ops.tasks import TaskOptions

MULTILINGUAL_VOCABULARY = 51_865  # OpenAI's own rule: the English-only one is a token shorter
TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class Prompt:
    """Tokens ahead of a window's text, behind the start and without the one for no timestamps."""

    languages: Mapping[str, int]  # tokens by language code; empty for an English-only Whisper
    language: str | None  # of all windows; None if it is detected, or if nothing says it
    is_detected: bool  # in each window
    after_language: tuple[int, ...]
    translates: bool  # into English


def prompt_of(options: Options, checkpoint: Checkpoint) -> Prompt:
    """The prompt of this checkpoint with these options. Raises ValueError for a contradiction."""
    generation = checkpoint.json(GENERATION)
    languages = languages_of(checkpoint)
    tasks = ids_by_name(checkpoint, "task_to_id")
    task = task_of(options, generation)
    language = options.language or generation.get("language")
    if task is None and language is None:
        key, forced = forced_ids(checkpoint)
        if forced:
            return _forced(forced, key, languages, tasks, checkpoint)
    if not is_multilingual(checkpoint) and not languages:
        _check_files_of_english_alone(language, task, checkpoint)
        return Prompt({}, "en", False, (), False)
    if task is not None and task not in tasks:
        raise ValueError(
            f"model: expected task {task!r} among {' and '.join(TASKS)} with a token in task_to_id, "
            f"found {sorted(tasks)} there in {GENERATION} of {checkpoint.source}: remove `task` "
            "there, or take the file from the checkpoint that this one was trained from"
        )
    code = None if language is None else _code(language, languages, checkpoint)
    is_detected = code is None and bool(languages)
    if task is None and (code is not None or is_detected) and "transcribe" in tasks:
        task = "transcribe"  # the pipeline leaves it out if the language is detected
    after = () if task is None else (tasks[task],)
    return Prompt(languages, code, is_detected, after, task == "translate")


def with_timestamps(options: Options, checkpoint: Checkpoint) -> Options:
    """The options with `timestamps: segment` if they leave out what the checkpoint's
    `return_timestamps` asks for. (Its text is that of word times, whose column is the config's.)"""
    asks = checkpoint.json(GENERATION).get("return_timestamps")
    if not asks or "timestamps" in options.model_fields_set:
        return options
    return options.model_copy(update={"timestamps": "segment"})


def left_to_checkpoint(options: TaskOptions, checkpoint: Checkpoint) -> list[str]:
    """Options that a config leaves out, so that this Whisper's own values count, which are not the
    options' defaults."""
    is_whisper = checkpoint.json(CONFIG).get("model_type") == "whisper"
    if not is_whisper or not isinstance(options, Options):
        return []
    follows = {
        "timestamps": with_timestamps(options, checkpoint) is not options,
        "translate": "translate" not in options.model_fields_set
        and prompt_of(options, checkpoint).translates,
    }
    return [name for name, is_left in follows.items() if is_left]


def is_multilingual(checkpoint: Checkpoint) -> bool:
    """What generation_config.json says, or else the size of the vocabulary."""
    size = checkpoint.json(CONFIG).get("vocab_size", MULTILINGUAL_VOCABULARY)
    said = checkpoint.json(GENERATION).get("is_multilingual")
    return bool(size >= MULTILINGUAL_VOCABULARY if said is None else said)


def languages_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The tokens of languages by code, from generation_config.json."""
    return {name.strip("<|>"): id for name, id in ids_by_name(checkpoint, "lang_to_id").items()}


def ids_by_name(checkpoint: Checkpoint, key: str) -> dict[str, int]:
    """{} for none. Raises ValueError for anything but an object."""
    found = checkpoint.json(GENERATION).get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(
            f"model: expected {key} as an object of names and ids, found {found!r} in {GENERATION} of "
            f"{checkpoint.source}: take the file from the checkpoint that this one was trained from"
        )
    return found


def task_of(options: Options, generation: Mapping[str, Any]) -> str | None:
    """`transcribe` or `translate` if the options or the checkpoint say which."""
    if "translate" in options.model_fields_set or options.translate:
        return "translate" if options.translate else "transcribe"
    task: str | None = generation.get("task")
    return task


def forced_ids(checkpoint: Checkpoint) -> tuple[str, Any]:
    """The file that `forced_decoder_ids` are taken from, and what it says; "" and [] without."""
    for file in (GENERATION, CONFIG):
        found = checkpoint.json(file).get("forced_decoder_ids")
        if found is not None:
            return file, found
    return "", []


def _check_files_of_english_alone(language: Any, task: Any, checkpoint: Checkpoint) -> None:
    """ValueError if an English-only Whisper's own files ask it for another language or task."""
    for key, value, fine in (
        ("language", language, ("en", "english", "<|en|>")),
        ("task", task, ("transcribe",)),
    ):
        if value is not None and value not in fine:
            raise ValueError(
                f"model: expected no {key} but {fine[0]!r} in {GENERATION} of {checkpoint.source}, "
                f"whose is_multilingual is false and which has no lang_to_id, found {value!r}: "
                "remove it there, or take the file from the checkpoint that this one was trained from"
            )


def _code(language: Any, languages: Mapping[str, int], checkpoint: Checkpoint) -> str:
    """The code of a language given by code, token or English name."""
    code = code_among(language, languages) if isinstance(language, str) else None
    if code is None:
        known = ", ".join(sorted(languages)) or "no language"
        raise ValueError(
            f"model: expected a language with a token in lang_to_id ({known}), found {language!r} "
            f"in {GENERATION} of {checkpoint.source}: set the option `language`, or correct the file"
        )
    return code


def _forced(
    forced: Any,
    file: str,
    languages: Mapping[str, int],
    tasks: Mapping[str, int],
    checkpoint: Checkpoint,
) -> Prompt:
    """The prompt that `forced_decoder_ids` spell: places from 1 on, each with a token or null."""
    where = f"in {file} of {checkpoint.source}"
    remedy = "set the options `language` and `translate`, or correct the file"
    tokens = _tokens(forced)
    if not tokens:
        raise ValueError(
            "model: expected forced_decoder_ids as pairs of a place (1, 2, ...) and a token's id or "
            f"null, found {forced!r} {where}: {remedy}"
        )
    no_timestamps = checkpoint.json(GENERATION).get("no_timestamps_token_id")
    known = {*languages.values(), *tasks.values(), no_timestamps, None}
    if languages and tasks and not known.issuperset(tokens):
        raise ValueError(
            "model: expected forced_decoder_ids that lang_to_id, task_to_id or "
            f"no_timestamps_token_id name, found {[t for t in tokens if t not in known]} {where}, which are of "
            f"another vocabulary: {remedy}"
        )
    code = next((code for code, token in languages.items() if token == tokens[0]), None)
    rest = tokens if code is None else tokens[1:]
    return Prompt(
        languages,
        code if languages or is_multilingual(checkpoint) else "en",
        tokens[0] is None and bool(languages),
        tuple(token for token in rest if token is not None),
        "translate" in tasks and tasks["translate"] in rest,
    )


def _tokens(forced: Any) -> list[int | None]:
    """The tokens of `forced_decoder_ids` in order; [] unless they are pairs, from place 1 on."""
    try:
        pairs = [(place, token) for place, token in forced]
    except (TypeError, ValueError):
        return []
    is_prompt = [place for place, _ in pairs] == list(range(1, len(pairs) + 1))
    tokens = [token for _, token in pairs]
    return tokens if is_prompt and all(t is None or type(t) is int for t in tokens) else []
