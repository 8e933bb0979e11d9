"""A row of the table as the page shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from audio_ops.errors import ClipError
from jobs.reports.page.database import ReportedTask
from jobs.reports.page.edits import edits
from jobs.reports.page.media import Media
from jobs.table.schema import IDENTITY, OUTCOME, RUN, SOUND

CHARACTERS = 4_000  # of a text
PIECES = 400  # segments or words of a clip, of one task
LABELS = 5

Row = Mapping[str, Any]


def needed_columns(tasks: Sequence[ReportedTask], names: Sequence[str]) -> list[str]:
    """The columns of the table that `shown` reads."""
    columns = [*IDENTITY.names, *SOUND.names, *OUTCOME.names, *RUN.names]
    for task in tasks:
        columns += task.of.values()
        columns += [task.reference] if task.reference else []
    return [name for name in dict.fromkeys(columns) if name in names]


def shown(row: Row, tasks: Sequence[ReportedTask], media: Media | ClipError) -> dict[str, Any]:
    """The values of a row that the page shows, each as it is in the table: the page escapes them."""
    source, _, file = row["source"].rpartition("/")
    start_s = row["offset_s"] or 0.0
    shown_s = media.seconds if isinstance(media, Media) else None
    return {
        "clip_id": row["clip_id"],
        "file": file or source,
        "folder": source if file else "",
        "member": row["member"],
        "start_s": start_s,
        "channel": row.get("channel"),
        "duration_s": row["duration_s"],
        "shown_s": shown_s,
        "is_cut": shown_s is not None and (row["duration_s"] or 0) > shown_s + 0.05,
        "media": media if isinstance(media, Media) else None,
        "reason": media if isinstance(media, ClipError) else None,
        "format": row["format"],
        "sample_rate": row["sample_rate"],
        "flags": row.get("sound_flags") or [],
        "status": row["status"],
        "error": row["error_kind"] and f"{row['error_kind']}: {row['error_message']}",
        "tasks": [_of_task(row, task, shown_s) for task in tasks],
    }


def _of_task(row: Row, task: ReportedTask, shown_s: float | None) -> dict[str, Any]:
    def value(name: str) -> Any:
        return row.get(task.of[name]) if name in task.of else None

    text, label = value("text"), value("label")
    reference = row.get(task.reference) if task.reference else None
    found = {
        "name": task.name,
        "kind": task.kind,
        "score": value("score"),
        "language": value("language"),
        "suspect": value("suspect") or [],
        "error": value("error"),
        "reference": None if reference is None else _cut(str(reference)),
        "reference_error": value("reference_error"),
        "text": None,
        "edits": None,
        "label": None,
        "others": [],
        "correct": None,
        "measure": None,
        "is_empty": text is None and label is None,
        "segments": list(_pieces(value("segments"), shown_s)),
        "words": list(_pieces(value("words"), shown_s)),
    }
    if "text" in task.of:
        is_compared = text is not None and value("wer") is not None
        found |= {
            "text": None if text is None else _cut(text),
            "edits": edits(_cut(str(reference)), _cut(text)) if is_compared else None,
            "measure": _rate(value("wer"), value("cer"), value("compared_by")),
        }
    if "label" in task.of:
        pairs = zip(value("labels") or (), value("scores") or (), strict=False)
        found |= {
            "label": label,
            "others": [pair for pair in pairs if pair[0] != label][: LABELS - 1],
            "correct": value("correct"),
            "measure": None if value("loss") is None else f"loss {value('loss'):.2f}",
        }
    return found


def _pieces(pieces: Sequence[Row] | None, shown_s: float | None) -> Iterator[dict[str, Any]]:
    """Those segments or words that begin within the sound on the page, with their places in percent."""
    if not shown_s:
        return
    for piece in (pieces or ())[:PIECES]:
        start_s, end_s = piece["start_s"], min(piece["end_s"], shown_s)
        if start_s < shown_s:
            yield {
                "start_s": start_s,
                "end_s": end_s,
                "left": 100 * start_s / shown_s,
                "width": 100 * max(end_s - start_s, 0) / shown_s,
                "text": piece.get("text") if "text" in piece else piece.get("label"),
                "score": piece.get("score"),
                "speaker": piece.get("speaker"),
                "suspect": piece.get("suspect") or [],
            }


def _rate(wer: float | None, cer: float | None, compared_by: str | None) -> str | None:
    if wer is None:
        return None
    name, rate = ("CER", cer) if compared_by == "characters" else ("WER", wer)
    return f"{name} {100 * (rate or 0):.0f} %"


def _cut(text: str) -> str:
    if len(text) <= CHARACTERS:
        return text
    return f"{text[:CHARACTERS]} … ({len(text) - CHARACTERS:,} characters more)"
