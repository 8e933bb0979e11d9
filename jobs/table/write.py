"""Labelled clips -> one data file of the table, in the worker that has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audio_ops.schemas import ERROR, failure_column
from jobs.shared_storage import expect_probe
from jobs.table.schema import OUTCOME, RUN, WRITTEN, in_schema
from jobs.table.storage import Storage


@dataclass(frozen=True)
class WriteSettings:
    """Where labelled clips are written, and what is written beside them."""

    schema: pa.Schema  # of the table
    tasks: Mapping[str, Sequence[str]]  # each task's label columns
    path: str  # of the table
    storage_options: Mapping[str, Any] = field(repr=False)
    run_id: str
    fingerprint: str
    probe: str | None = None  # see `jobs.shared_storage`


def write_rows(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write labelled clips as one data file under a new name; returns its row of `WRITTEN`.

    Plain readers of the folder never see half a file: it gets its name when it is whole. Without
    rows there is no file, and `path` is null. A clip that could not be read gets no row if the row
    that it would replace has labels: those stay, and the next run tries again.

    Raises OSError with the path.
    """
    expect_probe(settings.probe)
    is_end = table["shard_end"].is_valid()
    ends = table.filter(is_end).select(["source", "source_version", "shard_end"]).to_pylist()
    shards = [{**end.pop("shard_end"), **end} for end in ends]
    table = table.filter(pc.invert(is_end))
    if not len(table):
        return pa.Table.from_pylist([{"shards": shards}], schema=WRITTEN)
    table = _with_outcome(table, settings.tasks)
    failed = table.filter(table["error_kind"].is_valid())
    about = {
        "audio_s": pc.sum(table["duration_s"]).as_py() or 0.0,
        "source": table["source"][0].as_py(),
        "clip_ids": table["clip_id"].to_pylist(),
        "statuses": table["status"].to_pylist(),
        "errors": [
            {"kind": kind, "source": source, "message": message}
            for kind, source, message in zip(
                *(failed[n].to_pylist() for n in ("error_kind", "source", "error_message")),
                strict=True,
            )
        ],
        "shards": shards,
    }
    if "_recording" in table.column_names:
        about["recordings"] = table["_recording"].to_pylist()
    is_unread = pc.equal(table["error_kind"], "unreadable")
    spared = pc.fill_null(pc.and_(is_unread, table["replaces_labels"]), False)
    table = table.filter(pc.invert(spared))
    if not len(table):
        return pa.Table.from_pylist([about], schema=WRITTEN)
    about["supersedes"] = [id for ids in table["supersedes"].to_pylist() for id in ids or ()]
    run = settings.run_id, settings.fingerprint, datetime.now(timezone.utc)
    for column, value in zip(RUN, run, strict=True):
        table = table.append_column(column, pa.array([value] * len(table), column.type))
    name = f"part-{settings.run_id}-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(in_schema(table, settings.schema), sink, compression="zstd")
    Storage(settings.path, settings.storage_options).write(name, sink.getvalue())
    about |= {"path": name, "size_bytes": sink.getvalue().size, "rows": len(table)}
    return pa.Table.from_pylist([about], schema=WRITTEN)


def _with_outcome(table: pa.Table, tasks: Mapping[str, Sequence[str]]) -> pa.Table:
    """Set each row's `status` and its first failure. `tasks` has each task's label columns.

    A task whose `when` is not true of a clip has neither labels nor an error there.
    """
    errors = table.select(ERROR.names).to_pylist()
    failures = table.select([failure_column(task) for task in tasks]).to_pylist()
    labels = {
        task: [table[name] for name in names if name in table.column_names]
        for task, names in tasks.items()
    }
    outcome: dict[str, list[str | None]] = {name: [] for name in OUTCOME.names}
    for row, (error, failed) in enumerate(zip(errors, failures, strict=True)):
        first = next((task for task in tasks if failed[failure_column(task)]), None)
        if error["error_kind"]:
            status, (stage, kind, message) = "error", error.values()
        elif first:
            good = [task for task in tasks if not failed[failure_column(task)]]
            has_label = any(column[row].is_valid for task in good for column in labels[task])
            kind, message = failed[failure_column(first)].values()
            status, stage = "partial" if has_label else "error", first
        else:
            status, stage, kind, message = "ok", None, None, None
        for name, value in zip(OUTCOME.names, (status, stage, kind, message), strict=True):
            outcome[name].append(value)
    table = table.drop_columns(ERROR.names)
    for name, values in outcome.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table
