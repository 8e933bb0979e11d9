"""Texts that a prompted recogniser generated -> transcripts, with speakers and times. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audio_ops.speech.phrases import plain
from audio_ops.speech.prompted.kinds import QWEN3, Kind

MIN_REPEATED = 4  # words of a prompt: fewer may well have been spoken
# What chat models say about a sound instead of what is in it, each a pattern of a whole `plain` text. People
# say "sorry, I can't hear you" and "the sound is great": what they would not say names the recording.
SOUND = r"(?:audio|recording|sound file|audio file|audio clip|clip)"
CANNOT = r"(?:cannot|can not|can t|am unable to|m unable to|am not able to|m not able to)"
REMARKS = (
    rf".{{0,40}}\bi {CANNOT} (?:directly )?transcribe\b.*",
    rf".{{0,40}}\bi {CANNOT} (?:directly )?(?:process|access|hear|listen to|play|analyze|understand|interpret)"
    rf" .{{0,30}}\b{SOUND}s?\b.*",
    rf"(?:i m sorry|i am sorry|sorry) (?:but )?i {CANNOT} assist (?:you )?with (?:that|this)(?: request)?",
    r"as an? (?:ai|artificial intelligence|language model)\b.*",
    r"(?:there is|there s|i hear|i detect) no (?:(?:audible|discernible|intelligible|clear) )?"
    r"(?:speech|spoken (?:content|words))\b.*",
    rf"(?:the|this) {SOUND} (?:contains|does not contain|doesn t contain|consists of|features)\b.*",
    rf"(?:the|this) {SOUND} (?:is|appears to be|seems to be) (?:silent|empty|blank|inaudible|unclear|not clear"
    r"|too short)\b.*",
    r"(?:(?:sure|certainly|of course|okay|ok) )?(?:here is|here s) (?:the|a|your) transcri.*",
    rf"please (?:provide|upload|share) .{{0,20}}\b{SOUND}\b.*",
    r"no (?:speech|audio)(?: (?:is )?(?:detected|found|provided|present))?",
    r"(?:blank|inaudible|silent) audio",
)
CHAT = re.compile("|".join(f"(?:{one})" for one in REMARKS))


@dataclass(frozen=True)
class Turn:
    """A part of a window by one speaker, with its times in the window if the model writes them."""

    text: str
    start_s: float | None = None
    end_s: float | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Answer:
    """The transcript in a generated text."""

    text: str
    turns: Sequence[Turn] = ()
    language: str | None = None


def read(processor: Any, kind: Kind, tokens: Sequence[int]) -> Answer:
    """What a window's tokens say, read by the processor's own `decode` as on the model's page."""
    if kind.answer == "language":
        parsed = processor.decode(list(tokens), return_format="parsed")
        name = parsed["language"]
        codes = {value: code for code, value in QWEN3.items()}
        return Answer(parsed["transcription"], language=codes.get(name, name))
    if kind.answer == "framed":
        [text] = processor.decode([list(tokens)], skip_special_tokens=True, strip_prefix=True)
        return Answer(text)
    if kind.answer == "speakers":
        return _of_turns(processor.decode(list(tokens), return_format="parsed"))
    text = processor.decode(list(tokens), skip_special_tokens=True)
    if kind.answer == "tags":
        written = processor.decode(list(tokens), skip_special_tokens=False)
        tagged = processor.extract_speaker_dict(written)
        if any(one["Speaker"] is not None for one in tagged):
            return _of_turns(tagged)
    return Answer(text)


def _of_turns(parsed: str | Sequence[Mapping[str, Any]]) -> Answer:
    """An answer of speakers' turns; of another form, as when it was cut off, it is a text."""
    if isinstance(parsed, str):
        return Answer(parsed)
    turns = [_turn(one) for one in parsed]
    return Answer(" ".join(turn.text for turn in turns if turn.text), turns)


def _turn(written: Mapping[str, Any]) -> Turn:
    times = [written.get(key) for key in ("Start", "End")]
    start_s, end_s = (float(t) if isinstance(t, int | float) else None for t in times)
    speaker = written.get("Speaker")
    text = str(written.get("Content") or "").strip()
    return Turn(text, start_s, end_s, None if speaker is None else str(speaker))


def is_chat(text: str, prompts: Sequence[str]) -> bool:
    """Whether a text is no transcript: a chat model's remark, or one of the request's own `prompts`."""
    words = plain(text)
    for prompt in map(plain, prompts):
        is_long = len(prompt.split()) >= MIN_REPEATED
        if (words and words == prompt) or (is_long and f" {prompt} " in f" {words} "):
            return True
    return bool(CHAT.fullmatch(words))
