"""The output: a Delta Lake table over plain Parquet files. What is done is what is committed.

Workers write data files (`write_rows`) that nobody sees; the driver commits their names (`Table`).
Each commit carries a number, one higher than the last (a Delta application transaction). Whoever
takes the table over counts on from there, so that a holder who was thought dead and wakes up
finds a number that is not its own and fails instead of writing twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, Transaction, WriterProperties
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from audio_ops.prepare import ERROR, SOUND
from audio_ops.tasks import TaskOptions, load_task
from jobs.plan import fingerprint as fingerprint_of
from jobs.read import END_OF_SHARD
from jobs.shared_storage import expect_probe
from jobs.sources import PLACE

T = TypeVar("T")

APP = "earmark"
HEARTBEAT_S = 10.0
HOLDER_IS_DEAD_S = 60.0
RENEWED_BY_DELTA = ("iam-role", "container-role", "assume-role-with-web-identity")
MOMENT_S = 1.0  # at most, between taking the table and saying who did
LAST_WRITES_S = 3.0  # after the last one that was seen, of workers that have been told to end
# Where a store fails, beyond what its client does by itself (delta-rs does not ask again when an
# answer's body breaks off, nor for a commit whose connection did).
TRY_AGAIN_AFTER_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
# Data files, also halves of them: ours begin with a dot, those of delta-rs end in #1.
DATA_FILE = re.compile(r"\.?part-.*\.parquet(#\d+)?")
# In row groups, which readers decode whole, of so few rows that nobody is short of memory for one.
WRITER = WriterProperties(compression="ZSTD", max_row_group_size=32_768)

IDENTITY = pa.schema([("clip_id", pa.string()), *PLACE])
OUTCOME = pa.schema([("status", pa.string()), *ERROR])
RUN = pa.schema(
    [
        ("run_id", pa.string()),
        ("fingerprint", pa.string()),
        ("labelled_at", pa.timestamp("us", "UTC")),
    ]
)
SIZES = pa.schema([("source", pa.string()), ("source_version", pa.string()), ("clips", pa.int64())])
# What the write stage tells the driver of each data file.
WRITTEN = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("audio_s", pa.float64()),
        ("source", pa.string()),  # of its first clip: where the input is shards, of all
        ("clip_ids", pa.list_(pa.string())),
        ("supersedes", pa.list_(pa.string())),  # the row that each clip's row takes the place of
        ("statuses", pa.list_(pa.string())),
        ("errors", pa.list_(pa.struct([(n, pa.string()) for n in ("kind", "source", "message")]))),
        # Shards that were read to their end: how many clips each holds, and had been done before.
        ("shards", pa.list_(pa.struct([*SIZES, ("skipped", pa.int64())]))),
    ]
)


class TableInUse(Exception):
    """Another run holds the table, or has taken it over from this one. Exit code 75."""


class TableMismatch(Exception):
    """The table holds other columns or other labels than this run would write. Exit code 2."""


def table_schema(tasks: Mapping[str, TaskOptions], kept: pa.Schema) -> pa.Schema:
    """The table's columns, from the config alone. Raises TableMismatch if two have one name."""
    labels: list[pa.Field] = []
    for name, options in tasks.items():
        columns = {**load_task(options.task).columns(options), "error": pa.string()}
        labels += [pa.field(f"{name}_{column}", type_) for column, type_ in columns.items()]
    schema = pa.schema([*IDENTITY, *SOUND, *OUTCOME, *labels, *kept, *RUN])
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise TableMismatch(
            f"expected each column once, found {', '.join(twice)} twice: rename a task"
        )
    return schema


