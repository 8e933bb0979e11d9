"""Token ids that a checkpoint's JSON files name, compared with its vocabulary. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from audio_ops.inference.checkpoint import Checkpoint

GENERATION, CONFIG = "generation_config.json", "config.json"
OF_ANOTHER = "take the tokenizer's files from the checkpoint that the weights are from"


def check_ids(named: Iterable[tuple[str, Any]], size: int, checkpoint: Checkpoint) -> None:
    """Raise ValueError for a token id that is not one of the `size` of the vocabulary.

    named: `file: key` and what it holds: an id, several, or None for none.
    """
    for key, value in named:
        ids = value if isinstance(value, list) else [value]
        wrong = [id for id in ids if id is not None and not _is_id(id, size)]
        if wrong:
            raise ValueError(
                f"model: expected token ids from 0 to {size - 1}, as many as vocab_size in "
                f"config.json has, found {', '.join(map(repr, wrong[:3]))} as {key} in "
                f"{checkpoint.source}: take both files from one checkpoint"
            )


def check_start_and_end(checkpoint: Checkpoint, starts: Iterable[str]) -> None:
    """Raise ValueError if generation_config.json says neither with which token the decoder starts, by
    any of the keys `starts`, or none with which a text ends. Without that file config.json counts."""
    generation = checkpoint.json(GENERATION)
    for keys in (starts, ("eos_token_id",)) if generation else ():
        if all(generation.get(key) is None for key in keys):
            raise ValueError(
                f"model: expected {' or '.join(keys)} in {GENERATION}, without which the decoder "
                f"{'runs on' if keys == ('eos_token_id',) else 'cannot start'}, found none in "
                f"{checkpoint.source}: take the file from the checkpoint that this one was trained from"
            )


def check_names(named: Iterable[tuple[str, str, Any]], checkpoint: Checkpoint) -> None:
    """Raise ValueError for a token that has another id in the tokenizer.

    named: `file: key`, the token, and the id that it has there. Tokens that the tokenizer's files do not
    name are passed over.
    """
    tokens = vocabulary(checkpoint)
    for key, token, id in named:
        if tokens.get(token, id) != id:
            raise ValueError(
                f"model: expected id {tokens[token]} for {token}, as in the tokenizer, found {id} as "
                f"{key} in {checkpoint.source}: take both files from one checkpoint"
            )


def vocabulary(checkpoint: Checkpoint, language: str | None = None) -> dict[str, int]:
    """The ids of a tokenizer's tokens, of one language if there is a vocabulary for each.

    Tokens that were added behind the vocabulary count: `len(tokenizer)`, to which most fine-tuned
    models set their number of outputs, includes them.
    """
    tokens: dict[str, Any] = checkpoint.json("vocab.json")
    if any(isinstance(value, dict) for value in tokens.values()):
        named = language or checkpoint.json("tokenizer_config.json").get("target_lang")
        tokens = tokens.get(str(named)) or {}
    if not tokens:
        whole = checkpoint.json("tokenizer.json")
        pieces = (whole.get("model") or {}).get("vocab") or {}
        tokens = pieces if isinstance(pieces, dict) else {p[0]: n for n, p in enumerate(pieces)}
        tokens |= {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
    return tokens and tokens | _added_tokens(checkpoint)


def _added_tokens(checkpoint: Checkpoint) -> dict[str, int]:
    """The tokens in added_tokens.json, and in tokenizer_config.json, where it stands since 2023."""
    decoder = checkpoint.json("tokenizer_config.json").get("added_tokens_decoder") or {}
    return checkpoint.json("added_tokens.json") | {
        token["content"]: int(id) for id, token in decoder.items()
    }


def ctc_blank(checkpoint: Checkpoint) -> str:
    """The blank of a CTC model: its tokenizer's padding token."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = checkpoint.json(file).get("pad_token")
        if token is not None:
            return str(token["content"] if isinstance(token, dict) else token)
    return "<pad>"


def check_ctc(checkpoint: Checkpoint, language: str | None, size: int) -> None:
    """Raise ValueError if the tokenizer is not that of a CTC model with `size` outputs."""
    tokens, blank = vocabulary(checkpoint, language), ctc_blank(checkpoint)
    if not tokens:
        return  # a tokenizer of other files
    odd = next((token for token, id in tokens.items() if type(id) is not int), None)
    if odd is not None:
        raise ValueError(
            f"model: expected a whole number for each token, found {tokens[odd]!r} for {odd!r} in the "
            f"tokenizer of {checkpoint.source}: {OF_ANOTHER}"
        )
    last = max(tokens.values())
    if last + 1 < size:
        raise ValueError(
            f"model: expected a token for each of the model's {size} outputs, found "
            f"{last + 1} in the tokenizer of {checkpoint.source}: {OF_ANOTHER}"
        )
    if tokens.get(blank, size) >= size:
        raise ValueError(
            f"model: expected the blank, the tokenizer's pad_token, among the model's {size} "
            f"outputs, found {blank!r} with id {tokens.get(blank)} in {checkpoint.source}: "
            f"{OF_ANOTHER}"
        )
    trained = checkpoint.json(CONFIG).get("pad_token_id")
    if trained is not None and trained != tokens[blank]:
        raise ValueError(
            f"model: expected one blank, found id {trained} as config.json: pad_token_id and id "
            f"{tokens[blank]} as pad_token {blank!r} of the tokenizer in {checkpoint.source}: "
            f"{OF_ANOTHER}; if only pad_token_id is wrong, correct it"
        )


def _is_id(id: Any, size: int) -> bool:
    return type(id) is int and 0 <= id < size
