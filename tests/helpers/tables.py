"""Tables as the tests open and hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from audio_ops.schemas import TASK_FAILURE, failure_column
from jobs.table.storage import Storage
from jobs.table.table import HeldTable, Table, hold


def existing(path: str | Path, options: Mapping[str, Any] | None = None) -> Table:
    """A table that is there."""
    table = Table.open(Storage(str(path), options))
    assert table is not None, f"expected a table at {path}"
    return table


def held(
    path: str | Path,
    run_id: str,
    schema: pa.Schema,
    settings: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> HeldTable:
    """A table, made if there is none, that a run has just looked at and takes."""
    storage = Storage(str(path), options)
    table = Table.open(storage)
    return hold(storage, run_id, schema, settings, table.settings() if table else {})


def with_failures(rows: pa.Table, tasks: Iterable[str]) -> pa.Table:
    """Rows as a task's actor hands them to the writer: beside each `T_error` its kind and message."""
    for task in tasks:
        errors = rows[f"{task}_error"].to_pylist()
        failures = [
            error and dict(zip(("kind", "message"), error.split(": ", 1), strict=True))
            for error in errors
        ]
        rows = rows.append_column(failure_column(task), pa.array(failures, TASK_FAILURE))
    return rows
