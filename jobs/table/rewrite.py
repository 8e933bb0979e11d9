"""Rewrites data files: without some rows, or in the table's current types.

delta-rs's MERGE would be a separate transaction, and writes types that pandas and Ray cannot read
(delta-rs#4302).
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from jobs.table.log import ROWS_AT_ONCE, Log
from jobs.table.schema import in_schema
from jobs.table.storage import Storage

LOOKUPS_AT_ONCE = 16  # of files
Actions = list[AddAction | RemoveAction]


class Rewriter:
    """Rewrites data files; its run commits the actions that it returns."""

    def __init__(self, storage: Storage, log: Log, run_id: str) -> None:
        self.storage, self.log, self.run_id = storage, log, run_id
        self._hashes_of: dict[str, np.ndarray] = {}  # of the ids in a file, once it was read

    def without(self, old: Collection[str]) -> tuple[Actions, dict[str, int]]:
        """The actions that remove the rows with these clip_ids, and the number of these rows by run."""
        hashes = np.unique(_hashes(old))
        actions: Actions = []
        taken: Counter[str] = Counter()
        for name in self.log.names():
            if name not in self._hashes_of:
                self._hashes_of[name] = self.storage.retrying(partial(self._read_hashes, name))
            if not np.isin(self._hashes_of[name], hashes).any():
                continue
            rest, out = self.storage.retrying(partial(self.rewritten, name, old))
            if out:
                actions += [remove(name), *rest]
                taken.update(out)
        return actions, dict(taken)

    def different(self) -> list[str]:
        """The data files whose columns or types are not the table's, as in tables that earlier
        versions relabelled: plain readers expect equal schemas."""
        schema, names = self.log.schema(), self.log.names()

        def differs(name: str) -> bool:
            with self.storage.open(name) as file:
                return not pq.read_schema(file).equals(schema)

        with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
            others = list(threads.map(differs, names))
        return [name for name, other in zip(names, others, strict=True) if other]

    def rewritten(self, name: str, without: Collection[str] = ()) -> tuple[Actions, Counter[str]]:
        """Write a data file again, in the table's types and without the rows of some clip_ids.

        Returns the action that adds it, if it has any rows, and the number of removed rows by run.
        """
        schema, out, rows = self.log.schema(), Counter[str](), 0
        old = pa.array(list(without), pa.string())
        sink = pa.BufferOutputStream()
        with (
            self.storage.open(name) as file,
            pq.ParquetFile(file) as parquet,
            pq.ParquetWriter(sink, schema, compression="zstd") as writer,
        ):
            for batch in parquet.iter_batches(ROWS_AT_ONCE):
                # First the types, for other writers' string_view has no kernel to filter.
                found = in_schema(pa.Table.from_batches([batch]), schema)
                is_old = pc.is_in(found["clip_id"], old)
                out.update(found["run_id"].filter(is_old).to_pylist())
                left = found.filter(pc.invert(is_old))
                if len(left):
                    writer.write_table(left)
                    rows += len(left)
        if not rows:
            return [], out
        new, content = f"part-{self.run_id}-{uuid.uuid4().hex}.parquet", sink.getvalue()
        self.storage.write(new, content)
        return [add(new, content.size, rows)], out

    def _read_hashes(self, name: str) -> np.ndarray:
        with self.storage.open(name) as file:
            ids = pq.ParquetFile(file).read(columns=["clip_id"])["clip_id"]
        return _hashes(ids.to_pylist())


def add(path: str, size_bytes: int, rows: int) -> AddAction:
    """The action that makes a data file part of the table."""
    statistics = json.dumps({"numRecords": rows})
    return AddAction(path, size_bytes, {}, int(time.time() * 1000), True, statistics)


def remove(path: str) -> RemoveAction:
    return RemoveAction(path, True, int(time.time() * 1000))


def _hashes(clip_ids: Collection[str]) -> np.ndarray:
    """int64 `(ids,)`: equal ids have equal hashes, within this process only."""
    return np.array([hash(id) for id in clip_ids], np.int64)
