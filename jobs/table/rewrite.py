"""Rewrites data files: without some rows, or in the table's current types.

delta-rs's MERGE would be a separate transaction, and writes types that pandas and Ray cannot read
(delta-rs#4302).
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
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
MIN_PIECE_ROWS = 4096
PIECE_OF_REMOVED = 8  # rows of a piece for each row that is removed at a time
Actions = list[AddAction | RemoveAction]


class Rewriter:
    """Rewrites data files; its run commits the actions that it returns.

    A run may replace all rows of a large file, a few at each commit. A file that it rewrites for the
    second time is therefore cut into pieces, so that later commits rewrite a piece alone. With
    clips in the order of the rows (see `Plan`) each row is written about six times: twice whole and
    four times in its piece. The end of the run merges what is left.
    """

    def __init__(self, storage: Storage, log: Log, run_id: str) -> None:
        self.storage, self.log, self.run_id = storage, log, run_id
        self._rows: RowIndex | None = None  # once it is needed
        self._made: set[str] = set()  # names of rewritten files
        self._labelled: dict[str, np.ndarray | None] = {}  # hashes of ids, once read, by file

    def labelled(self, names: Collection[str]) -> None:
        """Data files that this run has labelled were committed. They hold no rows that it replaces,
        as it labels a clip once, so that they are not searched unless a row is found nowhere else."""
        self._labelled.update(dict.fromkeys(names))

    def without(self, old: Collection[str]) -> tuple[Actions, dict[str, int]]:
        """The actions that remove the rows with these clip_ids, and the number of these rows by run."""
        hashes = np.unique(_hashes(old))
        index = self._rows = self._rows or self._index()
        names, unknown = index.files_of(hashes)
        if len(unknown):
            names += self._labelled_with(unknown)
        actions: Actions = []
        taken: Counter[str] = Counter()
        for name in names:
            rest, out = self.storage.retrying(partial(self.rewritten, name, old))
            if out:
                actions += [remove(name), *rest]
                taken.update(out)
        return actions, dict(taken)

    def _index(self) -> RowIndex:
        names = [name for name in self.log.names() if name not in self._labelled]
        with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
            return RowIndex(dict(zip(names, threads.map(self._read_hashes, names), strict=True)))

    def _labelled_with(self, hashes: np.ndarray) -> list[str]:
        found = []
        for name in set(self._labelled).intersection(self.log.names()):
            known = self._labelled[name]
            if known is None:
                known = self._labelled[name] = self._read_hashes(name)
            if np.isin(known, hashes).any():
                found.append(name)
        return found

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

    def rewritten(
        self,
        name: str,
        without: Collection[str] = (),
        *,
        schema: pa.Schema | None = None,
        change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
    ) -> tuple[Actions, Counter[str]]:
        """Write a data file again, in the table's types or those of `schema`, after a `change` of its
        rows, and without those of some clip_ids.

        Returns the actions that add it, one or, if the run has rewritten it before, for each of its
        pieces, and the number of removed rows by run.
        """
        old, out = pa.array(list(without), pa.string()), Counter[str]()
        pieces = _Pieces(schema or self.log.schema(), self._piece_rows(name, len(without)))
        with self.storage.open(name) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(min(ROWS_AT_ONCE, pieces.rows)):
                # First the types, for other writers' string_view has no kernel to filter.
                rows = pa.Table.from_batches([batch])
                found = in_schema(rows, self.log.schema())
                is_old = pc.is_in(found["clip_id"], old)
                out.update(found["run_id"].filter(is_old).to_pylist())
                pieces.add(in_schema(change(found.filter(pc.invert(is_old))), pieces.schema))
        actions: Actions = []
        moved: dict[str, np.ndarray] = {}
        for content, ids in pieces.finish():
            new = f"part-{self.run_id}-{uuid.uuid4().hex}.parquet"
            self.storage.write(new, content)
            actions.append(add(new, content.size, len(ids)))
            moved[new] = ids
        self._made.update(moved)
        if self._rows:
            self._rows.move(name, moved)
        return actions, out

    def _piece_rows(self, name: str, removed: int) -> int:
        if name not in self._made:
            return 1 << 62
        return max(MIN_PIECE_ROWS, PIECE_OF_REMOVED * removed)

    def _read_hashes(self, name: str) -> np.ndarray:
        def read() -> list[np.ndarray]:
            with self.storage.open(name) as file, pq.ParquetFile(file) as parquet:
                batches = parquet.iter_batches(ROWS_AT_ONCE, columns=["clip_id"])
                return [_hashes(batch["clip_id"].to_pylist()) for batch in batches]

        return np.concatenate([np.empty(0, np.int64), *self.storage.retrying(read)])


class _Pieces:
    """Rows on their way into files of at most `rows` rows, or a few more."""

    def __init__(self, schema: pa.Schema, rows: int) -> None:
        self.schema, self.rows = schema, rows
        self._done: list[tuple[pa.Buffer, np.ndarray]] = []
        self._ids: list[np.ndarray] = []
        self._open: tuple[pa.BufferOutputStream, pq.ParquetWriter] | None = None

    def add(self, rows: pa.Table) -> None:
        """Write some rows, at most `self.rows`."""
        if not len(rows):
            return
        if self._open is None:
            sink = pa.BufferOutputStream()
            self._open = sink, pq.ParquetWriter(sink, self.schema, compression="zstd")
        self._open[1].write_table(rows)
        self._ids.append(_hashes(rows["clip_id"].to_pylist()))
        if sum(map(len, self._ids)) >= self.rows:
            self._close()

    def finish(self) -> list[tuple[pa.Buffer, np.ndarray]]:
        """Each file's content, and the hashes of the clip_ids in it."""
        self._close()
        return self._done

    def _close(self) -> None:
        if self._open is not None:
            sink, writer = self._open
            writer.close()
            self._done.append((sink.getvalue(), np.concatenate(self._ids)))
            self._open, self._ids = None, []


