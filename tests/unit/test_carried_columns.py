"""Columns of Parquet files that rows carry along: one value that does not fit costs its own row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sounds import encode, tone

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.planning.committed import NOTHING_COMMITTED
from jobs.planning.plan import plan
from jobs.sources import parquet

SOUND = encode(tone(0.1), 16_000, "wav")


def carried(folder: Path, *columns: pa.Array) -> list[tuple[Any, Any]]:
    """The values of column `x`, and the sounds or errors, of files with one such column each."""
    for number, column in enumerate(columns):
        table = pa.table({"audio": [SOUND] * len(column), "x": column})
        pq.write_table(table, folder / f"{number}.parquet")
    source = Input(path=str(folder), format="parquet", columns={"audio": "audio"})
    kept = parquet.columns(source, ["x"])
    listing = parquet.find(source, lambda _: None, kept)
    todo = plan(listing, NOTHING_COMMITTED).todo
    return [(row["x"], sound) for row, sound in parquet.clips(todo, source, kept)]


BAD = {
    "an unsigned number over 63 bits": pa.array([1, 2**64 - 1, 3], pa.uint64()),
    "a day beyond the year 9999": pa.array([0, 2**29, 1], pa.date32()),
    "a time beyond the year 9999": pa.array([0, 2**62, 1], pa.timestamp("us")),
    "such a time in a list": pa.array([[0], [2**62], [1]], pa.list_(pa.timestamp("us"))),
}


@pytest.mark.parametrize("name", BAD)
def test_one_value_that_does_not_fit_is_an_error_of_its_row(tmp_path: Path, name: str) -> None:
    (one, first), (none, error), (other, last) = carried(tmp_path, BAD[name])
    assert isinstance(error, ClipError) and none is None
    assert error.kind == "damaged" and "x: expected a value of type" in error.message
    assert isinstance(first, io.BytesIO) and isinstance(last, io.BytesIO)
    assert one is not None and other is not None


def test_a_file_with_another_type_loses_the_values_that_are_none_of_the_first(
    tmp_path: Path,
) -> None:
    rows = carried(tmp_path, pa.array([1, 2]), pa.array(["3", "x", None]))
    assert [value for value, _ in rows] == [1, 2, 3, None, None]
    assert [isinstance(sound, ClipError) for _, sound in rows] == [False, False, False, True, False]


def test_times_in_nanoseconds_are_carried_in_microseconds(tmp_path: Path) -> None:
    ((value, sound),) = carried(tmp_path, pa.array([1_001], pa.timestamp("ns")))
    assert value.microsecond == 1 and not isinstance(sound, ClipError)
