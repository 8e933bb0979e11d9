"""A table that exists (`Table`), and one that this run holds and commits to (`HeldTable`)."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from deltalake.exceptions import TableNotFoundError

from jobs.plan import Shard, fingerprint
from jobs.table.lease import Holder, Lease, TableInUse, holder_of, in_use
from jobs.table.log import Log, Transactions, create_log, delta_fields
from jobs.table.rewrite import LOOKS_AT_ONCE, Rewriter, add, remove
from jobs.table.schema import SHARDS, TableMismatch
from jobs.table.storage import Storage

SHARDS_FILE = "_earmark/shards.parquet"
MOMENT_S = 1.0  # at most, between taking the table and writing the holder's note
LAST_WRITES_S = 3.0  # after the last one that was seen, of workers that were told to end
# Data files, also unfinished ones: those of ours begin with a dot, those of delta-rs end in #1.
DATA_FILE = re.compile(r"\.?part-.*\.parquet([#.].*)?")


class Table:
    """A table as of one version, for reading."""

    def __init__(self, storage: Storage, log: Log) -> None:
        self.storage, self.log = storage, log

    @classmethod
    def open(cls, storage: Storage) -> Table | None:
        """The table in that folder, or None if there is none yet."""
        try:
            return cls(storage, Log(storage))
        except TableNotFoundError:
            return None

    @property
    def path(self) -> str:
        return self.storage.path

    @property
    def version(self) -> int:
        return self.log.version

    def refresh(self) -> None:
        """Move to the newest version."""
        self.log.refresh()

    def settings(self) -> dict[str, Any]:
        """What the labels were made with, as `plan.settings` has it."""
        return self.log.settings()

    def schema(self) -> pa.Schema:
        """All columns, those of tasks that are no more included."""
        return self.log.schema()

    def dataset(self) -> pa.dataset.Dataset:
        """The committed rows, of which only what is asked for is read."""
        return self.log.delta.to_pyarrow_dataset()

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """The committed rows' columns, in memory."""
        while True:
            version = self.version
            read = partial(self.log.delta.to_pyarrow_table, columns=list(columns))
            try:
                return self.storage.retrying(read)
            except FileNotFoundError:  # if not damaged, then compacted by another run just now
                self.refresh()
                if self.version == version:
                    raise

    def files(self) -> dict[str, dict[str, Any]]:
        """See `Log.files`."""
        return self.log.files()

    def history(self) -> list[dict[str, Any]]:
        """See `Log.history`."""
        return self.log.history()

    def holder(self) -> Holder | None:
        """The run that holds the table."""
        return holder_of(self.storage)

    def shards(self, *, strict: bool = False) -> dict[str, Shard]:
        """The shards that a run has read to their end, by source.

        What is missing or damaged is not known; if `strict`, damage raises pa.ArrowException,
        OSError or KeyError.
        """
        try:
            content = self.storage.read(SHARDS_FILE)
        except FileNotFoundError:
            return {}
        try:
            known = pq.read_table(pa.BufferReader(content))
            if "digest" not in known.column_names:  # as earlier versions wrote it
                known = known.append_column("digest", pa.array([""] * len(known)))
                kept = pa.array([[]] * len(known), SHARDS.field("kept").type)
                known = known.append_column("kept", kept)
            known = known.select(SHARDS.names).cast(SHARDS)
        except (pa.ArrowException, OSError, KeyError):  # of what is read from memory
            if strict:
                raise
            return {}
        rows = known.drop_null().select(SHARDS.names).to_pydict().values()
        return {
            source: Shard(version, clips, tuple(kept), digest)
            for source, version, clips, kept, digest in zip(*rows, strict=True)
        }

    def is_tidy(self) -> bool:
        """Whether a plain reader of the folder's Parquet files sees the committed rows."""
        return not self.leftovers(self.storage.names())

    def leftovers(self, names: Collection[str]) -> list[str]:
        """Those of `names` that are data files, whole or not, and not in the log (any more)."""
        return sorted(set(filter(DATA_FILE.fullmatch, names)) - set(self.log.names()))

    def columns_that_differ(self, schema: pa.Schema) -> list[str]:
        """`column: expected ..., found ...` for each column that the table has otherwise or lacks.

        One that only the table has belongs to a task that is no more, and is null in new rows.
        """
        have = self.log.fields()
        return [
            f"column {field.name}: expected {field.type}, found "
            f"{have.get(field.name, 'no such column')}"
            for field in delta_fields(schema)
            if have.get(field.name) != str(field.type)
        ]


