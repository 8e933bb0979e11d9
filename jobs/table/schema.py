"""The columns of a table, and those that accompany them from the readers to the commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from audio_ops.schemas import ERROR, SOUND
from audio_ops.tasks import TaskOptions, load_task
from jobs.sources import PLACE

# `channel` is null for the mean of all channels, and in errors of a whole recording.
IDENTITY = pa.schema([("clip_id", pa.string()), *PLACE, ("channel", pa.int32())])
OUTCOME = pa.schema([("status", pa.string()), *ERROR])
RUN = pa.schema(
    [
        ("run_id", pa.string()),
        ("fingerprint", pa.string()),
        ("labelled_at", pa.timestamp("us", "UTC")),
    ]
)
# A clip of a recording whose channels are labelled one by one: the `clip_id` that the plan has for
# the recording, and the number of its rows. They are committed together.
RECORDING = pa.struct([("id", pa.string()), ("rows", pa.int32())])
# The rows that a clip's new row replaces, and whether one of those has labels.
CHANGE = pa.schema(
    [
        ("supersedes", pa.list_(pa.string())),
        ("replaces_labels", pa.bool_()),
        ("_recording", RECORDING),
    ]
)
# The outcome of a shard that was read to the end, in a row of its own after the shard's clips.
SHARD_END = pa.struct(
    [
        ("clips", pa.int64()),  # in the shard
        ("skipped", pa.int64()),  # of them, as they were already done
        ("obsolete", pa.list_(pa.string())),  # clip_ids of rows whose clips are no longer in it
        ("kept", pa.list_(pa.string())),  # of rows that stay although their clips were not found
        ("digest", pa.string()),  # of the clip_ids of its clips, see `plan.digest`
        # What else is in it, by extension.
        ("passed_over", pa.map_(pa.string(), pa.int64())),
        ("part", pa.float64()),  # of its bytes that was read: 1, or less for a sample
    ]
)
# The columns of `shards.parquet`.
SHARDS = pa.schema(
    [
        ("source", pa.string()),
        ("source_version", pa.string()),
        *(SHARD_END.field(name) for name in ("clips", "kept", "digest")),
    ]
)
# The columns that `write_rows` returns to the driver, in a row per data file.
WRITTEN = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("rows", pa.int64()),  # in the file
        ("audio_s", pa.float64()),
        ("source", pa.string()),  # of its first clip; if the input has shards, of all its clips
        ("clip_ids", pa.list_(pa.string())),  # of all clips, including those without a row
        ("supersedes", pa.list_(pa.string())),  # clip_ids of the rows that its rows replace
        ("recordings", pa.list_(RECORDING)),  # of all clips, null for those that are no channel
        ("statuses", pa.list_(pa.string())),  # of all clips
        ("errors", pa.list_(pa.struct([(n, pa.string()) for n in ("kind", "source", "message")]))),
        # Shards that were read to the end.
        ("shards", pa.list_(pa.struct([*list(SHARDS)[:2], *SHARD_END]))),
    ]
)


# Columns that older tables do not have. The next run adds them, null in the rows that are there.
ADDED_LATER = ("sound_flags", "channel")


class TableMismatch(Exception):
    """The table's columns or settings are not those of this run. Exit code 2."""


def table_schema(tasks: Mapping[str, TaskOptions], kept: pa.Schema) -> pa.Schema:
    """The table's columns, from the config alone. Raises TableMismatch for two of the same name."""
    fields: list[tuple[str, pa.Field]] = [("", f) for f in [*IDENTITY, *SOUND, *OUTCOME]]
    for name, options in tasks.items():
        columns = {**load_task(options.task).columns(options), "error": pa.string()}
        fields += [
            (f"tasks.{name}", pa.field(f"{name}_{c}", type_)) for c, type_ in columns.items()
        ]
    fields += [("output.keep", field) for field in kept] + [("", field) for field in RUN]
    makers: dict[str, list[str]] = {}
    for maker, field in fields:
        makers.setdefault(field.name, []).append(maker)
    twice = {name: keys for name, keys in makers.items() if len(keys) > 1}
    if twice:
        raise TableMismatch("\n".join(_clash(name, keys) for name, keys in twice.items()))
    return pa.schema([field for _, field in fields])


def _clash(column: str, keys: Sequence[str]) -> str:
    """A line on a column that comes from two keys of the config ("": from every table)."""
    where = ", ".join(sorted(filter(None, set(keys))))
    others = " that every table has" if "" in keys else ""
    what = "rename a task" if "tasks." in where else "keep it under another name in the source"
    return f"{where}: expected each column once, found {column}{others} twice: {what}"


def label_columns(schema: pa.Schema, tasks: Collection[str]) -> dict[str, list[str]]:
    """Each task's columns in a `table_schema`, which precede its error, without the latter."""
    columns, start = {}, schema.names.index(OUTCOME.names[-1]) + 1
    for task in tasks:
        end = schema.names.index(f"{task}_error")
        columns[task] = schema.names[start:end]
        start = end + 1
    return columns


def in_schema(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with a schema's columns, in its order and types; missing columns are null."""
    columns = [
        rows[field.name].cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
