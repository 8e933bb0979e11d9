"""Inputs and tables of very many clips, made without labelling one.

The clips are a tenth of a second of noise. Files and tars are links to a few real ones; the table's
data files, its log and what it knows of shards are written as runs write them.

python -m jobs.bench.big_table FOLDER files|webdataset CLIPS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import yaml
from deltalake.transaction import AddAction

from jobs.bench.ways import nothing
from jobs.clips import Shard, clip_ids, digest
from jobs.config import Config
from jobs.config_file import load_config
from jobs.fingerprints import fingerprints, settings
from jobs.preflight import find_models
from jobs.sources import PLACE, load_source
from jobs.table.log import ROWS_AT_ONCE
from jobs.table.rewrite import add
from jobs.table.schema import fingerprint_column, in_schema, run_column, table_schema
from jobs.table.storage import Storage
from jobs.table.table import HeldTable, hold

CLIPS_OF_A_SHARD = LINKS = 1000  # of a file; file systems allow 65,000
ROWS_OF_A_FILE = 2_000_000
RUN_ID = "20260101-000000-bench"
DAY = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = ("speech", "music", "noise")


def big_table(folder: Path, kind: str, clips: int) -> Path:
    """The config of a run over `clips` clips, in files or tars of a thousand, whose table has a row for
    each of them."""
    audio = folder / "audio"
    is_sharded = kind == "webdataset"
    content = _tar() if is_sharded else _noise()
    for number in range(clips // CLIPS_OF_A_SHARD if is_sharded else clips):
        file = audio / f"{number // LINKS:05}" / f"{number:09}.{'tar' if is_sharded else 'wav'}"
        if number % LINKS == 0:
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
            first = file
        else:
            os.link(first, file)
    config_file = folder / "job.yaml"
    document = {
        "input": {"path": str(audio), "format": kind},
        "tasks": {"it": nothing()},
        "output": {"path": str(folder / "table")},
    }
    config_file.write_text(yaml.safe_dump(document))
    config = load_config(str(config_file), ())
    _write(config, settings(config, find_models(config, str(config_file))))
    return config_file


def _noise(seed: int = 0) -> bytes:
    content = BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, 1600)
    soundfile.write(content, noise, 16_000, format="WAV")
    return content.getvalue()


def _tar() -> bytes:
    import tarfile

    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(CLIPS_OF_A_SHARD):
            sound = _noise(number)
            member = tarfile.TarInfo(f"{number:06}.wav")
            member.size = len(sound)
            tar.addfile(member, BytesIO(sound))
    return content.getvalue()


def _write(config: Config, labels: dict[str, Any]) -> None:
    schema = table_schema(config.tasks, pa.schema([]))
    table = hold(Storage(config.output.path), RUN_ID, schema, labels, {})
    known: dict[str, Shard] = {}
    print_ = fingerprints(labels)["it"]
    fill(table, (_labelled(rows, table.schema(), print_) for rows in _places(config, known)))
    if known:
        table.added_shards.add(known)
        table.added_shards.merge()
    table.release()


def fill(table: HeldTable, groups: Iterator[pa.Table]) -> None:
    """Commit rows, which come in row groups, in data files of about `ROWS_OF_A_FILE`."""
    actions: list[AddAction] = []
    done = 0
    group = next(groups, None)
    while group is not None:
        name, written = f"part-{RUN_ID}-{len(actions):06}.parquet", 0
        with pq.ParquetWriter(f"{table.path}/{name}", table.schema(), compression="zstd") as writer:
            while group is not None and written < ROWS_OF_A_FILE:
                writer.write_table(group)
                written += len(group)
                group = next(groups, None)
        actions.append(add(name, Path(table.path, name).stat().st_size, written))
        done += written
        print(f"{done:,} rows", file=sys.stderr, flush=True)
    table.transactions.append(actions, "label", {"rows": done})


def _places(config: Config, known: dict[str, Shard]) -> Iterator[pa.Table]:
    """The ids and places of all clips, a row group at a time; shards are added to `known`."""
    source = load_source(config.input.format)
    found = source.find(config.input, lambda _: None).clips
    if not source.SHARDED:
        for start in range(0, len(found), ROWS_AT_ONCE):
            some = found.slice(start, ROWS_AT_ONCE)
            yield some.add_column(0, "clip_id", clip_ids(some))
        return
    # All tars are alike.
    inside = pa.Table.from_pylist(
        [clip for clip, _ in source.clips(found.slice(0, 1), config.input)], schema=PLACE
    )
    names = zip(found["source"].to_pylist(), found["source_version"].to_pylist(), strict=True)
    group: list[pa.Table] = []
    for shard, version in names:
        clips = inside.set_column(0, "source", pa.repeat(shard, len(inside)))
        clips = clips.add_column(0, "clip_id", clip_ids(clips))
        known[shard] = Shard(version, len(clips), (), digest(clips["clip_id"].to_pylist()))
        group.append(clips)
        if sum(map(len, group)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def _labelled(rows: pa.Table, schema: pa.Schema, fingerprint: str) -> pa.Table:
    """The rows with made-up labels."""
    count = len(rows)
    numbers = np.random.default_rng(count)
    columns: dict[str, Any] = {
        "duration_s": 0.1,
        "sample_rate": 16_000,
        "channels": 1,
        "format": "wav",
        "status": "ok",
        "it_label": numbers.choice(LABELS, count),
        "it_score": numbers.random(count, np.float32),
        fingerprint_column("it"): fingerprint,
        run_column("it"): RUN_ID,
        "run_id": RUN_ID,
        "labelled_at": DAY,
    }
    for name, value in columns.items():
        type_ = schema.field(name).type
        is_whole = isinstance(value, np.ndarray)
        column = pa.array(value) if is_whole else pa.repeat(pa.scalar(value, type_), count)
        rows = rows.append_column(name, column.cast(type_))
    return in_schema(rows, schema)


def main(arguments: Sequence[str]) -> None:
    folder, kind, clips = arguments
    print(big_table(Path(folder).resolve(), kind, int(clips)))


if __name__ == "__main__":
    main(sys.argv[1:])
