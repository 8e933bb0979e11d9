"""What a run would do, from its config, its input and its table alone: neither Ray nor a model starts.

earmark plan CONFIG
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.arguments import add_plan_arguments, plan_arguments
from jobs.clips import Ids, numbers, numbers_of_places
from jobs.config import Config, ConfigError
from jobs.config_file import load_config
from jobs.console import printable
from jobs.exit_codes import BAD_CONFIG, FAILED, OK
from jobs.fingerprints import changes
from jobs.planning.committed import WHY, committed
from jobs.planning.due import Cost, Costs
from jobs.planning.find import find_clips, left_to_do, refuse_nothing
from jobs.planning.plan import Plan
from jobs.planning.refusal import refuse_other_labels
from jobs.preflight import Run, preflight
from jobs.prices import cost, price_per_hour
from jobs.progress import clock
from jobs.ray_address import ray_address
from jobs.ray_compat import cpu_quota, first_line
from jobs.resources import CannotRun, share_out
from jobs.shared_storage import refuse_uploads
from jobs.sources import PLACE
from jobs.table.schema import TableMismatch
from jobs.table.storage import Storage
from jobs.table.table import Table, UnreadableTable, reading

# Why a task is due on a clip: the clip is new or has changed, or one of `REASONS`.
IN_WORDS = {
    "new_clips": "new clips",
    "changed_clips": "clips that have changed",
    "new": "clips that it has not labelled",
    "changed": "clips that it has labelled with other settings",
    "failed": "clips on which it failed",
    "follows": "clips on which a task runs whose labels it reads",
}
SUMMARIES = 20  # of the newest runs, for their speeds


def forecast(config_path: str, overrides: list[str], **options: Any) -> dict[str, Any]:
    """The run's work, as JSON values: the clips `found`, `done`, `due` and `vanished`; by task its clips,
    by `why`, and the hours of sound that are known to be in them; `shards_to_read`, of whose clips the
    table's rows are counted; what would be `refused`, and the `exit_code` that a run would begin with, 2 or 0.

    `seconds`, of each task and of the whole, are those that its models took in earlier runs of this
    table for so much sound; None if there was none. Clips of unknown length count like the table's
    mean. `cost` is that of the whole on the machines of the run whose speed decides.
    """
    document: dict[str, Any] = {"config": config_path, "refused": [], "notes": [], "exit_code": OK}
    try:
        config = load_config(config_path, overrides)
        refuse_uploads(config, config_path, None)
        run = preflight("plan", config_path, config, document["notes"].append, **options)
        storage = Storage(config.output.path, config.output_options)
        table = Table.of_run(storage)
        document["table"] = storage.path if table else None
        if table:
            try:
                refuse_other_labels(table, run)
            except TableMismatch as error:  # and what would be due if it were not refused
                document["refused"] += str(error).split("\n")
        document |= _work(run, table, document["notes"])
        document["cost"] = _cost(document, table, config.resources.price_per_hour)
    except (ConfigError, CannotRun, TableMismatch) as error:
        document["refused"] += str(error).split("\n")
    document["exit_code"] = BAD_CONFIG if document["refused"] else OK
    return document


def _work(run: Run, table: Table | None, notes: list[str]) -> dict[str, Any]:
    found = find_clips(run, notes.append)
    todo = left_to_do(run, found, table)
    refuse_nothing(run, found, todo)
    due = run.wanted.names(todo.due) if len(todo.todo) else []
    if due:
        _refuse_machine(run.config, due, notes)
    known = _known(table, run, todo)
    tasks = {name: _Task() for name in due}
    for name, task in tasks.items():
        task.add(known.costs.of_tasks[name])
    for name, lines in changes(table.settings(), run.settings).items() if table else ():
        if name in tasks and not lines:  # of what its labels depend on others' alone
            tasks[name].why["follows"] += tasks[name].why["changed"]
            tasks[name].why["changed"] = 0
    unknown = 0 if run.source.SHARDED else _count_clips(tasks, todo.todo, known.has_row)
    speeds = _speeds(table, due) if table else {}
    mean_s = known.audio_s / known.rows if known.rows else None
    shown = {name: tasks[name].shown(speeds.get(name), mean_s) for name in due}
    seconds = [task["seconds"] for task in shown.values()]
    own = known.costs.whole.clips
    return {
        "found": todo.found + todo.known_to_read,
        "done": todo.done + todo.done_to_read,
        "due": own + unknown,
        "failed_before": todo.failed_before,
        "vanished": todo.vanished,
        "rows_to_remove": len(todo.obsolete),
        "shards_to_read": len(todo.todo) if run.source.SHARDED else None,
        "clips_of_unknown_length": unknown,
        "tasks": shown,
        "seconds": max(seconds) if seconds and None not in seconds else None,
    }


class _Known:
    """What the table has of the clips that are due, in their present version as far as that is known."""

    def __init__(self, run: Run, todo: Plan) -> None:
        self.is_sharded, self.is_each = run.source.SHARDED, run.config.audio.channels == "each"
        self.sources = todo.todo["source"].combine_chunks()
        self.ids = None if self.is_sharded else Ids(numbers(todo.todo["clip_id"].combine_chunks()))
        self.has_row = np.zeros(len(todo.todo), bool)
        self.costs = Costs(run.wanted.fingerprints)
        self.rows, self.audio_s = 0, 0.0  # of the whole table

    def add(self, rows: pa.Table) -> None:
        """Count some rows of the table."""
        self.rows += len(rows)
        self.audio_s += float(rows["audio_s"].to_numpy().sum())
        rows = rows.filter(pc.not_equal(rows["due"], 0))
        if self.ids is None:
            is_own = pc.is_in(rows["source"], value_set=self.sources)
        else:
            at = self.ids.at(numbers(rows["clip_id"].combine_chunks()))
            if self.is_each:
                at = np.maximum(at, self.ids.at(numbers_of_places(rows.select(PLACE.names))))
            self.has_row[at[at >= 0]] = True
            is_own = pa.array(at >= 0)
        self.costs.add(rows.filter(is_own))


def _known(table: Table | None, run: Run, todo: Plan) -> _Known:
    def count() -> _Known:
        known = _Known(run, todo)
        place = ["source"] if known.is_sharded else ["clip_id", *PLACE.names]
        for rows in committed(table, run.wanted).scan([*place, "due", *WHY.names]):
            known.add(rows)
        return known

    if table is None:
        return _Known(run, todo)
    with reading(table.path):
        return table.newest(count)


class _Task:
    """The clips on which a task is due."""

    def __init__(self) -> None:
        self.why = dict.fromkeys(IN_WORDS, 0)
        self.audio_s = 0.0

    def add(self, costs: Mapping[str, Cost]) -> None:
        """Count clips with a row, by reason."""
        for reason, of_reason in costs.items():
            self.why[reason] += of_reason.clips
            self.audio_s += of_reason.audio_s

    def shown(self, speed: float | None, mean_s: float | None) -> dict[str, Any]:
        unknown = self.why["new_clips"] + self.why["changed_clips"]
        seconds = None
        if speed and (mean_s is not None or not unknown):
            seconds = (self.audio_s + unknown * (mean_s or 0.0)) / speed
        return {
            "clips": sum(self.why.values()),
            "why": {reason: count for reason, count in self.why.items() if count},
            "audio_hours": self.audio_s / 3600,
            "seconds": seconds,
        }


def _count_clips(tasks: Mapping[str, _Task], todo: pa.Table, has_row: np.ndarray) -> int:
    """Count the clips without a row of their version, for each task; returns their number."""
    others = todo.filter(pa.array(~has_row))
    changed = len(others) - others["supersedes"].null_count
    for task in tasks.values():
        task.why["new_clips"] += len(others) - changed
        task.why["changed_clips"] += changed
    return len(others)


def _speeds(table: Table, tasks: list[str]) -> dict[str, float]:
    """How many times faster than real time each task's models were together in its newest run."""
    speeds: dict[str, float] = {}
    for found, _ in _earlier_runs(table):
        speeds = {**found, **speeds}
        if speeds.keys() >= set(tasks):
            break
    return speeds


