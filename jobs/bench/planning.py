"""Runs with nothing to do, and plans of a million clips."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from jobs.bench.measure import measured
from jobs.bench.report import COST, cost, show, target
from jobs.bench.ways import job, nothing


def planning(options: argparse.Namespace) -> None:
    """A run that has nothing to do, and a plan of a million clips."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = committed(folder, 100_000)
        took = job(folder, audio, nothing()).took
        rows.append(cost("nothing new to do, 100,000 committed clips", took))
        target("nothing new to do, 100,000 clips", took.wall_s, 5.0, at_most=True, unit="s")
    took = measured(
        [sys.executable, "-c", "from jobs.bench.planning import plan_a_million; plan_a_million()"]
    )
    rows.append(cost("plan: 1,000,000 found, 1,000,000 committed", took))
    target("plan of 1,000,000 clips", took.wall_s, 30.0, at_most=True, unit="s")
    target(
        "plan of 1,000,000 clips, memory", took.peak_bytes / 2**30, 1.0, at_most=True, unit="GiB"
    )
    show("Planning", ["what", *COST], rows)


def committed(folder: Path, count: int) -> dict[str, Any]:
    """The `input` of a config: `count` files in `folder`, for which a table there has labels."""
    from audio_ops.schemas import TASK_FAILURE, failure_column
    from jobs.committed import NOTHING_COMMITTED
    from jobs.config_file import load_config
    from jobs.fingerprints import fingerprints, settings
    from jobs.plan import plan
    from jobs.preflight import find_models
    from jobs.sources import load_source
    from jobs.table.schema import CHANGE, RUN, SHARD_END, label_columns, table_schema
    from jobs.table.storage import Storage
    from jobs.table.table import hold
    from jobs.table.write import WriteSettings, write_rows

    (folder / "audio").mkdir()
    for number in range(count):
        (folder / "audio" / f"{number:06}.wav").touch()
    audio = {"path": str(folder / "audio"), "format": "files"}
    output = {"path": str(folder / "table")}
    file = folder / "committed.yaml"
    file.write_text(yaml.safe_dump({"input": audio, "tasks": {"it": nothing()}, "output": output}))
    config = load_config(str(file), ())
    labels = settings(config, find_models(config, str(file)))
    schema = table_schema(config.tasks, pa.schema([]))
    found = load_source("files").find(config.input, lambda _: None, pa.schema([]))
    todo = plan(found, NOTHING_COMMITTED).todo
    failure = pa.field(failure_column("it"), TASK_FAILURE)
    for field in (*schema, failure, *CHANGE, pa.field("shard_end", SHARD_END)):
        if field.name not in (*todo.column_names, "status", *RUN.names):
            todo = todo.append_column(field, pa.nulls(len(todo), field.type))
    table = hold(Storage(config.output.path), "made", schema, labels, {})
    tasks = label_columns(schema, ["it"])
    write = WriteSettings(schema, tasks, table.path, {}, "made", fingerprints(labels))
    for at in range(0, count, 25_000):
        table.commit(write_rows(todo.slice(at, 25_000), write).to_pylist())
    table.tidy()
    table.release()
    return audio


def plan_a_million() -> None:
    """Plan a run whose clips are all committed."""
    from jobs.clips import clip_ids
    from jobs.committed import COMMITTED, Committed
    from jobs.plan import plan
    from jobs.sources import PLACE, Listing

    count = 1_000_000
    columns = {
        "source": [f"s3://bucket/speech/{n % 1000:03}/{n:09}.wav" for n in range(count)],
        "source_version": [f"{n}-1700000000" for n in range(count)],
        "offset_s": np.zeros(count),
    }
    found = pa.table(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in PLACE], schema=PLACE
    )
    done = found.add_column(0, "clip_id", clip_ids(found))
    done = done.append_column("status", pa.array(["ok"] * count))
    for name, value in (("due", 0), ("file", 0), ("row", 0)):
        done = done.append_column(name, pa.array(np.full(count, value)))
    for name in ("channel", "channels"):
        done = done.append_column(name, pa.nulls(count))
    done = Committed(done.select(COMMITTED.names).cast(COMMITTED))
    assert plan(Listing(found), done).done == count
