"""Cuts and recordings of Lhotse as JSON, which is all that is needed of it here: importing Lhotse
takes torch and seconds."""

from __future__ import annotations

from typing import Any

from jobs.export.formats import Export, Item
from jobs.export.formats._fields import extra, jsonable, origin, seconds


def recording(item: Item, export: Export, kind: str, source: str) -> dict[str, Any]:
    """The recording that an item is a cut of: its own file, or that of its clip."""
    rate = item["sample_rate"]
    is_link = export.audio == "link"
    samples = None if is_link else item.get("samples")
    samples = samples or round(item["clip_s" if is_link else "duration_s"] * rate)
    channels = list(range(item["channels"] or 1))
    return {
        "id": item["id"],
        "sources": [{"type": kind, "channels": channels, "source": source}],
        "sampling_rate": rate,
        "num_samples": samples,
        "duration": samples / rate,
        "channel_ids": channels,
    }


def cut(item: Item, export: Export, of: dict[str, Any]) -> dict[str, Any]:
    """The cut of an item, with one supervision, as `Cut.to_dict` gives it."""
    start_s = seconds(item["start_s"]) if export.audio == "link" else 0.0
    whole = of["duration"]
    is_rest = export.audio != "link" or item["number"] is None
    duration_s = whole if is_rest else min(seconds(item["duration_s"]), whole - start_s)
    channels: list[int] = of["channel_ids"]
    channel: int | list[int] = channels if len(channels) > 1 else channels[0]
    if export.audio == "link" and item["channel"] and len(channels) > 1:
        channel = item["channel"] - 1
    supervision = {
        "id": item["id"],
        "recording_id": of["id"],
        "start": 0.0,
        "duration": duration_s,
        "channel": channel,
        "text": item["value"] if export.kind == "text" else None,
        "language": item["language"],
        "speaker": item["speaker"],
        "custom": {
            **({"label": item["value"]} if export.kind == "label" else {}),
            **({"score": jsonable(item["score"])} if item["score"] is not None else {}),
        },
    }
    return {
        "id": item["id"],
        "start": start_s,
        "duration": duration_s,
        "channel": channel,
        "supervisions": [{n: v for n, v in supervision.items() if v is not None and v != {}}],
        "recording": of,
        "custom": origin(item) | extra(item),
        "type": "MultiCut" if isinstance(channel, list) else "MonoCut",
    }
