"""Languages as people write them -> the codes of a checkpoint. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.inference.transformers_compat import language_code

# All two-letter codes of ISO 639.
TWO_LETTERS = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de "
    "dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia "
    "id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo "
    "lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl "
    "ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti "
    "tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)


def code_among(written: str, known: Iterable[str]) -> str | None:
    """The code of `known` for a language written as that code in any case, as its English name, or with
    a region that the code leaves out (`en-US` for `en`) or without the only one that it has (`de` for
    `de-DE`). None if there is none, or more than one."""
    codes = list(known)
    if written in codes:
        return written
    plain = {_plain(code): code for code in codes}
    name = _plain(language_code(written.strip("<|> ").lower()))
    if name in plain:
        return plain[name]
    language = name.partition("-")[0]
    if language in plain:
        return plain[language]
    regions = [code for code in codes if _plain(code).startswith(f"{name}-")]
    return regions[0] if len(regions) == 1 else None


def no_languages(checkpoint: Checkpoint) -> Iterable[str]:
    """Those of a family that takes none."""
    return ()


def _plain(code: str) -> str:
    return code.lower().replace("_", "-")
