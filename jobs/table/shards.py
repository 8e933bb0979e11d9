"""What runs have found in the shards that they read to the end, in `_earmark/` of the table.

A run adds files of its own, each with few shards, so that a commit writes little; its end merges all
of them into one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.clips import Shard
from jobs.table.schema import SHARDS
from jobs.table.storage import Storage

FOLDER = "_earmark"
MERGED = "shards.parquet"
ADDED = re.compile(r"shards-.+-\d{6}\.parquet")  # by a run, until its end
SHARDS_OF_A_FILE = 1000


class DamagedShards(ValueError):
    """A file of shards that cannot be read: its name, and why."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


def read_shards(storage: Storage, *, strict: bool = False) -> dict[str, Shard]:
    """The shards that runs have read to the end, by source.

    Those in a damaged file are missing or, if `strict`, raise DamagedShards with the file's name.
    """
    found: dict[str, Shard] = {}
    # The merged file last: it has those of added files that a run has merged and removed meanwhile.
    for name in (*reversed(_added(storage)), MERGED):
        try:
            content = storage.read(f"{FOLDER}/{name}")
        except FileNotFoundError:
            continue
        try:
            found = _parsed(content) | found
        except (pa.ArrowException, OSError, KeyError) as error:  # OSError: of content in memory
            if strict:
                raise DamagedShards(f"{FOLDER}/{name}", str(error)) from None
    return found


def _added(storage: Storage) -> list[str]:
    """The names of the files that runs have added, the oldest run's first."""
    return sorted(filter(ADDED.fullmatch, storage.sizes(FOLDER)))


def _parsed(content: bytes) -> dict[str, Shard]:
    known = pq.read_table(pa.BufferReader(content))
    if "digest" not in known.column_names:  # as earlier versions wrote it
        known = known.append_column("digest", pa.array([""] * len(known)))
        kept = pa.array([[]] * len(known), SHARDS.field("kept").type)
        known = known.append_column("kept", kept)
    known = known.select(SHARDS.names).cast(SHARDS)
    rows = known.drop_null().to_pydict().values()
    return {
        source: Shard(version, clips, tuple(kept), digest)
        for source, version, clips, kept, digest in zip(*rows, strict=True)
    }


def _content(shards: Mapping[str, Shard]) -> pa.Buffer:
    rows: list[dict[str, Any]] = [
        {
            "source": source,
            "source_version": shard.version,
            "clips": shard.clips,
            "kept": list(shard.kept),
            "digest": shard.digest,
        }
        for source, shard in shards.items()
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SHARDS), sink, compression="zstd")
    return sink.getvalue()


class AddedShards:
    """The shards that a run reads to the end."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.storage, self.run_id = storage, run_id
        self._open: dict[str, Shard] = {}
        self._files = 0

    def add(self, shards: Mapping[str, Shard]) -> None:
        """Add shards to those that `read_shards` returns."""
        if not self._open:
            self._files += 1
        self._open |= shards
        name = f"shards-{self.run_id}-{self._files:06}.parquet"
        self.storage.write(f"{FOLDER}/{name}", _content(self._open))
        if len(self._open) >= SHARDS_OF_A_FILE:
            self._open = {}

    def merge(self) -> None:
        """Merge what this and earlier runs have added."""
        added = _added(self.storage)
        if not added:
            return
        self.storage.write(f"{FOLDER}/{MERGED}", _content(read_shards(self.storage)))
        self._open = {}
        for name in added:
            with contextlib.suppress(FileNotFoundError):
                self.storage.remove(f"{FOLDER}/{name}")
