"""Tables as the tests open and hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.table.storage import Storage
from jobs.table.table import HeldTable, Table, hold


def existing(path: str | Path, options: Mapping[str, Any] | None = None) -> Table:
    """A table that is there."""
    table = Table.open(Storage(str(path), options))
    assert table is not None, f"expected a table at {path}"
    return table


def held(
    path: str | Path,
    run_id: str,
    schema: pa.Schema,
    settings: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> HeldTable:
    """A table, made if there is none, that a run has just looked at and takes."""
    storage = Storage(str(path), options)
    table = Table.open(storage)
    return hold(storage, run_id, schema, settings, table.settings() if table else {})
