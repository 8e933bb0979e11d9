"""The exit codes of `earmark`, and how the process ends with one."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

OK = 0
FAILED = 1
BAD_CONFIG = 2
TOO_MANY_ERRORS = 3
DRIFTED = 4
IN_USE = 75  # EX_TEMPFAIL of sysexits.h


def exit_with(code: int) -> None:
    """End the process with exactly this code.

    After some table operations delta-rs's threads abort the interpreter while it shuts down (exit code
    134 after a successful run), so the shutdown is skipped.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)
