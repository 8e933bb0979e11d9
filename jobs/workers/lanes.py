"""Lanes limit how many long recordings a node decodes at once, by the memory that it has.

Workers that read claim fractions of a CPU, and no memory: most clips need next to none. A recording of
four hours needs gigabytes, and with several at once the kernel would kill processes. A lane is a lock on
a file, which ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.own_folder import own_folder

LONG_BYTES = 64 << 20  # of waveforms as float32: 17 minutes at 16 kHz
COPIES = 4  # of a waveform at once: in the sandbox, in its table, handed over, in the worker
SHARE = 0.25  # of the node's memory for the lanes; the rest is the models' and Ray's
LOOK_EVERY_S = 0.05


class Lanes:
    """The lanes that this process holds. All runs of one user on a node share the node's lanes.

    waits: called repeatedly while no lane is free.
    """

    def __init__(self, clip_bytes: float, waits: Callable[[], None] = lambda: None) -> None:
        self.count = max(1, int(SHARE * node_memory() / (COPIES * clip_bytes)))
        self.waits = waits
        self._held: list[int] = []  # file descriptors

    def take(self) -> None:
        """Wait for a free lane, unless this process holds one."""
        while not self._held and not any(map(self._lock, range(self.count))):
            self._wait()

    def take_all(self) -> None:
        """Wait until no other process holds a lane, and hold all of them."""
        self.release()  # two processes that each hold a lane while they wait would wait forever
        for number in range(self.count):
            while not self._lock(number):
                self._wait()

    def release(self) -> None:
        """Let other processes have the lanes."""
        while self._held:
            os.close(self._held.pop())

    def _wait(self) -> None:
        self.waits()
        time.sleep(LOOK_EVERY_S)

    def _lock(self, number: int) -> bool:
        """Take one lane; returns False if another process has it. Without a folder for locks, as on
        a read-only disk, all lanes are free."""
        try:
            file = os.open(
                own_folder() / f"lane-{number}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
        except OSError:
            file = os.open(os.devnull, os.O_RDONLY)
            self._held.append(file)
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._held.append(file)
        return True


def node_memory() -> int:
    """Bytes of memory that this machine, or this container, has."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # ValueError: "max"
            sizes.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(sizes)
