"""Labelled clips -> one data file of the table, in the worker that has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audio_ops.label import DUE, is_due, put
from jobs.shared_storage import expect_probe
from jobs.table.outcome import with_outcome
from jobs.table.schema import (
    ERROR_OF_READING,
    RUN,
    WRITTEN,
    fingerprint_column,
    in_schema,
    run_column,
)
from jobs.table.storage import Storage


@dataclass(frozen=True)
class WriteSettings:
    """Where labelled clips are written, and what is written beside them."""

    schema: pa.Schema  # of the table
    tasks: Mapping[str, Sequence[str]]  # each task's label columns
    path: str  # of the table
    storage_options: Mapping[str, Any] = field(repr=False)
    run_id: str
    fingerprints: Mapping[str, str]  # of the tasks that this run runs
    probe: str | None = None  # see `jobs.shared_storage`
    bits: Mapping[str, int] = field(default_factory=dict)  # each task's place in `_due`


def write_rows(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write labelled clips as one data file under a new name; returns its row of `WRITTEN`.

    Plain readers of the folder never see half a file: it gets its name when it is whole. Without
    rows there is no file, and `path` is null. A clip that could not be read gets no row if the row
    that it would replace has labels, nor does one that could not be decoded if some of these are to
    stay: then the row stays, and the next run tries again.

    The statuses that it returns are those of this run's work, whatever failed before.

    Raises OSError with the path.
    """
    expect_probe(settings.probe)
    is_end = table["shard_end"].is_valid()
    ends = table.filter(is_end).select(["source", "source_version", "shard_end"]).to_pylist()
    shards = [{**end.pop("shard_end"), **end} for end in ends]
    table = table.filter(pc.invert(is_end))
    if not len(table):
        return pa.Table.from_pylist([{"shards": shards}], schema=WRITTEN)
    due = {task: is_due(table, settings.bits.get(task)) for task in settings.fingerprints}
    is_partial = DUE in table.column_names
    whole = with_outcome(table, settings.tasks)
    work = with_outcome(table, settings.tasks, due) if is_partial else whole
    failed, table = work.filter(work["error_kind"].is_valid()), whole
    about = {
        "audio_s": pc.sum(table["duration_s"]).as_py() or 0.0,
        "source": table["source"][0].as_py(),
        "clip_ids": table["clip_id"].to_pylist(),
        "statuses": work["status"].to_pylist(),
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
    has_labels = pc.fill_null(pc.and_(is_unread, table["replaces_labels"]), False)
    is_failed = pc.is_in(table["error_stage"], value_set=pa.array(ERROR_OF_READING))
    is_written = pc.invert(pc.or_(has_labels, pc.and_(is_failed, table["_keeps"].is_valid())))
    table, due = table.filter(is_written), {task: due[task].filter(is_written) for task in due}
    if not len(table):
        return pa.Table.from_pylist([about], schema=WRITTEN)
    about["supersedes"] = [id for ids in table["supersedes"].to_pylist() for id in ids or ()]
    for column, value in zip(RUN, (settings.run_id, datetime.now(UTC)), strict=True):
        table = table.append_column(column, pa.array([value] * len(table), column.type))
    for task, print_ in settings.fingerprints.items():
        table = put(table, fingerprint_column(task), pa.repeat(print_, len(table)), due[task])
        table = put(table, run_column(task), pa.repeat(settings.run_id, len(table)), due[task])
    name = f"part-{settings.run_id}-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(in_schema(table, settings.schema), sink, compression="zstd")
    Storage(settings.path, settings.storage_options).write(name, sink.getvalue())
    about |= {"path": name, "size_bytes": sink.getvalue().size, "rows": len(table)}
    return pa.Table.from_pylist([about], schema=WRITTEN)
