"""Tokens and limits of a Whisper, read once from its checkpoint and the task's options."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from audio_ops.speech.generation import drops_finished, is_greedy
from audio_ops.speech.options import Options
from audio_ops.speech.whisper.prompt import Prompt

PIPELINE_NEW_TOKENS = 256  # the pipeline's own limit for a checkpoint that sets none


@dataclass(frozen=True)
class Settings:
    """Tokens and limits of one Whisper. Tokens are ids in its vocabulary."""

    timestamps: str  # none, segment or word
    is_guarded: bool  # short windows get a shorter encoder first
    start: int  # the first token of each prompt
    end: int  # of text
    first_timestamp: int  # 0.00 s; larger ones follow in steps of 0.02 s
    no_speech: int | None
    special: frozenset[int]
    languages: Mapping[str, int]  # tokens by language code; empty for an English-only Whisper
    language: str | None  # of all windows, if it is not detected in each
    detects_language: bool
    after_language: tuple[int, ...]  # the rest of the prompt
    previous: tuple[int, ...]  # what is said to have been spoken before each window
    asked: int  # new tokens per window, if the decoder holds them
    free: int  # tokens that the decoder holds besides the rest of a prompt, `previous` included
    suppressed: tuple[int, ...]  # never generated
    suppressed_first: tuple[int, ...]  # not generated as the first token behind a prompt
    generation: Any  # transformers' GenerationConfig

    @property
    def max_new_tokens(self) -> int:
        """Per window."""
        return min(self.asked, self.free - len(self.previous))

    @property
    def num_beams(self) -> int:
        beams: int = self.generation.num_beams
        return beams

    @property
    def samples_tokens(self) -> bool:
        return bool(self.generation.do_sample)

    @property
    def is_greedy(self) -> bool:
        return is_greedy(self.generation)

    @property
    def drops_finished(self) -> bool:
        return drops_finished(self.generation)

    def at_temperature(self, temperature: float) -> Settings:
        """These settings, but sampling tokens at a temperature, without beams as transformers does."""
        generation = deepcopy(self.generation)
        generation.update(do_sample=True, temperature=temperature, num_beams=1, output_scores=False)
        return replace(self, generation=generation)

    def prompt(self, language: str | None) -> list[int]:
        """The tokens ahead of a window's text."""
        token = self.languages.get(language) if language else None
        return [
            *self.previous,
            self.start,
            *([] if token is None else [token]),
            *self.after_language,
        ]

    def is_text(self, token: int) -> bool:
        return token < self.first_timestamp and token not in self.special


def settings_of(options: Options, prompt: Prompt, model: Any, tokenizer: Any) -> Settings:
    """The settings of a loaded WhisperForConditionalGeneration, which stays as it is."""
    config, original = model.config, model.generation_config
    after_language = prompt.after_language
    no_timestamps = getattr(original, "no_timestamps_token_id", None)
    if no_timestamps is not None:
        after_language = tuple(token for token in after_language if token != no_timestamps)
        if options.timestamps == "none":
            after_language = (*after_language, no_timestamps)

    generation = deepcopy(original)
    for name, value in options.generate.items():
        setattr(generation, name, value)
    suppressed, suppressed_first = generation.suppress_tokens, generation.begin_suppress_tokens
    previous = previous_tokens(options.prompt, tokenizer, config.max_target_positions)
    free = config.max_target_positions - 1 - bool(prompt.languages) - len(after_language)
    asked = options.max_new_tokens or original.max_new_tokens or original.max_length
    asked = asked or PIPELINE_NEW_TOKENS
    generation.update(**_overrides(options, min(asked, free - len(previous))))
    ends = original.eos_token_id
    return Settings(
        timestamps=options.timestamps,
        is_guarded=options.window == "guarded",
        start=original.decoder_start_token_id,
        end=ends[0] if isinstance(ends, list) else ends,
        first_timestamp=(no_timestamps or config.vocab_size) + 1,
        no_speech=no_timestamps - 1 if no_timestamps is not None else None,
        special=frozenset(tokenizer.all_special_ids),
        languages=prompt.languages,
        language=prompt.language,
        detects_language=prompt.is_detected,
        after_language=after_language,
        previous=previous,
        asked=asked,
        free=free,
        suppressed=tuple(suppressed or ()),
        suppressed_first=tuple(suppressed_first or ()),
        generation=generation,
    )


def previous_tokens(prompt: str | None, tokenizer: Any, positions: int) -> tuple[int, ...]:
    """The tokens of a prompt, as `get_prompt_ids` of transformers makes them: of a long one the last,
    a few less than half of the decoder's positions, as in OpenAI's code."""
    if prompt is None:
        return ()
    begin, *text = (int(token) for token in tokenizer.get_prompt_ids(prompt))
    return (begin, *text[-(positions // 2 - 2) :])


def _overrides(options: Options, max_new_tokens: int) -> dict[str, Any]:
    """Differences from the checkpoint's generation config besides `options.generate`."""
    return {
        # As transformers' own `generate` of a Whisper does: the call alone says how it samples.
        "do_sample": options.generate.get("do_sample", False),
        "temperature": options.generate.get("temperature", 1.0),
        "cache_implementation": None,  # speed alone; `GenerationRequest` has a cache of its own
        "suppress_tokens": None,  # generation.py's `SuppressTokens` does that
        "begin_suppress_tokens": None,
        "num_beams": options.num_beams,
        "max_new_tokens": max_new_tokens,
        "max_length": None,
        "forced_decoder_ids": None,
        "return_dict_in_generate": True,
        "output_scores": options.num_beams > 1,  # of greedy search every step's would be kept
        "output_attentions": options.timestamps == "word",
    }
