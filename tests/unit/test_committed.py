"""A table's rows as a plan reads them: in stretches, and those of a shard by its reader."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import WriterProperties, write_deltalake
from faults import Work, run

import jobs.planning.committed
from jobs.clips import ALL, Ids, clip_id, clip_ids, numbers
from jobs.planning.committed import COMMITTED, RowSettings, committed, rows_of_shard
from jobs.planning.due import Wanted
from jobs.planning.shards import plan_shards, with_known
from jobs.sources import PLACE, Listing

TARS = ["/audio/a.tar", "/audio/b.tar"]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A table of 90 rows in row groups of 7, by turns of two tars."""
    work = Work(str(tmp_path / "table"), clips=90)
    assert run(work) == 0
    [name] = work.table().log.names()
    whole = pq.read_table(Path(work.path, name))
    sources = pa.array([TARS[n // 10 % 2] for n in range(90)])
    whole = whole.set_column(whole.column_names.index("source"), "source", sources)
    groups = WriterProperties(max_row_group_size=7)
    write_deltalake(work.path, whole, mode="overwrite", writer_properties=groups)
    [name] = work.table().log.names()
    assert pq.ParquetFile(Path(work.path, name)).num_row_groups == 13
    return work


def test_rows_come_with_their_numbers_however_they_are_cut(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = committed(work.table(), work.wanted).rows()
    [name] = work.table().log.names()
    stored = pq.read_table(Path(work.path, name))["clip_id"].to_pylist()
    assert whole["clip_id"].to_pylist() == stored and whole["row"].to_pylist() == list(range(90))
    for rows in (1, 7, 20, 64):
        monkeypatch.setattr(jobs.planning.committed, "ROWS_AT_ONCE", rows)
        scanned = list(committed(work.table(), work.wanted).scan(COMMITTED.names))
        assert max(map(len, scanned)) <= max(7, rows)
        assert pa.concat_tables(scanned).equals(whole)


def test_a_reader_sees_the_rows_of_its_shard_that_the_plan_has_counted(work: Work) -> None:
    wanted = Wanted({"kind": "another"}, {"kind": ()})
    table = work.table()
    rows = committed(table, wanted)
    columns = {"source": TARS, "member": [None] * 2, "source_version": ["1", "1"]}
    listing = Listing(pa.table({**columns, "offset_s": [0.0] * 2}).cast(PLACE))
    plan = plan_shards(listing, rows, {})
    assert plan.todo["_files"].to_pylist() == [[0], [0]] and plan.due == ALL
    settings = RowSettings.of(table, plan.files, wanted)
    known = with_known(plan.todo, settings)["known"].to_pylist()
    whole = rows.rows()
    for source, of_shard in zip(TARS, known, strict=True):
        own = whole.filter(pc.equal(whole["source"], source))
        assert rows_of_shard(settings, source, [0]).equals(own) and len(own) in (40, 50)
        assert of_shard == own.select(list(of_shard[0])).to_pylist()
        assert {row["due"] for row in of_shard} == {ALL}


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_ids_are_found_among_others(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.clips, "IDS_AT_ONCE", 64)
    places = [
        (f"ä/{n}.wav", None if n % 2 else "m", f"{n}-1", n / 7, n % 3 or None) for n in range(count)
    ]
    names = [*PLACE.names, "channel"]
    schema = pa.schema([*PLACE, ("channel", pa.int32())])
    found = pa.table([[p[n] for p in places] for n in range(5)], schema=schema)
    ids = clip_ids(found.select(names))
    assert ids.to_pylist() == [clip_id(*place) for place in places]
    high, low = numbers(ids).T
    assert [
        f"{h << 64 | low:032x}" for h, low in zip(high.tolist(), low.tolist(), strict=True)
    ] == (ids.to_pylist())
    order = [*range(count)][::-3]
    others = pa.array([f"{n:032x}" for n in range(3)])
    wanted = pa.concat_arrays([others, ids.take(pa.array(order, pa.int64()))]).slice(1)
    assert Ids(numbers(ids)).at(numbers(wanted)).tolist() == [-1, -1, *order]
