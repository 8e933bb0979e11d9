"""After every kind of run pandas, DuckDB, Polars, datasets and Ray Data read the table's files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from runs import Job
from sounds import encode, tone
from tables import existing

from jobs.config_file import load_config
from jobs.preflight import find_models, find_source
from jobs.table.schema import table_schema

TEXTS = ("zero", "one", "two", "three", "four", "five")


def pandas_rows(folder: Path) -> list[str]:
    import pandas

    frame = pandas.read_parquet(folder)
    assert all(isinstance(label, str) for labels in frame["kind_labels"] for label in labels)
    return list(frame["text"])


def duckdb_rows(folder: Path) -> list[str]:
    import duckdb

    query = f"SELECT text, kind_labels FROM read_parquet('{folder}/*.parquet')"
    return [text for text, labels in duckdb.sql(query).fetchall() if labels]


def polars_rows(folder: Path) -> list[str]:
    import polars

    texts = polars.read_parquet(f"{folder}/*.parquet")["text"].to_list()
    assert sorted(polars.read_delta(str(folder))["text"].to_list()) == sorted(texts)
    return list(texts)


def datasets_rows(folder: Path) -> list[str]:
    import datasets

    cache = str(folder.parent / "datasets")
    return list(datasets.load_dataset(str(folder), cache_dir=cache)["train"]["text"])


def ray_rows(folder: Path) -> list[str]:
    import ray.data

    return [row["text"] for row in ray.data.read_parquet(str(folder)).take_all()]


READERS: tuple[Callable[[Path], list[str]], ...] = (
    *(pandas_rows, duckdb_rows, polars_rows, datasets_rows, ray_rows),
)


def rewrite(job: Job, *rows: int) -> None:
    """The input file anew, with these of its rows."""
    sounds = [encode(tone(0.3, hz=200 + 100 * row), 16_000, "wav") for row in rows]
    content = io.BytesIO()
    texts = [TEXTS[row] for row in rows]
    pq.write_table(pa.table({"audio": pa.array(sounds, pa.binary()), "text": texts}), content)
    (job.audio / "all.parquet").write_bytes(content.getvalue())


def assert_readable(job: Job, *rows: int) -> None:
    """By every reader, in the types that the config stands for."""
    wanted = sorted(TEXTS[row] for row in rows)
    for read in READERS:
        assert sorted(read(job.table)) == wanted, read.__name__
    delta = DeltaTable(str(job.table))
    assert sorted(delta.to_pyarrow_table()["text"].to_pylist()) == wanted
    config = load_config(job.config)
    find_models(config, job.config)
    config, kept = find_source(config, job.config, print)
    columns = {field.name: field.type for field in table_schema(config.tasks, kept)}
    for path in job.table.glob("*.parquet"):
        found = {field.name: field.type for field in pq.read_schema(path)}
        assert {name: found[name] for name in columns} == columns
        assert pq.read_schema(path).equals(existing(job.table).schema())


def test_readers_see_the_rows_after_every_kind_of_run(
    tmp_path: Path, local_ray: None, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    job = Job(tmp_path, classifier, output={"path": str(tmp_path / "table"), "keep": ["text"]})
    task: dict[str, Any] = job.sections["tasks"]["kind"]
    rewrite(job, 0, 1, 2, 3, 4, 5)
    assert job.run().code == 0  # new clips
    assert_readable(job, 0, 1, 2, 3, 4, 5)
    rewrite(job, 4, 2, 0)
    assert job.run().code == 0  # changed ones, and fewer: the others' rows are gone
    assert_readable(job, 0, 2, 4)
    (job.audio / "all.parquet").rename(job.audio / "old.parquet.away")
    rewrite(job, 1, 3)
    (job.audio / "all.parquet").rename(job.audio / "new.parquet")
    two = {"tasks": {"kind": task, "mood": task | {"top_k": 2}}}
    job.write(**two)
    assert job.run(relabel=True).code == 0  # one more task: rows of a file that vanished lack it
    assert_readable(job, 0, 1, 2, 3, 4)
    job.write(tasks={"kind": task})
    rewrite(job, 5)
    assert job.run(relabel=True).code == 0  # one task less, and a file that is there again
    assert_readable(job, 1, 3, 5)
