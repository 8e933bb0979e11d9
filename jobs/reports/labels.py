"""A table's rows in DuckDB, which reads the columns that a query names, and spills what is too large."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.table.table import Table

if TYPE_CHECKING:
    import duckdb

MEMORY = "1GB"  # beyond which DuckDB uses the disk
LATER = {"channel": "INTEGER", "channels": "INTEGER", "sound_flags": "VARCHAR[]"}


@contextmanager
def connected(table: Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the view `labels`: the committed rows, as the log names them. Columns that the
    table does not have yet (`LATER`) are null."""
    import duckdb

    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(":memory:") as connection:
        connection.execute(f"SET TimeZone = 'UTC'; SET memory_limit = '{MEMORY}'")
        connection.execute("SET temp_directory = ?", [scratch])
        stored = table.dataset()
        connection.register("stored", stored)
        missing = [f"NULL::{LATER[n]} AS {n}" for n in LATER if n not in stored.schema.names]
        columns = ", ".join(["*", *missing])
        connection.execute(f"CREATE TEMP VIEW labels AS SELECT {columns} FROM stored")
        yield connection


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
