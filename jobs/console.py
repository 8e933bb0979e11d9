"""A run's output: on a terminal a line of progress that is updated, in a log plain lines."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType

LOG_EVERY_S = 10.0


def printable(text: str) -> str:
    """Text whose control characters are escaped: a file's name may contain any of them."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Console:
    """Prints to the real stdout, while everything that libraries print goes to a log file.

    The file descriptors themselves are redirected, because Ray's C++ core and child processes write
    to them directly.
    """

    def __init__(self, run_id: str):
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        self.log = Path(state) / "earmark" / f"{run_id}.log"
        self._last_progress_s = 0.0
        self._line_is_open = False

    def __enter__(self) -> Console:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self._out_fd, self._err_fd = os.dup(1), os.dup(2)
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
        log_fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.close(log_fd)
        self._terminal = self._out.isatty()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_line()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self._out_fd, 1)
        os.dup2(self._err_fd, 2)
        os.close(self._out_fd)
        os.close(self._err_fd)
        self._out.close()

    def say(self, text: str) -> None:
        """Print one or more lines that stay."""
        self._close_line()
        self._out.write("\n".join(printable(line) for line in text.split("\n")) + "\n")
        self._out.flush()

    def progress(self, text: str) -> None:
        """Print a line of progress: on a terminal in place of the last one, in a log every 10 s."""
        if self._terminal:
            columns = os.get_terminal_size(self._out.fileno()).columns or 80
            self._out.write(f"\r\x1b[2K{printable(text)[: columns - 1]}")
            self._out.flush()
            self._line_is_open = True
        elif time.monotonic() - self._last_progress_s >= LOG_EVERY_S:
            self._last_progress_s = time.monotonic()
            self.say(text)

    def _close_line(self) -> None:
        if self._line_is_open:
            self._out.write("\r\x1b[2K")
            self._line_is_open = False