def _earlier_runs(table: Table) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """The speeds of the tasks' models, and the machines by kind, of the newest runs."""
    names = sorted(table.storage.sizes("_runs"), reverse=True)
    for name in names[:SUMMARIES]:
        try:
            summary = json.loads(table.storage.read(f"_runs/{name}"))
            models = (summary.get("models") or {}).items()
            speeds = {task: float(model["times_real_time"]) for task, model in models}
            machines = summary.get("machines") or {}
            counts = {str(kind): float(count) for kind, count in machines.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield {task: speed for task, speed in speeds.items() if speed > 0}, counts


def _cost(
    document: Mapping[str, Any], table: Table | None, prices: Mapping[str, float]
) -> float | None:
    """The cost of the whole on the machines with which its slowest task ran last; None if the time or
    a price is not known, with a note if there are prices."""
    if table is None or not prices or document["seconds"] is None:
        return None
    slowest = max(document["tasks"], key=lambda task: document["tasks"][task]["seconds"])
    runs = _earlier_runs(table)
    machines = next((machines for speeds, machines in runs if slowest in speeds), {})
    found = cost(document["seconds"], price_per_hour(machines, prices))
    if found is None:
        kinds = ", ".join(machines) or "machines that its summary does not name"
        document["notes"].append(
            f"no cost: the last run of {slowest} had {kinds}; resources.price_per_hour has "
            f"{', '.join(prices)}"
        )
    return found


def _refuse_machine(config: Config, tasks: list[str], notes: list[str]) -> None:
    """Raise CannotRun if the resources that the config asks for are not this machine's."""
    if address := ray_address():
        notes.append(f"what the cluster at {address} has is not known without asking Ray")
        return
    of_tasks = {name: options for name, options in config.tasks.items() if name in tasks}
    share_out(config.model_copy(update={"tasks": of_tasks}), [machine()])


def machine() -> dict[str, float]:
    """The CPUs and GPUs of this machine that its processes may use, as Ray counts them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota := cpu_quota():
        cpus = min(cpus, max(1, int(quota)))
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = min(gpus, len([one for one in visible.split(",") if one.strip()]))
    return {"CPU": float(cpus), "GPU": float(gpus)}


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The forecast as text."""
    yield from document["notes"]
    if "found" in document:
        yield (
            f"{document['found']:,} clips {'found' if document['shards_to_read'] is None else 'known'}, "
            f"{document['done']:,} already labelled, "
            f"{document['due']:,} due"
        )
        if document["shards_to_read"]:
            yield f"{document['shards_to_read']:,} shards to read, whose new clips are not counted"
        if document["rows_to_remove"]:
            yield f"{document['rows_to_remove']:,} rows to remove, whose files hold them no more"
        if document["vanished"]:
            yield f"{document['vanished']:,} clips have vanished: their rows stay"
        if document["failed_before"]:
            yield f"{document['failed_before']:,} clips failed before (--retry-errors)"
        for name, task in document["tasks"].items():
            why = ", ".join(
                f"{count:,} {IN_WORDS[reason]}" for reason, count in task["why"].items()
            )
            yield f"  {name}: {task['clips']:,} clips{f' ({why})' if why else ''}"
            yield f"    {_length(task, document)}"
        if document["seconds"] is not None:
            costs = "" if document["cost"] is None else f" and {document['cost']:,.2f}"
            yield f"about {clock(document['seconds'])}{costs}, at the speed of earlier runs"
    if document["refused"]:
        yield "the run would be refused:"
        yield from (f"  {line}" for line in document["refused"])


def _length(task: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    unknown = document["clips_of_unknown_length"]
    parts = [f"{task['audio_hours']:,.2f} h of audio"]
    if unknown:
        parts.append(f"and {unknown:,} clips whose length is not known")
    if task["seconds"] is not None:
        parts.append(f"· about {clock(task['seconds'])}")
    return " ".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark plan`."""
    add_plan_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run_from(args: argparse.Namespace) -> int:
    """Print the forecast; returns 0, 2 if the run would be refused, or 1 if a storage does not answer."""
    try:
        document = forecast(**plan_arguments(args))
    except UnreadableTable as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Exception as error:  # clients of stores raise their own errors
        print(f"error: {first_line(error)}", file=sys.stderr)
        return FAILED
    if args.json:
        json.dump(document, sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        for line in lines(document):
            print(printable(line))
    return int(document["exit_code"])
