"""The rows of a table as a plan sees them, read a stretch at a time: a table may have hundreds of
millions."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.planning.due import REASONS, Wanted, due, expressions
from jobs.sources import PLACE
from jobs.table.storage import Storage

if TYPE_CHECKING:
    from jobs.table.table import Table

READS_AT_ONCE = 8
ROWS_AT_ONCE = 65_536  # of one read; 13 MB with long names
ROWS_AHEAD = 4 * ROWS_AT_ONCE  # of all that are read ahead
COMMITTED = pa.schema(
    [
        ("clip_id", pa.string()),
        *PLACE,
        ("channel", pa.int32()),
        ("channels", pa.int32()),
        ("status", pa.string()),
        ("due", pa.int64()),  # the tasks that are due on it; 0: none
        ("file", pa.int32()),  # its data file, see `Committed`
        ("row", pa.int32()),  # its number in there
    ]
)
# Why tasks are due on a row: for each of `due.REASONS` but the last those that are due for it.
WHY = pa.schema([("audio_s", pa.float64()), *((reason, pa.int64()) for reason in REASONS[:-1])])
_STORED = (*COMMITTED.names[:-3], "duration_s")


class Committed(NamedTuple):
    """The rows of a table.

    scan: with names of columns (of `COMMITTED` and `WHY`) iterates over all rows, some at a time.
    files: the names of the data files by number.
    """

    scan: Callable[[Sequence[str]], Iterator[pa.Table]]
    files: Sequence[str] = ()

    def rows(self, names: Sequence[str] = COMMITTED.names) -> pa.Table:
        """All rows at once."""
        schema = pa.schema([field for field in (*COMMITTED, *WHY) if field.name in names])
        return pa.concat_tables([schema.empty_table(), *self.scan(names)])


NOTHING_COMMITTED = Committed(lambda _: iter(()))


@dataclass(frozen=True)
class RowSettings:
    """Where a table's rows are, and the labels that a run wants of them.

    files: the names of the data files, as the plan numbers them.
    settings: those of the table.
    """

    path: str
    storage_options: Mapping[str, Any] = field(repr=False)
    schema: pa.Schema
    settings: Mapping[str, Any]
    files: Sequence[str]
    wanted: Wanted

    @classmethod
    def of(cls, table: Table, files: Sequence[str], wanted: Wanted) -> RowSettings:
        """Those of a table. Labels by tasks that left the config stay on its rows."""
        settings = table.settings()
        known = {*settings.get("tasks", {}), *settings.get("left", {})}
        wanted = replace(wanted, keeps_left=bool(known - wanted.fingerprints.keys()))
        return cls(
            table.path, table.storage.options, table.schema(), settings, tuple(files), wanted
        )

    def storage(self) -> Storage:
        """The table's storage, opened in the process that reads."""
        return Storage(self.path, self.storage_options)

    def columns(self, names: Collection[str]) -> dict[str, pc.Expression]:
        """The stored columns, and conditions on them, from which `made` makes the columns `names`."""
        have = self.schema.names
        stored = {
            name: pc.field(name) if name in have else pc.scalar(pa.scalar(None, _type(name)))
            for name in _STORED
            if name in names or (name == "duration_s" and "audio_s" in names)
        }
        return stored | expressions(have, self.settings, self.wanted)

    def made(self, stored: pa.Table, names: Collection[str], file: int, first: int) -> pa.Table:
        """The columns `names` of stretches of a data file's rows, of which the first has the number
        `first`."""
        sets, why = due(stored, self.wanted)
        made: dict[str, Any] = {"due": sets, **why}
        if "audio_s" in names:
            made["audio_s"] = np.nan_to_num(stored["duration_s"].to_numpy())
        made["file"] = np.full(len(stored), file, np.int32)
        made["row"] = np.arange(first, first + len(stored), dtype=np.int32)
        fields = [field for field in (*COMMITTED, *WHY) if field.name in names]
        columns = [
            pa.array(made[f.name]) if f.name in made else stored[f.name].cast(f.type)
            for f in fields
        ]
        return pa.table(columns, schema=pa.schema(fields))


def _type(name: str) -> pa.DataType:
    return pa.float64() if name == "duration_s" else COMMITTED.field(name).type


