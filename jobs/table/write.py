"""Labelled clips -> one data file of the table, in the worker that has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audio_ops.schemas import ERROR
from jobs.shared_storage import expect_probe
from jobs.table.schema import OUTCOME, RUN, WRITTEN, in_schema
from jobs.table.storage import Storage


def write_rows(
    table: pa.Table,
    *,
    schema: pa.Schema,
    tasks: Mapping[str, Sequence[str]],
    path: str,
    storage_options: Mapping[str, Any],
    run_id: str,
    fingerprint: str,
    probe: str | None = None,
) -> pa.Table:
    """Write labelled clips as one data file under a new name; returns its row of `WRITTEN`.

    `schema` is the table's, `tasks` has each task's label columns. Plain readers of the folder never see half a file: it gets its name when it is whole. Where
    there are no rows there is no file, and its path is null. A clip that could not be read has no
    row if the one that it would take the place of has labels: these stay, and the next run tries
    again. Raises OSError with the path.
    """
    expect_probe(probe)
    is_end = table["shard_end"].is_valid()
    ends = table.filter(is_end).select(["source", "source_version", "shard_end"]).to_pylist()
    shards = [{**end.pop("shard_end"), **end} for end in ends]
    table = table.filter(pc.invert(is_end))
    if not len(table):
        return pa.Table.from_pylist([{"shards": shards}], schema=WRITTEN)
    table = _with_outcome(table, tasks)
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
    is_unread = pc.equal(table["error_kind"], "unreadable")
    spared = pc.fill_null(pc.and_(is_unread, table["replaces_labels"]), False)
    table = table.filter(pc.invert(spared))
    if not len(table):
        return pa.Table.from_pylist([about], schema=WRITTEN)
    about["supersedes"] = table["supersedes"].drop_null().to_pylist()
    for field, value in zip(RUN, (run_id, fingerprint, datetime.now(timezone.utc)), strict=True):
        table = table.append_column(field, pa.array([value] * len(table), field.type))
    name = f"part-{run_id}-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(in_schema(table, schema), sink, compression="zstd")
    Storage(path, storage_options).write(name, sink.getvalue())
    about |= {"path": name, "size_bytes": sink.getvalue().size, "rows": len(table)}
    return pa.Table.from_pylist([about], schema=WRITTEN)


def _with_outcome(table: pa.Table, tasks: Mapping[str, Sequence[str]]) -> pa.Table:
    """Set `status` and the first failure of each row from what the stages left.

    A task that was not run on a clip, for its `when` is not true of it, has neither labels nor an
    error there. `tasks` says which columns are each one's labels.
    """
    errors = table.select(ERROR.names).to_pylist()
    failures = table.select([f"{task}_error" for task in tasks]).to_pylist()
    labels = {
        task: [table[name] for name in names if name in table.column_names]
        for task, names in tasks.items()
    }
    outcome: dict[str, list[str | None]] = {name: [] for name in OUTCOME.names}
    for row, (error, failed) in enumerate(zip(errors, failures, strict=True)):
        first = next((task for task in tasks if failed[f"{task}_error"]), None)
        if error["error_kind"]:
            status, (stage, kind, message) = "error", error.values()
        elif first:
            good = [task for task in tasks if not failed[f"{task}_error"]]
            has_label = any(column[row].is_valid for task in good for column in labels[task])
            kind, _, message = failed[f"{first}_error"].partition(": ")
            status, stage = "partial" if has_label else "error", first
        else:
            status, stage, kind, message = "ok", None, None, None
        for name, value in zip(OUTCOME.names, (status, stage, kind, message), strict=True):
            outcome[name].append(value)
    table = table.drop_columns(ERROR.names)
    for name, values in outcome.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table
