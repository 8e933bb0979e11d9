"""The rows of a CSV or TSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jobs.export.formats import Export, Item
from jobs.export.formats._fields import extra, seconds, span
from jobs.export.formats._files import path_of


def names(export: Export) -> list[str]:
    """The columns' names: `source` and `member`, or `path` where the export has or names files."""
    place = ["source", "member", "channel", "offset"] if export.audio == "none" else ["path"]
    place += ["offset"] if export.audio == "link" else []
    own = ["duration", export.kind, "score", "language", "speaker", "id"]
    return [*place, *own, *export.columns]


def fields(item: Item, export: Export) -> Sequence[str]:
    """A row's fields, in the order of `names`."""
    values: dict[str, Any] = {name: item[name] for name in ("source", "member", "channel", "id")}
    values |= {name: item[name] for name in ("score", "language", "speaker")} | extra(item)
    values |= {"offset": span(item)[0], "duration": seconds(item["duration_s"])}
    values |= {export.kind: item["value"]}
    if export.audio != "none":
        values["path"] = path_of(item, export)
    return [_text(values[name]) for name in names(export)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
