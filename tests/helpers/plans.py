"""Plans against rows in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from jobs.planning.committed import COMMITTED, Committed
from jobs.planning.shards import FILES, KNOWN


def in_memory(rows: pa.Table, files: Sequence[str] = ()) -> Committed:
    """A table's rows (`COMMITTED`)."""
    return Committed(lambda names: iter([rows.cast(COMMITTED).select(list(names))]), files)


def with_known(todo: pa.Table, rows: pa.Table) -> pa.Table:
    """A plan as the readers of its shards see it: with those of the rows that are of each shard."""
    if FILES not in todo.column_names:
        return todo
    names = [field.name for field in KNOWN.value_type]
    known = [
        [{n: row[n] for n in names} for row in rows.to_pylist() if row["source"] == source]
        for source in todo["source"].to_pylist()
    ]
    return todo.drop_columns([FILES]).append_column("known", pa.array(known, KNOWN))
