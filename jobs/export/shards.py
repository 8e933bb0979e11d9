"""One shard of an export, in a worker: its items' sound is written, and then a record of it.

A shard is finished when its record is there. One that was written half is written again, with the
same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audio_ops.errors import ClipError
from jobs.export.folder import RECORDS, Folder
from jobs.export.formats import Export, Item, Shard, load_format
from jobs.export.formats._fields import id_of
from jobs.export.sound import Encoded, Segment, SoundSettings, SoundWork, encoded_items
from jobs.shared_storage import SeenInput, expect_input, expect_probe
from jobs.workers.reopen import clips_of

RECORD = pa.schema(
    [
        ("item", pa.int64()),  # number of the row in its shard; in the order in which they came
        ("duration_s", pa.float64()),
        ("sample_rate", pa.int32()),
        ("samples", pa.int64()),
        ("channels", pa.int32()),
        ("path", pa.string()),
        ("shard", pa.int64()),
        ("source", pa.string()),  # of one that has failed, for messages
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardSettings:
    """What all shards of an export share."""

    format: str
    export: Export
    sound: SoundSettings
    folder: Folder  # the unfinished one
    probe: str | None  # see `jobs.shared_storage`
    seen: SeenInput


def record_name(number: int) -> str:
    """The name of a shard's record; numbers count through all parts."""
    return f"{RECORDS}/{number:06d}.parquet"


def write_shard(number: int, shard: Shard, rows: pa.Table, settings: ShardSettings) -> pa.Table:
    """Write a shard and its record (`RECORD`), which is returned.

    Raises OSError on a node that shares neither the input nor the folder.
    """
    expect_probe(settings.probe)
    expect_input(settings.seen)
    items = [with_id(row) for row in rows.to_pylist()]
    segments = {}
    if settings.export.is_cut:
        for at, item in enumerate(items):
            segments[at] = Segment(item["start_s"], item["start_s"] + item["duration_s"])
    work = SoundWork(clips_of(items), segments, settings.sound)
    records: list[dict[str, Any]] = []
    with load_format(settings.format).shard(shard, settings.export, settings.folder) as add:
        for at, sound in encoded_items(work):
            if isinstance(sound, ClipError):
                error = {"error_kind": sound.kind, "error_message": sound.message}
                records.append({"item": at, "source": items[at]["source"], **error})
                continue
            item = _with_sound(items[at], sound)
            add(item, sound)
            written = {name: item[name] for name in RECORD.names if name in item}
            records.append(written | {"item": at, "source": None})
    table = pa.Table.from_pylist(records, schema=RECORD)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    settings.folder.write(record_name(number), sink.getvalue())
    return table


def with_id(row: Item) -> Item:
    """A row of the selection as an item."""
    return row | {"id": id_of(row)}


def _with_sound(item: Item, sound: Encoded) -> Item:
    """The item with what is true of its sound, if that was decoded."""
    if sound.sample_rate is None or sound.samples is None:
        return dict(item)
    return item | {
        "duration_s": sound.samples / sound.sample_rate,
        "sample_rate": sound.sample_rate,
        "samples": sound.samples,
        "channels": sound.channels,
    }


def read_record(folder: Folder, number: int) -> pa.Table:
    """A finished shard's record."""
    return pq.read_table(io.BytesIO(folder.storage.read(record_name(number))))


def recorded(rows: pa.Table, record: pa.Table) -> Iterator[tuple[Item, ClipError | None]]:
    """The items of a finished shard, in the order in which they were written, and errors."""
    items = rows.to_pylist()
    for entry in record.to_pylist():
        item = with_id(items[entry.pop("item")])
        kind, message = entry.pop("error_kind"), entry.pop("error_message")
        written = {name: value for name, value in entry.items() if value is not None}
        yield item | written, ClipError(kind, message) if kind else None
