"""The main job: plan -> read -> prepare -> label -> write -> commit.

earmark run CONFIG            the same as  python -m jobs.label CONFIG
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.tasks import load_task
from jobs.config import Config, ConfigError, find_models, find_source, load_config
from jobs.console import Console, exit_with
from jobs.models import end_ledger, environment, start_ledger
from jobs.plan import COMMITTED, Plan, difference, fingerprint, plan, plan_shards, settings
from jobs.progress import Progress
from jobs.reports.summary import Summary
from jobs.resources import (
    CannotRun,
    Shares,
    block_bytes,
    nodes_now,
    nodes_to_come,
    part_in_flight,
    share_out,
)
from jobs.shared_storage import (
    input_files,
    probe_of,
    probing,
    refuse_other_disks,
    refuse_uploads,
)
from jobs.sources import Listing, Source, load_source
from jobs.sources._paths import absolute
from jobs.stream import Stalled, Stream
from jobs.table.lease import TableInUse
from jobs.table.schema import TableMismatch, label_columns, table_schema
from jobs.table.storage import Storage
from jobs.table.table import HeldTable, Table, hold

if TYPE_CHECKING:
    import ray.data

OK, FAILED, BAD_CONFIG, IN_USE = 0, 1, 2, 75  # and 3, 4 of `Progress.finish`
CRASHES_BEFORE_GIVING_UP = 3
CLIPS_WORTH_AN_ACTOR = 32  # it takes the time of so many short ones to start


def run(
    config_path: str,
    overrides: Sequence[str] = (),
    *,
    relabel: bool = False,
    retry_errors: bool = False,
    max_runtime_s: float | None = None,
    summary_file: str | None = None,
) -> int:
    """Label what is new; returns the exit code. However it ends, `summary_file` says how."""
    run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    with Console(run_id) as console, Stop(max_runtime_s) as stop:
        summary = Summary(run_id, config_path, console.log)
        try:
            config = load_config(config_path, overrides)
            refuse_uploads(config, config_path, summary_file)
            code = label_what_is_new(
                config, config_path, relabel, retry_errors, summary, console, stop
            )
            summary.end(code, stop.why)
        except (ConfigError, CannotRun, TableMismatch) as error:
            console.say(f"error: {error}")
            summary.end(BAD_CONFIG, "refused", error)
        except TableInUse as error:
            console.say(f"error: {error}")
            summary.end(IN_USE, "in_use", error)
        except Stalled as error:
            console.say(f"error: {error}\nthe same command goes on with what is left")
            summary.end(FAILED, "stalled", error)
        except SystemExit:  # what Ray makes of a SIGTERM while it starts
            console.say("stopped before anything was labelled")
            summary.end(128 + signal.SIGTERM, "SIGTERM")
        except Exception as error:
            traceback.print_exc()
            console.say(f"error: {what_happened(error)}\nlog: {console.log}")
            summary.end(FAILED, "failed", error)
        try:
            summary.write(summary_file)
        except Exception as error:
            traceback.print_exc()
            console.say(f"error: no summary was written: {type(error).__name__}: {error}")
            return summary.code or FAILED
        return summary.code


def label_what_is_new(
    config: Config,
    config_path: str,
    relabel: bool,
    retry_errors: bool,
    summary: Summary,
    console: Console,
    stop: Stop,
) -> int:
    """A run from its checked config to its last commit; returns the exit code of one that came so far."""
    started = time.monotonic()
    checkpoints = find_models(config, config_path)
    config, kept = find_source(config, config_path, console.say)
    source = load_source(config.input.format)
    schema = table_schema(config.tasks, kept)
    storage = Storage(config.output.path, config.output_options)
    table = Table.open(storage)
    labels = settings(config, checkpoints)
    summary.of(storage.path, fingerprint(labels))
    if table is not None and not relabel:
        refuse_other_labels(table, schema, labels)
    console.progress("looking for clips")
    try:
        found = source.find(config.input, console.say, kept)
    except FileNotFoundError as error:
        raise ConfigError(f"{config_path}: input.path: {error}") from None
    summary.plan = left_to_do(source, found, table, labels, retry_errors)
    if summary.plan.is_empty and (table is None or table.is_tidy()):
        console.say(nothing_to_do(summary.plan, config, time.monotonic() - started))
        return OK
    seen = table.settings() if table else {}
    held = hold(storage, summary.run_id, schema, labels, seen)
    try:  # what another run committed between our first look and now is done, too
        todo = left_to_do(source, found, held, labels, retry_errors)
        progress = summary.progress = Progress(console, todo, started)
        if todo.obsolete:
            held.commit([], todo.obsolete)
        if len(todo.todo):
            with probing(held.path, summary.run_id), running_ray(config, console, stop):
                ledger = start_ledger()
                shares, written = pipeline(
                    config,
                    checkpoints,
                    kept,
                    todo,
                    held,
                    schema,
                    summary.run_id,
                    fingerprint(labels),
                    ledger,
                )
                commit_as_it_comes(
                    held, written, progress, stop, config.resources.commit_every_s, shares
                )
                summary.worked(end_ledger(ledger))
        console.progress("compacting the table")
        held.tidy()
    finally:
        summary.look_at(held, config, console)
        held.release()
    return progress.finish(stop, config, console.log, drifted=bool(summary.document["drift"]))


def pipeline(
    config: Config,
    checkpoints: Mapping[str, Checkpoint],
    kept: pa.Schema,
    todo: Plan,
    table: HeldTable,
    schema: pa.Schema,
    run_id: str,
    run_fingerprint: str,
    ledger: Any,
) -> tuple[Shares, ray.data.Dataset]:
    """The whole walk of a clip. What comes out is a row of `table.WRITTEN` per data file."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from jobs.metrics import LabelHere, read

    nodes = nodes_now()
    context = DataContext.get_current()
    context.target_max_block_size = block_bytes(nodes)
    context.override_object_store_memory_limit_fraction = part_in_flight(config, nodes)
    work = blocks(todo.todo, config, least=256 if any(node.get("GPU") for node in nodes) else 16)
    sharded = load_source(config.input.format).SHARDED  # then there will be more of them
    useful = 1 << 30 if sharded else min(len(work), len(todo.todo) // CLIPS_WORTH_AN_ACTOR)
    shares = share_out(config, nodes, useful, future_nodes=nodes_to_come())
    probe = probe_of(table.path, run_id)
    seen = input_files(todo.todo["source"])
    refuse_other_disks(config, checkpoints, seen, probe, shares)
    rates = {
        name: load_task(options.task).sample_rate(options, checkpoints[name])
        for name, options in config.tasks.items()
    }
    arrow: Any = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    clips = ray.data.from_arrow(work).map_batches(
        read,  # type: ignore[arg-type]  # Ray's hint knows no fn_kwargs
        fn_kwargs={
            "input": config.input,
            "audio": config.audio,
            "rates": sorted(set(rates.values())),
            "want_speech": most_wanted_speech(config),
            "kept": kept,
            "driver": ray.get_runtime_context().get_node_id(),
            "seen": tuple(seen.found),
        },
        num_cpus=shares.prepare_cpus,
        max_retries=CRASHES_BEFORE_GIVING_UP,
        **arrow,
    )
    write = {
        "schema": table.schema(),
        "tasks": label_columns(schema, config.tasks),
        "path": table.path,
        "probe": probe,
        "storage_options": config.output_options,
        "run_id": run_id,
        "fingerprint": run_fingerprint,
    }
    later = list(config.tasks)
    for name, options in config.tasks.items():
        later.remove(name)
        share = shares.tasks[name]
        # What waits at one actor no other can hear. (A pool grows only when more than this waits.)
        at_an_actor = None if share.num_gpus or share.max_actors > share.actors else 2
        # Not `map_batches`, which on GPUs wants a number of rows. LabelHere batches by seconds.
        clips = clips.map_batches_internal(
            LabelHere,
            fn_constructor_kwargs={
                "name": name,
                "options": options,
                "checkpoint": checkpoints[name],
                "device": share.device,
                "batch_s": share.batch_s,
                "threads": share.threads,
                "drop": columns_done_with(rates, name, later),
                "ledger": ledger,
                "write": None if later else write,
            },
            compute=ActorPoolStrategy(
                min_size=share.actors,
                max_size=share.max_actors,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,  # `LabelHere` labels in one thread by itself
                max_tasks_in_flight_per_actor=at_an_actor,
            ),
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            runtime_env={"env_vars": environment(share.threads, on_gpu=share.device != "cpu")},
            max_restarts=-1,  # `LabelHere` gives up by itself
            max_task_retries=-1,
            **arrow,
        )
    return shares, clips


def commit_as_it_comes(
    table: HeldTable,
    written: ray.data.Dataset,
    progress: Progress,
    stop: Stop,
    every_s: float,
    shares: Shares,
) -> None:
    """Commit data files while the run goes on, until it ends, a signal comes or its time is over.

    Raises Stalled, after a last commit, if the run has made no progress for too long.
    """
    files: list[dict[str, Any]] = []
    last = time.monotonic()
    with Stream(written, shares) as stream:
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
            progress.show(stream.waits_for())
            if stop.now():
                break
        if files:
            table.commit(files)
            progress.committed(files)
        stream.raise_error()


def left_to_do(
    source: Source,
    found: Listing,
    table: Table | None,
    labels: Mapping[str, Any],
    retry_errors: bool,
) -> Plan:
    """Found minus committed."""
    committed = table.rows(COMMITTED.names) if table else COMMITTED.empty_table()
    if source.SHARDED:
        shards = table.shards() if table else {}
        return plan_shards(found, committed, shards, fingerprint(labels), retry_errors=retry_errors)
    return plan(found, committed, fingerprint(labels), retry_errors=retry_errors)


@contextmanager
def running_ray(config: Config, console: Console, stop: Stop) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine and end it afterwards."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # After Ray's one second the workers that read would be gone when the models are loaded.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # No machines can be asked for. By default Ray Data would ask, in parts of a CPU, and be given
        # of what is left whole CPUs alone: 1.28 of a machine's two, which is one reader instead of two.
        os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")
    import ray

    console.progress("joining Ray" if address else "starting Ray")
    ours = not ray.is_initialized()
    object_store_mb = config.resources.object_store_mb
    if object_store_mb and (address or not ours):
        raise CannotRun(
            "resources.object_store_mb: expected none where Ray runs already (RAY_ADDRESS), with "
            f"stores of their size, found {object_store_mb}: use resources.in_flight_mb"
        )
    if ours:
        for tries_left in (2, 1, 0):
            try:  # without "local" Ray would join whatever cluster it finds on this machine
                ray.init(
                    address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    object_store_memory=object_store_mb and object_store_mb << 20,
                )
                break
            except Exception as error:
                # Ray gives itself 30 s, whatever else the machine is at.
                if address or not tries_left or "timed out during startup" not in str(error):
                    raise
                console.progress("starting Ray again, for it took too long")
        stop.rearm()
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0  # a block is many clips: never skip one
    context.max_consecutive_actor_init_deaths = CRASHES_BEFORE_GIVING_UP
    context.execution_no_progress_timeout_s = config.resources.stalled_after_s
    console.progress("loading the models")
    try:
        yield
    finally:
        if ours:
            console.progress("ending Ray")
            ray.shutdown()


def refuse_other_labels(table: Table, schema: pa.Schema, labels: Mapping[str, Any]) -> None:
    """Raise TableMismatch if the table's labels were made otherwise."""
    differences = difference(table.settings(), labels) if table.settings() else []
    differences = differences or table.columns_that_differ(schema)
    if differences:
        raise TableMismatch(
            f"the table at {table.path} was made with other settings:\n  "
            + "\n  ".join(differences)
            + "\nuse --relabel to label its clips anew, or give another output.path"
        )


def blocks(todo: pa.Table, config: Config, least: int = 16) -> list[pa.Table]:
    """The plan in blocks: what travels together, and so how often something can be committed, and
    how many clips a model gets at once: GPUs want more. The first one comes in quarters, so that
    the first labels come soon.

    What is best read together (`_unit`) stays together, however large it is.
    """
    asked = config.resources.clips_per_block
    size = asked or min(256, max(least, len(todo) // 64))
    if load_source(config.input.format).SHARDED:
        size = 1
    todo = todo.combine_chunks()
    quarters = [] if asked else [n * (size // 4) for n in range(4)]
    cuts = sorted({cut for cut in (*quarters, *range(0, len(todo), size)) if cut < len(todo)})
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
    vanished = f", {todo.vanished:,} more have vanished" if todo.vanished else ""
    return (
        f"nothing to do: {todo.found:,} clips found, all {todo.done:,} already labelled{failed}"
        f"{vanished} · {seconds:.1f} s\ntable: {absolute(config.output.path)}"
    )


def what_happened(error: BaseException) -> str:
    """An error's type and the first line of its message; of one in a worker, of the worker's own.

    Ray gives that as text: a traceback, and behind it those of what was raised from it.
    """
    lines = [line for line in str(error).partition("\n\nThe above")[0].splitlines() if line.strip()]
    if lines and "ray::" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


class Stop:
    """SIGINT, SIGTERM and a run's time limit end it after what is finished is committed; a second
    signal ends it at once. `why` is the signal's name, `max_runtime`, or nothing."""

    def __init__(self, max_runtime_s: float | None = None) -> None:
        self.signal = 0
        self.why = ""
        self.until = time.monotonic() + (max_runtime_s or math.inf)

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
        self.why = signal.Signals(number).name

    def now(self) -> bool:
        """Whether to stop."""
        if not self.why and time.monotonic() >= self.until:
            self.why = "max_runtime"
        return bool(self.why)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark run`."""
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
    parser.add_argument(
        "--max-runtime",
        metavar="6h",
        type=seconds,
        dest="max_runtime_s",
        help="end after so long (6h, 90m, 3600) with what is finished committed and exit code 0",
    )
    parser.add_argument(
        "--summary",
        metavar="FILE",
        dest="summary_file",
        help="write what the run came to into a JSON file, however it ends",
    )


def run_from(args: argparse.Namespace) -> int:
    """Run what the arguments of `add_arguments` ask for; returns the exit code."""
    return run(
        args.config,
        args.overrides,
        relabel=args.relabel,
        retry_errors=args.retry_errors,
        max_runtime_s=args.max_runtime_s,
        summary_file=args.summary_file,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `earmark run` with these arguments, or the process's; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="earmark run", description="Label the audio that a config names."
    )
    add_arguments(parser)
    return run_from(parser.parse_args(argv))


def seconds(text: str) -> float:
    """`6h`, `90m`, `1h30m` or `3600` as seconds."""
    match = re.fullmatch(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s?)?", text)
    try:
        hours, minutes, rest = (float(part or 0) for part in match.groups()) if match else (0, 0, 0)
    except ValueError:  # 1.2.3
        hours = minutes = rest = 0
    if not hours + minutes + rest:
        raise argparse.ArgumentTypeError(f"expected 6h, 90m or 3600 (seconds), found {text!r}")
    return 3600 * hours + 60 * minutes + rest


if __name__ == "__main__":
    exit_with(main())
