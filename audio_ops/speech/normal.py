"""Texts as they are compared, in every language and script: without what a writer may leave out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import regex

from audio_ops.speech.transcript import UNSPACED

ENGLISH = {"en", "eng"}
# Languages whose dotted i and dotless ı are two letters, in capitals as in small ones.
TWO_LETTERS_I = {"tr", "tur", "az", "aze", "azj", "crh", "gag", "kaa"}
# Letters with two code points, of which a language has one, or of which a writer may take either.
_ROMANIAN = str.maketrans("şţ", "șț")
_PERSIAN = str.maketrans("يك", "یک")
# Russian prints ё as е, but in books for children and where it tells two words apart.
_RUSSIAN = str.maketrans("ё", "е")
# Serbian and its kin are written in both scripts, letter by letter.
_LATIN = str.maketrans("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš") | {
    ord("љ"): "lj",
    ord("њ"): "nj",
    ord("џ"): "dž",
}
SAME_LETTERS: dict[str, dict[int, Any]] = {
    **dict.fromkeys(("ro", "ron", "rum", "mo"), _ROMANIAN),
    **dict.fromkeys(("fa", "fas", "pes", "prs", "per", "ur", "urd"), _PERSIAN),
    **dict.fromkeys(("ru", "rus"), _RUSSIAN),
    **dict.fromkeys(("sr", "srp", "bs", "bos", "hr", "hrv", "sh", "hbs", "cnr"), _LATIN),
}
# Languages written in traditional or in simplified characters, Whisper's own choice.
CHINESE = {"zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "hak", "hsn", "gan", "cdo", "cjy"}
UNSPACED_SCRIPTS = "".join(
    rf"\p{{{name}}}"
    for name in (
        *("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"),
        *("Javanese", "Balinese", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
    )
)

APOSTROPHES = regex.compile("[\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02bd\u055a\uff07`\u00b4]")
BRACKETS = regex.compile(r"[<\[][^>\]]*[>\]]"), regex.compile(r"\([^)]+\)")
UNCLOSED = regex.compile(r"[<\[(]")
JOINERS = regex.compile(r"(?<=\p{Arabic})\u200c|\u200b")  # that part words, or parts of a word
DOT_OF_I = regex.compile("(?<=[iįịj])\u0307")
# Vowel points and signs of recitation in Arabic and Hebrew, tatweel, Cyrillic's accents of stress.
OPTIONAL = regex.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
    "|[\u0610-\u061a\u0640\u064b-\u0652\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]"
    "|[\u08d3-\u08e1\u08e3-\u08ff]"
    r"|(?<=\p{Cyrillic})[\u0300\u0301]"
)
INVISIBLE = regex.compile("[\\p{Cf}\\p{Me}\ufe00-\ufe0f\U000e0100-\U000e01ef]")
PUNCTUATION = regex.compile(r"[\p{P}\p{S}\p{Z}\p{Cc}]+")
LOOSE_MARKS = regex.compile(r"(?<![\p{L}\p{M}\p{N}])\p{M}+")
TONE_BEFORE_VOWEL = regex.compile("([\u0e48-\u0e4b])\u0e4d|([\u0ec8-\u0ecb])\u0ecd")
DIGITS = regex.compile(r"(?![0-9])\p{Nd}")
LETTER = regex.compile(r"\p{L}")
LATIN = regex.compile(r"(?=\p{L})\p{Latin}")
UNSPACED_LETTER = regex.compile(rf"(?=\p{{L}})[{UNSPACED_SCRIPTS}]")
CHILLUS = {  # letters without a vowel, once written with a joiner: Malayalam's
    f"{letter}\u0d4d\u200d": chillu for letter, chillu in zip("ണനരലളക", "ൺൻർൽൾൿ", strict=True)
} | {"ত\u09cd\u200d": "ৎ"}  # Bengali's only one
# Vietnamese hòa and hoà, thủy and thuỷ: the older and the newer place of a tone on two vowels.
TONE_ON_SECOND = regex.compile(r"(?<!q)(o[àáảãạèéẻẽẹ]|u[ỳýỷỹỵ])(?![\p{L}\p{M}])")


def language_of(language: str | None, code_of_name: Callable[[str], str]) -> str:
    """The first part of a language's code (`zh-TW` and `Chinese` are `zh`), "" for None."""
    name = (language or "").strip().lower().replace("_", "-")
    return code_of_name(name).split("-")[0]


def spoken(text: str) -> str:
    """The text in compatible and composed characters (NFKC), with one kind of apostrophe, without
    characters that nobody sees, and without what stands in brackets, such as `[noise]`."""
    text = APOSTROPHES.sub("'", unicodedata.normalize("NFKC", APOSTROPHES.sub("'", text)))
    for joined, chillu in CHILLUS.items():
        text = text.replace(joined, chillu)
    text = INVISIBLE.sub("", JOINERS.sub(" ", text))
    for brackets, closing in zip(BRACKETS, (">]", ")"), strict=True):
        end = max(map(text.rfind, closing)) + 1  # behind it each opening would be a search in vain
        text = brackets.sub("", text[:end]) + text[end:]
    return " ".join(UNCLOSED.sub(" ", text).split())


def plain(text: str, language: str) -> str:
    """The words of a text in a language of that code, with single spaces between them.

    Case is folded as in that language, punctuation and symbols become spaces, and digits those of
    Latin script. Marks stay with their letters, except for those that writers leave out at will.
    """
    text = spoken(text)
    if language in TWO_LETTERS_I:
        text = text.replace("I", "ı").replace("İ", "i")
    text = unicodedata.normalize("NFC", DOT_OF_I.sub("", text.casefold())).replace("ٱ", "ا")
    if language in ("vi", "vie"):
        text = TONE_ON_SECOND.sub(_with_tone_on_first, text)
    text = OPTIONAL.sub("", text.translate(SAME_LETTERS.get(language, {})))
    text = TONE_BEFORE_VOWEL.sub(lambda m: m[0][::-1], text)
    text = DIGITS.sub(lambda m: str(unicodedata.decimal(m[0], m[0])), text)
    return " ".join(LOOSE_MARKS.sub("", PUNCTUATION.sub(" ", text)).split())


def _with_tone_on_first(pair: regex.Match[str]) -> str:
    decomposed = unicodedata.normalize("NFD", pair[0])  # two vowels and the tone
    return unicodedata.normalize("NFC", decomposed[0] + decomposed[2]) + decomposed[1]


def letters(text: str) -> list[str]:
    """Each letter of a text with its marks, without spaces."""
    return regex.findall(r"\X", "".join(text.split()))


def is_unspaced(text: str, language: str) -> bool:
    """Whether a text has no spaces between its words: by its script, and for a text in several
    scripts or none by the code of its language."""
    found, own = len(LETTER.findall(text)), len(UNSPACED_LETTER.findall(text))
    if found and (not own or 2 * own >= found):
        return bool(own)
    return language in UNSPACED


def is_latin(text: str) -> bool:
    """Whether most of a text's letters are Latin ones; True for a text without letters."""
    return 2 * len(LATIN.findall(text)) >= len(LETTER.findall(text))