def write_rows(
    table: pa.Table,
    *,
    schema: pa.Schema,
    tasks: Sequence[str],
    path: str,
    storage_options: Mapping[str, Any],
    run_id: str,
    fingerprint: str,
    probe: str | None = None,
) -> pa.Table:
    """Write labelled clips as one data file under a new name; returns its row of `WRITTEN`.

    Plain readers of the folder never see half a file: it gets its name when it is whole. Where
    there are no clips there is no file, and its path is null. Raises OSError with the path.
    """
    expect_probe(probe)
    table, shards = _without_ends(table)
    if not len(table):
        return pa.Table.from_pylist([{"shards": shards}], schema=WRITTEN)
    table = _with_outcome(table, _label_columns(schema, tasks))
    rows = len(table)
    constants = {
        "run_id": pa.array([run_id] * rows, pa.string()),
        "fingerprint": pa.array([fingerprint] * rows, pa.string()),
        "labelled_at": pa.array([datetime.now(timezone.utc)] * rows, RUN.field("labelled_at").type),
    }
    data = pa.table(
        [
            constants.get(name, table[name] if name in table.column_names else None)
            for name in schema.names
        ],
        schema=schema,
    )
    name = f"part-{run_id}-{uuid.uuid4().hex}.parquet"
    fs, root = fsspec.url_to_fs(path, **storage_options)
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, compression="zstd")
    content = sink.getvalue()
    if "file" in fs.protocol:
        _write_whole(f"{root}/{name}", content, f"{root}/.{name}")
    else:
        fs.pipe_file(f"{root}/{name}", content.to_pybytes())
    failed = [
        row
        for row in data.select(["status", "error_kind", "source", "error_message"]).to_pylist()
        if row["error_kind"]
    ]
    return pa.Table.from_pylist(
        [
            {
                "path": name,
                "size_bytes": content.size,
                "audio_s": pc.sum(data["duration_s"]).as_py() or 0.0,
                "source": data["source"][0].as_py(),
                "clip_ids": data["clip_id"].to_pylist(),
                "supersedes": table["supersedes"].to_pylist(),
                "statuses": data["status"].to_pylist(),
                "errors": [
                    {
                        "kind": row["error_kind"],
                        "source": row["source"],
                        "message": row["error_message"],
                    }
                    for row in failed
                ],
                "shards": shards,
            }
        ],
        schema=WRITTEN,
    )


def _write_whole(path: str, content: Any, unfinished: str) -> None:
    """Write a local file that readers see whole or not at all. Raises OSError with the path."""
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except OSError as error:  # of a full disk Python does not say which file it was
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise OSError(error.errno, error.strerror, path) from None


