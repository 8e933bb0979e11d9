"""The sums of a table: those that it keeps, and readers whose files another run compacts meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from faults import assert_totals_are_those_of_a_scan
from tables import held
from test_evaluate import KEPT, SETTINGS, TASKS, clip, kinds, make, speech

import jobs.reports.kept_totals
import jobs.reports.totals
from jobs.reports.drift import statistics
from jobs.reports.evaluate import evaluate, evaluation
from jobs.reports.kept_totals import TOTALS_FILE, TooManyRows, run_totals
from jobs.reports.totals import _words
from jobs.table.schema import table_schema
from jobs.table.table import Table


def both() -> list[dict[str, Any]]:
    """Rows with labels of two tasks that have references."""
    others = (row | {"clip_id": f"k{row['clip_id']}"} for row in kinds())
    return [*speech(), *others, clip(50, kind_label="cat", kind_score=0.5)]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A table of one run, with the sums of it."""
    table = make(tmp_path, both())
    run_totals(table, "run", keep=True)
    return table


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the data files whose rows are read."""
    names: list[str] = []
    scan = jobs.reports.totals._scan

    def noted(fragment: Any, *rest: Any) -> Iterator[pa.Table]:
        names.append(Path(fragment.path).name)
        return scan(fragment, *rest)

    monkeypatch.setattr(jobs.reports.totals, "_scan", noted)
    return names


def append(table: Table, run_id: str, rows: list[dict[str, Any]]) -> None:
    """Add rows as another run does, with labels that it has made."""
    schema = table_schema(TASKS, KEPT)
    again = held(table.path, run_id, schema, SETTINGS)
    marks = {"run_id": run_id, "kind_run_id": run_id, "words_run_id": run_id}
    prints = again.rows(["kind_fingerprint", "words_fingerprint"]).slice(0, 1).to_pylist()[0]
    name = f"part-{run_id}-0.parquet"
    new = pa.Table.from_pylist([{**marks, **prints, **row} for row in rows], schema=schema)
    pq.write_table(new, f"{table.path}/{name}")
    size = Path(table.path, name).stat().st_size
    again.commit(
        [{"path": name, "size_bytes": size, "rows": len(rows), "shards": [], "supersedes": []}]
    )
    again.release()
    table.refresh()


def test_the_end_of_a_run_reads_its_own_files_alone(table: Table, scanned: list[str]) -> None:
    append(table, "later", [clip(n, kind_label="dog", kind_score=0.7) for n in range(60, 70)])
    found = run_totals(table, "later", keep=True)
    assert scanned == ["part-later-0.parquet"]
    figures = statistics(found)["kind"]
    assert figures["now"]["labels"] == {"dog": 10} and figures["before"]["clips"] == 15
    assert figures == statistics(run_totals(table, "later"))["kind"]
    assert evaluation(table, found) == evaluate(table)
    scanned.clear()
    assert evaluation(table, run_totals(table, keep=True)) == evaluate(table)
    assert len(scanned) == 2  # by `evaluate`
    assert_totals_are_those_of_a_scan(table)


def test_sums_with_labels_of_the_run_itself_are_not_used(table: Table, scanned: list[str]) -> None:
    """The run before may sum up while the next one commits already."""
    append(table, "later", [clip(60, kind_label="dog")])
    run_totals(table, "run", keep=True)
    figures = statistics(run_totals(table, "later", keep=True))["kind"]
    assert (figures["now"]["clips"], figures["before"]["clips"]) == (1, 15)


@pytest.mark.parametrize("what", ["removed", "damaged", "of another kind", "of another version"])
def test_sums_that_are_lost_cost_a_scan_and_change_nothing(
    table: Table, scanned: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluation(table, run_totals(table, keep=True))
    path = Path(table.path, TOTALS_FILE)
    assert not scanned
    if what == "removed":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(path.read_bytes()[:-20])
    elif what == "of another kind":
        pq.write_table(pa.table({"question": ["?"]}), path)
    else:
        monkeypatch.setattr(jobs.reports.kept_totals, "TOTALS_VERSION", 0)
    assert evaluation(table, run_totals(table, keep=True)) == before and len(scanned) == 1
    assert evaluation(table, run_totals(table, keep=True)) == before and len(scanned) == 1


def test_small_files_are_summed_up_together(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 10 rows in groups of 25; the last one has what is left."""
    for run in range(5):
        start = 100 + 10 * run
        append(table, f"run{run}", [clip(n, kind_label=f"{run}") for n in range(start, start + 10)])
    monkeypatch.setattr(jobs.reports.totals, "ROWS_OF_A_GROUP", 25)
    monkeypatch.setattr(jobs.reports.totals, "ROWS_OF_A_PIECE", 7)
    found = run_totals(table, keep=True)
    groups = pq.read_table(Path(table.path, TOTALS_FILE))["files"].to_pylist()
    assert sorted(map(len, groups)) == [1, 2, 3]  # one was known
    assert found.rows == 65 and evaluation(table, found) == evaluate(table)
    assert_totals_are_those_of_a_scan(table)


def test_a_run_that_is_told_to_end_reads_few_rows(table: Table) -> None:
    append(table, "later", [clip(n, kind_label="dog") for n in range(60, 70)])
    with pytest.raises(TooManyRows, match="expected at most 9 rows to read, found 10"):
        run_totals(table, "later", keep=True, read=9)
    run_totals(table, "later", keep=True, read=10)
    run_totals(table, "later2", keep=True, read=0)


def test_rows_of_other_settings_are_those_of_any_task(table: Table) -> None:
    """A task without a reference counts as well, and a row once."""
    prints = {"kind_too_fingerprint": "other", "kind_fingerprint": "other"}
    append(table, "later", [clip(60, **prints), clip(61, kind_too_fingerprint="other"), clip(62)])
    report = evaluate(table)
    assert "kind_too" not in report["tasks"] and report["rows_of_other_settings"] == 2


@pytest.mark.parametrize(
    "text", ["fail again", "  fail\n better ", "", " ", "you", "a\u00a0b\u3000c d", "\t", None]
)
def test_words_are_counted_as_an_expression_would(text: str | None) -> None:
    rows = pa.table({"text": pa.array([text], pa.string())})
    found = pa.dataset.dataset(rows).to_table(columns={"words": _words("text")})
    assert found["words"].to_pylist() == pc.count_substring_regex(rows["text"], r"\S+").to_pylist()
