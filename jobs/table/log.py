"""The Delta log of a table, and the numbered transactions that a run appends to it.

Each transaction carries a number, one higher than the last (a Delta application transaction). A run
that takes the table over continues the count, so that a former holder that was taken for dead and
resumes finds an unexpected number, and fails instead of writing twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    Schema,
    Transaction,
    WriterProperties,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from jobs.table.lease import TableInUse, holder_of, in_use
from jobs.table.storage import Storage

APP = "earmark"
# In a row group: readers decode all of one at once, so this bounds their memory.
ROWS_AT_ONCE = 32_768
FILE_BYTES, SMALL_FILE_BYTES = 256 << 20, 16 << 20  # of compacted data files, see `size_to_merge`
COMPACTION_STEP = timedelta(minutes=1)
FEW = 8  # transactions
# Transactions from one removal of old ones to the next, as from checkpoint to checkpoint. delta-rs would
# list the whole log at each: ten requests to a store with 10,000 transactions.
CLEANED_EVERY = 100
WRITER = WriterProperties(compression="ZSTD", max_row_group_size=ROWS_AT_ONCE)


class Log:
    """The log as of one version; `refresh` moves to the newest one.

    Raises deltalake's TableNotFoundError if there is none.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        options = storage.delta_options
        self.delta = storage.retrying(
            lambda: DeltaTable(storage.delta_path, storage_options=options)
        )

    @property
    def version(self) -> int:
        return self.delta.version()

    def refresh(self) -> Log:
        self.storage.retrying(self.delta.update_incremental)
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that the table's labels were made with; {} of another tool's table."""
        try:
            found = json.loads(self.delta.metadata().description or "{}")
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def schema(self) -> pa.Schema:
        """All columns of the table, including those of tasks that were removed."""
        return pa.schema(self.delta.schema().to_arrow())

    def fields(self) -> dict[str, str]:
        """The columns' types, in Delta's names, by column."""
        return {field.name: str(field.type) for field in self.delta.schema().fields}

    def files(self) -> dict[str, dict[str, Any]]:
        """The committed data files by name: `size_bytes` and `num_records`."""
        files = pa.table(self.delta.get_add_actions(flatten=True)).to_pylist()
        return {posixpath.basename(file["path"]): file for file in files}

    def removed(self, within_h: float) -> set[str]:
        """The names of data files that transactions of the last hours have removed from the table."""
        if not within_h:
            return set()
        vacuum = partial(self.delta.vacuum, enforce_retention_duration=False, dry_run=True)
        # It takes whole hours.
        all_removed, before = set(vacuum(0)), set(vacuum(math.ceil(within_h)))
        return {posixpath.basename(name) for name in all_removed - before}

    def names(self) -> list[str]:
        """The names of the committed data files, sorted."""
        return sorted(posixpath.basename(uri) for uri in self.delta.file_uris())

    def history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The transactions, newest first: `version`, `timestamp` (ms), `operation`, and the `note` that
        a run attached to its own. Raises OSError if there are none: delta-rs reads such a table, but
        cannot write to it."""
        entries = self.storage.retrying(partial(self.delta.history, limit))
        if not entries:
            log = f"{self.storage.path}/_delta_log"
            raise OSError(f"expected version {self.version} in {log}, found its checkpoint alone")
        return [{**entry, "note": json.loads(entry.get("earmark", "{}"))} for entry in entries]

    def newest_run(self) -> str | None:
        """The id of the run that made the last transaction that has one.

        Of the transactions, each of which is a file, the last few are read, and more only if none of
        these has a run: with 10,000 on a store all of them take minutes.
        """
        limit = FEW
        while True:
            entries = self.history(limit)
            runs = (entry["note"].get("run_id") for entry in entries)
            found = next((run_id for run_id in runs if run_id), None)
            if found or len(entries) < limit:
                return found
            limit *= FEW

    def number(self) -> int:
        """The number of the last transaction."""
        return self.delta.transaction_version(APP) or 0


