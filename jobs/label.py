"""The main job: plan -> read -> prepare -> label -> write -> commit.

earmark run CONFIG            the same as  python -m jobs.label CONFIG
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from audio_ops.checkpoint import Checkpoint
from audio_ops.tasks import load_task
from jobs.config import Config, ConfigError, find_models, find_source, load_config
from jobs.console import Console
from jobs.evaluate import evaluate, lines
from jobs.plan import COMMITTED, Plan, difference, fingerprint, plan, plan_shards, settings
from jobs.progress import Progress
from jobs.resources import CannotRun, share_out
from jobs.sources import load_source
from jobs.table import Table, TableInUse, TableMismatch, table_schema, write_rows

if TYPE_CHECKING:
    import ray.data

OK, FAILED, BAD_CONFIG, TOO_MANY_ERRORS, IN_USE = 0, 1, 2, 3, 75
CRASHES_BEFORE_GIVING_UP = 3


def run(
    config_path: str,
    overrides: Sequence[str] = (),
    *,
    relabel: bool = False,
    retry_errors: bool = False,
) -> int:
    """Label what is new; returns the exit code."""
    started = time.monotonic()
    run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    with Console(run_id) as console, Stop() as stop:
        try:
            config = load_config(config_path, overrides)
            checkpoints = find_models(config, config_path)
            config, kept = find_source(config, config_path, console.say)
            source = load_source(config.input.format)
            schema = table_schema(config.tasks, kept)
            table = Table(config.output.path, config.output_options)
            labels = settings(config, checkpoints)
            refuse_other_labels(table, schema, labels, relabel)
            console.progress("looking for clips")
            try:
                found = source.find(config.input, console.say, kept)
            except FileNotFoundError as error:
                raise ConfigError(f"{config_path}: input.path: {error}") from None
            todo = left_to_do(source, found, table, labels, retry_errors)
            if not len(todo.todo) and table.is_tidy():
                console.say(nothing_to_do(todo, config, time.monotonic() - started))
                return OK
            table.acquire(run_id, schema, labels)
            try:  # what another run committed between our first look and now is done, too
                todo = left_to_do(source, found, table, labels, retry_errors)
                progress = Progress(console, todo, started)
                if len(todo.todo):
                    with running_ray(console, stop):
                        written = pipeline(
                            config,
                            checkpoints,
                            kept,
                            todo,
                            table,
                            schema,
                            run_id,
                            fingerprint(labels),
                        )
                        commit_as_it_comes(
                            table, written, progress, stop, config.resources.commit_every_s
                        )
                console.progress("compacting the table")
                table.tidy()
                if not stop.signal:
                    compare_with_references(table, run_id, console)
            finally:
                table.release()
            return progress.finish(stop.signal, config, console.log)
        except (ConfigError, CannotRun, TableMismatch) as error:
            console.say(f"error: {error}")
            return BAD_CONFIG
        except TableInUse as error:
            console.say(f"error: {error}")
            return IN_USE
        except SystemExit:  # what Ray makes of a SIGTERM while it starts
            console.say("stopped before anything was labelled")
            return 128 + signal.SIGTERM
        except Exception as error:
            traceback.print_exc()
            console.say(f"error: {type(error).__name__}: {first_line(error)}\nlog: {console.log}")
            return FAILED


def pipeline(
    config: Config,
    checkpoints: Mapping[str, Checkpoint],
    kept: pa.Schema,
    todo: Plan,
    table: Table,
    schema: pa.Schema,
    run_id: str,
    run_fingerprint: str,
) -> ray.data.Dataset:
    """The whole walk of a clip. What comes out is a row of `table.WRITTEN` per data file."""
    import ray
    from ray.data import ActorPoolStrategy

    from jobs.models import LabelHere
    from jobs.read import read

    work = blocks(todo.todo, config)
    sharded = load_source(config.input.format).SHARDED  # then there will be more of them
    shares = share_out(config, ray.cluster_resources(), *([] if sharded else [len(work)]))
    rates = {
        name: load_task(options.task).sample_rate(options, checkpoints[name])
        for name, options in config.tasks.items()
    }
    arrow: Any = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    clips = ray.data.from_arrow(work).map_batches(
        read,  # type: ignore[arg-type]  # Ray's hint knows no fn_kwargs
        fn_kwargs={
            "input": config.input,
            "rates": sorted(set(rates.values())),
            "max_clip_s": config.audio.max_clip_s,
            "want_speech": most_wanted_speech(config),
            "kept": kept,
        },
        num_cpus=shares.prepare_cpus,
        max_retries=CRASHES_BEFORE_GIVING_UP,
        **arrow,
    )
    later = list(config.tasks)
    for name, options in config.tasks.items():
        later.remove(name)
        share = shares.tasks[name]
        clips = clips.map_batches(
            LabelHere,
            fn_constructor_kwargs={
                "name": name,
                "options": options,
                "checkpoint": checkpoints[name],
                "batch_s": share.batch_s,
                "threads": share.threads,
                "drop": columns_done_with(rates, name, later),
            },
            compute=ActorPoolStrategy(size=share.actors, max_concurrent_calls_per_actor=2),
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            max_restarts=CRASHES_BEFORE_GIVING_UP,
            max_task_retries=CRASHES_BEFORE_GIVING_UP,
            **arrow,
        )
    return clips.map_batches(
        write_rows,  # type: ignore[arg-type]
        fn_kwargs={
            "schema": schema,
            "tasks": list(config.tasks),
            "path": table.path,
            "storage_options": config.output_options,
            "run_id": run_id,
            "fingerprint": run_fingerprint,
        },
        num_cpus=shares.write_cpus,
        max_retries=CRASHES_BEFORE_GIVING_UP,
        **arrow,
    )


def commit_as_it_comes(
    table: Table, written: ray.data.Dataset, progress: Progress, stop: Stop, every_s: float
) -> None:
    """Commit data files while the run goes on, until it ends or a signal comes."""
    from jobs.stream import Stream

    files: list[dict[str, Any]] = []
    last = time.monotonic()
    with Stream(written) as stream:
        for file in stream:  # None every half second in which nothing came
            if file is not None:
                progress.check(file)
                files.append(file)
            # Commits take at most a fifth of the driver's time, however slow the storage is.
            if files and time.monotonic() - last >= every_s:
                before = time.monotonic()
                table.commit(files)
                progress.committed(files)
                files, last = [], time.monotonic()
                every_s = max(every_s, 5 * (last - before))
            progress.show()
            if stop.signal:
                break
        if files:
            table.commit(files)
            progress.committed(files)


def compare_with_references(table: Table, run_id: str, console: Console) -> None:
    """Say how good the labels of the whole table are, and store it, if any task has references."""
    console.progress("comparing with the references")
    report = evaluate(table)
    if report["tasks"]:
        table.keep_report({"run_id": run_id, **report})
        console.say("\n".join(lines(report)))


def left_to_do(
    source: ModuleType,
    found: pa.Table,
    table: Table,
    labels: Mapping[str, Any],
    retry_errors: bool,
) -> Plan:
    """Found minus committed."""
    committed = table.rows(COMMITTED)
    if source.SHARDED:
        return plan_shards(
            found, committed, table.sizes(), fingerprint(labels), retry_errors=retry_errors
        )
    return plan(found, committed, fingerprint(labels), retry_errors=retry_errors)


@contextmanager
def running_ray(console: Console, stop: Stop) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine and end it afterwards."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = os.environ.get("RAY_ADDRESS")
    console.progress("joining Ray" if address else "starting Ray")
    ours = not ray.is_initialized()
    if ours:
        # Without "local" Ray would join whatever cluster it finds on this machine.
        ray.init(
            address or "local", include_dashboard=None if address else False, log_to_driver=False
        )
        stop.rearm()
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0  # a block is many clips: never skip one
    context.max_consecutive_actor_init_deaths = CRASHES_BEFORE_GIVING_UP
    console.progress("loading the models")
    try:
        yield
    finally:
        if ours:
            console.progress("ending Ray")
            ray.shutdown()


def refuse_other_labels(
    table: Table, schema: pa.Schema, labels: Mapping[str, Any], relabel: bool
) -> None:
    """Raise TableMismatch if the table's labels were made otherwise, unless told to relabel."""
    if relabel or table.delta is None:
        return
    differences = difference(table.settings(), labels) if table.settings() else []
    differences = differences or table.columns_that_differ(schema)
    if differences:
        raise TableMismatch(
            f"the table at {table.path} was made with other settings:\n  "
            + "\n  ".join(differences)
            + "\nuse --relabel to label its clips anew, or give another output.path"
        )


