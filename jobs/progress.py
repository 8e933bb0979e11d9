"""Counts a run's clips, shows them, and checks at the end that every clip is accounted for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.config import Config
from jobs.console import Console, printable
from jobs.exit_codes import DRIFTED, OK, TOO_MANY_ERRORS
from jobs.planning.plan import Plan
from jobs.planning.shards import FILES
from jobs.recordings import WholeRecordings
from jobs.sources._paths import absolute
from jobs.sources._walk import listed
from jobs.stop import Stop


class Incomplete(Exception):
    """Clips were read but not labelled. What is committed counts, the rest is left to the next run."""


@dataclass
class ShardPart:
    """The clips of a shard that have come, and their number, which is known when its end has come."""

    clip_ids: set[str] = field(default_factory=set)
    expected: int | None = None

    @property
    def is_whole(self) -> bool:
        return len(self.clip_ids) == self.expected


class Progress:
    """The run's counts. Only what is committed counts."""

    def __init__(self, console: Console, plan: Plan, started: float):
        self.console = console
        self.plan = plan
        self.started = started
        self.sharded = FILES in plan.todo.column_names
        self.to_do = len(plan.todo)  # clips, or shards whose clips are not known before
        self.pending = set() if self.sharded else set(plan.todo["clip_id"].to_pylist())
        self.recordings = WholeRecordings()
        self.parts: dict[str, ShardPart] = {}  # by source, of shards that are not whole yet
        self.whole: set[str] = set()
        self.found, self.done = plan.found, plan.done
        self.ready = 0  # of those to do, committed
        self.clips_in_shards = 0.0  # of whole shards, estimated by bytes if a sample reads a part
        self.passed_over: Counter[str] = Counter()  # members of shards, by extension
        self.statuses: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.audio_s = 0.0
        if self.to_do:
            what = "shards" if self.sharded else "clips"
            console.say(
                f"{plan.found + plan.known_to_read:,} clips {'known' if self.sharded else 'found'}, "
                f"{plan.done + plan.done_to_read:,} already labelled, {self.to_do:,} {what} to do"
            )
        if plan.obsolete:
            console.say(
                f"{len(plan.obsolete):,} rows of clips that their files no longer hold are removed"
            )
        if plan.vanished:
            console.say(
                f"{plan.vanished:,} clips have vanished since they were labelled: their rows stay"
            )

    def accepts(self, file: Mapping[str, Any]) -> bool:
        """Whether none of a data file's clips has come before; if so, records them.

        A task that Ray starts again hands on the same tables, unless its tar can no longer be read as
        far as before. A file that is not accepted must not be committed; its other clips are left to
        the next run. Files to commit are `recordings.ready()`.
        """
        ids = set(file["clip_ids"] or ())
        is_new = len(ids) == len(file["clip_ids"] or ())
        if self.sharded:
            is_new = is_new and self._is_new_of_shard(file, ids)
        else:
            is_new = is_new and self.pending.issuperset(_planned_ids(file))
            is_new = is_new and not self.recordings.has_any(ids)
        if not is_new:
            print(f"data file {file['path']} holds clips that came before: it is not committed")
            return False
        self.recordings.add(file)
        if self.sharded:
            self._add_to_shard(file, ids)
        else:
            self.pending -= set(_planned_ids(file)) - self.recordings.missing
        return True

    def _is_new_of_shard(self, file: Mapping[str, Any], ids: set[str]) -> bool:
        part = self.parts.get(file["source"])
        return not ids or (file["source"] not in self.whole and not (part and part.clip_ids & ids))

    def _add_to_shard(self, file: Mapping[str, Any], ids: set[str]) -> None:
        """Add clips, all of one shard, and the ends of shards.

        Ids are kept only until their shard is whole: millions of them would fill the driver.
        """
        for shard in file["shards"] or ():
            part = self.parts.setdefault(shard["source"], ShardPart())
            part.expected = shard["clips"] - shard["skipped"]
        if ids:
            self.parts.setdefault(file["source"], ShardPart()).clip_ids |= ids
        for name in [name for name, part in self.parts.items() if part.is_whole]:
            del self.parts[name]
            self.whole.add(name)

    def committed(self, files: Sequence[Mapping[str, Any]]) -> None:
        """Count committed data files, rows of `table.schema.WRITTEN`. All rows of a recording are in
        them, or none."""
        if not self.sharded:
            # Only now it is known how many channels a recording has.
            ids = [id for file in files for id in _planned_ids(file)]
            self.ready += len(set(ids))
            self.found += len(ids) - len(set(ids))
        for file in files:
            for shard in file["shards"] or ():
                self.ready += 1
                self.clips_in_shards += shard["clips"] / (shard["part"] or 1.0)
                self.found += shard["clips"]
                self.done += shard["skipped"]
                self.passed_over.update(dict(shard["passed_over"] or ()))
            self.statuses.update(file["statuses"] or ())
            self.audio_s += file["audio_s"] or 0.0
            for error in file["errors"] or ():
                self.kinds[error["kind"]] += 1
                example = printable(f"{error['source']}: {error['message']}")
                self.examples.setdefault(error["kind"], example)

    @property
    def labelled(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        return self.statuses["error"] + self.statuses["partial"]

    def show(self, waits_for: str = "") -> None:
        """Update the progress line, or show what the run waits for."""
        elapsed_s = time.monotonic() - self.started
        if waits_for:
            self.console.progress(f"waiting for nodes: {waits_for} · {clock(elapsed_s)}")
            return
        if not self.labelled:
            self.console.progress(
                f"{self.to_do:,} {'shards' if self.sharded else 'clips'} to do · "
                f"starting Ray, loading models, reading the first clips · {clock(elapsed_s)}"
            )
            return
        has_channels = not self.sharded and self.labelled != self.ready
        what = "shards" if self.sharded else "recordings" if has_channels else "clips"
        parts = [f"{self.ready:,}/{self.to_do:,} {what}"]
        if what != "clips":
            parts.append(f"{self.labelled:,} clips")
        parts += [
            f"{self.audio_s / 3600:.2f} h of audio",
            f"{self.audio_s / elapsed_s:.1f}× real time",
            f"{self.failed:,} failed",
        ]
        if self.ready:
            left_s = elapsed_s / self.ready * (self.to_do - self.ready)
            parts.append(f"{clock(left_s)} left")
        self.console.progress(" · ".join(parts))

    def finish(self, stop: Stop, config: Config, log: Path, *, drifted: bool) -> int:
        """Show the result; returns the exit code. Raises Incomplete if a clip is missing."""
        found, done, ok = self.found, self.done, self.statuses["ok"]
        elapsed_s = time.monotonic() - self.started
        say = self.console.say
        if self.to_do:
            say(
                f"labelled {self.labelled:,} clips, {self.audio_s / 3600:.2f} h of audio in "
                f"{clock(elapsed_s)} · {self.audio_s / elapsed_s:.1f}× real time"
            )
        if self.passed_over:
            say(f"passed over in shards: {listed(self.passed_over)}")
        for kind, count in self.kinds.most_common():
            say(f"  {count:,} × {kind}, e.g. {self.examples[kind]}")
        ends = f"table: {absolute(config.output.path)}\nlog: {log}"
        if stop.why:
            say(f"stopped ({stop.why}): the same command continues with what is left\n{ends}")
        if stop.signal:
            return 128 + stop.signal
        if not stop.why:
            missing = self.to_do - len(self.whole) if self.sharded else len(self.pending)
            if missing or found != done + ok + self.failed:
                raise Incomplete(
                    f"{missing:,} of {self.to_do:,} {'shards' if self.sharded else 'clips'} are not "
                    "labelled, as a worker died and read other clips when it was restarted: "
                    "the same command continues with them"
                )
            say(
                f"{found:,} found = {done:,} already done + {ok:,} labelled + "
                f"{self.failed:,} failed\n{ends}"
            )
        if self.labelled and self.failed / self.labelled > config.max_error_fraction:
            say(
                f"error: {self.failed:,} of {self.labelled:,} clips failed, more than "
                f"max_error_fraction ({config.max_error_fraction:.0%})"
            )
            return TOO_MANY_ERRORS
        return DRIFTED if drifted else OK


def _planned_ids(file: Mapping[str, Any]) -> list[str]:
    """The ids that the plan has for a data file's clips: their own, or those of the recordings whose
    channels they are."""
    ids = file["clip_ids"] or []
    recordings = file.get("recordings") or [None] * len(ids)
    return [
        recording["id"] if recording else id for id, recording in zip(ids, recordings, strict=True)
    ]


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