def create_log(storage: Storage, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
    """Write the log's first version, unless another run has just done so.

    `DeltaTable.create` may succeed in two runs at once, in the second as version 1 with its
    settings. Creating the file, by contrast, succeeds in one of them only.
    """
    with tempfile.TemporaryDirectory() as scratch:
        DeltaTable.create(scratch, schema, name=APP, description=json.dumps(settings))
        [version] = Path(scratch, "_delta_log").glob("*.json")
        content = version.read_bytes().replace(Path(scratch).as_uri().encode(), b"")
    with contextlib.suppress(FileExistsError):
        storage.create(f"_delta_log/{version.name}", content)


class Transactions:
    """The transactions of one run. Every method raises TableInUse if another run has taken the table
    over, and OSError if the storage keeps failing.
    """

    def __init__(self, log: Log, run_id: str) -> None:
        self.log, self.run_id = log, run_id
        self.number = log.number()
        self._checked = log.version  # the last version that is known to have this number

    def check(self) -> None:
        """Move to the newest version, whose number has to be this run's.

        The number of a version that is known is not read again: delta-rs reads every transaction since
        the last checkpoint for it, up to 100 files.
        """
        if self.log.refresh().version == self._checked:
            return
        if self.log.number() != self.number:
            holder = holder_of(self.log.storage)
            raise TableInUse(f"{self.log.storage.path} was taken over: {in_use(holder)}")
        self._checked = self.log.version

    def append(
        self,
        actions: Sequence[AddAction | RemoveAction],
        what: str,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Add and remove data files in one transaction. `what` names its purpose, `note` is kept with
        it."""
        self._write(actions, self.log.delta.schema(), what, note or {})

    def replace(
        self, files: Sequence[AddAction], schema: pa.Schema, what: str, note: Mapping[str, Any]
    ) -> None:
        """Take these data files, and the columns of `schema`, in place of all that there are."""
        self._write(files, Schema.from_arrow(schema), what, note, mode="overwrite")

    def _write(
        self,
        actions: Sequence[AddAction | RemoveAction],
        schema: Schema,
        what: str,
        note: Mapping[str, Any],
        *,
        mode: Literal["append", "overwrite"] = "append",
    ) -> None:
        delta = self.log.delta

        def step(properties: CommitProperties) -> None:
            # None: as the table's own properties say, by default after 30 days.
            cleans = None if (delta.version() + 2) % CLEANED_EVERY == 0 else False
            hooks = PostCommitHookProperties(cleanup_expired_logs=cleans)
            delta.create_write_transaction(
                list(actions),
                mode,
                schema,
                commit_properties=properties,
                post_commithook_properties=hooks,
            )

        self._commit(step, what, note)

    def adapt(self, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        """Add the columns, and fields of structs, that are missing, and replace the settings."""
        have, alter = self.log.fields(), self.log.delta.alter
        new = [field for field in delta_fields(schema) if have.get(field.name) != str(field.type)]
        if new:
            self._commit(lambda given: alter.add_columns(new, commit_properties=given), "columns")
        text = json.dumps(settings)
        self._commit(
            lambda given: alter.set_table_description(text, commit_properties=given), "settings"
        )

    def _commit(
        self,
        step: Callable[[CommitProperties], object],
        what: str,
        note: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Run a step on the log that takes the next number."""
        self.check()
        commit_id = uuid.uuid4().hex
        text = json.dumps({"run_id": self.run_id, "what": what, "commit": commit_id, **note})
        properties = CommitProperties(
            app_transactions=[Transaction(APP, self.number + 1)],
            custom_metadata={"earmark": text},
        )
        self.insist(
            lambda: step(properties),
            lambda: any(e["note"].get("commit") == commit_id for e in self.log.history(10)),
        )
        self.number += 1
        if self.log.refresh().version == self._checked + 1:  # else another one came in between
            self._checked += 1

    def compact(self) -> None:
        """Merge small data files. These transactions have no number, as delta-rs drops it; the log's own
        conflict check is enough, because compaction changes no rows."""
        sizes = [file["size_bytes"] for file in self.log.files().values()]
        size = size_to_merge(sizes)
        if sum(one <= size for one in sizes) < 2:
            return
        compact = partial(
            self.log.delta.optimize.compact,
            target_size=size,
            min_commit_interval=COMPACTION_STEP,  # what is merged stays, if the run is killed
            writer_properties=WRITER,
        )
        self.insist(compact, lambda: False)

    def insist(self, step: Callable[[], object], is_done: Callable[[], bool]) -> None:
        """Run a step on the log, repeatedly if the storage fails.

        A store may carry out a request whose answer is lost; the client's second request then fails
        with a conflict. So after any error `is_done` looks whether the log has the change.
        """
        for wait_s in (*self.log.storage.retry_after_s, None):
            try:
                step()
                return
            except (DeltaError, OSError) as error:
                self.log.refresh()
                if is_done():
                    return
                self.check()
                if wait_s is None:
                    path = self.log.storage.path
                    raise OSError(f"can't write to {path}: {_causes(error)}") from error
                time.sleep(wait_s)


def size_to_merge(sizes: Sequence[int]) -> int:
    """The size in bytes up to which a table's files are merged, into files of about this size.

    Small files always are. Larger ones only once there is enough of those that are below a quarter of
    a full one. So a run that adds little writes little, and however many runs come, each row is written
    few times.
    """
    enough = FILE_BYTES // 4
    is_enough = sum(size for size in sizes if size < enough) >= enough
    return FILE_BYTES if is_enough else SMALL_FILE_BYTES


def delta_fields(schema: pa.Schema) -> list[Field]:
    return Schema.from_arrow(schema).fields


def arrow_types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The columns' types as a table returns them."""
    return {f.name: f.type for f in pa.schema(Schema.from_arrow(schema).to_arrow())}


def can_grow(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether `new` is `old`, but for fields that structs in it have besides the old ones."""
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        have = {field.name: field.type for field in new}
        return all(f.name in have and can_grow(f.type, have[f.name]) for f in old)
    if pa.types.is_list(old) and pa.types.is_list(new):
        return can_grow(old.value_type, new.value_type)
    return old == new


def _causes(error: Exception) -> str:
    """delta-rs's tree of causes on one line, without terminal colours."""
    lines = re.sub(r"\x1b\[\d+m|↳", "", str(error)).splitlines()
    return ": ".join(line.strip() for line in lines if line.strip())
