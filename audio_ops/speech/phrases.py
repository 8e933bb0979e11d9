"""Texts that Whisper is known to write where nobody speaks, from `invented_phrases.yaml`."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from audio_ops.speech.transcript import UNSPACED

PHRASES = Path(__file__).with_name("invented_phrases.yaml")


class Inventions(NamedTuple):
    """Patterns of one invention at the start of a `plain` text."""

    credit: re.Pattern[str]  # hardly ever spoken
    any: re.Pattern[str]  # credits, and phrases that are also spoken


def is_credit(text: str) -> bool:
    """Whether the text is nothing but inventions, one of them a credit that nobody speaks."""
    found = _inventions_in(plain(text))
    return any(_inventions().credit.fullmatch(part) for part in found)


def is_phrase(text: str) -> bool:
    """Whether the text is nothing but inventions, which may have been spoken."""
    return bool(_inventions_in(plain(text)))


def plain(text: str) -> str:
    """The text's letters, marks and digits in lower case, in words with a space between them."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(letters).split())


def _inventions_in(text: str) -> list[str]:
    """The inventions that a `plain` text consists of; none if there is anything else in it."""
    found = []
    while text:
        invention = _inventions().any.match(text)
        if invention is None:
            return []
        found.append(invention[0])
        text = text[invention.end() :].lstrip()
    return found


@cache
def _inventions() -> Inventions:
    content = yaml.safe_load(PHRASES.read_text(encoding="utf-8"))
    spaced, unspaced = set[str](), set[str]()
    for language, phrases in content["phrases"].items():
        group = unspaced if language in UNSPACED else spaced
        group.update(re.escape(plain(phrase)) for phrase in phrases)
    credit = "|".join(f"(?:{pattern})" for pattern in content["credits"])
    longest_first = [
        "|".join(sorted(group, key=lambda phrase: (-len(phrase), phrase)))
        for group in (spaced, unspaced)
    ]
    phrase = r"(?:{})(?!\w)|(?:{})".format(*longest_first)
    return Inventions(re.compile(credit), re.compile(rf"(?:{credit})(?!\w)|{phrase}"))
