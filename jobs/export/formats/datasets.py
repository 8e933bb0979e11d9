"""Hugging Face's datasets: `data/PART-00000-of-00003.parquet` with an `Audio` column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.export.folder import Folder
from jobs.export.formats import Add, Export, Item, Shard
from jobs.export.formats._splits import write_splits
from jobs.export.formats._tars import problem
from jobs.export.options import Audio, BadExport
from jobs.export.select import EXTRA
from jobs.export.sound import Encoded

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("copy", "flac", "wav")
GROUP_BYTES = 32 << 20  # of a row group, which readers hold in memory
GROUP_ROWS = 100


def prepared(export: Export) -> Export:
    """The export with the schema of its files, in whose metadata are the features."""
    try:
        from datasets import Audio as AudioFeature
        from datasets import Features
    except ImportError:
        raise BadExport(
            "--as datasets: expected the package datasets, found none: pip install 'earmark[export]'"
        ) from None
    columns = pa.schema(
        [
            *((export.kind, pa.string()), ("id", pa.string()), ("duration", pa.float64())),
            *(("score", pa.float32()), ("language", pa.string()), ("speaker", pa.string())),
            *(("source", pa.string()), ("member", pa.string()), ("source_offset", pa.float64())),
            ("channel", pa.int32()),
            *export.columns.items(),
        ]
    )
    try:
        features = Features({"audio": AudioFeature(), **Features.from_arrow_schema(columns)})
    except ValueError as error:  # of maps, in which it has no type
        raise BadExport(f"--columns: expected types that datasets has, found: {error}") from None
    audio = pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    metadata = features.arrow_schema.metadata
    return replace(export, schema=pa.schema([audio, *columns], metadata=metadata))


@contextmanager
def shard(shard: Shard, export: Export, folder: Folder) -> Iterator[Add]:
    """Write a Parquet file, a row for each item."""
    assert export.schema is not None
    rows: list[dict[str, Any]] = []
    size = 0
    with (
        folder.create(_name(shard, export)) as file,
        pq.ParquetWriter(file, export.schema, compression="zstd") as writer,
    ):

        def write() -> None:
            nonlocal size
            writer.write_table(pa.Table.from_pylist(rows, schema=export.schema))
            rows.clear()
            size = 0

        def add(item: Item, sound: Encoded) -> None:
            nonlocal size
            if rows and (len(rows) == GROUP_ROWS or size + len(sound.content) > GROUP_BYTES):
                write()
            name = f"{item['id']}.{sound.extension}"
            rows.append(
                {
                    **{name[len(EXTRA) :]: v for name, v in item.items() if name.startswith(EXTRA)},
                    "audio": {"bytes": sound.content, "path": name},
                    export.kind: item["value"],
                    "duration": item["duration_s"],
                    "source_offset": item["offset_s"] + item["start_s"],
                    **{n: item[n] for n in ("id", "score", "language", "speaker")},
                    **{n: item[n] for n in ("source", "member", "channel")},
                }
            )
            size += len(sound.content)

        yield add
        write()


def _name(shard: Shard, export: Export) -> str:
    split = shard.part if export.is_split else "train"
    return f"data/{split}-{shard.number:05d}-of-{shard.of:05d}.parquet"


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the list of the splits."""
    if part == list(export.parts)[-1]:
        split = {name: name if export.is_split else "train" for name in export.parts}
        write_splits(export, folder, lambda name: f"data/{split[name]}-*-of-*.parquet")
