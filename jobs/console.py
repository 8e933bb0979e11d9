"""A run's output: on a terminal a line of progress that is updated, in a log plain lines."""

from __future__ import annotations

import io
import os
import re
import sys
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from jobs.own_folder import own_folder

LOG_EVERY_S = 10.0
MESSAGE_CHARACTERS = 500
ANSWER = re.compile(r"(?s): <[?A-Za-z].*")  # of a store, as XML: it may repeat credentials
CAUSE = re.compile(r"\n\s*(\x1b\[\d+m)?↳(\x1b\[0m)? ")  # between those of an error of delta-rs


def printable(text: str) -> str:
    """Text whose control characters are escaped: a file's name may contain any of them."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def one_line(error: BaseException) -> str:
    """An error's message: its first line or, where delta-rs lists causes below each other, all of these."""
    text = ANSWER.sub("", CAUSE.sub(": ", str(error)))
    line = next(filter(str.strip, text.splitlines()), type(error).__name__)
    return printable(line if len(line) <= MESSAGE_CHARACTERS else f"{line[:MESSAGE_CHARACTERS]}…")


class Lasting(io.TextIOBase):
    """A stream that discards its text once its reader is gone, as after `| head`: a command's exit code
    depends on what it finds, not on who reads its output."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            # What it cannot encode, as in a C locale, is escaped.
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            discard(self.stream)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()


def new_run_id() -> str:
    """An id that no other run has, and that begins with its time: `20260101T000000-1a2b3c`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


class Console:
    """Prints to the real stdout, while everything that libraries print goes to a log file.

    The file descriptors themselves are redirected, because Ray's C++ core and child processes write
    to them directly. A stdout whose reader is gone, that is closed or full does not end the run.
    """

    def __init__(self, run_id: str):
        self.run_id = run_id
        self.log = Path(os.devnull)
        self._last_progress_s = 0.0
        self._line_is_open = False

    def __enter__(self) -> Console:
        open_standard_streams()
        sys.stdout.flush()
        sys.stderr.flush()
        self._out_fd, self._err_fd = os.dup(1), os.dup(2)
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
        self.log, log_fd, problem = open_log(self.run_id)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.close(log_fd)
        self._terminal = self._out.isatty()
        if problem:
            self.say(problem)
        return self

    def __exit__(self, *_: object) -> None:
        self._close_line()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self._out_fd, 1)
        os.dup2(self._err_fd, 2)
        os.close(self._out_fd)
        os.close(self._err_fd)
        with suppress(OSError):
            self._out.close()

    def say(self, text: str) -> None:
        """Print one or more lines that stay."""
        self._close_line()
        self._write("\n".join(printable(line) for line in text.split("\n")) + "\n")

    def progress(self, text: str) -> None:
        """Print a line of progress: on a terminal in place of the last one, in a log every 10 s."""
        if self._terminal:
            columns = os.get_terminal_size(self._out.fileno()).columns or 80
            self._write(f"\r\x1b[2K{printable(text)[: columns - 1]}")
            self._line_is_open = True
        elif time.monotonic() - self._last_progress_s >= LOG_EVERY_S:
            self._last_progress_s = time.monotonic()
            self.say(text)

    def _close_line(self) -> None:
        if self._line_is_open:
            self._write("\r\x1b[2K")
            self._line_is_open = False

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as error:  # as after `| head`
            print(
                f"stdout can't be written to ({error.strerror}); its text goes on here:", flush=True
            )
            discard(self._out)
            self._terminal = False
            self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
            self._out.write(text)


def open_log(run_id: str) -> tuple[Path, int, str]:
    """A run's log: its path, a file descriptor, and a line for the user if it is not in the usual folder,
    as in containers without a home or with one that is read-only."""
    problem = ""
    for folder in (_state_folder, own_folder):
        try:
            logs = folder()
            logs.mkdir(parents=True, exist_ok=True)
            path = logs / f"{run_id}.log"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            return path, os.open(path, flags, 0o600), problem and f"{problem}: log: {path}"
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            problem = problem or f"no log in the home folder ({error})"
    nowhere = Path(os.devnull)
    return nowhere, os.open(nowhere, os.O_WRONLY), f"{problem}: log: {nowhere}"


def _state_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "earmark"


def discard(stream: TextIO) -> None:
    """Send a broken stream's buffered text, and all that is written to it later, to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    with suppress(OSError):
        stream.flush()


def keep_streams() -> None:
    """Open the standard streams of this process if they are closed, and let it outlast them."""
    open_standard_streams()
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)  # type: ignore[assignment]


def open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed (`>&-`): the next file would be them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
