"""Refuses a run that would replace labels, unless `--relabel` allows it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from jobs.fingerprints import changes
from jobs.planning.committed import WHY, committed
from jobs.planning.due import Cost, Costs, Wanted
from jobs.preflight import Run
from jobs.table.schema import ADDED_LATER, TableMismatch, columns_by_task
from jobs.table.table import Table, reading


def refuse_other_labels(table: Table, run: Run) -> None:
    """Raise TableMismatch if the table's labels were made with other settings and the run may not
    replace them, or if the table lacks a column that it should have."""
    changed = changes(table.settings(), run.settings)
    refused = {task for task, lines in changed.items() if lines and not run.may_relabel(task)}
    if refused:
        with reading(table.path):
            costs = table.newest(lambda: _costs(table, _wanted_of(run.wanted, changed)))
        if costs.whole.clips:
            raise TableMismatch("\n".join(_lines(table, refused, changed, costs)))
    if not run.relabel and (differences := _columns_that_differ(table, run, changed)):
        raise TableMismatch(
            f"the table at {table.path} has other columns:\n  "
            + "\n  ".join(differences)
            + "\nuse --relabel to add them, or another output.path"
        )


def to_drop(table: Table | None, run: Run, say: Callable[[str], None]) -> list[str]:
    """The tasks of `--drop` that the table has. The others are reported, and no error: the same command
    continues a run that was killed after it had dropped them."""
    settings = table.settings() if table else {}
    known = {*settings.get("left", {}), *settings.get("tasks", {})} - set(run.config.tasks)
    for task in run.drop:
        if task not in known:
            others = f": it has {', '.join(sorted(known))}" if known else ""
            say(
                f"--drop {task}: the table has no task of that name besides the config's own{others}"
            )
    return [task for task in run.drop if task in known]


def _wanted_of(wanted: Wanted, tasks: Collection[str]) -> Wanted:
    """The labels of some tasks alone."""
    prints = {name: print_ for name, print_ in wanted.fingerprints.items() if name in tasks}
    reads = {name: [o for o in wanted.reads[name] if o in prints] for name in prints}
    return Wanted(prints, reads)


def _costs(table: Table, wanted: Wanted) -> Costs:
    costs = Costs(wanted.fingerprints)
    for rows in committed(table, wanted).scan(["due", *WHY.names]):
        costs.add(rows)
    return costs


def _lines(
    table: Table,
    refused: Collection[str],
    changed: Mapping[str, Sequence[str]],
    costs: Costs,
) -> Iterator[str]:
    yield f"the table at {table.path} was made with other settings:"
    yield from dict.fromkeys(f"  {line}" for task in sorted(refused) for line in changed[task])
    yield f"so {shown(costs.whole)} would be labelled again:"
    for task, reasons in costs.of_tasks.items():
        again = sum(reasons.values(), Cost())
        if again.clips:
            why = "" if changed[task] else ", as it reads another task's columns"
            yield f"  by {task}: {shown(again)}{why}"
    yield (
        f"use --relabel to label them again (or --relabel {' '.join(sorted(refused))}), or another "
        "output.path"
    )


def shown(cost: Cost) -> str:
    """A cost for a message."""
    return f"{cost.clips:,} clips, {cost.audio_s / 3600:,.2f} h of audio"


def _columns_that_differ(table: Table, run: Run, changed: Collection[str]) -> list[str]:
    """Columns that the table lacks or has with another type, except those that an update or a new task
    adds."""
    known = table.settings().get("tasks", {}).keys() - set(changed)
    columns, carried = columns_by_task(run.schema.names, run.config.tasks, run.kept.names)
    added = {name for task in columns if task not in known for name in columns[task]}
    added |= {f"{task}_{what}" for task in columns for what in ("fingerprint", "run_id")}
    added |= {name for name in carried if name not in run.config.output.keep}
    return table.columns_that_differ(run.schema, but={*ADDED_LATER, *added})