def committed(table: Table | None, wanted: Wanted) -> Committed:
    """A table's rows, and which tasks are due on each: those whose fingerprint is absent or other; if
    failures are retried, those that failed, and all on a clip that could not be decoded; and those
    that read one of these.

    Scanning raises FileNotFoundError if another run compacts the table meanwhile, see `Table.newest`.
    """
    if table is None:
        return NOTHING_COMMITTED
    dataset = table.dataset()
    fragments = list(dataset.get_fragments())
    rows = RowSettings.of(table, [posixpath.basename(f.path) for f in fragments], wanted)

    def scan(names: Sequence[str]) -> Iterator[pa.Table]:
        columns = rows.columns(names)

        def read(stretch: _Stretch) -> pa.Table:
            return table.storage.retrying(
                lambda: stretch.fragment.to_table(
                    schema=dataset.schema, columns=columns, use_threads=False
                )
            )

        for stretch, found in _ahead(read, _stretches(table, fragments)):
            yield rows.made(found, names, stretch.file, stretch.first)

    return Committed(scan, rows.files)


class _Stretch(NamedTuple):
    """Successive rows of a data file."""

    fragment: Any
    file: int
    first: int  # row
    rows: int


def _stretches(table: Table, fragments: Iterable[Any]) -> Iterator[_Stretch]:
    """The rows of all data files, in stretches that fit into memory, but not less than a row group."""
    counts = {name: file["num_records"] for name, file in table.files().items()}
    for file, fragment in enumerate(fragments):
        count = counts.get(posixpath.basename(fragment.path)) or 0
        if count <= ROWS_AT_ONCE:
            yield _Stretch(fragment, file, 0, count)
            continue
        first, rows = 0, 0
        groups: list[int] = []
        whole = table.storage.retrying(lambda: fragment.row_groups)  # noqa: B023
        for group in [*whole, None]:
            if groups and (group is None or rows + group.num_rows > ROWS_AT_ONCE):
                yield _Stretch(fragment.subset(row_group_ids=groups), file, first, rows)
                first, groups, rows = first + rows, [], 0
            if group is not None:
                groups.append(group.id)
                rows += group.num_rows


def _ahead(
    read: Callable[[_Stretch], pa.Table], stretches: Iterable[_Stretch]
) -> Iterator[tuple[_Stretch, pa.Table]]:
    """Each stretch and its rows, in order; at most READS_AT_ONCE stretches and ROWS_AHEAD rows are read
    ahead."""
    waiting = deque[tuple[_Stretch, Future[pa.Table]]]()
    ahead = 0  # rows
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        for stretch in chain(stretches, [None]):
            while waiting and (
                stretch is None
                or len(waiting) == READS_AT_ONCE
                or ahead + stretch.rows > ROWS_AHEAD
            ):
                first, rows = waiting.popleft()
                yield first, rows.result()
                ahead -= first.rows
            if stretch is not None:
                waiting.append((stretch, threads.submit(read, stretch)))
                ahead += stretch.rows


def rows_of_shard(settings: RowSettings, source: str, files: Iterable[int]) -> pa.Table:
    """The rows (`COMMITTED`) of a shard, all of which are in these data files."""
    storage = settings.storage()
    parts = [COMMITTED.empty_table()]
    for number in files:
        parts += storage.retrying(lambda: list(_of_shard(settings, storage, source, number)))  # noqa: B023
    return pa.concat_tables(parts)


def _of_shard(
    settings: RowSettings, storage: Storage, source: str, number: int
) -> Iterator[pa.Table]:
    """Decodes only those row groups of the data file that may have rows of the shard."""
    import pyarrow.dataset

    is_own = pc.field("source") == source
    columns = settings.columns(COMMITTED.names)
    with storage.open(settings.files[number]) as file:
        fragment = pyarrow.dataset.ParquetFileFormat().make_fragment(file)
        counts = [group.num_rows for group in fragment.row_groups]
        for group in fragment.subset(is_own, schema=settings.schema).row_groups:
            some = fragment.subset(row_group_ids=[group.id])
            stored = some.to_table(schema=settings.schema, columns=columns, use_threads=False)
            first = sum(counts[: group.id])
            rows = settings.made(stored, COMMITTED.names, number, first)
            yield rows.filter(pc.equal(rows["source"], source))