def hold(
    storage: Storage,
    run_id: str,
    schema: pa.Schema,
    settings: Mapping[str, Any],
    seen: Mapping[str, Any],
) -> HeldTable:
    """Take the table for one run, or create it. `seen` are the settings that it had at the first look,
    {} if there was none. Raises TableInUse, TableMismatch.

    New columns are added to a table that lacks them, so that a run which relabels may have other
    tasks than the one before; a column whose type would change is a TableMismatch.
    """
    _refuse(holder_of(storage))
    table = Table.open(storage)
    if table is None:
        _refuse_other_files(storage)
        create_log(storage, schema, settings)
        table = Table(storage, Log(storage))
    transactions = Transactions(table.log, run_id)
    _refuse(_newest_holder(table))  # who came between our first look and this version
    if table.settings() not in (seen, settings):
        raise TableInUse(f"another run has just made {storage.path} with other settings")
    me = Holder.me(run_id)
    note = {name: value for name, value in asdict(me).items() if name != "heartbeat"}
    transactions.append([], "hold", note | {"fingerprint": fingerprint(settings)})
    held = HeldTable(table, transactions, Lease(storage, me))
    try:
        held.lease.write()
        transactions.check()  # somebody may have looked for a holder just before there was one
        if table.settings() != settings or table.columns_that_differ(schema):
            held.adapt(schema, settings)
    except BaseException:
        held.release()
        raise
    return held


def _refuse(holder: Holder | None) -> None:
    if holder and holder.is_alive:
        raise TableInUse(in_use(holder))


def _refuse_other_files(storage: Storage) -> None:
    names = storage.names()
    strangers = sorted(name for name in names if not name.startswith(("_", ".")))
    if strangers and "_delta_log" not in names:
        raise TableMismatch(
            f"output.path: expected a table, an empty folder or nothing at {storage.path}, "
            f"found {', '.join(strangers[:3])}{', ...' if strangers[3:] else ''}"
        )


def _newest_holder(table: Table) -> Holder | None:
    """The holder, who gets a moment to write its note if taking the table is the last thing done."""
    last, *_ = table.log.history(1)  # more, if one comes meanwhile
    is_hold = last["note"].get("what") == "hold"
    while (
        not (holder := table.holder())
        and is_hold
        and time.time() - last["timestamp"] / 1000 < MOMENT_S
    ):
        time.sleep(0.05)
    return holder


