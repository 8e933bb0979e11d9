"""Word and character errors of a transcript against its reference."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from audio_ops.inference.transformers_compat import english_normalizer, language_code
from audio_ops.speech.normal import (
    CHINESE,
    ENGLISH,
    is_latin,
    is_unspaced,
    language_of,
    letters,
    plain,
    spoken,
)

COLUMNS = {
    "wer": pa.float32(),
    "cer": pa.float32(),
    "edits": pa.struct(
        {
            "words": pa.int32(),
            "word_edits": pa.int32(),
            "characters": pa.int32(),
            "character_edits": pa.int32(),
        }
    ),
    "compared_by": pa.string(),
    "reference_error": pa.string(),
}


class WordErrors:
    """Compares texts as `normal.py` writes them, English ones after Whisper's own normaliser, which
    knows numbers, titles, contractions and British spelling, Chinese ones in simplified
    characters."""

    def __init__(self) -> None:
        import jiwer
        import opencc
        from whisper_normalizer.english import EnglishSpellingNormalizer

        self.jiwer = jiwer
        self.simplified = opencc.OpenCC("t2s").convert
        # OpenAI's words. A checkpoint has them in normalizer.json, or, from transformers 5, not.
        self.english = english_normalizer(EnglishSpellingNormalizer().mapping)

    def __call__(self, reference: str | None, text: str, language: str | None) -> dict[str, Any]:
        """`wer`, `cer`, the counts that they are made of (`edits`), and which of them counts
        (`compared_by` `words` or `characters`); {} for no reference.

        A rate is the edits (substituted, deleted, inserted) by the reference's words or
        characters, spaces included, and so may be over 1. An empty reference, or one that the
        normaliser empties, stands for no speech: its rate is the number of words or characters
        invented, 0 for none. Where words are not spaced, each letter counts as a word, and spaces
        do not count.

        Raises ValueError for a reference that is no text but a list or an object as JSON.
        """
        if reference is None:
            return {}
        if _is_json(reference):
            raise ValueError(f"expected a text, found JSON: {reference[:80]}")
        code = language_of(language, language_code)
        if code in CHINESE:
            reference, text = self.simplified(reference), self.simplified(text)
        true, found = plain(reference, code), plain(text, code)
        sample = true or found
        unspaced = is_unspaced(sample, code)
        if unspaced:
            words = self.jiwer.process_words(" ".join(letters(true)), " ".join(letters(found)))
            true, found = "".join(true.split()), "".join(found.split())
        else:
            if code in ENGLISH and is_latin(sample):
                true, found = self._english(reference), self._english(text)
            words = self.jiwer.process_words(true, found)
        characters = self.jiwer.process_characters(true, found)
        edits = {
            "words": words.hits + words.substitutions + words.deletions,
            "word_edits": words.substitutions + words.deletions + words.insertions,
            "characters": characters.hits + characters.substitutions + characters.deletions,
            "character_edits": (
                characters.substitutions + characters.deletions + characters.insertions
            ),
        }
        return {
            "wer": edits["word_edits"] / max(edits["words"], 1),
            "cer": edits["character_edits"] / max(edits["characters"], 1),
            "edits": edits,
            "compared_by": "characters" if unspaced else "words",
        }

    def _english(self, text: str) -> str:
        """What is left of `wait...` or a `$` alone in Whisper's normaliser is no word."""
        words = self.english(spoken(text)).split()
        return " ".join(word for word in words if any(map(str.isalnum, word)))


def _is_json(text: str) -> bool:
    """Whether a text is an object, or a list with texts or objects in it, as JSON."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or any(isinstance(item, str | dict | list) for item in value)
