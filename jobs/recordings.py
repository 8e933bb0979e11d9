"""Keeps the rows of a recording together whose channels are labelled one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Any


class WholeRecordings:
    """Holds data files back until all rows of their recordings have come.

    All rows of a recording start in one block, so few files wait. `missing` has the recordings of which
    some rows have not come.
    """

    def __init__(self) -> None:
        self._came: dict[str, set[str]] = {}  # clip_ids, by recording with more to come
        self._waiting: list[tuple[Mapping[str, Any], Set[str]]] = []

    @property
    def missing(self) -> Set[str]:
        return self._came.keys()

    def has_any(self, clip_ids: Collection[str]) -> bool:
        """Whether one of these clips has come, of a recording with more to come."""
        return any(not came.isdisjoint(clip_ids) for came in self._came.values())

    def add(self, file: Mapping[str, Any]) -> None:
        """Take a data file (a row of `WRITTEN`)."""
        ids = file["clip_ids"] or ()
        recordings = file.get("recordings") or [None] * len(ids)
        own = [(r, id) for r, id in zip(recordings, ids, strict=True) if r]
        for recording, clip_id in own:
            came = self._came.setdefault(recording["id"], set())
            came.add(clip_id)
            if len(came) == recording["rows"]:
                del self._came[recording["id"]]
        self._waiting.append((file, {recording["id"] for recording, _ in own}))

    def ready(self) -> list[Mapping[str, Any]]:
        """The files to commit now, in one transaction. Each is returned once."""
        held = set(self._came)
        while more := [ids for _, ids in self._waiting if ids & held and not ids <= held]:
            held.update(*more)  # a file that shares a recording with one that waits, waits as well
        ready = [file for file, ids in self._waiting if not ids & held]
        self._waiting = [(file, ids) for file, ids in self._waiting if ids & held]
        return ready
