"""DuckDB in a bounded part of the memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MEMORY = "1GB"


@contextmanager
def spilling(memory: str = MEMORY, *, stored: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that takes at most `memory` and then spills to disk; with `stored`, its tables are always on
    disk. Its progress bar, which it prints after two seconds by default, is off."""
    import duckdb

    with tempfile.TemporaryDirectory() as scratch:
        file = str(Path(scratch, "tables")) if stored else ":memory:"
        with duckdb.connect(file) as database:
            database.execute(f"SET memory_limit = '{memory}'; SET enable_progress_bar = false")
            database.execute("SET temp_directory = ?", [scratch])
            yield database
