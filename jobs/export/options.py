"""What an export is asked for, and how its parts are named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# none: no sound and no link to it · link: files stay where they are · copy: bytes as they are, where
# a clip is a whole file or member, else FLAC · flac, wav: decoded and encoded, 16 bits.
Audio = Literal["none", "link", "copy", "flac", "wav"]
FIELDS = (
    *("id", "text", "label", "score", "language", "speaker", "audio", "path", "file_name"),
    *("audio_filepath", "offset", "duration", "source", "member", "channel", "shard_id"),
)


class BadExport(Exception):
    """An export that cannot be made as it is asked for: expected, found. Exit code 2."""


@dataclass(frozen=True)
class Cut:
    """Segments in place of whole clips.

    pad_s: seconds added at both ends, as far as the clip goes.
    min_s, max_s: bounds on a segment's length with them; others are left out.
    """

    pad_s: float = 0.0
    min_s: float = 0.0
    max_s: float = float("inf")


@dataclass(frozen=True)
class Options:
    """An export, but for its table and its folder."""

    format: str
    task: str | None = None  # whose text or label is exported; None: the only one
    where: str | None = None  # SQL
    cut: Cut | None = None
    audio: Audio | None = None  # None: the format's first
    sample_rate: int | None = None  # Hz; None: as stored
    split: Mapping[str, float] | str | None = None  # shares by part, or a column
    group_by: str | None = None
    speaker: str | None = None  # a column
    columns: Mapping[str, str] | None = None  # more columns of the table, with the names they get
    shard_clips: int = 2_000
    shard_mb: int = 512


def split_of(text: str) -> Mapping[str, float] | str:
    """Shares by part of `train=0.98,dev=0.02`, or the name of a column. Raises BadExport."""
    if "=" not in text:
        return text
    shares: dict[str, float] = {}
    for one in text.split(","):
        name, _, share = one.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise BadExport(
                f"--split: expected shares as in train=0.98,dev=0.02, found {one!r}"
            ) from None
    wrong = [name for name in shares if not re.fullmatch(r"[A-Za-z0-9_]+", name)]
    if wrong or len(shares) != text.count(",") + 1:
        raise BadExport(
            f"--split: expected different names of letters, digits and _, found {text!r}"
        )
    if not all(0 < share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise BadExport(f"--split: expected shares above 0 that add up to 1, found {text!r}")
    return shares


def columns_of(arguments: Sequence[str]) -> dict[str, str]:
    """Exported names of columns `a,b=c`, by column. Raises BadExport."""
    names: dict[str, str] = {}
    for one in [one for argument in arguments for one in argument.split(",") if one]:
        column, _, name = one.partition("=")
        names[column] = name or column
    for column, name in names.items():
        if name in FIELDS:
            raise BadExport(
                f"--columns: expected a name that the format does not use itself, found {name!r}: "
                f"give it another one, as in {column}=my_{name}"
            )
    if len(set(names.values())) < len(names):
        raise BadExport(f"--columns: expected different names, found {', '.join(names.values())}")
    return names


def part_names(values: Sequence[str | None]) -> dict[str | None, str]:
    """Names for folders and splits, of the values of a column: letters, digits and `_`, each once."""
    names: dict[str | None, str] = {}
    for value in values:
        plain = re.sub(r"[^A-Za-z0-9_]+", "_", value or "none").strip("_")[:60] or "part"
        name, count = plain, 1
        while name.lower() in {other.lower() for other in names.values()}:
            count += 1
            name = f"{plain}_{count}"
        names[value] = name
    return names
