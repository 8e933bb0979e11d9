"""Keeps the rows of a recording together whose channels are labelled one by one."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any


class WholeRecordings:
    """Holds data files back until all rows of their recordings have come.

    All rows of a recording are of one block at first, so only few files wait.
    """

    def __init__(self) -> None:
        self._left: dict[str, int] = {}  # rows that have not come, by recording
        self._waiting: list[tuple[Mapping[str, Any], Set[str]]] = []

    def add(self, file: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Take a data file (a row of `WRITTEN`); returns those to commit now, in one transaction."""
        recordings = [recording for recording in file["recordings"] or () if recording]
        for recording in recordings:
            id = recording["id"]
            self._left[id] = self._left.get(id, recording["rows"]) - 1
            if not self._left[id]:
                del self._left[id]
        self._waiting.append((file, {recording["id"] for recording in recordings}))
        held = set(self._left)
        while more := [ids for _, ids in self._waiting if ids & held and not ids <= held]:
            held.update(*more)  # a file that shares a recording with one that waits, waits as well
        ready = [file for file, ids in self._waiting if not ids & held]
        self._waiting = [(file, ids) for file, ids in self._waiting if ids & held]
        return ready
