"""A text against its reference, with the edits between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from audio_ops.speech.normal import is_unspaced, letters, plain

Kind = Literal["same", "other", "missing", "added"]


class Edit(NamedTuple):
    """Words that are the `same`, `other` ones, `missing` from the text, or `added` to the reference."""

    kind: Kind
    reference: str
    text: str


class _Token(NamedTuple):
    key: str  # as it is compared
    shown: str


def edits(reference: str, text: str) -> list[Edit]:
    """How to get from a reference to a text, by words, or letters where words are not spaced.

    Case and punctuation are not compared. Numbers and spellings are, unlike in WER, whose normaliser
    knows them.
    """
    import jiwer

    unspaced = is_unspaced(reference or text, "")
    true, found = _tokens(reference, unspaced), _tokens(text, unspaced)
    if not true or not found:
        parts = [Edit("missing", token.shown, "") for token in true]
        return _joined([*parts, *(Edit("added", "", token.shown) for token in found)], unspaced)
    aligned = jiwer.process_words(
        " ".join(token.key for token in true), " ".join(token.key for token in found)
    )
    parts = []
    for chunk in aligned.alignments[0]:
        ours = true[chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        parts += _parts(chunk.type, ours, theirs)
    return _joined(parts, unspaced)


def _parts(kind: str, ours: Sequence[_Token], theirs: Sequence[_Token]) -> Iterator[Edit]:
    if kind == "insert":
        yield from (Edit("added", "", token.shown) for token in theirs)
    elif kind == "delete":
        yield from (Edit("missing", token.shown, "") for token in ours)
    else:
        same: Kind = "same" if kind == "equal" else "other"
        for left, right in zip(ours, theirs, strict=True):
            yield Edit(same, left.shown, right.shown)


def _tokens(text: str, unspaced: bool) -> list[_Token]:
    """The words or letters of a text. Punctuation alone belongs to the one before it."""
    tokens: list[_Token] = []
    between = "" if unspaced else " "
    before = ""
    for part in letters(text) if unspaced else text.split():
        if key := "".join(plain(part, "").split()):
            tokens.append(_Token(key, f"{before}{part}"))
            before = ""
        elif tokens:
            tokens[-1] = _Token(tokens[-1].key, f"{tokens[-1].shown}{between}{part}")
        else:
            before = f"{before}{part}{between}"
    return tokens


def _joined(parts: Sequence[Edit], unspaced: bool) -> list[Edit]:
    """Neighbours of a kind as one."""
    between = "" if unspaced else " "
    joined = []
    for kind, group in groupby(parts, lambda part: part.kind):
        same = list(group)
        reference = between.join(part.reference for part in same if part.reference)
        text = between.join(part.text for part in same if part.text)
        joined.append(Edit(kind, reference, text))
    return joined
