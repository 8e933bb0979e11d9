"""Brace ranges and lists in paths, as webdataset and NeMo write them."""

from __future__ import annotations

import re

from jobs.sources import BadInput

MAX_NAMES = 1_000_000  # of one path
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")


def expand_braces(path: str) -> list[str]:
    """The names of `a-{000..123}.tar`, `{a,b}.tar` and of NeMo's `a_OP_0..9_CL_.tar`, in order."""
    return list(dict.fromkeys(_expanded(path.replace("_OP_", "{").replace("_CL_", "}"))))


def _expanded(path: str) -> list[str]:
    for match in _BRACES.finditer(path):
        if choices := _choices(match[1]):
            before, after = path[: match.start()], path[match.end() :]
            names = [name for choice in choices for name in _expanded(before + choice + after)]
            if len(names) > MAX_NAMES:
                raise BadInput(f"input.path: expected at most {MAX_NAMES:,} names in {path}")
            return names
    return [path]


def _choices(inside: str) -> list[str]:
    """The texts that `{inside}` expands to; none if it is neither a range nor a list."""
    if "," in inside:
        return inside.split(",")
    if not (match := _RANGE.fullmatch(inside)):
        return []
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
    if abs(last - first) // step >= MAX_NAMES:
        raise BadInput(f"input.path: expected at most {MAX_NAMES:,} names of {{{inside}}}")
    is_padded = any(re.match(r"-?0\d", end) for end in match.groups()[:2])
    width = max(len(match[1]), len(match[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}}" for number in numbers]
