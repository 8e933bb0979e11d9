"""Counts an export's clips, and shows them."""

from __future__ import annotations

import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import ClipError
from jobs.console import Console, printable
from jobs.progress import clock

MESSAGES = 1_000  # that are counted


class Tally:
    """How many of an export's `total` clips, or segments, are written, and why others are not."""

    def __init__(self, console: Console, total: int, noun: str) -> None:
        self.console, self.total, self.noun = console, total, noun
        self.started = time.monotonic()
        self.written, self.audio_s = 0, 0.0
        self.kinds: Counter[str] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()  # of kinds, the first MESSAGES
        self.examples: dict[tuple[str, str], str] = {}  # sources

    @property
    def failed(self) -> int:
        return sum(self.kinds.values())

    def add(self, duration_s: float, error: ClipError | None, source: str) -> None:
        """Count an item."""
        if error is None:
            self.written += 1
            self.audio_s += duration_s
            return
        self.kinds[error.kind] += 1
        message = error.kind, error.message
        if message in self.messages or len(self.messages) < MESSAGES:
            self.messages[message] += 1
            self.examples.setdefault(message, source)

    def add_record(self, record: pa.Table) -> None:
        """Count the items of a finished shard."""
        good = record.filter(record["error_kind"].is_null())
        self.written += len(good)
        self.audio_s += pc.sum(good["duration_s"]).as_py() or 0.0
        bad = record.filter(record["error_kind"].is_valid())
        names = ("error_kind", "source", "error_message")
        for kind, source, message in zip(*(bad[name].to_pylist() for name in names), strict=True):
            self.add(0.0, ClipError(kind, message), source)

    def show(self) -> None:
        """Update the progress line."""
        elapsed_s = time.monotonic() - self.started
        ready = self.written + self.failed
        parts = [
            f"{ready:,}/{self.total:,} {self.noun}",
            f"{self.audio_s / 3600:.2f} h of audio",
            f"{self.failed:,} failed",
        ]
        if ready:
            parts.append(f"{clock(elapsed_s / ready * (self.total - ready))} left")
        self.console.progress(" · ".join(parts))

    def finish(self) -> None:
        """Show the result."""
        say = self.console.say
        elapsed_s = time.monotonic() - self.started
        say(
            f"exported {self.written:,} {self.noun}, {self.audio_s / 3600:.2f} h of audio in "
            f"{clock(elapsed_s)}"
        )
        for line in self.failures():
            say(f"  {line}")
        say(f"{self.total:,} selected = {self.written:,} exported + {self.failed:,} failed")

    def failures(self) -> list[str]:
        """A line for each kind of error, with an example of its most frequent message."""
        lines = []
        for kind, count in self.kinds.most_common():
            found = (m for m, _ in self.messages.most_common() if m[0] == kind)
            example = next((f", e.g. {self.examples[m]}: {m[1]}" for m in found), "")
            lines.append(printable(f"{count:,} × {kind}{example}"))
        return lines
