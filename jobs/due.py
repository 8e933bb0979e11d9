"""Which tasks are due on the clips that a table has rows of.

A set of tasks is a bit mask: bit n stands for the nth task of the config. That of all tasks is `ALL`,
however many they are, where nothing of a row stays.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from jobs.clips import ALL
from jobs.fingerprints import fingerprint_of, fingerprints, reads
from jobs.sources import PLACE
from jobs.table.schema import ERROR_OF_READING
from jobs.table.table import Table

FILES_AT_ONCE = 8
# What a plan knows of each row of the table.
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
# Why a task is due on a clip that has a row.
REASONS = ("new", "changed", "failed", "follows")


class Committed(NamedTuple):
    """The rows of a table (`COMMITTED`), and the names of their data files by number."""

    rows: pa.Table
    files: tuple[str, ...] = ()


NOTHING_COMMITTED = Committed(COMMITTED.empty_table())


@dataclass(frozen=True)
class Wanted:
    """The labels that a run is to leave behind.

    fingerprints: by task, in the config's order.
    reads: by task the earlier ones that it reads.
    retry_errors: whether tasks are due where they failed.
    together: whether all tasks are due where one is, as in a sample.
    keeps_left: whether rows may have labels by tasks that are no longer in the config. Then a set is
        `ALL` only where nothing of a row stays.
    """

    fingerprints: Mapping[str, str]
    reads: Mapping[str, Sequence[str]]
    retry_errors: bool = False
    together: bool = False
    keeps_left: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], **options: bool) -> Wanted:
        """The labels that are made with some settings."""
        return cls(fingerprints(settings), reads(settings["tasks"]), **options)

    def names(self, due: int) -> list[str]:
        """The tasks of a set."""
        return [name for bit, name in enumerate(self.fingerprints) if due >> bit & 1]


def committed(table: Table | None, wanted: Wanted) -> Committed:
    """The table's rows, and which tasks are due on each: those whose fingerprint is absent or other,
    those that failed if they are to be tried again, all of a clip that could not be decoded, and
    those that read one of these."""
    while table is not None:
        version = table.version
        try:
            return _committed(table, wanted)
        except FileNotFoundError:  # unless damaged, another run has just compacted the table
            table.refresh()
            if table.version == version:
                raise
    return NOTHING_COMMITTED


def _committed(table: Table, wanted: Wanted) -> Committed:
    settings = table.settings()
    known = {*settings.get("tasks", {}), *settings.get("left", {})}
    wanted = replace(wanted, keeps_left=bool(known - wanted.fingerprints.keys()))
    parts, files = [], []
    for file, (name, rows) in enumerate(_scan(table, _columns(table, wanted))):
        files.append(name)
        columns = {name: rows[name] for name in COMMITTED.names if name in rows.column_names}
        columns["due"] = pa.array(_due(rows, wanted)[0])
        columns["file"] = pa.repeat(pa.scalar(file, pa.int32()), len(rows))
        columns["row"] = pa.array(np.arange(len(rows), dtype=np.int32))
        parts.append(pa.table(columns).select(COMMITTED.names).cast(COMMITTED))
    return Committed(pa.concat_tables([COMMITTED.empty_table(), *parts]), tuple(files))


class Cost(NamedTuple):
    """Clips that have a row in a table, and their seconds of sound."""

    clips: int = 0
    audio_s: float = 0.0

    def __add__(self, other: tuple[Any, ...]) -> Cost:  # type: ignore[override]
        return Cost(self.clips + other[0], self.audio_s + other[1])


def costs(table: Table, wanted: Wanted) -> tuple[Cost, dict[str, dict[str, Cost]]]:
    """The clips with a row on which some task is due, and by task and reason (`REASONS`) those on
    which that one is."""
    whole = Cost()
    found = {name: dict.fromkeys(REASONS, Cost()) for name in wanted.fingerprints}
    names = ("duration_s",)
    for _, rows in _scan(table, _columns(table, wanted, names)):
        due, why = _due(rows, wanted)
        seconds = np.nan_to_num(rows["duration_s"].to_numpy())
        whole += _cost(due != 0, seconds)
        for bit, name in enumerate(wanted.fingerprints):
            is_due = (due >> bit & 1).astype(bool)
            masks = {reason: why[name, reason] for reason in REASONS[:-1]}
            for reason, is_why in by_first_reason(is_due, masks):
                found[name][reason] += _cost(is_why, seconds)
    return whole, found


def by_first_reason(
    is_due: np.ndarray, masks: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """For each of `REASONS` the due rows of which it is the first; the last is that of all that have no
    other."""
    left = is_due.copy()
    for reason, mask in masks.items():
        yield reason, left & mask
        left &= ~mask
    yield REASONS[-1], left


class Why(NamedTuple):
    """Of each row of the table, by its `file` and `row`: for each reason (`REASONS`, without the last)
    the tasks that are due for it, and the seconds of sound.

    starts: the number of each file's first row among all.
    """

    starts: np.ndarray
    masks: Mapping[str, np.ndarray]
    audio_s: np.ndarray

    def of(self, rows: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The masks and the seconds of some of these rows (`COMMITTED`)."""
        at = self.starts[rows["file"].to_numpy()] + rows["row"].to_numpy()
        return {reason: mask[at] for reason, mask in self.masks.items()}, self.audio_s[at]


