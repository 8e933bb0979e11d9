"""The columns of a table, and those that accompany them from the readers to the commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from audio_ops.schemas import ERROR, SOUND
from audio_ops.tasks import TaskOptions, load_task
from jobs.sources import PLACE

# `channel` is null for the mean of all channels, and in errors of a whole recording.
IDENTITY = pa.schema([("clip_id", pa.string()), *PLACE, ("channel", pa.int32())])
OUTCOME = pa.schema([("status", pa.string()), *ERROR])
ERROR_OF_READING = ("read", "decode")  # stages before the first task
RUN = pa.schema([("run_id", pa.string()), ("labelled_at", pa.timestamp("us", "UTC"))])
# A clip of a recording whose channels are labelled one by one: the `clip_id` that the plan has for
# the recording, and the number of its rows. They are committed together.
RECORDING = pa.struct([("id", pa.string()), ("rows", pa.int32())])
# The rows that a clip's new row replaces, whether one of those has labels, and the `clip_id` of the
# one whose labels by tasks that are not due the new row takes over.
CHANGE = pa.schema(
    [
        ("supersedes", pa.list_(pa.string())),
        ("replaces_labels", pa.bool_()),
        ("_recording", RECORDING),
        ("_keeps", pa.string()),
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


def fingerprint_column(task: str) -> str:
    """The name of the column with the fingerprint of a task's labels, see `jobs.fingerprints`."""
    return f"{task}_fingerprint"


def run_column(task: str) -> str:
    """The name of the column with the id of the run that made a task's labels."""
    return f"{task}_run_id"


class TableMismatch(Exception):
    """The table's columns or settings are not those of this run. Exit code 2."""


def table_schema(tasks: Mapping[str, TaskOptions], kept: pa.Schema) -> pa.Schema:
    """The table's columns, from the config alone. Raises TableMismatch for two of the same name, whose
    case Delta tables do not tell."""
    fields: list[tuple[str, pa.Field]] = [("", f) for f in [*IDENTITY, *SOUND, *OUTCOME]]
    for name, options in tasks.items():
        columns = {**load_task(options.task).columns(options), "error": pa.string()}
        fields += [
            (f"tasks.{name}", pa.field(f"{name}_{c}", type_)) for c, type_ in columns.items()
        ]
        made = (fingerprint_column(name), run_column(name))
        fields += [(f"tasks.{name}", pa.field(column, pa.string())) for column in made]
    fields += [("output.keep", field) for field in kept] + [("", field) for field in RUN]
    makers: dict[str, list[tuple[str, str]]] = {}
    for maker, field in fields:
        makers.setdefault(field.name.lower(), []).append((maker, field.name))
    if twice := [each for each in makers.values() if len(each) > 1]:
        raise TableMismatch("\n".join(map(_clash, twice)))
    return pa.schema([field for _, field in fields])


def _clash(columns: Sequence[tuple[str, str]]) -> str:
    """A line on columns of one name, each with the key of the config that it comes from ("": from every
    table)."""
    keys, names = (set(each) for each in zip(*columns, strict=True))
    where = ", ".join(sorted(filter(None, keys)))
    others = " that every table has" if "" in keys else ""
    how = "twice" if len(names) == 1 else "(whose case Delta tables ignore)"
    what = "rename a task" if "tasks." in where else "keep it under another name in the source"
    return f"{where}: expected each column once, found {' and '.join(sorted(names))}{others} {how}: {what}"


def label_columns(schema: pa.Schema, tasks: Collection[str]) -> dict[str, list[str]]:
    """Each task's columns in a `table_schema`, which precede its error, without the latter."""
    columns, start = {}, schema.names.index(OUTCOME.names[-1]) + 1
    for task in tasks:
        end = schema.names.index(f"{task}_error")
        columns[task] = schema.names[start:end]
        start = schema.names.index(run_column(task)) + 1
    return columns


def columns_by_task(
    names: Collection[str], tasks: Collection[str], kept: Collection[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """A table's columns that begin with a task's name, by task, and those that come from the source.
    Those `kept` do, whatever their names are."""
    fixed = {*IDENTITY.names, *SOUND.names, *OUTCOME.names, *RUN.names, "fingerprint"}
    of_task: dict[str, list[str]] = {task: [] for task in tasks}
    carried = []
    for name in names:
        owners = [task for task in tasks if name.startswith(f"{task}_") and name not in kept]
        if owners:
            of_task[max(owners, key=len)].append(name)
        elif name not in fixed:
            carried.append(name)
    return of_task, carried


def labels_left(
    names: Collection[str],
    settings: Mapping[str, Any],
    tasks: Collection[str],
    kept: Collection[str],
) -> dict[str, list[str]]:
    """The label columns, by task, that a table with these columns and settings has of tasks that are
    no longer in the config, whose `tasks` these are."""
    left = settings.get("left", {})
    columns, _ = columns_by_task(names, [*tasks, *left], kept)
    return {task: without_marks(task, columns[task]) for task in left}


def without_marks(task: str, columns: Sequence[str]) -> list[str]:
    """A task's columns without its error, fingerprint and run."""
    marks = (f"{task}_error", fingerprint_column(task), run_column(task))
    return [column for column in columns if column not in marks]


def in_schema(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with a schema's columns, in its order and types; missing columns are null."""
    columns = [
        rows[field.name].cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
