"""The plan as a source of Ray Data: each read task reads a block of the plan, or a few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

PIECE_BYTES = 16 << 20  # of the plan in one object, which each node that reads of it gets whole
MOST_TASKS = 4_000  # a few more with several pieces; Ray takes 0.9 ms for each before any is run

Read = Callable[..., Iterable[pa.Table]]


class PlannedReads(Datasource):
    """Reads each block of a plan with `read(block, number=..., **arguments)`. The number is that of the
    block in its task.

    `ray.data.from_arrow` could begin the dataset, but it runs a task for each block before the first
    is read: 1 s for the start of its process, and 87 s and 0.9 GB for 20,000 blocks.
    """

    def __init__(self, blocks: Sequence[pa.Table], read: Read, arguments: Mapping[str, Any]):
        super().__init__()
        shared = ray.put(dict(arguments))
        together = max(1, math.ceil(len(blocks) / MOST_TASKS))
        self.reads = [
            partial(_read, read, shared, piece, cuts[at : at + together + 1])
            for piece, cuts in _put(blocks)
            for at in range(0, len(cuts) - 1, together)
        ]

    def get_name(self) -> str:
        return "Clips"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The tasks; their number is what `dataset` asks for as `parallelism`."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        return [ReadTask(read, unknown) for read in self.reads]


def dataset(
    blocks: Sequence[pa.Table], read: Read, arguments: Mapping[str, Any], *, num_cpus: float
) -> Dataset:
    """The tables that `read(block, number=..., **arguments)` yields for each block, as a dataset.

    If a task's process dies or its tables are lost, Ray runs the task again, as often as needed.
    """
    source = PlannedReads(blocks, read, arguments)
    return read_datasource(source, num_cpus=num_cpus, override_num_blocks=len(source.reads))


def _put(blocks: Sequence[pa.Table]) -> Iterator[tuple[Any, list[int]]]:
    """Put the blocks into Ray's store, in pieces of several; for each piece its object and the rows
    at which its blocks begin and end."""
    piece: list[pa.Table] = []
    size = 0
    for block in [*blocks, None]:
        if piece and (block is None or size >= PIECE_BYTES):
            cuts = accumulate(map(len, piece), initial=0)
            yield ray.put(pa.concat_tables(piece)), list(cuts)
            piece, size = [], 0
        if block is not None:
            piece.append(block)
            size += block.nbytes


def _read(read: Read, arguments: Any, piece: Any, cuts: Sequence[int]) -> Iterator[pa.Table]:
    plan: pa.Table = ray.get(piece)
    for number, (start, end) in enumerate(pairwise(cuts)):
        yield from read(plan.slice(start, end - start), number=number, **ray.get(arguments))
