"""Builds a report: sums -> lists -> clips -> page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import ClipError
from jobs.reports.evaluate import evaluate
from jobs.reports.page import sums
from jobs.reports.page.clips import read_clips
from jobs.reports.page.database import ReportedTask, opened, reported_tasks
from jobs.reports.page.lists import ClipList, chosen, clip_lists
from jobs.reports.page.media import Media, write_media
from jobs.reports.page.render import rendered
from jobs.reports.page.rows import needed_columns, shown
from jobs.table.table import Table

ROWS_AT_ONCE = 1024
ENCODERS = 2  # threads that write files while the next clips are decoded
CLIPS = "clips"  # the folder of the clips' files


@dataclass(frozen=True)
class Choice:
    """What of a table the page shows.

    clips: at most, of all lists together. seconds: of each of them, at most. seed: of the sample.
    """

    clips: int = 200
    seconds: float = 120.0
    seed: int = 0


class Built(NamedTuple):
    """What a report has: `clips` of `rows`, of which `playable` have sound."""

    rows: int
    clips: int
    playable: int


def build(table: Table, folder: Path, choice: Choice, progress: Callable[[str], None]) -> Built:
    """Write `index.html` and the files of its clips into an empty folder."""
    read = table.newest(lambda: _read(table, choice, progress))
    tasks, found, rows, ids = read.tasks, read.sums, read.rows, list(read.rows)
    media = _media(table, list(rows.values()), folder, choice, progress)
    clips = [
        {"number": number, **shown(rows[clip_id], tasks, media[clip_id])}
        for number, clip_id in enumerate(ids)
    ]
    page = {
        "title": table.path.rstrip("/").rpartition("/")[2] or table.path,
        "path": table.path,
        "version": read.version,
        "made_at": datetime.now(UTC),
        "tasks": _tasks(tasks, found, read.compared["tasks"]),
        "sums": found,
        "other_settings": read.compared["rows_of_other_settings"],
        "lists": [_list(one, ids) for one in read.lists],
        "clips": clips,
        "charts": _charts(tasks, found),
    }
    (folder / "index.html").write_text(rendered(page), encoding="utf-8")
    playable = sum(clip["media"] is not None for clip in clips)
    return Built(found["overall"]["clips"], len(clips), playable)


class _Read(NamedTuple):
    """All that the page says of a version of a table, and the rows that it shows, by clip_id."""

    version: int
    tasks: Sequence[ReportedTask]
    sums: Mapping[str, Any]
    lists: Sequence[ClipList]
    compared: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]


def _read(table: Table, choice: Choice, progress: Callable[[str], None]) -> _Read:
    version, tasks = table.version, reported_tasks(table)
    progress("summing up the rows")
    with opened(table) as database:
        found = sums.summed_up(database, tasks)
        progress("choosing clips")
        lists = clip_lists(database, tasks, choice.clips, choice.seed)
    compared = evaluate(table)
    ids = chosen(lists, choice.clips)
    rows = _rows(table, list(ids), tasks)
    return _Read(version, tasks, found, lists, compared, {id: rows[id] for id in ids})


def _rows(
    table: Table, ids: Sequence[str], tasks: Sequence[ReportedTask]
) -> Mapping[str, Mapping[str, Any]]:
    """The rows with these ids, in one pass in small batches."""
    dataset = table.dataset()
    scanner = dataset.scanner(
        columns=needed_columns(tasks, dataset.schema.names),
        filter=pc.field("clip_id").isin(pa.array(ids, pa.string())),
        batch_size=ROWS_AT_ONCE,
        batch_readahead=4,
        fragment_readahead=1,
    )
    rows = [row for batch in scanner.to_batches() for row in batch.to_pylist()]
    return {row["clip_id"]: {"channel": None, **row} for row in rows}


def _media(
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    choice: Choice,
    progress: Callable[[str], None],
) -> dict[str, Media | ClipError]:
    """Each clip's files, or why it has none."""
    (folder / CLIPS).mkdir()
    own = {row["clip_id"]: (f"{number:04}", row) for number, row in enumerate(rows)}
    files: dict[str, Future[Media] | ClipError] = {}
    waiting: deque[Future[Media]] = deque()
    with ThreadPoolExecutor(ENCODERS) as threads:
        for clip_id, samples in read_clips(table, rows, choice.seconds):
            if isinstance(samples, ClipError):
                files[clip_id] = samples
            else:
                name, row = own[clip_id]
                files[clip_id] = encoding = threads.submit(
                    write_media, folder / CLIPS, name, samples, row["sample_rate"]
                )
                waiting.append(encoding)
                if len(waiting) > 2 * ENCODERS:  # each holds its sound
                    waiting.popleft().result()
            progress(f"reading clips: {len(files):,}/{len(rows):,}")
    return {
        clip_id: file if isinstance(file, ClipError) else file.result()
        for clip_id, file in files.items()
    }


def _list(one: ClipList, ids: Sequence[str]) -> dict[str, Any]:
    """A list with the numbers of its clips that the page has, in the list's order."""
    number = {clip_id: place for place, clip_id in enumerate(ids)}
    here = [number[clip_id] for clip_id in one.clip_ids if clip_id in number]
    return {
        "group": one.group,
        "title": one.title,
        "about": one.about,
        "total": one.total,
        "clips": here,
    }


def _tasks(
    tasks: Sequence[ReportedTask], found: Mapping[str, Any], compared: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Each task's figures, and how its labels compare with their references."""
    return [
        {
            "name": task.name,
            "task": task.task,
            "kind": task.kind,
            "reference": task.reference,
            "when": task.options.get("when"),
            **found["tasks"][task.name],
            "compared": compared.get(task.name),
            "calibration_error": sums.calibration_error(
                found["tasks"][task.name].get("calibration") or []
            ),
        }
        for task in tasks
    ]


def _charts(tasks: Sequence[ReportedTask], found: Mapping[str, Any]) -> dict[str, Any]:
    """The data of each chart, by the name that its place on the page has."""
    charts: dict[str, Any] = {"durations": found["durations"]}
    for number, task in enumerate(tasks):
        figures = found["tasks"][task.name]
        charts[f"{number}-scores"] = figures["scores"]
        charts[f"{number}-words_per_s"] = figures.get("words_per_s")
        known = [row for row in figures.get("calibration") or [] if row["right"] is not None]
        charts[f"{number}-calibration"] = known or None
    return {name: data for name, data in charts.items() if data}