class RowIndex:
    """Which file holds a row, by the hash of its clip_id: 12 bytes for each row."""

    def __init__(self, files: Mapping[str, np.ndarray]) -> None:
        self.names = list(files)
        hashes = np.concatenate([np.empty(0, np.int64), *files.values()])
        owners = np.repeat(np.arange(len(files), dtype=np.int32), [len(h) for h in files.values()])
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.owners = hashes[order], owners[order]

    def files_of(self, hashes: np.ndarray) -> tuple[list[str], np.ndarray]:
        """The files that hold rows with these hashes, and the hashes of which none does."""
        at = self._at(hashes)
        at = at[self.owners[at] >= 0]
        names = [self.names[owner] for owner in np.unique(self.owners[at])]
        return names, hashes[~np.isin(hashes, self.hashes[at])]

    def move(self, name: str, files: Mapping[str, np.ndarray]) -> None:
        """The rows of a file are in these files now; those in none of them are gone."""
        if name not in self.names:
            return
        owner = self.names.index(name)
        at = np.flatnonzero(self.owners == owner)
        self.owners[at] = -1
        for new, hashes in files.items():
            inside = at[np.isin(self.hashes[at], hashes)]
            self.owners[inside] = len(self.names)
            self.names.append(new)

    def _at(self, hashes: np.ndarray) -> np.ndarray:
        """The places of the rows with these hashes; of one there may be several."""
        first = np.searchsorted(self.hashes, hashes, "left")
        counts = np.searchsorted(self.hashes, hashes, "right") - first
        starts = np.repeat(first - np.append(0, np.cumsum(counts)[:-1]), counts)
        places: np.ndarray = starts + np.arange(counts.sum())
        return places


def add(path: str, size_bytes: int, rows: int) -> AddAction:
    """The action that makes a data file part of the table."""
    statistics = json.dumps({"numRecords": rows})
    return AddAction(path, size_bytes, {}, int(time.time() * 1000), True, statistics)


def remove(path: str) -> RemoveAction:
    return RemoveAction(path, True, int(time.time() * 1000))


def _hashes(clip_ids: Collection[str]) -> np.ndarray:
    """int64 `(ids,)`: equal ids have equal hashes, within this process only."""
    return np.array([hash(id) for id in clip_ids], np.int64)
