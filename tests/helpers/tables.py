"""Tables as the tests open and hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from audio_ops.schemas import TASK_FAILURE, failure_column
from audio_ops.tasks import TaskOptions
from jobs.fingerprints import fingerprint, fingerprints
from jobs.sources import NO_COLUMNS
from jobs.table.schema import CHANGE, RUN, SHARD_END, label_columns, table_schema
from jobs.table.storage import Storage
from jobs.table.table import HeldTable, Table, hold
from jobs.table.write import WriteSettings, write_rows


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


@dataclass(frozen=True)
class TableOf:
    """What tables of made-up rows have in common."""

    tasks: Mapping[str, TaskOptions]
    settings: Mapping[str, Any]
    kept: pa.Schema = NO_COLUMNS  # columns of the source
    without: Sequence[str] = ()  # columns that the table lacks
    fingerprint: str | None = None  # of all tasks; None: those of `settings`

    def write(
        self,
        folder: Path | str,
        *parts: Sequence[dict[str, Any]],
        options: Mapping[str, Any] | None = None,
    ) -> Table:
        """A table in a folder with these rows, by one run: each part is a data file until the end."""
        whole = table_schema(self.tasks, self.kept)
        schema = pa.schema([field for field in whole if field.name not in self.without])
        fields = [field for field in schema if field.name not in ("status", *RUN.names)]
        given = pa.schema([*fields, *CHANGE, ("shard_end", SHARD_END)])
        table = held(f"{folder}/table", "run", schema, self.settings, options)
        prints = fingerprints(self.settings)
        settings = WriteSettings(
            schema=schema,
            tasks=label_columns(schema, self.tasks),
            path=table.path,
            storage_options=options or {},
            run_id="run",
            fingerprints={task: self.fingerprint or prints[task] for task in self.tasks},
        )
        for part in filter(None, parts):
            rows = pa.Table.from_pylist(list(part), schema=given)
            table.commit(write_rows(with_failures(rows, self.tasks), settings).to_pylist())
        table.tidy()
        table.release()
        return table


def as_before(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Make a table of the layout before: one fingerprint in each row, and in the log of each run."""
    rows = DeltaTable(str(path)).to_pyarrow_table()
    made_with = fingerprint(settings)
    names = [name for name in rows.column_names if not name.endswith(("_fingerprint", "_run_id"))]
    old = rows.select([name for name in names if name != "labelled_at"])
    old = old.append_column("fingerprint", pa.array([made_with] * len(rows)))
    old = old.append_column("labelled_at", rows["labelled_at"])
    write_deltalake(str(path), old, mode="overwrite", schema_mode="overwrite")
    table = DeltaTable(str(path))
    table.alter.set_table_description(json.dumps(settings))
    for file in Path(path).glob("part-*.parquet"):
        if file.name not in {Path(uri).name for uri in table.file_uris()}:
            file.unlink()
    for file in Path(path, "_delta_log").glob("*.json"):
        text = file.read_text()
        note = json.dumps({"fingerprints": fingerprints(settings)})[1:-1].replace('"', '\\"')
        file.write_text(text.replace(note, f'\\"fingerprint\\": \\"{made_with}\\"'))
