"""What the new row of a clip takes over from the table: the labels by tasks that are not due on it."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.label import DUE, put
from audio_ops.schemas import SOUND, failure_column
from jobs.clips import ALL
from jobs.fingerprints import fingerprint_of, run_of
from jobs.planning.committed import RowSettings
from jobs.table.outcome import kept_failures
from jobs.table.rows import rows_by_number
from jobs.table.schema import (
    ERROR_OF_READING,
    columns_by_task,
    fingerprint_column,
    run_column,
)


@dataclass(frozen=True)
class KeptSettings:
    """Where the rows are from which labels are taken over, and which columns these are.

    tasks: each task's columns, in the order of their bits in `_due`.
    left: those of tasks that are no longer in the config, which are never due.
    carried: columns of the source.
    """

    rows: RowSettings
    tasks: Mapping[str, Sequence[str]]
    left: Mapping[str, Sequence[str]]
    carried: Sequence[str]


def kept_settings(rows: RowSettings, tasks: Collection[str], kept: Collection[str]) -> KeptSettings:
    """Settings for a table's rows, and a config's tasks and the columns of the source that it keeps."""
    left = rows.settings.get("left", {})
    columns, carried = columns_by_task(rows.schema.names, [*tasks, *left], kept)
    return KeptSettings(
        rows,
        {name: columns[name] for name in tasks},
        {name: columns[name] for name in left},
        carried,
    )


def due_of(channel: int | None, own: Sequence[Mapping[str, Any]]) -> tuple[int, str | None]:
    """The tasks that are due on a clip with these rows of the table (see `jobs.planning.plan.ROW`), all if some
    of its channels have none; and the id of one whose labels stay in part."""
    of_channels = channel is None and bool(own) and own[0]["channel"] is not None
    is_whole = len(own) == (own[0]["channels"] if of_channels else 1)
    due = reduce(operator.or_, (row["due"] for row in own)) if is_whole else ALL
    return due, next((row["clip_id"] for row in own if row["due"] != ALL), None)


def without_kept(plan: pa.Table) -> pa.Table:
    """A stretch of the plan as sources get it: with `_keeps`, the id of a row whose labels stay, in
    place of `_kept`."""
    if "_kept" not in plan.column_names:
        return plan
    rows = plan["_kept"].combine_chunks()
    ids = [
        next((r["clip_id"] for r in of or () if r["due"] != ALL), None) for of in rows.to_pylist()
    ]
    return plan.drop_columns(["_kept"]).append_column("_keeps", pa.array(ids, pa.string()))


class KeptRows:
    """The rows of the table that new rows of a stretch of the plan take labels over from."""

    def __init__(self, plan: pa.Table, settings: KeptSettings) -> None:
        self.settings = settings
        rows = sorted(_kept(plan), key=lambda row: (row["file"], row["row"]))
        self.due = {row["clip_id"]: row["due"] for row in rows}
        self.at = {row["clip_id"]: number for number, row in enumerate(rows)}
        self.rows = self._read(rows)

    def beside(self, clips: pa.Table) -> pa.Table:
        """Prepared clips with `_due` and, of tasks that are not due, the columns that the table has;
        levels and the source's columns are those of the row as well.

        If a clip could not be decoded before, its row has no labels to keep. If it still cannot, the
        fingerprints stay. If it can, they go: tasks that are not due now have never run on the clip, and
        are due in the next run.
        """
        ids = clips["_keeps"].to_pylist()
        at = pa.array([self.at.get(id) for id in ids], pa.int64())
        due = pa.array([self.due.get(id, ALL) for id in ids], pa.int64())
        was_unread = pc.is_in(self.rows["error_stage"], value_set=pa.array(ERROR_OF_READING)).take(
            at
        )
        place = clips.column_names.index("_keeps")
        has_labels = pc.if_else(pc.fill_null(was_unread, True), None, clips["_keeps"])
        clips = clips.set_column(place, clips.field(place), has_labels)
        has_run = pc.invert(pc.and_(was_unread, clips["error_kind"].is_null()))
        rows = self.rows.take(at)
        for name in (*SOUND.names, *self.settings.carried):
            if name not in clips.column_names:
                clips = clips.append_column(name, rows[name])
            elif name in rows.column_names:
                clips = put(clips, name, rows[name].combine_chunks(), rows[name].is_valid())
        columns = {DUE: due}
        for bit, (task, names) in enumerate(self.settings.tasks.items()):
            is_due = pc.not_equal(pc.bit_wise_and(due, pa.scalar(1 << bit, pa.int64())), 0)
            columns |= {name: _unless(is_due, rows[name]) for name in self._of(task, names)}
        for task, names in self.settings.left.items():
            columns |= {name: rows[name].combine_chunks() for name in self._of(task, names)}
        marks = {mark(task) for task in self._tasks() for mark in (fingerprint_column, run_column)}
        for name, values in columns.items():
            if name in marks:
                values = pc.if_else(has_run, values, pa.scalar(None, pa.string()))
            clips = clips.append_column(name, values)
        return clips

    def _tasks(self) -> list[str]:
        return [*self.settings.tasks, *self.settings.left]

    def _of(self, task: str, names: Sequence[str]) -> list[str]:
        made = (fingerprint_column(task), run_column(task), failure_column(task))
        return [n for n in dict.fromkeys((*names, *made)) if n in self.rows.column_names]

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """The rows, in this order, with the fingerprint, run and failure of each task; without the
        columns of tasks that are due on all of them."""
        settings, schema = self.settings, self.settings.rows.schema
        for bit, names in enumerate(settings.tasks.values()):
            if all(row["due"] >> bit & 1 for row in rows):
                schema = pa.schema([field for field in schema if field.name not in names])
        storage = settings.rows.storage()
        parts = [schema.empty_table()]
        for file, of_file in groupby(rows, key=lambda row: row["file"]):
            name, numbers = settings.rows.files[file], [row["row"] for row in of_file]
            parts += storage.retrying(lambda: list(rows_by_number(storage, name, numbers, schema)))  # noqa: B023
        found = pa.concat_tables(parts).combine_chunks()
        return self._made(found)

    def _made(self, rows: pa.Table) -> pa.Table:
        import pyarrow.dataset as ds

        names, settings = rows.schema.names, self.settings.rows.settings
        made = {}
        for task in self._tasks():
            prints = fingerprint_of(task, settings, names)
            made[fingerprint_column(task)] = prints
            nobody = pc.scalar(pa.scalar(None, pa.string()))
            made[run_column(task)] = pc.if_else(prints.is_valid(), run_of(task, names), nobody)
        kept = {name: pc.field(name) for name in names if name not in made}
        rows = ds.dataset(rows).to_table(columns={**kept, **made})
        for task in self._tasks():
            if f"{task}_error" in names:
                failures = kept_failures(rows[f"{task}_error"])
                rows = rows.append_column(failure_column(task), failures)
        return rows


def _kept(plan: pa.Table) -> Iterator[Mapping[str, Any]]:
    """The rows of the table, by their place, whose labels stay in part. All channels of a recording
    get new rows if one of them does."""
    if "_kept" in plan.column_names:
        for rows in plan["_kept"].to_pylist():
            yield from (row for row in rows or () if row["due"] != ALL)
        return
    for rows in plan["known"].to_pylist():
        is_due = {(row["member"], row["offset_s"]) for row in rows if row["due"]}
        for row in rows:
            if row["due"] != ALL and (row["member"], row["offset_s"]) in is_due:
                yield row


def _unless(is_due: pa.Array, column: pa.ChunkedArray) -> pa.Array:
    return pc.if_else(is_due, pa.scalar(None, column.type), column.combine_chunks())
