"""The lease on a table: a note of the run that holds it, renewed as long as the run lives.

The note keeps other runs from starting. It does not stop a holder that was taken for dead and
resumes: the numbers of the log's transactions do, see `log.Transactions`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from jobs.table.storage import Storage

NOTE = "_earmark/holder.json"
HEARTBEAT_S = 10.0
HOLDER_IS_DEAD_S = 60.0
LOOK_EVERY_S = 1.0


class TableInUse(Exception):
    """Another run holds the table, or has taken it over from this one. Exit code 75."""


@dataclass(frozen=True)
class Holder:
    """A run that holds a table.

    `heartbeat` is the time of its last note (`time.time`, by its own clock). `machine` and `started`
    say which process `pid` is: its kernel and pid namespace, and when it started. Hosts have equal
    names in containers, and pids come again. Both are empty on systems without /proc, and in notes of
    earlier versions.
    """

    run_id: str
    host: str
    pid: int
    since: str
    heartbeat: float
    machine: str = ""
    started: str = ""

    @classmethod
    def me(cls, run_id: str) -> Holder:
        """The run of this process, as from now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(
            run_id, socket.gethostname(), pid, now, time.time(), this_machine(), start_of(pid)
        )

    @property
    def is_here(self) -> bool:
        """Whether its process is, or was, one that this process can see."""
        return bool(self.machine) and self.machine == this_machine()

    @property
    def has_ended(self) -> bool:
        """Whether its process is known to have ended."""
        return self.is_here and start_of(self.pid) != self.started

    @property
    def is_alive(self) -> bool:
        """Whether it seems to live: its heartbeat is recent, which on another machine says little, as
        the clocks may differ."""
        return not self.has_ended and abs(time.time() - self.heartbeat) <= HOLDER_IS_DEAD_S

    def __str__(self) -> str:
        return f"run {self.run_id} (process {self.pid} on {self.host})"


def this_machine() -> str:
    """The running kernel and the pid namespace of this process; "" on systems without /proc, and where
    it shows the pids of another namespace."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """When a process was started, in ticks since the kernel was; "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return "" if state in "ZX" else rest[18]


def holder_of(storage: Storage) -> Holder | None:
    """The run that holds the table, or None if there is no note or it cannot be read."""
    try:
        note = json.loads(storage.read(NOTE))
        known = {field.name: note[field.name] for field in fields(Holder) if field.name in note}
        holder = Holder(**known)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
    texts = (holder.run_id, holder.host, holder.since, holder.machine, holder.started)
    is_known = all(isinstance(t, str) for t in texts) and isinstance(holder.heartbeat, int | float)
    return holder if is_known and isinstance(holder.pid, int) and holder.pid > 0 else None


def watched(storage: Storage, say: Callable[[str], None] = lambda _: None) -> Holder | None:
    """The holder in the table's note, once it is known to have died; None if there is none.

    A process of this machine is looked up. The clock of another one may differ by any time, so its
    holder is dead if it writes no heartbeat while it is watched for HOLDER_IS_DEAD_S.

    Raises TableInUse if it lives.
    """
    holder = holder_of(storage)
    if holder is None or holder.has_ended:
        return holder
    if holder.is_here and holder.is_alive:
        raise TableInUse(in_use(holder))
    say(f"{in_use(holder)}: waiting up to {HOLDER_IS_DEAD_S:g} s for a sign of life")
    until = time.monotonic() + HOLDER_IS_DEAD_S
    while time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        now = holder_of(storage)
        if now is None:
            return None
        if now != holder:
            raise TableInUse(in_use(now))
    return holder


def in_use(holder: Holder | None) -> str:
    """The message of a TableInUse."""
    if holder is None:
        return "another run has just taken the table"
    return f"{holder} has held the table since {holder.since}"


class Lease:
    """The note of one run, renewed every HEARTBEAT_S until `end`, as long as `is_mine`: another run's
    note may be a late one of a run that this one has taken the table over from.
    """

    def __init__(self, storage: Storage, me: Holder, is_mine: Callable[[], bool]) -> None:
        self.storage, self.me, self.is_mine = storage, me, is_mine
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def write(self) -> None:
        """Write the note, with the current time."""
        note = asdict(replace(self.me, heartbeat=time.time()))
        self.storage.write(NOTE, json.dumps(note).encode())

    def end(self) -> None:
        """Remove the note, if it is still this run's."""
        self._ended.set()
        self._beat.join()
        holder = holder_of(self.storage)
        if holder and holder.run_id == self.me.run_id:
            self.storage.remove(NOTE)

    def _keep_alive(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # the next beat tries again; no commit needs it
                holder = holder_of(self.storage)
                if holder and holder.run_id != self.me.run_id and not self.is_mine():
                    return  # taken over: the next commit will raise TableInUse
                self.write()
