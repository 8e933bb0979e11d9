"""A table of very many clips in tars, written without a run: its data files, its log, its shards.

python -m jobs.bench.big_table FOLDER CLIPS SHARDS
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.ways import nothing
from jobs.clips import Shard, clip_id, digest
from jobs.config_file import load_config
from jobs.fingerprints import fingerprints, settings
from jobs.preflight import find_models
from jobs.sources import load_source
from jobs.table.log import ROWS_AT_ONCE
from jobs.table.rewrite import add
from jobs.table.schema import fingerprint_column, in_schema, run_column, table_schema
from jobs.table.storage import Storage
from jobs.table.table import hold

ROWS_OF_A_FILE = 2_000_000
RUN_ID = "20260101-000000-bench"
DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)
LABELS = ("speech", "music", "noise")


def big_table(folder: Path, clips: int, shards: int) -> Path:
    """The config of a run whose table has a row for each of `clips` clips in `shards` tars, which are
    empty files: no run opens those that are done."""
    tars = folder / "tars"
    for number in range(shards):
        tar = tars / f"{number // 1000:03}" / f"{number:06}.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        tar.touch()
    file = folder / "job.yaml"
    audio = {"path": str(tars), "format": "webdataset"}
    output = {"path": str(folder / "table")}
    file.write_text(yaml.safe_dump({"input": audio, "tasks": {"it": nothing()}, "output": output}))
    _write(file, clips, shards)
    return file


def _write(config_file: Path, clips: int, shards: int) -> None:
    config = load_config(str(config_file), ())
    labels = settings(config, find_models(config, str(config_file)))
    schema = table_schema(config.tasks, pa.schema([]))
    table = hold(Storage(config.output.path), RUN_ID, schema, labels, {})
    found = load_source("webdataset").find(config.input, lambda _: None).clips
    columns = (found[name].to_pylist() for name in ("source", "source_version"))
    sizes = np.diff(np.linspace(0, clips, shards + 1).astype(int)).tolist()
    tars = list(zip(*columns, sizes, strict=True))
    per_file = max(1, ROWS_OF_A_FILE * shards // clips)
    known: dict[str, Shard] = {}
    actions = []
    for start in range(0, shards, per_file):
        name = f"part-{RUN_ID}-{start:06}.parquet"
        some = tars[start : start + per_file]
        with pq.ParquetWriter(f"{table.path}/{name}", table.schema(), compression="zstd") as writer:
            for rows in _groups(some, known):
                writer.write_table(_whole(rows, table.schema(), fingerprints(labels)["it"]))
        size = Path(table.path, name).stat().st_size
        actions.append(add(name, size, sum(clips for *_, clips in some)))
        print(f"{sum(shard.clips for shard in known.values()):,} rows", file=sys.stderr, flush=True)
    table.transactions.append(actions, "label", {"rows": clips})
    table.added_shards.add(known)
    table.added_shards.merge()
    table.release()


def _groups(tars: list[tuple[str, str, int]], known: dict[str, Shard]) -> Iterator[pa.Table]:
    """Places and ids of all clips of some tars, which are added to `known`, a row group at a time."""
    group: list[pa.Table] = []
    for source, version, count in tars:
        members = [f"{number:06}.wav" for number in range(count)]
        versions = [f"{source[-12:-4]}{member}" for member in members]
        ids = [clip_id(source, *place, 0.0) for place in zip(members, versions, strict=True)]
        known[source] = Shard(version, count, (), digest(ids))
        columns = {"clip_id": ids, "member": members, "source_version": versions}
        group.append(pa.table(columns).append_column("source", pa.repeat(source, count)))
        if sum(map(len, group)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def _whole(rows: pa.Table, schema: pa.Schema, fingerprint: str) -> pa.Table:
    """The rows with made-up labels."""
    count = len(rows)
    numbers = np.random.default_rng(count)
    scores = pa.array(numbers.random(count, np.float32))
    columns: dict[str, Any] = {
        "offset_s": pa.array(np.zeros(count)),
        "duration_s": pa.array(numbers.uniform(1, 20, count)),
        "sample_rate": 16_000,
        "channels": 1,
        "format": "wav",
        "status": "ok",
        "it_label": pa.array(numbers.choice(LABELS, count)),
        "it_score": scores,
        fingerprint_column("it"): fingerprint,
        run_column("it"): RUN_ID,
        "run_id": RUN_ID,
        "labelled_at": DAY,
    }
    for name, value in columns.items():
        is_whole = isinstance(value, pa.Array)
        type_ = schema.field(name).type
        column = value if is_whole else pa.repeat(pa.scalar(value, type_), count)
        rows = rows.append_column(name, column.cast(type_))
    return in_schema(rows, schema)


if __name__ == "__main__":
    print(big_table(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])))
