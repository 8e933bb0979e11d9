"""A running dataset as an iterator that never blocks for long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from jobs import ray_compat
from jobs.ray_address import HeadGone
from jobs.resources import Shares, missing_resources, nodes_now

if TYPE_CHECKING:
    import ray.data

WAIT_S = 0.5
LOOK_FOR_NODES_EVERY_S = 15.0


class Stalled(Exception):
    """No stage has started or finished a block for `resources.stalled_after_s`. Exit code 1."""


class Stream:
    """Rows of a Ray dataset as dicts, and None whenever none came for half a second.

    A thread pulls the dataset, so that the caller can commit, show progress and react to signals
    while a slow block is being labelled. An error of the dataset ends the rows; `raise_error` raises
    it, once the rows before it are committed.
    """

    def __init__(self, dataset: ray.data.Dataset, shares: Shares):
        self._rows: queue.Queue[Any] = queue.Queue(maxsize=1024)
        self._thread = threading.Thread(target=self._pull, args=(dataset,), daemon=True)
        self._shares = shares
        self._error: BaseException | None = None
        self._waits_for = ""
        self._ended = threading.Event()
        self._looks = threading.Thread(target=self._look_for_nodes, daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        self._looks.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the dataset, unless its cluster is gone: that would wait for the cluster's answer."""
        self._ended.set()
        if kind is not HeadGone:
            ray_compat.end_datasets()

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        while True:
            try:
                item = self._rows.get(timeout=WAIT_S)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                self._error = item
                return
            yield item

    def waits_for(self) -> str:
        """The resources that the cluster lacks to run every stage, after nodes have left; or ""."""
        return self._waits_for

    def _look_for_nodes(self) -> None:
        """In a thread, as a head that is gone gives no answer for minutes."""
        while not self._ended.wait(LOOK_FOR_NODES_EVERY_S):
            try:
                missing = missing_resources(self._shares, nodes_now(), one_each=True)
            except Exception:  # the run is ending, or the head is gone
                return
            self._waits_for = "; ".join(missing)

    def raise_error(self) -> None:
        """Raise the error that ended the dataset, if any: Stalled, or Ray's own."""
        if self._error is None:
            return
        stages = ray_compat.stalled_stages(self._error)
        if stages is not None:
            missing = missing_resources(self._shares, nodes_now(), one_each=True)
            raise Stalled(
                "no stage made progress for as long as resources.stalled_after_s allows:\n  "
                + "\n  ".join([*stages, *missing])
            ) from self._error
        raise self._error

    def _pull(self, dataset: ray.data.Dataset) -> None:
        try:
            with ray_compat.whole_tables():
                for batch in dataset.iter_batches(
                    batch_size=None, batch_format="pyarrow", prefetch_batches=0
                ):
                    for row in cast(Any, batch).to_pylist():
                        self._rows.put(row)
            self._rows.put(None)
        except BaseException as error:  # of any kind, for the main thread
            self._rows.put(error)
