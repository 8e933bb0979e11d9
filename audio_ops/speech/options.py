"""Options of the task `automatic-speech-recognition`, which every family reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from audio_ops.tasks import Clip, TaskOptions

# Compression ratio and score beyond which OpenAI's code takes a text for spoilt.
MAX_COMPRESSION_RATIO, MIN_SCORE = 2.4, 0.37

# The keys of `generate`: settings of transformers' GenerationConfig that change the text.
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
# Of these, those that count only where tokens are drawn, and where beams are searched.
OF_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h"),
    *("epsilon_cutoff", "eta_cutoff"),
)
OF_BEAMS = ("early_stopping", "length_penalty")
# Settings of GenerationConfig that are set by an option of the task.
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
    """Settings of `automatic-speech-recognition`. An option that some family names in its `OPTIONS`
    is for the families that do; the others are for all.

    A segment whose evidence is beyond a threshold names the reason in its `suspect`, and its row
    does. A threshold that is None is not applied.
    """

    language: str | None = None
    """Language of the speech: the checkpoint's own code in any case (`de`), with a region or without one
    (`de-DE`), or the language's English name (`german`). Of the transducers only `nemotron3_5_asr` takes
    one. If left out, the one that the checkpoint is fixed to, or else detected per clip."""
    target_language: str | None = None
    """Language of the text, as `language`, if it is to be translated: Canary from English or into it."""
    punctuation: bool | None = None
    """Write punctuation and capitals; if left out, as the checkpoint's processor does it."""
    prompt: str | None = None
    """Context or names to listen for, in words. Whisper takes it for what was said before each window;
    to GLM-ASR and Audio Flamingo it is what they are asked to do ("Transcribe the input speech.")."""
    prompt_column: str | None = None
    """A column of the source with each clip's prompt, in place of `prompt`; null or blank for none. Clips
    with one prompt share a batch."""
    translate: bool = False
    """Translate into English instead of transcribing; if left out, as the checkpoint says."""
    timestamps: Literal["none", "segment", "word", "char"] = "none"
    """Times to add to the text. Whisper has `segment` and `word`, transducers and Kyutai have `segment`
    (a sentence) and `word`, CTC models have `word` and `char` (those on log-mel features, such as
    Parakeet, `word` alone), the others none. If left out,
    a Whisper whose `generation_config.json` has `return_timestamps` gets `segment`."""
    window: Literal["full", "guarded"] = "full"
    """`full`: the 30 s of context that Whisper was trained with. `guarded`: less context for short
    clips, which is faster; texts that come out badly are transcribed again in full (`redone`)."""
    retry_temperatures: tuple[float, ...] = ()
    """Temperatures (`[0.2, 0.4, 0.6]`) at which a window with a suspect text is transcribed again,
    one after the other, with tokens sampled by a seed from its own sound. The first text that is not
    suspect is taken (`redone`), or else the original one."""
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
    """Column with the true text, or an earlier task's text (`a_text`). Adds word and character error
    rates."""
    reference_language: str | None = None
    """Language of the reference, if the model neither detects nor is given it (a CTC model, say)."""
    suspect: Literal["keep", "drop"] = "keep"
    """`drop` empties the text of suspect segments, and leaves it out of the clip's."""
    min_speech_ratio: float | None = Field(0.1, ge=0, le=1)
    """A text is suspect (`no_speech`) if less of its sound is speech than this share, and less
    than it takes to say it at `max_chars_per_s` (a sentence in a minute of silence stays)."""
    max_no_speech: float | None = Field(0.6, ge=0, le=1)
    """So is a text with a higher `no_speech` probability of Whisper and a score under `min_score`."""
    max_compression_ratio: float | None = Field(MAX_COMPRESSION_RATIO, gt=0)
    """A text that compresses better, each of its characters counted as a byte, and consists of
    copies in succession is a `loop`."""
    min_score: float | None = Field(MIN_SCORE, ge=0, le=1)
    """A lower score makes a text suspect (`low_probability`)."""
    max_chars_per_s: float | None = Field(30.0, gt=0)
    """More characters per second of sound make a text suspect (`too_fast`)."""
    phrases: bool = True
    """Texts that Whisper is known to invent (credits of subtitles; thanks for watching, where other
    evidence is weak) are suspect (`phrase`)."""
    min_language_probability: float | None = Field(0.95, ge=0, le=1)
    """From this probability on, a detected language other than `language` makes a text suspect
    (`wrong_language`)."""


def check_options(options: Options) -> None:
    """ValueError for options that fit no family."""
    for name, value in options.generate.items():
        _check_setting(name, value)
    if options.reference_language is not None and options.reference is None:
        raise ValueError(
            f"reference_language: expected a reference beside it, found {options.reference_language!r}"
        )
    temperatures = options.retry_temperatures
    if list(temperatures) != sorted(set(temperatures)) or not all(0 < t <= 2 for t in temperatures):
        raise ValueError(
            "retry_temperatures: expected rising numbers over 0 and up to 2, "
            f"found {list(temperatures)}"
        )
    for name in OF_BEAMS:
        if name in options.generate and options.num_beams == 1:
            raise ValueError(
                f"generate.{name}: expected num_beams over 1 beside it, without which it does nothing"
            )


def check_one_prompt(options: Options) -> None:
    """ValueError for a prompt of all clips without words, or beside a column of each clip's own."""
    if options.prompt is not None and not options.prompt.strip():
        raise ValueError(f"prompt: expected words, or no such key, found {options.prompt!r}")
    if options.prompt is not None and options.prompt_column is not None:
        raise ValueError(
            f"prompt_column: expected none beside prompt, found {options.prompt_column!r}"
        )


def prompt_in(clip: Clip, column: str) -> str | None:
    """A clip's own prompt; None for one without words."""
    prompt: str | None = clip.row.get(column)
    return prompt if prompt and prompt.strip() else None


def _check_setting(name: str, value: Any) -> None:
    if name in OWN_OPTIONS:
        raise ValueError(
            f"generate.{name}: expected the task's own option {OWN_OPTIONS[name]!r} to set it, "
            f"found {value!r}"
        )
    if name not in GENERATE:
        raise ValueError(f"generate.{name}: expected one of {', '.join(GENERATE)}, found {name!r}")
    kind = GENERATE[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in accepted)
        raise ValueError(f"generate.{name}: expected {names}, found {value!r}")
