"""A table that exists (`Table`), and one that this run holds and commits to (`HeldTable`)."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from jobs.clips import Shard
from jobs.console import one_line, printable
from jobs.fingerprints import fingerprints, table_settings
from jobs.table.lease import Holder, Lease, TableInUse, holder_of, in_use, watched
from jobs.table.log import Log, Transactions, arrow_types, can_grow, create_log, delta_fields
from jobs.table.outcome import without_failures
from jobs.table.rewrite import LOOKUPS_AT_ONCE, Rewriter, add, remove
from jobs.table.schema import TableMismatch, columns_by_task
from jobs.table.shards import AddedShards, read_shards
from jobs.table.storage import Storage

# Tells `datasets.load_dataset(folder)` which files are data: it takes the log's for that as well. Its
# cache would return the first rows for ever if nothing in here changed. Other readers pass over names
# that begin with a dot.
DATASETS_FILE = ".huggingface.yaml"
DATASETS = """configs:
- config_name: default
  data_files: "*.parquet"
  version: 1.0.{version}
"""
NOTE_DELAY_S = 1.0  # at most, between taking the table and writing the holder's note
LAST_WRITES_S = 3.0  # how long workers that are being stopped may still write, after each write
# Data files, including unfinished ones: Earmark's begin with a dot, delta-rs's end in #1.
T = TypeVar("T")
DATA_FILE = re.compile(r"\.?part-.*\.parquet([#.].*)?")


class UnreadableTable(Exception):
    """The log or a data file is damaged, or its storage fails. Exit code 1."""

    def __init__(self, path: str, error: Exception) -> None:
        super().__init__(
            f"expected a table that can be read at {printable(path)}, found: {one_line(error)}: "
            "`earmark verify` tells what is damaged"
        )


@contextlib.contextmanager
def reading(path: str, *others: type[Exception]) -> Iterator[None]:
    """Raise UnreadableTable if the table at a path cannot be read: for errors of its storage, log and
    files, and for `others`, those of a library that reads it."""
    try:
        yield
    except (OSError, DeltaError, pa.ArrowException, *others) as error:
        raise UnreadableTable(path, error) from error


class Table:
    """A table as of one version, for reading."""

    def __init__(self, storage: Storage, log: Log) -> None:
        self.storage, self.log = storage, log

    @classmethod
    def open(cls, storage: Storage) -> Table | None:
        """The table in the folder, or None if there is none yet."""
        try:
            return cls(storage, Log(storage))
        except TableNotFoundError:
            return None

    @classmethod
    def of_run(cls, storage: Storage) -> Table | None:
        """The table that a run continues, or None if there is none yet. Raises TableMismatch if
        something else is in the folder, and UnreadableTable."""
        with reading(storage.path):
            table = cls.open(storage)
        if table is None:
            _refuse_other_files(storage)
        elif "tasks" not in table.settings():
            raise TableMismatch(
                f"output.path: expected a table that Earmark made, an empty folder or nothing at "
                f"{storage.path}, found a Delta table without the settings that Earmark keeps in its "
                "description: choose another path, or restore the description"
            )
        return table

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
        """The settings that the labels were made with, see `fingerprints.table_settings`."""
        return self.log.settings()

    def schema(self) -> pa.Schema:
        """All columns, including those of tasks that were removed."""
        return self.log.schema()

    def dataset(self) -> pa.dataset.Dataset:
        """The committed rows, to be read by columns and filters.

        Without what delta-rs says of the values in each file: of a column that was added since, it
        says that none is null, and Arrow believes it, so that `is_null` is false of every row.
        """
        found = self.log.delta.to_pyarrow_dataset()
        fragments = [
            found.format.make_fragment(fragment.path, fragment.filesystem)
            for fragment in found.get_fragments()
        ]
        return pyarrow.dataset.FileSystemDataset(
            fragments, found.schema, found.format, found.filesystem
        )

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of the committed rows, in memory; null if the table does not have them yet."""

        def read() -> pa.Table:
            fields = self.log.fields()
            have = [name for name in columns if name in fields]
            rows = self.storage.retrying(partial(self.log.delta.to_pyarrow_table, columns=have))
            for name in columns:
                if name not in have:
                    rows = rows.append_column(name, pa.nulls(len(rows)))
            return rows.select(list(columns))

        return self.newest(read)

    def newest(self, read: Callable[[], T]) -> T:
        """What `read` returns of this version; if another run compacts the table meanwhile, of the
        newest one."""
        while True:
            names = set(self.log.names())
            try:
                return read()
            except Exception:  # DuckDB has an error of its own for a file that is gone
                self.refresh()
                if names <= set(self.log.names()):  # no run has removed a file
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

    def shards(self) -> dict[str, Shard]:
        """The shards that runs have read to the end, by source."""
        return read_shards(self.storage)

    def is_tidy(self, retain_h: float = 0.0) -> bool:
        """Whether a plain reader of the folder's Parquet files sees exactly the committed rows, and
        those that were removed in the last `retain_h` hours."""
        return not self.leftovers(self.storage.names(), retain_h)

    def leftovers(self, names: Collection[str], retain_h: float = 0.0) -> list[str]:
        """Those of `names` that are data files, finished or not, and not in the log, nor were in it
        in the last `retain_h` hours."""
        kept = {*self.log.names(), *self.log.removed(retain_h)}
        return sorted(set(filter(DATA_FILE.fullmatch, names)) - kept)

    def columns_that_differ(self, schema: pa.Schema, but: Collection[str] = ()) -> list[str]:
        """`column: expected ..., found ...` for each column of the schema whose type in the table is
        another, or that the table does not have; those of `but` may be missing.

        A column that only the table has belongs to a removed task, and is null in new rows.
        """
        have = self.log.fields()
        return [
            f"column {field.name}: expected {field.type}, found "
            f"{have.get(field.name, 'no such column')}"
            for field in delta_fields(schema)
            if have.get(field.name) != str(field.type)
            and not (field.name in but and field.name not in have)
        ]


