"""Names and fields of exported items, as most formats have them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from jobs.export.formats import Export, Item
from jobs.export.select import EXTRA
from jobs.sources._paths import is_local, local_path
from jobs.workers.reopen import place_of

MAX_STEM = 60  # characters of a clip's own name in its id


def id_of(item: Item) -> str:
    """A name that no other item has, of letters, digits, `_` and `-` only: formats give other
    characters meanings. It does not change when the file is written again."""
    place = place_of(item["member"])
    name = place.name if place.kind == "member" else item["source"]
    stem = name.rstrip("/").rpartition("/")[2].partition(".")[0]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:MAX_STEM]
    number = "" if item["number"] is None else f"-{item['number']:04d}"
    return f"{plain or 'clip'}-{item['hash']}{number}"


def one_line(text: str | None) -> str:
    """A text without line ends, tabs and other white space but single spaces."""
    return " ".join((text or "").split())


def seconds(value: float) -> float:
    return round(value, 6)


def span(item: Item) -> tuple[float, float | None]:
    """The start of an item in its file, and its length, or None if it goes to the end of the file."""
    offset_s = seconds(item["offset_s"] + item["start_s"])
    is_rest = place_of(item["member"]).length_s is None and item["number"] is None
    return offset_s, None if is_rest and not offset_s else seconds(item["duration_s"])


def extra(item: Item) -> dict[str, Any]:
    """The columns that are carried along."""
    return {
        name[len(EXTRA) :]: jsonable(value)
        for name, value in item.items()
        if name.startswith(EXTRA)
    }


def labels(item: Item, export: Export) -> dict[str, Any]:
    """What an item is labelled with, and the columns that are carried along; without nulls."""
    values = {
        export.kind: item["value"],
        **{name: jsonable(item[name]) for name in ("score", "language", "speaker")},
        **extra(item),
    }
    return {name: value for name, value in values.items() if value is not None}


def origin(item: Item) -> dict[str, Any]:
    """Where the clip lies that an item was made of; without nulls."""
    start_s = seconds(item["offset_s"] + item["start_s"])
    values = {"source": item["source"], "member": item["member"], "channel": item["channel"]}
    return {n: v for n, v in values.items() if v is not None} | {"source_offset": start_s}


def jsonable(value: Any) -> Any:
    """A value of JSON: times and the like as text, NaN and infinities as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def as_json(value: Mapping[str, Any]) -> str:
    """A line of JSON, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def linked(item: Item) -> str:
    """The path or URL of an item's file."""
    source: str = item["source"]
    return local_path(source) if is_local(source) else source


def unlinkable(item: Item) -> str | None:
    """Why a list of files cannot name an item where it is."""
    if place_of(item["member"]).kind != "file":
        return (
            "the clip lies in a tar or a Parquet file, where no list can name it (--audio wav or flac "
            "takes it out)"
        )
    try:
        linked(item).encode()
    except UnicodeEncodeError:
        return "the file's name is not UTF-8"
    return None


def one_channel(item: Item) -> str | None:
    """Why a list without channels cannot name an item."""
    if item["channel"] is not None and (item["channels"] or 1) > 1:
        return f"the clip is channel {item['channel']} of a file with {item['channels']}"
    return None
