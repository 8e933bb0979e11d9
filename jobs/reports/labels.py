"""A table's rows in DuckDB, which reads the columns that a query names, and spills what is too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset

from jobs.spilling import spilling
from jobs.table.table import Table

if TYPE_CHECKING:
    import duckdb

STEPS = {"batch_size": 8192, "batch_readahead": 4, "fragment_readahead": 1}
LATER = {"channel": "INTEGER", "channels": "INTEGER", "sound_flags": "VARCHAR[]"}


@contextmanager
def connected(table: Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the view `labels`: the committed rows, as the log names them. Columns that the
    table does not have yet (`LATER`) are null."""
    with spilling() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        stored = _SmallSteps.of(table.dataset())
        connection.register("stored", stored)
        missing = [f"NULL::{LATER[n]} AS {n}" for n in LATER if n not in stored.schema.names]
        columns = ", ".join(["*", *missing])
        connection.execute(f"CREATE TEMP VIEW labels AS SELECT {columns} FROM stored")
        yield connection


class _SmallSteps(pa.dataset.FileSystemDataset):
    """A data set that is read in small steps: of its own accord Arrow decodes 16 batches of 131,072 rows
    ahead in each of four files, beside DuckDB's memory and whatever that is limited to."""

    @classmethod
    def of(cls, found: pa.dataset.FileSystemDataset) -> _SmallSteps:
        return cls(list(found.get_fragments()), found.schema, found.format, found.filesystem)

    def scanner(self, **options: Any) -> pa.dataset.Scanner:
        """See Arrow's; DuckDB names the columns and the filter."""
        return super().scanner(**{**STEPS, **options})


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