def reasons(table: Table, wanted: Wanted) -> Why:
    """Why tasks are due on each row, in the order of `committed`."""
    lengths, audio_s = [], [np.empty(0)]
    masks: dict[str, list[np.ndarray]] = {
        reason: [np.empty(0, np.int64)] for reason in REASONS[:-1]
    }
    for _, rows in _scan(table, _columns(table, wanted, ("duration_s",))):
        lengths.append(len(rows))
        audio_s.append(np.nan_to_num(rows["duration_s"].to_numpy()))
        why = _due(rows, wanted)[1]
        for reason, parts in masks.items():
            mask = np.zeros(len(rows), np.int64)
            for bit, name in enumerate(wanted.fingerprints):
                mask |= why[name, reason].astype(np.int64) << bit
            parts.append(mask)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    whole = {reason: np.concatenate(parts) for reason, parts in masks.items()}
    return Why(starts, whole, np.concatenate(audio_s))


def _cost(is_due: np.ndarray, seconds: np.ndarray) -> Cost:
    return Cost(int(is_due.sum()), float(seconds[is_due].sum()))


def _columns(
    table: Table, wanted: Wanted, names: Sequence[str] = COMMITTED.names
) -> dict[str, pc.Expression]:
    """What `_due` needs of a row, and the columns `names`."""
    have, settings = table.schema().names, table.settings()
    columns = {
        field.name: pc.field(field.name)
        if field.name in have
        else pc.scalar(pa.scalar(None, field.type))
        for field in (*COMMITTED, pa.field("duration_s", pa.float64()))
        if field.name in names and field.name not in ("due", "file", "row")
    }
    columns["_unread"] = pc.is_in(pc.field("error_stage"), pa.array(ERROR_OF_READING))
    no = pc.scalar(False)
    for task, print_ in wanted.fingerprints.items():
        found = fingerprint_of(task, settings, have)
        columns[f"_new {task}"] = pc.is_null(found)
        columns[f"_changed {task}"] = pc.coalesce(pc.not_equal(found, print_), no)
        error = f"{task}_error"
        columns[f"_failed {task}"] = pc.is_valid(pc.field(error)) if error in have else no
    return columns


def _due(rows: pa.Table, wanted: Wanted) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """The tasks due on each row, int64, and whether they are for each (task, reason)."""

    def is_true(column: str) -> np.ndarray:
        return np.asarray(rows[column].to_numpy(zero_copy_only=False), bool)

    unread = is_true("_unread")
    why, is_due = {}, dict[str, np.ndarray]()
    for name in wanted.fingerprints:
        for reason in REASONS[:-1]:
            why[name, reason] = is_true(f"_{reason} {name}")
        why[name, "failed"] = (why[name, "failed"] | unread) & wanted.retry_errors
        is_due[name] = why[name, "new"] | why[name, "changed"] | why[name, "failed"]
        for other in wanted.reads[name]:
            is_due[name] = is_due[name] | is_due[other]
    due = np.zeros(len(rows), np.int64)
    for bit, name in enumerate(wanted.fingerprints):
        due |= is_due[name].astype(np.int64) << bit
    is_all = (due == (1 << len(wanted.fingerprints)) - 1) & (not wanted.keeps_left)
    due[is_all | (due != 0) & wanted.together] = ALL
    return due, why


def _scan(table: Table, columns: Mapping[str, pc.Expression]) -> Iterator[tuple[str, pa.Table]]:
    """The name of each data file and these columns of its rows, in their order."""
    dataset = table.dataset()
    read = partial(_read, table, dataset.schema, dict(columns))
    fragments = list(dataset.get_fragments())
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        for start in range(0, len(fragments), 4 * FILES_AT_ONCE):  # not all results at once
            some = fragments[start : start + 4 * FILES_AT_ONCE]
            names = (posixpath.basename(fragment.path) for fragment in some)
            yield from zip(names, threads.map(read, some), strict=True)


def _read(
    table: Table, schema: pa.Schema, columns: dict[str, pc.Expression], fragment: Any
) -> pa.Table:
    return table.storage.retrying(
        lambda: fragment.to_table(schema=schema, columns=columns, use_threads=False)
    )