def _without_ends(table: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Take the last rows of shards out, see `read.END_OF_SHARD`."""
    is_end = pc.fill_null(pc.equal(table["error_kind"], END_OF_SHARD), False)
    shards = []
    for end in (
        table.filter(is_end).select(["source", "source_version", "error_message"]).to_pylist()
    ):
        clips, skipped = end.pop("error_message").split()
        shards.append({**end, "clips": int(clips), "skipped": int(skipped)})
    return table.filter(pc.invert(is_end)), shards


def _label_columns(schema: pa.Schema, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Each task's columns in a `table_schema`, but for its error: they stand before it."""
    columns, start = {}, schema.names.index(OUTCOME.names[-1]) + 1
    for task in tasks:
        end = schema.names.index(f"{task}_error")
        columns[task] = schema.names[start:end]
        start = end + 1
    return columns


def _with_outcome(table: pa.Table, tasks: Mapping[str, Sequence[str]]) -> pa.Table:
    """Set `status` and the first failure of each row from what the stages left.

    A task that was not run on a clip, for its `when` is not true of it, has neither labels nor an
    error there. `tasks` says which columns are each one's labels.
    """
    errors = table.select(ERROR.names).to_pylist()
    failures = table.select([f"{task}_error" for task in tasks]).to_pylist()
    labels = {
        task: [table[name] for name in names if name in table.column_names]
        for task, names in tasks.items()
    }
    outcome: dict[str, list[str | None]] = {name: [] for name in OUTCOME.names}
    for row, (error, failed) in enumerate(zip(errors, failures, strict=True)):
        first = next((task for task in tasks if failed[f"{task}_error"]), None)
        if error["error_kind"]:
            status, (stage, kind, message) = "error", error.values()
        elif first:
            good = [task for task in tasks if not failed[f"{task}_error"]]
            has_label = any(column[row].is_valid for task in good for column in labels[task])
            kind, _, message = failed[f"{first}_error"].partition(": ")
            status, stage = "partial" if has_label else "error", first
        else:
            status, stage, kind, message = "ok", None, None, None
        for name, value in zip(OUTCOME.names, (status, stage, kind, message), strict=True):
            outcome[name].append(value)
    table = table.drop_columns(ERROR.names)
    for name, values in outcome.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


class Table:
    """The driver's handle on the table at `path`, which need not exist yet."""

    def __init__(self, path: str, storage_options: Mapping[str, Any] | None = None):
        self.fs, self.root = fsspec.url_to_fs(path, **(storage_options or {}))
        self.local = "file" in self.fs.protocol
        self.path = self.root if self.local else path
        self.options = delta_options(storage_options or {}) if "s3" in self.fs.protocol else None
        self.commit_number = 0
        self.run_id = ""
        self._beat: threading.Thread | None = None
        self._released = threading.Event()
        self.delta: DeltaTable | None = None
        with contextlib.suppress(TableNotFoundError):
            self._open()
        self.settings_seen = self.settings()

    # -- reading ---------------------------------------------------------------------------

    def _open(self) -> None:
        self.delta = self._asking(lambda: DeltaTable(self.path, storage_options=self.options))

    def _refresh(self) -> DeltaTable:
        """The newest version, which also becomes `delta`."""
        assert self.delta is not None
        self._asking(self.delta.update_incremental)
        return self.delta

    def _asking(self, read: Callable[[], T]) -> T:
        """What `read` gives, asked again where a store does not answer as it should."""
        for wait_s in () if self.local else TRY_AGAIN_AFTER_S:
            try:
                return read()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                time.sleep(wait_s)
        return read()

    def settings(self) -> dict[str, Any]:
        """What the table's labels were made with, {} before the first run."""
        description = self.delta.metadata().description if self.delta else None
        return json.loads(description) if description else {}

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """The committed rows' columns."""
        if self.delta is None:
            return pa.table({name: pa.array([], pa.string()) for name in columns})
        while True:
            version = self.delta.version()
            try:
                return self._asking(partial(self.delta.to_pyarrow_table, columns=list(columns)))
            except FileNotFoundError:  # if not damaged, then compacted by another run just now
                if self._refresh().version() == version:
                    raise

    def sizes(self, *, strict: bool = False) -> dict[tuple[str, str], int]:
        """How many clips each shard holds, by (source, version), where a run has read it whole.

        A fact about the input that saves reading it again; what is done is in the rows alone. What
        is missing or damaged is not known; if `strict`, damage raises pa.ArrowException or OSError.
        """
        try:
            content = self.fs.cat_file(f"{self.root}/_earmark/shards.parquet")
        except FileNotFoundError:
            return {}
        try:
            known = pq.read_table(pa.BufferReader(content), schema=SIZES)
        except (pa.ArrowException, OSError):  # not of the store, but of what is read from memory
            if strict:
                raise
            return {}
        columns = known.drop_null().to_pydict()
        shards = zip(columns["source"], columns["source_version"], strict=True)
        return dict(zip(shards, columns["clips"], strict=True))

    def remember(self, sizes: Mapping[tuple[str, str], int]) -> None:
        """Add to `sizes` what this run has seen."""
        rows = [
            {"source": source, "source_version": version, "clips": clips}
            for (source, version), clips in {**self.sizes(), **sizes}.items()
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SIZES), sink, compression="zstd")
        self._put(f"{self.root}/_earmark/shards.parquet", sink.getvalue().to_pybytes())

    def keep_report(self, report: Mapping[str, Any]) -> None:
        """Store what a run found, as JSON beside the data files, where no reader looks for rows."""
        content = json.dumps(report, indent=1, default=str, ensure_ascii=False).encode()
        self._put(f"{self.root}/_runs/{report['run_id']}.json", content)

    def is_tidy(self) -> bool:
        """Whether a plain reader of the folder's Parquet files sees the committed rows."""
        return self.delta is None or not self._leftovers(self._names())

    def _names(self) -> set[str]:
        """What lies in the table's folder."""
        try:
            return {
                posixpath.basename(n) for n in self.fs.ls(self.root, detail=False, refresh=True)
            }
        except FileNotFoundError:
            return set()

    def _leftovers(self, names: set[str]) -> list[str]:
        """Those of `names` that are data files, whole or not, and not in the log (any more)."""
        assert self.delta is not None
        committed = {posixpath.basename(uri) for uri in self.delta.file_uris()}
        return sorted(set(filter(DATA_FILE.fullmatch, names)) - committed)

    def columns_that_differ(self, schema: pa.Schema) -> list[str]:
        """`column: expected ..., found ...` for each column that the table has otherwise or lacks.

        One that only the table has belongs to a task that is no more, and is null in new rows.
        """
        if self.delta is None:
            return []
        wanted = {field.name: field for field in _delta_fields(schema)}
        have = {field.name: field for field in self.delta.schema().fields}
        return [
            f"column {name}: expected {_type_name(wanted.get(name))}, found {_type_name(have.get(name))}"
            for name in wanted
            if _type_name(wanted.get(name)) != _type_name(have.get(name))
        ]

    # -- holding ---------------------------------------------------------------------------

    def acquire(self, run_id: str, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        """Take the table, or create it, for one run. Raises TableInUse, TableMismatch.

        New columns are added to a table that lacks them, so that a run which relabels may have
        other tasks than the one before; a column whose type would change is a TableMismatch.
        """
        holder = self.holder()
        if holder and is_alive(holder):
            raise TableInUse(_in_use(holder))
        self.run_id = run_id
        me = {
            "run_id": run_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "fingerprint": fingerprint_of(settings),
        }
        if self.delta is None:
            names = self._names()
            strangers = sorted(name for name in names if not name.startswith(("_", ".")))
            if strangers and "_delta_log" not in names:
                raise TableMismatch(
                    f"output.path: expected a table, an empty folder or nothing at {self.path}, "
                    f"found {', '.join(strangers[:3])}{', ...' if strangers[3:] else ''}"
                )
            self._create(schema, settings)
            self._open()
        self.commit_number = self._refresh().transaction_version(APP) or 0
        holder = self._newest_holder()  # who came between our first look and this version
        if holder and is_alive(holder):
            raise TableInUse(_in_use(holder))
        if self.settings() not in (self.settings_seen, settings):
            raise TableInUse(f"another run has just made {self.path} with other settings")
        self._transact([], "hold", me)
        self._released.clear()
        self._beat = threading.Thread(target=self._keep_alive, args=(me,), daemon=True)
        self._beat.start()
        try:
            self._write_holder(me)
            self._own()  # somebody may have looked for a holder just before there was one
            if self.settings() != settings or self.columns_that_differ(schema):
                self._adapt(schema, settings)
        except BaseException:
            self.release()
            raise

    def _create(self, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        """Write the log's first version, unless there is one by now.

        Of two `DeltaTable.create` at once both may succeed, the second as version 1 with other
        settings. Here the store decides.
        """
        with tempfile.TemporaryDirectory() as scratch:
            DeltaTable.create(scratch, schema, name=APP, description=json.dumps(settings))
            [version] = Path(scratch, "_delta_log").glob("*.json")
            content = version.read_bytes().replace(Path(scratch).as_uri().encode(), b"")
        path = f"{self.root}/_delta_log/{version.name}"
        with contextlib.suppress(FileExistsError):
            if self.local:
                unfinished = f"{path}.{uuid.uuid4().hex}"
                self._put(unfinished, content)
                try:
                    os.link(unfinished, path)
                finally:
                    os.unlink(unfinished)
            else:
                self.fs.pipe_file(path, content, mode="create")

    def _adapt(self, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        assert self.delta is not None
        have = {field.name: field for field in self.delta.schema().fields}
        new = [field for field in _delta_fields(schema) if field.name not in have]
        changed = [
            field.name
            for field in _delta_fields(schema)
            if field.name in have and _type_name(have[field.name]) != _type_name(field)
        ]
        if changed:
            raise TableMismatch(
                f"the table at {self.path} has other types in {', '.join(changed)}: "
                "give the task another name, or the output another path"
            )
        alter = self.delta.alter
        if new:
            self._insist(
                lambda: alter.add_columns(new), lambda: not self.columns_that_differ(schema)
            )
        self._insist(
            lambda: alter.set_table_description(json.dumps(settings)),
            lambda: self.settings() == settings,
        )
        self._refresh()

    def release(self) -> None:
        """Let the table go. Harmless if it was never held, and if that can't be written."""
        if self._beat is None:
            return
        self._released.set()
        self._beat.join()
        self._beat = None
        with contextlib.suppress(Exception):  # what broke the run may break this, and is worth more
            holder = self.holder()
            if holder and holder["run_id"] == self.run_id:
                self.fs.rm_file(f"{self.root}/_earmark/holder.json")
            # Also then: who took over may have let go since, and our heartbeat have come back.
            self._remove_lost()

    def _remove_lost(self) -> None:
        """Remove what this run wrote and can't commit any more, for another has taken the table.

        Only then: a commit that seems to have failed may still reach a store, until the next run
        has taken its number. Ray has been told to end the workers, which may take them a moment.
        """
        assert self.delta is not None
        try:
            self._own()
        except TableInUse:
            until = time.monotonic() + LAST_WRITES_S
            while time.monotonic() < until:
                mine = {name for name in self._names() if f"part-{self.run_id}-" in name}
                for name in self._leftovers(mine):
                    self.fs.rm_file(f"{self.root}/{name}")
                    until = time.monotonic() + LAST_WRITES_S
                time.sleep(LAST_WRITES_S / 10)

    def holder(self) -> dict[str, Any] | None:
        """Who holds the table, if anybody says so in a way that can be understood."""
        try:
            holder = json.loads(self.fs.cat_file(f"{self.root}/_earmark/holder.json"))
            kinds: dict[str, Any] = {
                "run_id": str,
                "host": str,
                "since": str,
                "pid": int,
                "heartbeat": (int, float),
            }
            known = all(isinstance(holder[name], kind) for name, kind in kinds.items())
            return holder if known and holder["pid"] > 0 else None
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def _newest_holder(self) -> dict[str, Any] | None:
        """The holder, who gets a moment to say so if taking the table is the last thing done to it."""
        assert self.delta is not None
        last, *_ = self._asking(partial(self.delta.history, 1))  # more, if one comes meanwhile
        is_hold = json.loads(last.get("earmark", "{}")).get("what") == "hold"
        while (
            not (holder := self.holder())
            and is_hold
            and time.time() - last["timestamp"] / 1000 < MOMENT_S
        ):
            time.sleep(0.05)
        return holder

    def _write_holder(self, me: Mapping[str, Any]) -> None:
        content = json.dumps({**me, "heartbeat": time.time()}).encode()
        self._put(f"{self.root}/_earmark/holder.json", content)

    def _put(self, path: str, content: bytes) -> None:
        """Write a small file that readers see whole or not at all."""
        if self.local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write_whole(path, content, f"{path}.{self.run_id}")
        else:
            self.fs.pipe_file(path, content)

    def _keep_alive(self, me: Mapping[str, Any]) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # the next beat tries again; no commit needs it
                holder = self.holder()
                if holder and holder["run_id"] != self.run_id:
                    return  # taken over: the next commit will say so
                self._write_holder(me)

    # -- writing ---------------------------------------------------------------------------

    def commit(self, written: Sequence[Mapping[str, Any]]) -> None:
        """Make the rows of these data files (rows of `WRITTEN`) part of the table, in one step.

        Rows that take the place of others are merged in, so that no reader ever sees both or
        neither. Raises TableInUse if the table was taken over.
        """
        assert self.delta is not None
        shards = [shard for file in written for shard in file["shards"] or ()]
        written = [file for file in written if file["path"]]
        new = [file for file in written if not any(file["supersedes"])]
        if new:
            rows = sum(len(file["clip_ids"]) for file in new)
            self._transact([_add(file) for file in new], "label", {"rows": rows})
        replacing = [file for file in written if any(file["supersedes"])]
        if replacing:
            self._replace(replacing)
        if shards:
            self.remember({(s["source"], s["source_version"]): s["clips"] for s in shards})

    def _replace(self, written: Sequence[Mapping[str, Any]]) -> None:
        assert self.delta is not None
        tables = []
        for file in written:
            try:
                with self.fs.open(f"{self.root}/{file['path']}", "rb") as opened:
                    rows = pq.read_table(opened)
            except FileNotFoundError:  # to a run that has taken over it was a leftover
                self._own()
                raise
            tables.append(
                rows.append_column("supersedes", pa.array(file["supersedes"], pa.string()))
            )
        rows = pa.concat_tables(tables)
        # A column that only the table has belongs to a task that is no more.
        columns = {
            f'"{field.name}"': f's."{field.name}"' if field.name in rows.column_names else "NULL"
            for field in self.delta.schema().fields
        }
        self._own()
        note = {
            "rows": len(rows),
            "replaced": self._asking(lambda: self._count_by_run(rows["supersedes"])),
        }

        def merge(properties: CommitProperties) -> None:
            assert self.delta is not None
            (
                self.delta.merge(
                    rows,
                    "t.clip_id = s.supersedes",
                    source_alias="s",
                    target_alias="t",
                    writer_properties=WRITER,
                    commit_properties=properties,
                )
                .when_matched_update(columns)
                .when_not_matched_insert(columns)
                .execute()
            )

        self._numbered(merge, "relabel", note)

    def _count_by_run(self, ids: pa.ChunkedArray) -> Counter[str]:
        """How many rows of each run have one of these clip_ids."""
        assert self.delta is not None
        found: Counter[str] = Counter()
        for batch in self.delta.to_pyarrow_dataset().to_batches(columns=["clip_id", "run_id"]):
            is_one = pc.is_in(batch["clip_id"], ids.combine_chunks())
            found.update(batch.filter(is_one)["run_id"].to_pylist())
        return found

    def tidy(self) -> None:
        """Compact small files, and remove every data file that the log does not name."""
        assert self.delta is not None
        self._own()
        if len(self.delta.file_uris()) > 1:
            # Carries no commit number (delta-rs drops it here); the log's own conflict check is
            # enough, for compaction moves rows and changes none.
            optimize = self.delta.optimize
            self._insist(lambda: optimize.compact(writer_properties=WRITER), lambda: False)
        # Not `vacuum`: it spares hidden files, and with `full=True` takes whatever else lies here.
        # Listed while the table is certainly ours: if this process sleeps from here on, and
        # another run takes over, none of that run's files are among these.
        names = self._names()
        self._own()
        for name in self._leftovers(names):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

    def _transact(
        self,
        actions: list[AddAction | RemoveAction],
        what: str,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        def commit(properties: CommitProperties) -> None:
            assert self.delta is not None
            self.delta.create_write_transaction(
                actions, "append", self.delta.schema(), commit_properties=properties
            )

        self._own()
        self._numbered(commit, what, note)

    def _numbered(
        self,
        commit: Callable[[CommitProperties], object],
        what: str,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the commit with the next number. Raises TableInUse if another run has made it."""
        assert self.delta is not None
        commit_id = uuid.uuid4().hex
        properties = self._properties({"what": what, "commit": commit_id, **(note or {})})
        self._insist(lambda: commit(properties), lambda: self._in_log(commit_id))
        self.commit_number += 1
        self._refresh()

    def _insist(self, step: Callable[[], object], is_done: Callable[[], bool]) -> None:
        """Do a step on the log, again where the store fails. Raises TableInUse, or OSError.

        A store may do what it was asked and its answer get lost: the client asks again, and is
        told that somebody was faster. So whatever the answer, the log is looked at.
        """
        for wait_s in (*(() if self.local else TRY_AGAIN_AFTER_S), None):
            try:
                step()
                return
            except (DeltaError, OSError) as error:
                self._refresh()
                if is_done():
                    return
                self._own()
                if wait_s is None:
                    raise OSError(f"can't write to {self.path}: {_causes(error)}") from error
                time.sleep(wait_s)

    def _in_log(self, commit_id: str) -> bool:
        history = self._asking(lambda: self._refresh().history(10))
        notes = [json.loads(entry.get("earmark", "{}")) for entry in history]
        return any(note.get("commit") == commit_id for note in notes)

    def _own(self) -> None:
        """Move to the newest version; raise TableInUse if somebody else has committed."""
        if (self._refresh().transaction_version(APP) or 0) != self.commit_number:
            raise TableInUse(f"{self.path} was taken over: {_in_use(self.holder() or {})}")

    def _properties(self, note: Mapping[str, Any]) -> CommitProperties:
        return CommitProperties(
            app_transactions=[Transaction(APP, self.commit_number + 1)],
            custom_metadata={"earmark": json.dumps({"run_id": self.run_id, **note})},
        )


def delta_options(options: Mapping[str, Any]) -> dict[str, str]:
    """fsspec's S3 options as delta-rs calls them, so that one set serves both.

    delta-rs knows the environment and a machine's own role, and renews the latter, but it reads no
    profile, credentials file or config file: what s3fs would find there is looked up here. What
    expires (SSO, an assumed role) has to last for the run.
    """
    import botocore.session

    client = options.get("client_kwargs", {})
    session = botocore.session.Session(profile=options.get("profile"))
    endpoint = (
        options.get("endpoint_url")
        or client.get("endpoint_url")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or session.get_scoped_config().get("endpoint_url")
    )
    key, secret, token = (options.get(name) for name in ("key", "secret", "token"))
    if not key and not options.get("anon"):
        found = session.get_credentials()
        if found and found.method not in RENEWED_BY_DELTA:
            key, secret, token, *_ = found.get_frozen_credentials()
    named = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": token,
        "AWS_REGION": client.get("region_name") or session.get_config_variable("region"),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if str(endpoint).startswith("http://") else None,
        "AWS_SKIP_SIGNATURE": "true" if options.get("anon") else None,
    }
    return {name: str(value) for name, value in named.items() if value}


def _causes(error: Exception) -> str:
    """delta-rs's tree of causes on one line, without its colours."""
    lines = re.sub(r"\x1b\[\d+m|↳", "", str(error)).splitlines()
    return ": ".join(line.strip() for line in lines if line.strip())


def _add(file: Mapping[str, Any]) -> AddAction:
    statistics = json.dumps({"numRecords": len(file["clip_ids"])})
    return AddAction(
        file["path"], file["size_bytes"], {}, int(time.time() * 1000), True, statistics
    )


def _delta_fields(schema: pa.Schema) -> list[Field]:
    from deltalake import Schema

    return Schema.from_arrow(schema).fields


def _type_name(field: Field | None) -> str:
    return "no such column" if field is None else str(field.type)


def is_alive(holder: Mapping[str, Any]) -> bool:
    """A holder on this host lives if its process does; one elsewhere, if it was heard of lately."""
    if time.time() - holder["heartbeat"] > HOLDER_IS_DEAD_S:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _in_use(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another run has just taken the table"
    return (
        f"run {holder['run_id']} (process {holder['pid']} on {holder['host']}) "
        f"holds the table since {holder['since']}"
    )
