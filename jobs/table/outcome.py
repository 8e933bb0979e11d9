"""The outcome of a clip: its `status`, and the first failure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import KINDS
from audio_ops.schemas import ERROR, TASK_FAILURE, failure_column
from jobs.table.schema import ERROR_OF_READING, OUTCOME, without_marks


def with_outcome(
    table: pa.Table,
    tasks: Mapping[str, Sequence[str]],
    among: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    """The rows with their `status` and first failure. `tasks` has each task's label columns.

    A task whose `when` is not true of a clip has neither labels nor an error there. With `among`
    only failures of these tasks count, in the rows where they are true.
    """
    errors = table.select(ERROR.names).to_pylist()
    failures: dict[str, list[Any]] = {}
    for task in tasks:
        if (column := failure_column(task)) in table.column_names:
            failures[task] = table[column].to_pylist()
            if among is not None:
                counts = among[task].to_pylist() if task in among else [False] * len(table)
                failures[task] = [
                    f if c else None for f, c in zip(failures[task], counts, strict=True)
                ]
    labels = {
        task: [table[name] for name in names if name in table.column_names]
        for task, names in tasks.items()
    }
    outcome: dict[str, list[str | None]] = {name: [] for name in OUTCOME.names}
    for row, error in enumerate(errors):
        failed = {task: of_task[row] for task, of_task in failures.items() if of_task[row]}
        if error["error_stage"] in ERROR_OF_READING:
            status, (stage, kind, message) = "error", error.values()
        elif failed:
            stage, first = next(iter(failed.items()))
            good = [columns for task, columns in labels.items() if task not in failed]
            has_label = any(column[row].is_valid for columns in good for column in columns)
            status = "partial" if has_label else "error"
            kind, message = first.values()
        else:
            status, stage, kind, message = "ok", None, None, None
        for name, value in zip(OUTCOME.names, (status, stage, kind, message), strict=True):
            outcome[name].append(value)
    table = table.drop_columns([name for name in OUTCOME.names if name in table.column_names])
    for name, values in outcome.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


def kept_failures(errors: pa.ChunkedArray) -> pa.Array:
    """TASK_FAILURE of each `T_error` that the table holds, where a kind precedes the message."""
    found = []
    for text in errors.to_pylist():
        kind = next((kind for kind in KINDS if text and text.startswith(f"{kind}: ")), None)
        found.append({"kind": kind, "message": text[len(kind) + 2 :]} if kind else None)
    return pa.array(found, TASK_FAILURE)


def without_failures(
    rows: pa.Table, tasks: Collection[str], labels: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Rows of a table whose outcomes are those of the other tasks, of which `labels` has the columns."""
    failed = [
        rows[name].is_valid() for task in tasks if (name := f"{task}_error") in rows.column_names
    ]
    if not len(rows) or not any(pc.any(one).as_py() for one in failed):
        return rows
    whole = rows
    for task in labels:
        if (name := f"{task}_error") in rows.column_names:
            whole = whole.append_column(failure_column(task), kept_failures(rows[name]))
    names = {task: without_marks(task, columns) for task, columns in labels.items()}
    return with_outcome(whole, names).select(rows.column_names)
