"""Data files written anew: without some rows, or in the types that the table has now.

Not by delta-rs's MERGE, whose files have types that pandas and Ray cannot read (delta-rs#4302),
and which is a transaction of its own.
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

LOOKS_AT_ONCE = 16  # at files
Actions = list[AddAction | RemoveAction]


class Rewriter:
    """Writes data files for the transactions of one run, which commits them."""

    def __init__(self, storage: Storage, log: Log, run_id: str) -> None:
        self.storage, self.log, self.run_id = storage, log, run_id
        self._ids_of: dict[str, np.ndarray] = {}  # hashes by file, as far as they were needed

    def without(self, old: Collection[str]) -> tuple[Actions, dict[str, int]]:
        """The actions that take the rows with these clip_ids out, and how many they are by run."""
        hashes = np.unique(_hashes(old))
        actions: Actions = []
        taken: Counter[str] = Counter()
        for name in self.log.names():
            if name not in self._ids_of:
                self._ids_of[name] = self.storage.retrying(partial(self._ids, name))
            if not np.isin(self._ids_of[name], hashes).any():
                continue
            rest, out = self.storage.retrying(partial(self.rewritten, name, old))
            if out:
                actions += [remove(name), *rest]
                taken.update(out)
        return actions, dict(taken)

    def different(self) -> list[str]:
        """The data files that lack columns of the table or have other types for them, as tables have
        that earlier versions relabelled: plain readers want them alike."""
        schema, names = self.log.schema(), self.log.names()

        def differs(name: str) -> bool:
            with self.storage.open(name) as file:
                return not pq.read_schema(file).equals(schema)

        with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
            others = list(threads.map(differs, names))
        return [name for name, other in zip(names, others, strict=True) if other]

    def rewritten(self, name: str, without: Collection[str] = ()) -> tuple[Actions, Counter[str]]:
        """A data file once more, in the table's types and without some rows: the action that adds it,
        if any rows are left, and how many of each run were left out."""
        schema, out, rows = self.log.schema(), Counter[str](), 0
        old = pa.array(list(without), pa.string())
        sink = pa.BufferOutputStream()
        with (
            self.storage.open(name) as file,
            pq.ParquetFile(file) as parquet,
            pq.ParquetWriter(sink, schema, compression="zstd") as writer,
        ):
            for batch in parquet.iter_batches(ROWS_AT_ONCE):
                is_old = pc.is_in(batch["clip_id"].cast(pa.string()), old)
                out.update(batch["run_id"].filter(is_old).to_pylist())
                left = pa.Table.from_batches([batch.filter(pc.invert(is_old))])
                if len(left):
                    writer.write_table(in_schema(left, schema))
                    rows += len(left)
        if not rows:
            return [], out
        new, content = f"part-{self.run_id}-{uuid.uuid4().hex}.parquet", sink.getvalue()
        self.storage.write(new, content)
        return [add(new, content.size, rows)], out

    def _ids(self, name: str) -> np.ndarray:
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
    """int64 `(ids,)`, which tell in which files to look for an id; of this process alone."""
    return np.array([hash(id) for id in clip_ids], np.int64)
