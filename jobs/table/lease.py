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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from jobs.table.storage import Storage

NOTE = "_earmark/holder.json"
HEARTBEAT_S = 10.0
HOLDER_IS_DEAD_S = 60.0


class TableInUse(Exception):
    """Another run holds the table, or has taken it over from this one. Exit code 75."""


@dataclass(frozen=True)
class Holder:
    """A run that holds a table; `heartbeat` is the time of its last note (`time.time`)."""

    run_id: str
    host: str
    pid: int
    since: str
    heartbeat: float

    @classmethod
    def me(cls, run_id: str) -> Holder:
        """The run of this process, as from now."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(run_id, socket.gethostname(), os.getpid(), now, time.time())

    @property
    def is_alive(self) -> bool:
        """Whether its heartbeat is recent and, if it runs on this host, its process exists."""
        if time.time() - self.heartbeat > HOLDER_IS_DEAD_S:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        return True

    def __str__(self) -> str:
        return f"run {self.run_id} (process {self.pid} on {self.host})"


def holder_of(storage: Storage) -> Holder | None:
    """The run that holds the table, or None if there is no note or it cannot be read."""
    try:
        note: Mapping[str, Any] = json.loads(storage.read(NOTE))
        texts = [note[name] for name in ("run_id", "host", "since")]
        pid, heartbeat = note["pid"], note["heartbeat"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    is_known = all(isinstance(text, str) for text in texts) and isinstance(heartbeat, int | float)
    if not is_known or not isinstance(pid, int) or pid <= 0:
        return None
    return Holder(texts[0], texts[1], pid, texts[2], heartbeat)


def in_use(holder: Holder | None) -> str:
    """The message of a TableInUse."""
    if holder is None:
        return "another run has just taken the table"
    return f"{holder} has held the table since {holder.since}"


class Lease:
    """The note of one run, renewed every HEARTBEAT_S until `end`."""

    def __init__(self, storage: Storage, me: Holder) -> None:
        self.storage, self.me = storage, me
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
                if holder and holder.run_id != self.me.run_id:
                    return  # taken over: the next commit will raise TableInUse
                self.write()
