"""Rows of a data file by their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.table.schema import in_schema
from jobs.table.storage import Storage

ROWS_AT_ONCE = 2048  # in memory


def rows_by_number(
    storage: Storage, name: str, numbers: Sequence[int], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows with these numbers, which ascend, in a schema's columns; of the data file's row groups
    only those needed are read, a few rows at a time."""
    wanted = np.asarray(numbers, np.int64)
    with storage.open(name) as file, pq.ParquetFile(file) as parquet:
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            inside = wanted[(wanted >= start) & (wanted < end)] - start
            first = 0
            for batch in _batches(parquet, group, schema.names) if len(inside) else ():
                here = inside[(inside >= first) & (inside < first + len(batch))] - first
                if len(here):  # first the types, for delta-rs's string_view lacks kernels
                    yield in_schema(pa.Table.from_batches([batch]), schema).take(pa.array(here))
                first += len(batch)
            start = end


def _batches(parquet: pq.ParquetFile, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    have = set(parquet.schema_arrow.names)
    columns = [name for name in names if name in have]
    return parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns)
