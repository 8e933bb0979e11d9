"""Wall time, CPU time and memory of a command and all its descendants. Linux only."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.5  # with 25 processes a poll takes 8 ms of CPU time from those that are measured


@dataclass(frozen=True)
class Took:
    """Resources used by one process and all its descendants."""

    began: float  # time.time
    wall_s: float
    cpu_s: float
    peak_bytes: int  # of all processes together, with Ray's object store, without mapped files
    own_peak_bytes: int  # of the first process alone, with shared and mapped memory
    own_cpu_s: float  # of the first process alone


def measured(command: Sequence[str], **options: Any) -> Took:
    """Run a command, and wait for it and all its descendants. Raises RuntimeError with the end of its
    output if it fails.

    The processes are polled, because the CPU time of Ray's workers is unknown after they end: up to
    `POLL_S` of each process is missed.
    """
    import psutil

    # Orphans become children of this process, and so are counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    me, cpu_s = psutil.Process(), {}
    began, started, wall_s, code = time.time(), time.monotonic(), 0.0, None
    peak, own_peak, own_cpu_s = 0, 0, 0.0
    stored = _object_store_bytes()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        first = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            **options,
        )
        poll_at = started
        while True:
            own_peak = max(own_peak, _bytes(first.pid, "VmHWM"))  # cheap for a single process
            own_cpu_s = max(own_cpu_s, _cpu_s(first.pid))
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    if ended[0] == first.pid:
                        wall_s = time.monotonic() - started
                        code = first.returncode = os.waitstatus_to_exitcode(ended[1])
            if time.monotonic() >= poll_at:
                alive = me.children(recursive=True)
                for process in alive:
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        cpu_s[process] = times.user + times.system
                own = sum(_bytes(process.pid, "RssAnon") for process in alive)
                peak = max(peak, own + _object_store_bytes() - stored)
                if not alive and code is not None:
                    break
                poll_at = time.monotonic() + POLL_S
            time.sleep(POLL_S / 10)
        if code:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{output.read()[-4000:]}")
    return Took(began, wall_s, sum(cpu_s.values()), peak, own_peak, own_cpu_s)


def _bytes(pid: int, field: str) -> int:
    """A field of a process's /proc/PID/status (`man proc_pid_status`) in bytes; 0 if it has ended.

    The kernel has counters for these. For the PSS it would visit all pages while the process waits.
    """
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(status.partition(f"{field}:")[2].split()[0]) if field in status else 0
    return 0


def _cpu_s(pid: int) -> float:
    """The CPU time of a process, without its children's (`man proc_pid_stat`); 0 if it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _object_store_bytes() -> int:
    """The memory in shared files: Ray's object store, which belongs to no single process."""
    return shutil.disk_usage("/dev/shm").used
