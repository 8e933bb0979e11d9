"""When a run ends before its work is done: signals and `--max-runtime`."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LOOK_EVERY_S = 1.0


class Stopped(BaseException):
    """A signal came, or the time was over, while the run only read. A BaseException, so that no
    `except Exception` of a library catches it."""


class Stop:
    """Ends a run after a last commit on SIGINT, SIGTERM, SIGHUP (a terminal that closes, unless `nohup`
    has it ignored) or at the time limit; a second signal ends the process at once. Outside the main
    thread, which alone gets signals, only the time limit ends it.

    `why` is the signal's name, `max_runtime`, `failed`, or empty.
    """

    def __init__(self, max_runtime_s: float | None = None) -> None:
        self.signal = 0
        self.why = ""
        self._until = time.monotonic() + (max_runtime_s or math.inf)
        self.lost: Exception | None = None
        self.give_up: Callable[[Exception], None] = lambda _: None  # ends the process at once
        self._interrupts = False

    def __enter__(self) -> Stop:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            hung_up = [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
            for number in (signal.SIGINT, signal.SIGTERM, *hung_up):
                self._before[number] = signal.signal(number, self._on)
            self._before_alarm = signal.signal(signal.SIGALRM, lambda *_: self._interrupt())
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.signal(signal.SIGALRM, self._before_alarm)

    @property
    def code(self) -> int:
        """The exit code of a run that was stopped."""
        return 128 + self.signal if self.signal else 0

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise Stopped inside the `with`, which must not write anything, as soon as the run should
        stop."""
        self._interrupts = True
        # No other run needs a signal that interrupts system calls.
        if self._before and math.isfinite(self._until):
            left_s = max(self._until - time.monotonic(), 0.01)
            signal.setitimer(signal.ITIMER_REAL, left_s, LOOK_EVERY_S)
        try:
            self._interrupt()
            yield
            self._interrupt()
        finally:
            self._interrupts = False
            if self._before:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self) -> None:
        if self._interrupts and self.now():
            raise Stopped

    def rearm(self) -> None:
        """Set the handlers again, after Ray's start has set its own."""
        for number in self._before:
            signal.signal(number, self._on)

    def _on(self, number: int, _: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        self.why = signal.Signals(number).name
        self._interrupt()

    def lose(self, error: Exception) -> None:
        """Stop after a last commit, as the cluster is lost; `raise_lost` then raises `error`."""
        self.lost, self.why = error, "failed"

    def raise_lost(self) -> None:
        if self.lost:
            raise self.lost

    def now(self) -> bool:
        """Whether to stop now."""
        if not self.why and time.monotonic() >= self._until:
            self.why = "max_runtime"
        return bool(self.why)


@contextmanager
def outlasting_the_terminal() -> Iterator[None]:
    """Processes that are started inside the `with` get no SIGHUP. A terminal that closes sends it to Ray's
    processes as well, which the run needs to finish its work."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
