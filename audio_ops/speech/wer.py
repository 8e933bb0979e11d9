"""Word and character errors of a transcript against its reference, as Whisper counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from audio_ops.inference.transformers_compat import basic_normalizer, english_normalizer
from audio_ops.speech.transcript import UNSPACED

ENGLISH = {"en", "eng", "english"}

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
}


class WordErrors:
    """Compares texts after Whisper's normaliser: for English the English one, which knows numbers,
    titles and contractions; for other languages, or none, the basic one, which removes case,
    punctuation and text in brackets. In languages written without spaces (Chinese, Japanese, Thai,
    ...) each letter counts as a word.

    `spelling`: British to American words, a Whisper checkpoint's `normalizer.json`; {} leaves
    spelling alone.
    """

    def __init__(self, spelling: Mapping[str, str]):
        import jiwer

        self.jiwer = jiwer
        self.english = english_normalizer(spelling)
        self.basic = basic_normalizer()
        self.letters = basic_normalizer(split_letters=True)

    def __call__(self, reference: str | None, text: str, language: str | None) -> dict[str, Any]:
        """`wer`, `cer` and the counts that they are made of, `edits`; {} for no reference.

        A rate is the edits (substituted, deleted, inserted) by the reference's words or
        characters, spaces included, and so may be over 1. An empty reference, or one that the
        normaliser empties, stands for no speech: its rate is the number of words or characters
        invented, 0 for none.
        """
        if reference is None:
            return {}
        true, found = self.normal(reference, language), self.normal(text, language)
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
        }

    def normal(self, text: str, language: str | None) -> str:
        """The text as it is compared, in the language of that code (`en`, `arb`, `zh-TW`)."""
        code = (language or "").lower().replace("_", "-").split("-")[0]
        normaliser: Any = self.letters if code in UNSPACED else self.basic
        if code in ENGLISH:
            normaliser = self.english
        return " ".join(normaliser(text).split())
