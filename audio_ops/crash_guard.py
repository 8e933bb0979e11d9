"""Finds the clips that crash their model's process, one by one, so that no other clip fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from audio_ops.errors import ClipError
from audio_ops.tasks import Clip

DEATHS_OF_A_CLIP = 3  # once among others and twice alone: then the clip is not tried again

Labels = dict[str, Any] | ClipError | None
Recorder = Callable[[Sequence[Clip]], AbstractContextManager[Any]]
Labeller = Callable[[Sequence[Clip | ClipError | None], Recorder], list[Labels]]


class CrashLedger(Protocol):
    """Knows which clips a model was working on when its process died; it outlives that process.

    A `call` is one table of clips. After a death the same call comes again, to a new process.
    """

    def enter(self, call: str) -> dict[str, int]:
        """Deaths so far by `clip_id`: one for all those among other clips together, and one for
        each death of a clip that was alone."""

    def working_on(self, call: str, clip_ids: Sequence[str], alone: bool) -> None:
        """Record the clips that are in progress from now on. Those before have survived."""

    def leave(self, call: str) -> None:
        """Forget the call: all its clips are labelled."""


class CrashGuard:
    """Labels a call's clips, recording in a ledger which of them are in progress.

    Clips that were in progress at a death are labelled first, each alone in the process. A clip
    that was alone at two deaths becomes a ClipError `crashed`. The loss of a machine counts
    as a death, too; that one clip meets three of them is improbable enough to ignore.

    It may be called from several threads.
    """

    def __init__(self, ledger: CrashLedger):
        self._ledger = ledger
        self._turn = Turn()

    def __call__(self, clips: Sequence[Clip | ClipError | None], label: Labeller) -> list[Labels]:
        """The labels that `label(clips, recorder)` returns. It has to do all its work on clips inside
        of `recorder(clips)`."""
        ids = [clip.row["clip_id"] if isinstance(clip, Clip) else "" for clip in clips]
        call = next(filter(None, ids), "")
        if not call:
            return label(clips, _not_recorded)
        deaths = self._ledger.enter(call)
        alone: dict[int, Labels] = {}
        if deaths:
            with self._turn(alone=True):
                for index, clip in enumerate(clips):
                    if deaths.get(ids[index], 0) >= DEATHS_OF_A_CLIP:
                        alone[index] = ClipError("crashed", "the clip crashes the model's process")
                    elif ids[index] in deaths:
                        self._ledger.working_on(call, [ids[index]], alone=True)
                        alone[index] = label([clip], _not_recorded)[0]
                self._ledger.working_on(call, [], alone=False)
        rest = [None if index in alone else clip for index, clip in enumerate(clips)]
        labels = label(rest, self._recorder(call))
        self._ledger.leave(call)
        return [alone.get(index, one) for index, one in enumerate(labels)]

    def _recorder(self, call: str) -> Recorder:
        @contextmanager
        def record(clips: Sequence[Clip]) -> Iterator[None]:
            with self._turn():
                ids = [clip.row["clip_id"] for clip in clips]
                self._ledger.working_on(call, ids, alone=False)
                yield
                self._ledger.working_on(call, [], alone=False)

        return record


@contextmanager
def _not_recorded(_: Sequence[Clip]) -> Iterator[None]:
    yield


class Turn:
    """Lets many threads into a block at once, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0  # -1: one alone

    @contextmanager
    def __call__(self, alone: bool = False) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside if alone else self._inside >= 0)
            self._inside = -1 if alone else self._inside + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside = 0 if alone else self._inside - 1
                self._changed.notify_all()
