"""A run: preflight -> plan -> pipeline -> commits -> reports.

earmark run CONFIG, or  python -m jobs.label CONFIG
"""

from __future__ import annotations

import argparse
import re
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from jobs import ray_compat
from jobs.arguments import add_plan_arguments, plan_arguments, positive, refuse_unknown
from jobs.config import Config, ConfigError
from jobs.config_file import load_config
from jobs.console import Console, keep_streams, new_run_id
from jobs.exit_codes import BAD_CONFIG, FAILED, IN_USE, OK, exit_with
from jobs.pipeline import pipeline
from jobs.planning.find import find_clips, left_to_do, refuse_nothing
from jobs.planning.plan import Plan
from jobs.planning.refusal import refuse_other_labels, to_drop
from jobs.preflight import Run, preflight
from jobs.progress import Progress
from jobs.ray_address import HeadGone, expect_answer, ray_address
from jobs.ray_cluster import refuse_own_store, running_ray
from jobs.reports.summary import Summary
from jobs.resources import CannotRun
from jobs.sample import clips_per_shard, evenly, lines, sample_config, shares_of_whole
from jobs.shared_storage import probing, refuse_uploads
from jobs.sources._paths import absolute
from jobs.stop import Stop, Stopped
from jobs.stream import Stalled, Stream
from jobs.table.lease import TableInUse, watched
from jobs.table.schema import TableMismatch
from jobs.table.storage import Storage
from jobs.table.table import HeldTable, Table, UnreadableTable, hold
from jobs.workers.crash_ledger import end_ledger, start_ledger


def run(
    config_path: str,
    overrides: Sequence[str] = (),
    *,
    relabel: bool | Sequence[str] = False,
    retry_errors: bool = False,
    max_runtime_s: float | None = None,
    summary_file: str | None = None,
    sample: int | None = None,
    drop: Sequence[str] = (),
) -> int:
    """Label what is new; returns the exit code. `summary_file` is written however the run ends.

    With `sample`, label only that many clips, into `<output.path>-sample`, and replace rows there
    that were made with other settings.
    """
    run_id = new_run_id()
    with Console(run_id) as console, Stop(max_runtime_s) as stop:
        summary = Summary(run_id, config_path, console.log)
        stop.give_up = lambda error: exit_with(
            report_lost_cluster(error, summary, console, summary_file)
        )
        try:
            config = load_config(config_path, overrides)
            config = sample_config(config) if sample else config
            summary.storage_options = config.output_options
            refuse_uploads(config, config_path, summary_file)
            if summary_file:
                summary.check(summary_file)
            with stop.interrupting():
                if address := ray_address():
                    refuse_own_store(config)
                    expect_answer(address, console.say)
                checked = preflight(
                    run_id,
                    config_path,
                    config,
                    console.say,
                    relabel=bool(sample) or relabel,
                    retry_errors=retry_errors,
                    sample=sample,
                    drop=drop,
                )
            summary.end(label_what_is_new(checked, summary, console, stop), stop.why)
        except (ConfigError, CannotRun, TableMismatch) as error:
            console.say(f"error: {error}")
            summary.end(BAD_CONFIG, "refused", error)
        except TableInUse as error:
            console.say(f"error: {error}")
            summary.end(IN_USE, "in_use", error)
        except UnreadableTable as error:
            traceback.print_exc()
            console.say(f"error: {error}\nlog: {console.log}")
            summary.end(FAILED, "failed", error)
        except Stalled as error:
            console.say(f"error: {error}\nthe same command continues with what is left")
            summary.end(FAILED, "stalled", error)
        except HeadGone as error:
            report_lost_cluster(error, summary, console)
        except Stopped:
            console.say(f"stopped ({stop.why}) before anything was labelled")
            summary.end(stop.code, stop.why)
        except SystemExit:  # raised by a handler of Ray's, see `ray_compat.no_sigterm_handler`
            console.say("stopped before anything was labelled")
            summary.end(128 + signal.SIGTERM, "SIGTERM")
        except Exception as error:
            traceback.print_exc()
            console.say(f"error: {ray_compat.first_line(error)}\nlog: {console.log}")
            summary.end(FAILED, "failed", error)
        try:
            summary.write(summary_file)
        except Exception as error:
            traceback.print_exc()
            console.say(f"error: no summary was written: {type(error).__name__}: {error}")
            return summary.code or FAILED
        return summary.code


def report_lost_cluster(
    error: Exception, summary: Summary, console: Console, summary_file: str | None = None
) -> int:
    """Report the end of a run that has lost its cluster; returns the exit code."""
    labelled = summary.progress.labelled if summary.progress else 0
    console.say(
        f"error: {error}; {labelled:,} clips are committed, the same command continues\n"
        f"log: {console.log}"
    )
    summary.end(FAILED, "failed", error)
    if summary_file:
        summary.write(summary_file)
    return FAILED


