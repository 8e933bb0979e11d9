"""Which tasks are due on the clips that a table has rows of.

A set of tasks is a bit mask: bit n is the nth task of the config. Where nothing of a row stays it is `ALL`,
whatever the number of tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.clips import ALL
from jobs.fingerprints import fingerprint_of, fingerprints, reads
from jobs.table.schema import ERROR_OF_READING

# Why a task is due on a clip that has a row.
REASONS = ("new", "changed", "failed", "follows")


@dataclass(frozen=True)
class Wanted:
    """The labels that the table should have after a run.

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


class Cost(NamedTuple):
    """Clips that have a row in a table, and their seconds of sound."""

    clips: int = 0
    audio_s: float = 0.0

    def __add__(self, other: tuple[Any, ...]) -> Cost:  # type: ignore[override]
        return Cost(self.clips + other[0], self.audio_s + other[1])


class Costs:
    """The clips with a row on which some task is due, and by task and reason (`REASONS`) those on which
    that one is."""

    def __init__(self, tasks: Collection[str]) -> None:
        self.whole = Cost()
        self.of_tasks = {name: dict.fromkeys(REASONS, Cost()) for name in tasks}

    def add(self, rows: pa.Table) -> None:
        """Count rows with `due`, `audio_s` and each reason's tasks, see `jobs.planning.committed`."""
        sets, audio_s = rows["due"].to_numpy(), rows["audio_s"].to_numpy()
        self.whole += _cost(sets != 0, audio_s)
        for bit, found in enumerate(self.of_tasks.values()):
            is_left = has(sets, bit)
            for reason in REASONS[:-1]:
                is_why = has(rows[reason].to_numpy(), bit)
                found[reason] += _cost(is_left & is_why, audio_s)
                is_left &= ~is_why
            found[REASONS[-1]] += _cost(is_left, audio_s)


def _cost(is_due: np.ndarray, seconds: np.ndarray) -> Cost:
    return Cost(int(is_due.sum()), float(seconds[is_due].sum()))


def expressions(
    have: Collection[str], settings: Mapping[str, Any], wanted: Wanted
) -> dict[str, pc.Expression]:
    """The columns that `due` needs, of a table with the columns `have` and these settings."""
    columns = {"_unread": pc.is_in(pc.field("error_stage"), pa.array(ERROR_OF_READING))}
    no = pc.scalar(False)
    for task, print_ in wanted.fingerprints.items():
        found = fingerprint_of(task, settings, have)
        columns[f"_new {task}"] = pc.is_null(found)
        columns[f"_changed {task}"] = pc.coalesce(pc.not_equal(found, print_), no)
        error = f"{task}_error"
        columns[f"_failed {task}"] = pc.is_valid(pc.field(error)) if error in have else no
    return columns


def due(rows: pa.Table, wanted: Wanted) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The tasks due on each row with the columns of `expressions`, as int64, and for each of `REASONS`
    but the last those that are due for it."""

    def is_true(column: str) -> np.ndarray:
        return np.asarray(rows[column].to_numpy(zero_copy_only=False), bool)

    unread = is_true("_unread")
    why = {reason: np.zeros(len(rows), np.int64) for reason in REASONS[:-1]}
    is_due = dict[str, np.ndarray]()
    sets = np.zeros(len(rows), np.int64)
    for bit, name in enumerate(wanted.fingerprints):
        of_task = {reason: is_true(f"_{reason} {name}") for reason in why}
        of_task["failed"] = (of_task["failed"] | unread) & wanted.retry_errors
        is_due[name] = of_task["new"] | of_task["changed"] | of_task["failed"]
        for other in wanted.reads[name]:
            is_due[name] = is_due[name] | is_due[other]
        sets |= is_due[name].astype(np.int64) << bit
        for reason, mask in of_task.items():
            why[reason] |= mask.astype(np.int64) << bit
    is_all = (sets == (1 << len(wanted.fingerprints)) - 1) & (not wanted.keeps_left)
    sets[is_all | (sets != 0) & wanted.together] = ALL
    return sets, why


def has(sets: np.ndarray, bit: int) -> np.ndarray:
    """Whether each of these sets has the task with this bit."""
    found: np.ndarray = (sets >> bit & 1).astype(bool)
    return found
