"""The sums of a table: those that it keeps, and readers whose files another run compacts meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from faults import assert_totals_are_those_of_a_scan
from tables import existing, held
from test_evaluate import KEPT, SETTINGS, TASKS, clip, kinds, make, speech

import jobs.reports.kept_totals
import jobs.reports.summary
import jobs.reports.totals
from jobs.cli import run
from jobs.clips import clip_id
from jobs.config import Config, Output
from jobs.console import Console
from jobs.export.options import Options
from jobs.export.select import Shape, select
from jobs.input import Input
from jobs.reports.drift import statistics
from jobs.reports.evaluate import evaluate, evaluation
from jobs.reports.kept_totals import TOTALS_FILE, TooManyRows, run_totals
from jobs.reports.page.build import Choice, build
from jobs.reports.summary import Summary
from jobs.reports.totals import _words
from jobs.reports.verify import verify
from jobs.stop import Stop
from jobs.table.schema import table_schema
from jobs.table.table import Table


def both() -> list[dict[str, Any]]:
    """Rows with labels of two tasks that have references."""
    rows = [*speech(), *kinds(), clip(50, kind_label="cat", kind_score=0.5)]
    return [whole(number, row) for number, row in enumerate(rows)]


def whole(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a place of its own."""
    source = f"/audio/{number:04}.wav"
    return {**row, "source": source, "clip_id": clip_id(source, None, "1-1", 0.0)}


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
    marks = {"status": "ok", "labelled_at": datetime.now(UTC), "run_id": run_id}
    marks |= {"kind_run_id": run_id, "words_run_id": run_id}
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
    for number in range(5):
        start = 100 + 10 * number
        some = [clip(n, kind_label=f"{number}") for n in range(start, start + 10)]
        append(table, f"run{number}", some)
    monkeypatch.setattr(jobs.reports.totals, "ROWS_OF_A_GROUP", 25)
    monkeypatch.setattr(jobs.reports.totals, "ROWS_OF_A_PIECE", 7)
    found = run_totals(table, keep=True)
    groups = pq.read_table(Path(table.path, TOTALS_FILE))["files"].to_pylist()
    assert sorted(map(len, groups)) == [1, 2, 3]  # one was known
    assert found.rows == 65 and evaluation(table, found) == evaluate(table)
    assert_totals_are_those_of_a_scan(table)


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_command_tells_of_a_table_that_it_cannot_read(
    table: Table, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    next(Path(table.path).glob("part-*")).unlink()
    out = ["-o", str(tmp_path / "page")] if command == "report" else []
    assert run([command, table.path, *out]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"error: expected a table that can be read at {table.path}, found: " in told
    assert "`earmark verify` tells what is damaged" in told
    assert not (tmp_path / "page").exists()


def test_a_run_that_is_told_to_end_reads_few_rows(table: Table) -> None:
    append(table, "later", [clip(n, kind_label="dog") for n in range(60, 70)])
    with pytest.raises(TooManyRows, match="expected at most 9 rows to read, found 10"):
        run_totals(table, "later", keep=True, read=9)
    run_totals(table, "later", keep=True, read=10)
    run_totals(table, "later2", keep=True, read=0)


def test_after_a_signal_a_large_table_is_left_to_the_next_run(
    table: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its sums of earlier runs are lost, and reading it would take longer than a run may take to end."""
    Path(table.path, TOTALS_FILE).unlink()
    monkeypatch.setattr(jobs.reports.summary, "ROWS_AFTER_SIGNAL", 5)
    mine = held(table.path, "later", table_schema(TASKS, KEPT), SETTINGS)
    config = Config(input=Input(path="x"), tasks={}, output=Output(path=table.path))
    found = []
    with Console("later") as console:
        for signal_, name in ((signal.SIGTERM, "SIGTERM"), (0, ""), (signal.SIGTERM, "SIGTERM")):
            stop, summary = Stop(), Summary("later", "job.yaml", console.log)
            stop.signal, stop.why = signal_, name
            summary.look_at(mine, config, console, stop)
            found.append(summary.document["references"])
    mine.release()
    assert found[0] is None and found[1]["rows"] == 15 and found[2] == found[1]
    assert (
        capfd.readouterr().out.count("no statistics of the table after SIGTERM: expected at") == 1
    )


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


def report(table: Table, folder: Path, progress: Callable[[str], None] = lambda _: None) -> Any:
    folder.mkdir()
    built = build(table, folder, Choice(clips=5), progress)
    return built, (folder / "index.html").read_text().count("0000.wav")


def exported(table: Table, folder: Path) -> Any:
    folder.mkdir()
    found = select(
        table, Shape("kind", "label", {"label": "kind_label"}, frozenset()), EXPORT, folder
    )
    return found.items, found.digest, found.left_out


EXPORT = Options("csv", task="kind")
READERS: dict[str, Callable[[Table, Path], Any]] = {
    "evaluate": lambda table, _: evaluate(table, ["speaker"])["tasks"],
    "end of a run": lambda table, _: statistics(run_totals(table, "later", keep=True)),
    "report": report,
    "export": exported,
    "verify": lambda table, _: (verify(table).is_intact, verify(table).rows),
    "rows": lambda table, _: sorted(table.rows(["clip_id"])["clip_id"].to_pylist()),
}


@pytest.fixture
def loose(table: Table) -> Table:
    """A table of several files, as it is while a run goes on."""
    for run_id, start in (("later", 60), ("last", 70)):
        some = [
            whole(n, clip(n, kind_label="dog", sample_rate=8000)) for n in range(start, start + 3)
        ]
        append(table, run_id, some)
    return table


def compact(table: Table) -> None:
    """Compact a table as another run does at its end, which removes the files from before."""
    before = set(table.log.names())
    again = held(table.path, "compacts", table_schema(TASKS, KEPT), SETTINGS)
    again.tidy()
    again.release()
    assert before.isdisjoint(path.name for path in Path(table.path).glob("*.parquet"))


@pytest.mark.parametrize("name", READERS)
def test_a_table_that_another_run_compacts_meanwhile_is_read(
    loose: Table, tmp_path: Path, name: str
) -> None:
    as_before = READERS[name](existing(loose.path), tmp_path / "before")
    compact(loose)
    assert READERS[name](loose, tmp_path / "meanwhile") == as_before


@pytest.mark.parametrize("step", ["summing up the rows", "choosing clips"])
def test_a_table_may_be_compacted_amid_a_report(loose: Table, tmp_path: Path, step: str) -> None:
    as_before = report(existing(loose.path), tmp_path / "before")
    steps: list[str] = []

    def progress(text: str) -> None:
        if text == step and step not in steps:
            compact(loose)
        steps.append(text)

    assert report(loose, tmp_path / "meanwhile", progress) == as_before
    assert steps.count(step) == 2


def test_a_table_may_be_compacted_while_it_is_verified(loose: Table) -> None:
    reached: list[str] = []

    def progress(text: str) -> None:
        if text.startswith("1/"):
            compact(loose)
        reached.append(text)

    found = verify(loose, progress)
    assert found.is_intact and found.rows == 21, (found.faults, found.leftovers)
    assert any(text.startswith("1/3 ") for text in reached)


@pytest.mark.parametrize("name", [name for name in READERS if name != "end of a run"])
def test_a_file_that_is_missing_from_a_table_stays_an_error(
    loose: Table, tmp_path: Path, name: str
) -> None:
    """Although other runs go on in the meantime."""
    before = existing(loose.path)
    append(loose, "more", [clip(90)])
    Path(loose.path, before.log.names()[0]).unlink()
    for table in (before, loose):
        if name == "verify":
            [fault, *_] = verify(table).faults
            assert "expected a file, found none" in fault
        else:
            with pytest.raises(Exception, match=r"(?i)no such file"):
                READERS[name](table, tmp_path / str(table.version))
