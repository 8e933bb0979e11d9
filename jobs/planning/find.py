"""Finds the clips of a run, and what is to do with them: before Ray starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from jobs.config import ConfigError
from jobs.planning.committed import Committed, committed
from jobs.planning.plan import Plan, plan
from jobs.planning.shards import plan_shards
from jobs.preflight import Run
from jobs.sample import clips_per_shard
from jobs.sources import BadInput, Listing, ShardedSource
from jobs.sources._auto import hint, where
from jobs.sources._walk import listed
from jobs.table.table import Table, reading


def find_clips(run: Run, say: Callable[[str], None]) -> Listing:
    """Every clip, or shard, of the input. Raises ConfigError for a path that names nothing."""
    try:
        found = run.source.find(run.config.input, say, run.kept)
    except FileNotFoundError as error:
        raise ConfigError(f"{run.config_path}: input.path: {error}") from None
    except BadInput as error:
        raise ConfigError(f"{run.config_path}: {error}") from None
    if found.passed_over:
        say(f"passed over, by extension: {listed(found.passed_over)}")
    return found


def refuse_nothing(run: Run, found: Listing, todo: Plan) -> None:
    """Raise ConfigError if there is nothing to label in what `input.path` names."""
    is_something = len(found.clips) or todo.obsolete  # whose rows go
    passed_over: Mapping[str, int] | None = None if is_something else found.passed_over
    if run.source.SHARDED and len(todo.todo) and not todo.done:
        passed_over = cast(ShardedSource, run.source).look(todo.todo, run.config.input)
    if passed_over is None:
        return
    raise ConfigError(
        f"{run.config_path}: input.path: expected clips for format {run.config.input.format}, found "
        f"{listed(passed_over) or 'nothing'} in {where(run.config.input)}{hint(passed_over)}"
    )


def left_to_do(run: Run, found: Listing, table: Table | None) -> Plan:
    """Found minus committed. Raises UnreadableTable."""
    if table is None:
        return plan_of(run, found, committed(None, run.wanted), None)
    with reading(table.path):
        return table.newest(lambda: plan_of(run, found, committed(table, run.wanted), table))


def plan_of(run: Run, found: Listing, rows: Committed, table: Table | None) -> Plan:
    """Found minus these rows of the table."""
    if run.source.SHARDED:
        shards = table.shards() if table else {}
        if least := clips_per_shard(run.sample, len(found.clips)):  # an earlier sample had fewer
            shards = {name: shard for name, shard in shards.items() if shard.clips >= least}
        return plan_shards(found, rows, shards)
    return plan(found, rows, channels=run.config.audio.channels)