def label_what_is_new(run: Run, summary: Summary, console: Console, stop: Stop) -> int:
    """Label a checked run's clips, up to the last commit; returns the exit code."""
    started = time.monotonic()
    storage = Storage(run.config.output.path, run.config.output_options)
    retain_h = run.config.output.retain_h
    with stop.interrupting():
        table = Table.of_run(storage)
        summary.of(storage.path, run.wanted.fingerprints, run.config.input)
        if table is not None:
            refuse_other_labels(table, run)
        drop = to_drop(table, run, console.say)
        console.progress("looking for clips")
        found = find_clips(run, console.say)
        rows_of_all = len(found.clips)
        found = evenly(found, run.sample) if run.sample else found
        summary.passed_over(found.passed_over)
        summary.plan = left_to_do(run, found, table)
        refuse_nothing(run, found, summary.plan)
    is_done = summary.plan.is_empty and not drop
    if is_done and (table is None or table.is_tidy(retain_h)):  # which lists the folder
        console.say(nothing_to_do(summary.plan, run.config, time.monotonic() - started))
        return OK
    seen, planned = (table.settings(), table.log.names()) if table else ({}, [])
    with stop.interrupting():
        dead = watched(storage, console.say)
    held = hold(storage, run.id, run.schema, run.settings, seen, dead=dead, retain_h=retain_h)
    try:
        if drop:
            held.drop(drop, run.kept.names)
        todo = summary.plan
        if drop or held.log.names() != planned:  # another run has committed since
            with stop.interrupting():
                todo = left_to_do(run, found, held)
        progress = summary.progress = Progress(console, todo, started)
        due = run.wanted.names(todo.due)
        if len(todo.todo) and len(due) < len(run.config.tasks):
            console.say(f"due: {', '.join(due)}")
        if todo.obsolete:
            held.commit([], todo.obsolete)
        if len(todo.todo):
            label(run, todo, held, rows_of_all, progress=progress, summary=summary, stop=stop)
        console.progress("compacting the table")
        held.tidy(retain_h, compact=run.config.output.compact == "auto")
    finally:
        held.release()
        summary.look_at(held, run.config, console, stop)
    drifted = bool(summary.document["drift"])
    code = progress.finish(stop, run.config, console.log, drifted=drifted)
    if whole := summary.document["whole"]:
        console.say("\n".join(lines(whole)))
    return code


def label(
    run: Run,
    todo: Plan,
    table: HeldTable,
    rows_of_all: int,
    *,
    progress: Progress,
    summary: Summary,
    stop: Stop,
) -> None:
    """Label the clips of `todo`, on Ray, and commit them. `rows_of_all` is how many clips, or shards, the
    whole input has, for the estimate of a sample."""
    console = progress.console
    per_shard = clips_per_shard(run.sample, rows_of_all)
    with probing(table.path, run.id), running_ray(run.config, console, stop):
        console.progress("loading the models")
        ledger = start_ledger()
        shares, written = pipeline(run, todo, table, ledger, per_shard)
        with Stream(written, shares) as stream:
            commit_as_it_comes(table, stream, progress, stop, run.config.resources.commit_every_s)
        summary.worked(end_ledger(ledger))
        if run.sample:
            prices = run.config.resources.price_per_hour
            summary.whole(rows_of_all, shares, shares_of_whole(run.config), prices)


def commit_as_it_comes(
    table: HeldTable, stream: Stream, progress: Progress, stop: Stop, every_s: float
) -> None:
    """Commit data files as they come, until the stream ends, a signal comes or the time is over.

    The channels of a recording, each of them a clip, are committed together.

    Raises, after a last commit, whatever ended the stream: Stalled, if no stage made progress for
    too long.
    """
    files: list[Mapping[str, Any]] = []
    last = time.monotonic()
    for file in stream:  # None every half second in which nothing came
        if file is not None and progress.accepts(file):
            files += progress.recordings.ready()
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
    stop.raise_lost()
    stream.raise_error()


def nothing_to_do(todo: Plan, config: Config, seconds: float) -> str:
    """The line with which a run ends that found no new clips."""
    failed = (
        f", {todo.failed_before:,} of them failed (--retry-errors)" if todo.failed_before else ""
    )
    vanished = f", {todo.vanished:,} more have vanished" if todo.vanished else ""
    return (
        f"nothing to do: {todo.found:,} clips found, all {todo.done:,} already labelled{failed}"
        f"{vanished} · {seconds:.1f} s\ntable: {absolute(config.output.path)}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark run`."""
    add_plan_arguments(parser)
    parser.add_argument(
        "--drop",
        metavar="TASK",
        action="append",
        default=[],
        help="remove from the table the columns of a task that is no longer in the config; may be "
        "given several times",
    )
    parser.add_argument(
        "--max-runtime",
        metavar="6h",
        type=seconds,
        dest="max_runtime_s",
        help="end after this time (6h, 90m, 3600): finished clips are committed, the exit code is 0",
    )
    parser.add_argument(
        "--sample",
        metavar="N",
        type=positive,
        help="label N clips, evenly spread and always the same, into OUTPUT-sample, and estimate "
        "what all of them would take",
    )
    parser.add_argument(
        "--summary",
        metavar="FILE",
        dest="summary_file",
        help="write a JSON summary to this file or URL, however the run ends",
    )


def run_from(args: argparse.Namespace) -> int:
    """Run what the arguments of `add_arguments` ask for; returns the exit code."""
    return run(
        **plan_arguments(args),
        drop=args.drop,
        max_runtime_s=args.max_runtime_s,
        summary_file=args.summary_file,
        sample=args.sample,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `earmark run` with these arguments, or the process's; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="earmark run", description="Label the audio that a config names."
    )
    add_arguments(parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        refuse_unknown(parser, unknown)
    return run_from(args)


def seconds(text: str) -> float:
    """Seconds of `6h`, `90m`, `1h30m` or `3600`."""
    match = re.fullmatch(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s?)?", text)
    try:
        hours, minutes, rest = (float(part or 0) for part in match.groups()) if match else (0, 0, 0)
    except ValueError:  # 1.2.3
        hours = minutes = rest = 0
    if not hours + minutes + rest:
        raise argparse.ArgumentTypeError(f"expected 6h, 90m or 3600 (seconds), found {text!r}")
    return 3600 * hours + 60 * minutes + rest


if __name__ == "__main__":
    keep_streams()
    exit_with(main())
