"""The outcome of a run as a JSON document: in the table's `_runs/`, and in the file of `--summary`."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.config import Config, ConfigError
from jobs.console import Console
from jobs.input import Input
from jobs.planning.plan import Plan
from jobs.prices import cost, machines, price_per_hour
from jobs.progress import Progress
from jobs.reports.drift import beyond, statistics
from jobs.reports.evaluate import evaluation, lines
from jobs.reports.kept_totals import TooManyRows, run_totals
from jobs.resources import Shares, nodes_now
from jobs.sample import whole_of
from jobs.sources._paths import absolute, is_local
from jobs.stop import Stop
from jobs.stores import store_of
from jobs.table.table import HeldTable
from jobs.versions import package_version
from jobs.workers.crash_ledger import ActorWork

PACKAGES = ("earmark", "ray", "torch", "transformers", "deltalake", "pyarrow", "av", "soundfile")
MAX_ERROR_LENGTH = 2000  # characters
ROWS_AFTER_SIGNAL = 1_000_000  # that take a few seconds


class Summary:
    """Collects the outcome of a run, and is written however the run ends.

    `stopped` is the reason why it ended early: null, `max_runtime`, `SIGINT`, `SIGTERM`, `stalled`,
    `failed`, `refused` (exit code 2) or `in_use`. `clips.left` counts clips or, if the packaging
    has shards, these. Unknown values are null.
    """

    def __init__(self, run_id: str, config_path: str, log: Path):
        self.started, self.started_at = time.monotonic(), time.time()
        self.run_id = run_id
        self.code = 0
        self.progress: Progress | None = None
        self.plan: Plan | None = None
        self.table: HeldTable | None = None
        self.storage_options: Mapping[str, Any] = {}  # for a `--summary` on a store
        self.document: dict[str, Any] = {
            "run_id": run_id,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config_path,
            "log": str(log),
            "table": None,
            "fingerprints": None,
            "input": None,
            "tasks": None,
            "models": None,
            "machines": None,
            "drift": [],
            "references": None,
            "whole": None,
            "passed_over": {},
        }

    def of(self, table: str, fingerprints: Mapping[str, str], input: Input) -> None:
        """Add the path of the run's table, the fingerprint of each task, and how the input is
        packaged, which tells `earmark report` how to read a clip again."""
        self.document |= {
            "table": table,
            "fingerprints": dict(fingerprints),
            "input": packaging(input),
        }

    def passed_over(self, files: Mapping[str, int]) -> None:
        """Add how many files of the input were passed over, by extension."""
        self.document["passed_over"] = dict(sorted(files.items()))

    def worked(self, work: Mapping[str, Sequence[ActorWork]]) -> None:
        """Add the work of each task's models: the seconds until the first one was loaded, the seconds of
        sound that they received and the fraction of padding, and the sum of the actors' speeds,
        each from its first clip to its last, in multiples of real time; and the machines of the
        cluster, by kind."""
        self.document["machines"] = machines(nodes_now())
        self.document["models"] = {
            task: _models(actors, self.started_at) for task, actors in work.items()
        }

    def whole(self, rows: int, shares: Shares, full: Shares, prices: Mapping[str, float]) -> None:
        """Add what labelling all `rows` of the input takes, from the run over a sample of them."""
        if self.progress is not None:
            models = self.document["models"] or {}
            whole = whole_of(rows, self.progress, models, shares, full)
            if whole is not None:
                hourly = price_per_hour(self.document["machines"] or {}, prices)
                whole["cost"] = cost(whole["seconds"], hourly)
            self.document["whole"] = whole

    def look_at(self, table: HeldTable, config: Config, console: Console, stop: Stop) -> None:
        """Add the statistics and the evaluation of the committed rows, and print what is notable.

        Never raises: it is called however the run ended, and must not hide that. After a signal, with
        which often comes a time to end in, it reads few rows.
        """
        self.table = table
        console.progress("summing up the labels")
        try:
            read = ROWS_AFTER_SIGNAL if stop.signal else math.inf
            found = run_totals(table, self.run_id, keep=True, read=read)
            if self.progress and self.progress.labelled:
                tasks = statistics(found)
                drift = list(beyond(tasks, config.drift))
                self.document |= {"tasks": tasks, "drift": drift}
                for line in drift:
                    console.say(f"drift: {line}")
            report = evaluation(table, found)
            if report["tasks"]:
                self.document["references"] = report
                console.say("\n".join(lines(report)))
        except TooManyRows as error:
            console.say(f"no statistics of the table after {stop.why}: {error}")
        except Exception as error:
            traceback.print_exc()
            console.say(f"no statistics of the table: {type(error).__name__}, see the log")

    def end(self, code: int, stopped: str | None, error: BaseException | None = None) -> None:
        """Add how the run ended. `error` is shortened: its traceback is in the log."""
        text = str(error)[:MAX_ERROR_LENGTH] if error else None
        if self.progress and self.progress.passed_over:  # in shards
            counts = Counter(self.document["passed_over"]) + self.progress.passed_over
            self.passed_over(counts)
        self.code = code
        self.document |= {
            "exit_code": code,
            "stopped": stopped or None,
            "error": f"{type(error).__name__}: {text}" if error else None,
            "seconds": round(time.monotonic() - self.started, 3),
            "versions": {name: package_version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            **_counts(self.progress, self.plan, time.monotonic() - self.started),
        }

    def write(self, file: str | None) -> None:
        """Write the document into the table, if the run had taken it, and atomically into `file`, a path or
        URL."""
        if self.table is not None:
            self.table.keep_report(self.document)
        if not file:
            return
        content = json.dumps(self.document, indent=1, default=str, ensure_ascii=False) + "\n"
        encoded = content.encode(errors="backslashreplace")
        if not is_local(file):
            fs, path = store_of(file, self.storage_options)
            fs.pipe_file(path, encoded)
            return
        temporary = Path(f"{absolute(file)}.{self.run_id}")
        try:
            temporary.write_bytes(encoded)
            os.replace(temporary, absolute(file))
        finally:
            temporary.unlink(missing_ok=True)

    def check(self, file: str) -> None:
        """Make the folder of the file of `--summary`. Raises ConfigError if it cannot be written there; of
        a store it is only known whether there is one of its kind."""
        try:
            if not is_local(file):
                store_of(file, self.storage_options)
                return
            path = Path(absolute(file))
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise ValueError("it is a folder")
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--summary: expected a file or URL that can be written, found {file}: {error}"
            ) from None


def packaging(input: Input) -> dict[str, Any]:
    """How an input is packaged: its keys without those that say where, and options, in which secrets may be, and
    without defaults. Paths are absolute."""
    keys = input.model_dump(
        mode="json", exclude={"path", "inventory", "storage_options"}, exclude_defaults=True
    )
    for name in ("manifest", "audio_root", "audio_allow"):
        if isinstance(value := keys.get(name), str):
            keys[name] = absolute(value)
        elif value:
            keys[name] = [absolute(path) for path in value]
    return keys


def _models(actors: Sequence[ActorWork], started_at: float) -> dict[str, Any]:
    heard_s, padded_s = sum(one.input_s for one in actors), sum(one.padded_s for one in actors)
    return {
        "actors": len(actors),
        "ready_after_s": round(min(one.first_at for one in actors) - started_at, 3),
        "heard_s": heard_s,
        "padding": 1 - heard_s / padded_s if padded_s else 0.0,
        "times_real_time": sum(
            one.input_s / (one.last_at - one.first_at)
            for one in actors
            if one.last_at > one.first_at
        ),
    }


def _counts(progress: Progress | None, plan: Plan | None, elapsed_s: float) -> dict[str, Any]:
    names = ("found", "done", "labelled", "ok", "partial", "failed", "left", "vanished")
    if progress is None:
        counts = dict.fromkeys(names) if plan is None else dict.fromkeys(names, 0)
        if plan is not None:
            counts |= {"found": plan.found, "done": plan.done, "left": len(plan.todo)}
            counts["vanished"] = plan.vanished
        return {"clips": counts, "audio_hours": 0.0, "times_real_time": 0.0, "errors": []}
    statuses = progress.statuses
    return {
        "clips": {
            "found": progress.found,
            "done": progress.done,
            "labelled": progress.labelled,
            "ok": statuses["ok"],
            "partial": statuses["partial"],
            "failed": statuses["error"],
            "left": progress.to_do - progress.ready,
            "vanished": progress.plan.vanished,
        },
        "audio_hours": progress.audio_s / 3600,
        "times_real_time": progress.audio_s / elapsed_s,
        "errors": [
            {"kind": kind, "count": count, "example": progress.examples[kind]}
            for kind, count in progress.kinds.most_common()
        ],
    }