def hold(
    storage: Storage,
    run_id: str,
    schema: pa.Schema,
    settings: Mapping[str, Any],
    seen: Mapping[str, Any],
    *,
    dead: Holder | None = None,
    retain_h: float = 0.0,
) -> HeldTable:
    """Take the table for one run, or create it.

    `settings` are the run's, and become the table's (see `table_settings`); `seen` are those that the
    run found in it before, {} if there was no table; `dead` is the holder that it has `watched`;
    `retain_h` is kept in the log. Missing columns are added, so that a run may have other tasks than
    the table.

    Raises TableInUse, and TableMismatch if a column's type would change.
    """
    if holder_of(storage) != dead:
        dead = watched(storage)
    table = Table.of_run(storage)
    document = table_settings(seen, settings)
    if table is None:
        try:
            create_log(storage, schema, document)
        except ValueError as error:
            raise TableMismatch(f"output.path: {error}: choose another path") from None
        table = Table(storage, Log(storage))
    transactions = Transactions(table.log, run_id)
    newest = _newest_holder(table)
    if newest and newest != dead:  # a run that came between the first check and this version
        raise TableInUse(in_use(newest))
    if table.settings() not in (seen, document):
        raise TableInUse(f"another run has just made {storage.path} with other settings")
    me = Holder.me(run_id)
    note = {name: value for name, value in asdict(me).items() if name != "heartbeat"}
    note |= {"fingerprints": fingerprints(settings), "retain_h": retain_h}
    transactions.append([], "hold", note)
    lease = Lease(storage, me, lambda: Log(storage).newest_run() == run_id)
    held = HeldTable(table, transactions, lease)
    try:
        held.lease.write()
        transactions.check()  # another run may have looked for a holder just before the note
        if table.settings() != document or table.columns_that_differ(schema):
            held.adapt(schema, document)
    except BaseException:
        held.release()
        raise
    return held


def _refuse_other_files(storage: Storage) -> None:
    """Raise TableMismatch for files that belong to no table, which a run would remove at its end if they
    are data files of one whose log is lost. Another run may have made the log by now."""
    strangers = sorted(name for name in storage.names() if not name.startswith(("_", ".")))
    if strangers and not any(name.endswith(".json") for name in storage.sizes("_delta_log")):
        raise TableMismatch(
            f"output.path: expected a table, an empty folder or nothing at {storage.path}, found "
            f"{', '.join(strangers[:3])}{', ...' if strangers[3:] else ''} and no log (_delta_log): "
            "restore the log, or choose another path"
        )


def _newest_holder(table: Table) -> Holder | None:
    """The holder. If taking the table is the last transaction, its run gets time to write its note."""
    last, *_ = table.log.history(1)  # more, if another transaction comes in between
    is_new = time.time() - last["timestamp"] / 1000 < NOTE_DELAY_S  # or of a clock that is ahead
    until = time.monotonic() + NOTE_DELAY_S * (is_new and last["note"].get("what") == "hold")
    while not (holder := table.holder()) and time.monotonic() < until:
        time.sleep(0.05)
    return holder


