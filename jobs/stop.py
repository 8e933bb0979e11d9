"""When a run ends before its work is done: signals and `--max-runtime`."""

from __future__ import annotations

import math
import os
import signal
import time


class Stop:
    """SIGINT, SIGTERM and the time limit end a run after a last commit; a second signal ends it at
    once. `why` is the signal's name, `max_runtime`, or empty."""

    def __init__(self, max_runtime_s: float | None = None) -> None:
        self.signal = 0
        self.why = ""
        self._until = time.monotonic() + (max_runtime_s or math.inf)

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def rearm(self) -> None:
        """Set the handlers again, after Ray's start has set its own."""
        for number in self._before:
            signal.signal(number, self._on)

    def _on(self, number: int, _: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        self.why = signal.Signals(number).name

    def now(self) -> bool:
        """Whether to stop now."""
        if not self.why and time.monotonic() >= self._until:
            self.why = "max_runtime"
        return bool(self.why)
