"""What docs/running.md says of several tables as one."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import polars as pl
import pytest
from faults import Work, run

PAGE = Path(__file__).parents[2] / "docs" / "running.md"


def line(start: str) -> str:
    """The line of the page that begins so."""
    [found] = re.findall(rf"^    ({re.escape(start)}.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    return str(found)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Work]:
    """Two tables as on the page; the runs of one have a task more."""
    monkeypatch.chdir(tmp_path)
    works = {"2025": Work("labels/2025", clips=30), "2026": Work("labels/2026", clips=40, mood=1)}
    Path("labels").mkdir()
    for work in works.values():
        assert run(work) == 0
    return works


def expected(tables: dict[str, Work]) -> list[tuple[str, str | None]]:
    rows: list[tuple[str, str | None]] = []
    for work in tables.values():
        columns = work.expected()
        moods = columns.get("mood_label", [None] * work.clips)
        rows += zip(columns["kind_label"], moods, strict=True)
    return sorted(rows, key=repr)


def test_a_view_of_duckdb_has_the_rows_of_all_tables(tables: dict[str, Work]) -> None:
    with duckdb.connect() as database:
        database.execute(line("CREATE VIEW").partition(" --")[0])
        rows = database.execute("SELECT kind_label, mood_label FROM labels").fetchall()
    assert sorted(rows, key=repr) == expected(tables)


def test_polars_reads_the_committed_rows_of_all_tables(tables: dict[str, Work]) -> None:
    labels = eval(line("pl.concat"), {"pl": pl})
    rows = labels.select("kind_label", "mood_label").collect().rows()
    assert sorted(rows, key=repr) == expected(tables)