class HeldTable(Table):
    """A table that this run holds, from `hold` to `release`. Its methods raise TableInUse once another
    run has taken the table over.
    """

    def __init__(self, table: Table, transactions: Transactions, lease: Lease) -> None:
        super().__init__(table.storage, table.log)
        self.run_id = transactions.run_id
        self.transactions, self.lease = transactions, lease
        self.rewriter = Rewriter(self.storage, self.log, self.run_id)
        self.added_shards = AddedShards(self.storage, self.run_id)

    def adapt(self, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        """Add columns and fields of structs, and replace the settings. Raises TableMismatch for a
        column of another type, or that the table has in another case."""
        have = {field.name: field.type for field in self.log.schema()}
        names = {name.lower() for name in have}
        changed = [
            name
            for name, type_ in arrow_types(schema).items()
            if (not can_grow(have[name], type_) if name in have else name.lower() in names)
        ]
        if changed:
            raise TableMismatch(
                f"the table at {self.path} has other types, or another case, in "
                f"{', '.join(changed)}: give the task another name, or the output another path"
            )
        self.transactions.adapt(schema, settings)

    def commit(self, written: Sequence[Mapping[str, Any]], obsolete: Collection[str] = ()) -> None:
        """Add data files (rows of `WRITTEN`) to the table, and remove the rows that theirs replace,
        those whose clips are no longer in a shard, and those of the clip_ids in `obsolete`. One
        transaction does it all, so that no reader sees an old and a new row, or neither.

        Raises OSError if a data file is missing.
        """
        shards = [shard for file in written for shard in file["shards"] or ()]
        files = [file for file in written if file["path"]]
        old = {id for file in files for id in file["supersedes"] or ()}
        old = old.union(obsolete, *(shard["obsolete"] for shard in shards))
        if files or old:
            self.transactions.check()
            try:
                self._check_sizes(files)
                actions, replaced = self.rewriter.without(old) if old else ([], {})
            except OSError:
                self.transactions.check()  # a run that has taken over removes our files
                raise
            actions += [add(file["path"], file["size_bytes"], file["rows"]) for file in files]
            note: dict[str, Any] = {"rows": sum(file["rows"] for file in files)}
            if old:
                note["replaced"] = replaced
            self.transactions.append(actions, "relabel" if old else "label", note)
            self.rewriter.labelled([file["path"] for file in files])
        if shards:
            self.added_shards.add(
                {
                    shard["source"]: Shard(
                        shard["source_version"], shard["clips"], shard["kept"], shard["digest"]
                    )
                    for shard in shards
                }
            )

    def drop(self, tasks: Collection[str], kept: Collection[str]) -> None:
        """Remove the columns of tasks, which are no longer in the config, from all data files, in one
        transaction, and with them their failures from the rows' outcomes. `kept` are columns of the
        source."""
        schema, settings = self.log.schema(), self.settings()
        left = {name: r for name, r in settings.get("left", {}).items() if name not in tasks}
        stay = [*settings["tasks"], *left]
        columns, _ = columns_by_task(schema.names, [*stay, *tasks], kept)
        gone = {column for task in tasks for column in columns[task]}
        if gone:
            rest = pa.schema([field for field in schema if field.name not in gone])
            labels = {task: columns[task] for task in stay}
            change = partial(without_failures, tasks=tasks, labels=labels)
            files: list[AddAction] = []
            for name in self.log.names():
                actions, _ = self.rewriter.rewritten(name, schema=rest, change=change)
                files += [action for action in actions if isinstance(action, AddAction)]
            self.transactions.replace(files, rest, "drop", {"rows": 0})
        document = {key: value for key, value in settings.items() if key != "left"}
        self.transactions.adapt(
            pa.schema([f for f in schema if f.name not in gone]),
            document | ({"left": left} if left else {}),
        )

    def _check_sizes(self, files: Sequence[Mapping[str, Any]]) -> None:
        """Raise OSError unless every data file is in the table's folder, with the size written."""
        with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
            sizes = threads.map(self.storage.size, [file["path"] for file in files])
        for file, found in zip(files, sizes, strict=True):
            if found != file["size_bytes"]:
                raise OSError(
                    f"expected {self.path}/{file['path']}, which a worker has written with "
                    f"{file['size_bytes']:,} bytes, found "
                    f"{'no such file' if found is None else f'{found:,} bytes'}: output.path "
                    "has to be the same storage on every node"
                )

    def keep_report(self, report: Mapping[str, Any]) -> None:
        """Store a run's report, as JSON in a folder that readers of the table ignore."""
        text = json.dumps(report, indent=1, default=str, ensure_ascii=False)
        content = text.encode(errors="backslashreplace")  # half a surrogate pair, of a file's name
        self.storage.write(f"_runs/{report['run_id']}.json", content)

    def tidy(self, retain_h: float = 0.0, *, compact: bool = True) -> None:
        """Give all data files the table's schema, merge small ones, and remove those that the log
        does not name, nor named in the last `retain_h` hours."""
        self.transactions.check()
        for name in self.rewriter.different():
            added, _ = self.rewriter.rewritten(name)
            self.transactions.append([remove(name), *added], "conform", {"rows": 0})
        if compact:
            self.transactions.compact()
        # Not `vacuum`, which keeps hidden files and, with `full=True`, removes foreign files.
        # The names are listed while this run certainly holds the table: if this process is
        # suspended now and another run takes over, its files are not among them.
        names = self.storage.names()
        self.transactions.check()
        self.added_shards.merge()
        for name in self.leftovers(names, retain_h):
            with contextlib.suppress(FileNotFoundError):
                self.storage.remove(name)
        self.storage.write(DATASETS_FILE, DATASETS.format(version=self.version).encode())

    def release(self) -> None:
        """Release the table. Never raises: the error that ended the run may cause another here, and
        matters more."""
        with contextlib.suppress(Exception):
            self.lease.end()
        with contextlib.suppress(Exception):
            # Even if the note was this run's: another run may have taken over and released since.
            self._remove_uncommittable()

    def _remove_uncommittable(self) -> None:
        """If another run has taken the table over, remove the files that this run can't commit.

        Otherwise they stay: a commit that seems to have failed may still reach a store, until the
        next run has used its number. Workers that Ray is stopping may still write for a moment.
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