class HeldTable(Table):
    """A table that this run holds, from `hold` to `release`. What it commits raises TableInUse once
    another run has taken the table over.
    """

    def __init__(self, table: Table, transactions: Transactions, lease: Lease) -> None:
        super().__init__(table.storage, table.log)
        self.run_id = transactions.run_id
        self.transactions, self.lease = transactions, lease
        self.rewriter = Rewriter(self.storage, self.log, self.run_id)

    def adapt(self, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        """Take on new columns and settings. Raises TableMismatch for a column of another type."""
        have = self.log.fields()
        changed = [
            field.name
            for field in delta_fields(schema)
            if field.name in have and have[field.name] != str(field.type)
        ]
        if changed:
            raise TableMismatch(
                f"the table at {self.path} has other types in {', '.join(changed)}: "
                "give the task another name, or the output another path"
            )
        self.transactions.adapt(schema, settings)

    def commit(self, written: Sequence[Mapping[str, Any]], obsolete: Collection[str] = ()) -> None:
        """Make the rows of these data files (rows of `WRITTEN`) part of the table, and take out those
        whose place they take, those whose clips are no longer in a shard, and those of the
        clip_ids in `obsolete`: all in one transaction, so that no reader sees both or neither.

        Raises OSError if a data file is not there.
        """
        shards = [shard for file in written for shard in file["shards"] or ()]
        files = [file for file in written if file["path"]]
        old = {id for file in files for id in file["supersedes"] or ()}
        old = old.union(obsolete, *(shard["obsolete"] for shard in shards))
        if files or old:
            self.transactions.check()
            try:
                self._see(files)
                actions, replaced = self.rewriter.without(old) if old else ([], {})
            except OSError:
                self.transactions.check()  # to a run that has taken over, our files are leftovers
                raise
            actions += [add(file["path"], file["size_bytes"], file["rows"]) for file in files]
            note: dict[str, Any] = {"rows": sum(file["rows"] for file in files)}
            if old:
                note["replaced"] = replaced
            self.transactions.append(actions, "relabel" if old else "label", note)
        if shards:
            self.remember(
                {
                    shard["source"]: Shard(
                        shard["source_version"], shard["clips"], shard["kept"], shard["digest"]
                    )
                    for shard in shards
                }
            )

    def _see(self, files: Sequence[Mapping[str, Any]]) -> None:
        """Raise OSError unless every data file is where readers look for it, as it was written."""
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
            sizes = threads.map(self.storage.size, [file["path"] for file in files])
        for file, found in zip(files, sizes, strict=True):
            if found != file["size_bytes"]:
                raise OSError(
                    f"expected {self.path}/{file['path']}, which a worker has written with "
                    f"{file['size_bytes']:,} bytes, found "
                    f"{'no such file' if found is None else f'{found:,} bytes'}: output.path "
                    "has to be the same storage on every node"
                )

    def remember(self, shards: Mapping[str, Shard]) -> None:
        """Add to `shards` what this run has found out."""
        rows = [
            {
                "source": source,
                "source_version": shard.version,
                "clips": shard.clips,
                "kept": list(shard.kept),
                "digest": shard.digest,
            }
            for source, shard in {**self.shards(), **shards}.items()
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SHARDS), sink, compression="zstd")
        self.storage.write(SHARDS_FILE, sink.getvalue())

    def keep_report(self, report: Mapping[str, Any]) -> None:
        """Store what a run found, as JSON beside the data files, where no reader looks for rows."""
        content = json.dumps(report, indent=1, default=str, ensure_ascii=False).encode()
        self.storage.write(f"_runs/{report['run_id']}.json", content)

    def tidy(self) -> None:
        """Make all data files alike, compact small ones, and remove those that the log does not name."""
        self.transactions.check()
        for name in self.rewriter.different():
            added, _ = self.rewriter.rewritten(name)
            self.transactions.append([remove(name), *added], "conform", {"rows": 0})
        if len(self.log.names()) > 1:
            self.transactions.compact()
        # Not `vacuum`: it spares hidden files, and with `full=True` takes whatever else lies here.
        # Listed while the table is certainly ours: if this process sleeps from here on, and
        # another run takes over, none of that run's files are among these.
        names = self.storage.names()
        self.transactions.check()
        for name in self.leftovers(names):
            with contextlib.suppress(FileNotFoundError):
                self.storage.remove(name)

    def release(self) -> None:
        """Let the table go. Never raises: what broke the run may break this, and matters more."""
        with contextlib.suppress(Exception):
            self.lease.end()
        with contextlib.suppress(Exception):
            # Also then: who took over may have let go since, and our heartbeat have come back.
            self._remove_lost()

    def _remove_lost(self) -> None:
        """Remove what this run wrote and can't commit any more, for another has taken the table.

        Only then: a commit that seems to have failed may still reach a store, until the next run
        has taken its number. Ray has been told to end the workers, which may take them a moment.
        """
        try:
            self.transactions.check()
        except TableInUse:
            until = time.monotonic() + LAST_WRITES_S
            while time.monotonic() < until:
                mine = {n for n in self.storage.names() if f"part-{self.run_id}-" in n}
                for name in self.leftovers(mine):
                    self.storage.remove(name)
                    until = time.monotonic() + LAST_WRITES_S
                time.sleep(LAST_WRITES_S / 10)
