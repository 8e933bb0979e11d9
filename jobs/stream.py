"""A running dataset as an iterator that never blocks for long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray.data

WAIT_S = 0.5


class Stream:
    """Rows of a Ray dataset as dicts, and None whenever none came for half a second.

    The dataset is pulled in a thread of its own, so that the caller stays free to commit, to show
    progress and to hear signals while a slow block is being labelled.
    """

    def __init__(self, dataset: ray.data.Dataset):
        self._rows: queue.Queue[Any] = queue.Queue(maxsize=1024)
        self._thread = threading.Thread(target=self._pull, args=(dataset,), daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to wait for: the thread ends with Ray, or with the process."""

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
                raise item
            yield item

    def _pull(self, dataset: ray.data.Dataset) -> None:
        try:
            batches: Iterator[Any] = iter(
                dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            )
            for batch in batches:
                for row in batch.to_pylist():
                    self._rows.put(row)
            self._rows.put(None)
        except BaseException as error:  # whatever it is, the main thread has to hear of it
            self._rows.put(error)
