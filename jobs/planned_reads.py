"""The plan as a source of Ray Data: one read task per block of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

PIECE_BYTES = (
    16 << 20
)  # of the plan in one object, which travels whole to each node that reads of it

Read = Callable[..., Iterable[pa.Table]]


class PlannedReads(Datasource):
    """Reads each block of a plan with `read(block, **arguments)`.

    `ray.data.from_arrow` would do as a beginning, but asks a task about each block before the first
    is read: 1 s for the start of its process, and 87 s and 0.9 GB for 20,000 blocks.
    """

    def __init__(self, blocks: Sequence[pa.Table], read: Read, arguments: Mapping[str, Any]):
        super().__init__()
        self.read = read
        self.arguments = ray.put(dict(arguments))
        self.places = list(_put(blocks))

    def get_name(self) -> str:
        return "Clips"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per block, whatever `parallelism` is: it is the number of blocks."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        return [
            ReadTask(partial(_read, self.read, self.arguments, *place), unknown)
            for place in self.places
        ]


def dataset(
    blocks: Sequence[pa.Table], read: Read, arguments: Mapping[str, Any], *, num_cpus: float
) -> Dataset:
    """The tables that `read(block, **arguments)` yields for each block, as a dataset.

    Ray runs a task again, as often as needed, whose process has died or whose tables are lost.
    """
    source = PlannedReads(blocks, read, arguments)
    return read_datasource(source, num_cpus=num_cpus, override_num_blocks=len(blocks))


def _put(blocks: Sequence[pa.Table]) -> Iterator[tuple[Any, int, int]]:
    """Put the blocks into Ray's store; for each of them its object, first row and number of rows."""
    piece: list[pa.Table] = []
    size = 0
    for block in [*blocks, None]:
        if piece and (block is None or size >= PIECE_BYTES):
            reference = ray.put(pa.concat_tables(piece))
            rows = list(map(len, piece))
            starts = accumulate(rows[:-1], initial=0)
            yield from ((reference, *place) for place in zip(starts, rows, strict=True))
            piece, size = [], 0
        if block is not None:
            piece.append(block)
            size += block.nbytes


def _read(read: Read, arguments: Any, piece: Any, start: int, rows: int) -> Iterable[pa.Table]:
    return read(ray.get(piece).slice(start, rows), **ray.get(arguments))
