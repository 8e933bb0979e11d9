"""DuckDB in a bounded part of the memory, and temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.console import one_line

if TYPE_CHECKING:
    import duckdb

MEMORY = "1GB"


class NoScratch(Exception):
    """Temporary files cannot be written. Exit code 1."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder. Raises NoScratch for an error that names it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except Exception as error:  # DuckDB's have no errno
            if folder not in str(error) and "max_temp_directory_size" not in str(error):
                raise
            raise NoScratch(
                f"expected room for temporary files in {tempfile.gettempdir()}, found: "
                f"{one_line(error.__cause__ or error)}: free some, or set TMPDIR to a folder on another disk"
            ) from error


@contextmanager
def spilling(memory: str = MEMORY, *, stored: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that takes at most `memory` and then spills to disk; with `stored`, its tables are always on
    disk. Its progress bar, which it prints after two seconds by default, is off. Raises NoScratch."""
    import duckdb

    with scratch_folder() as scratch:
        file = str(scratch / "tables") if stored else ":memory:"
        with duckdb.connect(file) as database:
            database.execute(f"SET memory_limit = '{memory}'; SET enable_progress_bar = false")
            database.execute("SET temp_directory = ?", [str(scratch)])
            yield database
