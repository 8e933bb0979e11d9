"""Who holds a table: one run at a time, by a note that it renews while it lives.

The note keeps others from starting. That a holder who was thought dead and wakes up writes nothing
is the log's business: each transaction carries a number, see `log.Transactions`.
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
    """A run that holds a table; `heartbeat` is when it last said so (`time.time`)."""

    run_id: str
    host: str
    pid: int
    since: str
    heartbeat: float

    @classmethod
    def me(cls, run_id: str) -> Holder:
        """This process."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(run_id, socket.gethostname(), os.getpid(), now, time.time())

    @property
    def is_alive(self) -> bool:
        """On this host its process decides, elsewhere its heartbeat."""
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
    """Who holds the table, if a note says so that can be understood."""
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
    if holder is None:
        return "another run has just taken the table"
    return f"{holder} holds the table since {holder.since}"


class Lease:
    """The note of one run, renewed every HEARTBEAT_S until `end`."""

    def __init__(self, storage: Storage, me: Holder) -> None:
        self.storage, self.me = storage, me
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def write(self) -> None:
        """The note, with the present time."""
        note = asdict(replace(self.me, heartbeat=time.time()))
        self.storage.write(NOTE, json.dumps(note).encode())

    def end(self) -> None:
        """Take the note away, if it is still this run's."""
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
                    return  # taken over: the next commit will say so
                self.write()