def blocks(todo: pa.Table, config: Config) -> list[pa.Table]:
    """The plan in blocks: what travels together, and so how often something can be committed.

    What is best read together (`_unit`) stays together, however large it is.
    """
    size = config.resources.clips_per_block or min(256, max(16, len(todo) // 64))
    if load_source(config.input.format).SHARDED:
        size = 1
    todo = todo.combine_chunks()
    cuts = list(range(0, len(todo), size))
    if "_unit" in todo.column_names:
        units = todo["_unit"].to_numpy()
        firsts = np.flatnonzero(np.diff(units, prepend=-1))  # the first row of each unit
        cuts = [int(cut) for cut in np.unique(firsts[np.searchsorted(firsts, cuts, "right") - 1])]
        todo = todo.drop_columns(["_unit"])
    return [
        todo.slice(start, stop - start)
        for start, stop in zip(cuts, [*cuts[1:], len(todo)], strict=True)
    ]


def columns_done_with(rates: Mapping[str, int], name: str, later: Sequence[str]) -> list[str]:
    """The sound that no later task hears, and after the last task the speech curve."""
    sound = [f"sound_{rates[name]}"] if rates[name] not in {rates[task] for task in later} else []
    return sound if later else [*sound, "speech"]


def most_wanted_speech(config: Config) -> Any:
    wishes = [load_task(options.task).wants_speech(options) for options in config.tasks.values()]
    return max(wishes, key=["never", "long", "always"].index)


def nothing_to_do(todo: Plan, config: Config, seconds: float) -> str:
    failed = (
        f", {todo.failed_before:,} of them failed (--retry-errors)" if todo.failed_before else ""
    )
    return (
        f"nothing to do: {todo.found:,} clips found, all {todo.done:,} already labelled{failed}"
        f" · {seconds:.1f} s\ntable: {config.output.path}"
    )


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


class Stop:
    """SIGINT and SIGTERM end the run after what is finished is committed; a second one at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def rearm(self) -> None:
        """Ray's start puts its own handler in our place."""
        for number in self.before:
            signal.signal(number, self._on)

    def _on(self, number: int, _: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="earmark run", description="Label the audio that a config names."
    )
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument(
        "--set",
        metavar="a.b.c=value",
        action="append",
        default=[],
        dest="overrides",
        help="replace one value of the config; may be given several times",
    )
    parser.add_argument(
        "--relabel",
        action="store_true",
        help="label clips anew that the table holds with other settings",
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="label clips again that failed before"
    )
    args = parser.parse_args(argv)
    return run(args.config, args.overrides, relabel=args.relabel, retry_errors=args.retry_errors)


def exit_with(code: int) -> None:
    """End the process with exactly this code.

    After some table operations delta-rs's threads abort the interpreter while it winds down
    (exit code 134 for a run that went well), so it is not wound down.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_with(main())
