"""The columns of a table that reports read, as each task declares them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from audio_ops.tasks import load_task


@dataclass(frozen=True)
class TaskColumns:
    """A task's columns in one table.

    `of` maps the names that reports use to the table's columns: those of `tasks.columns`, `error`,
    and, where the task declares them, `label`, `text`, `score` and `suspect`.
    """

    kind: Literal["recognition", "classification"]
    of: Mapping[str, str]


def task_columns(task: str, options: Mapping[str, Any], names: Collection[str]) -> TaskColumns:
    """The reported columns of `task` among `names`, the table's columns.

    `options` are the task's, as the table's settings keep them; options that an earlier version
    did not have get their defaults. Raises ValueError if this version lacks the task.
    """
    try:
        module = load_task(options["task"])
    except ModuleNotFoundError:
        raise ValueError(
            f"{task}: expected a task that this version has, found {options['task']!r}"
        ) from None
    known = module.Options.model_construct(**options)
    reporting = module.reporting(known)
    declared = {name: name for name in (*module.columns(known), "error")}
    for role in ("label", "text", "score", "suspect"):
        declared.pop(role, None)
        if column := getattr(reporting, role):
            declared[role] = column
    found = {name: f"{task}_{column}" for name, column in declared.items()}
    return TaskColumns(
        reporting.kind, {name: column for name, column in found.items() if column in names}
    )
