"""`earmark verify` on whole tables, and on tables that are damaged in every way it knows of."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from faults import Work, assert_exact, run
from runs import earmark
from s3 import KEY, S3, SECRET, s3  # noqa: F401  # the fixture
from tables import existing, held

from jobs import cli
from jobs.reports.verify import Report, verify

CLIPS = 40


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A table of two runs and two data files; the second run replaced five rows of the first."""
    work = Work(str(tmp_path / "table"), clips=CLIPS - 10)
    assert run(work) == 0
    work = replace(work, clips=CLIPS, changed=5)
    assert run(work) == 0
    return work


def checked(work: Work) -> Report:
    return verify(existing(work.path))


def data_file(work: Work) -> Path:
    [path] = Path(work.path).glob("part-*.parquet")
    return path


def rewritten(work: Work, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the table's rows through the log, as another program might do."""
    rows = DeltaTable(work.path).to_pyarrow_table()
    write_deltalake(work.path, change(rows), mode="overwrite")
    for path in set(Path(work.path).glob("part-*.parquet")) - {
        Path(uri) for uri in DeltaTable(work.path).file_uris()
    }:
        path.unlink()


def with_value(rows: pa.Table, column: str, value: Any) -> pa.Table:
    """Rows of which the first has another value in a column."""
    field = rows.schema.field(column)
    values = [value, *rows[column].to_pylist()[1:]]
    return rows.set_column(rows.schema.get_field_index(column), field, pa.array(values, field.type))


def test_a_table_made_by_runs_is_intact(work: Work) -> None:
    report = checked(work)
    assert (report.faults, report.leftovers, report.notes) == ([], [], [])
    assert (report.files, report.rows, report.runs) == (1, CLIPS, 2)


def test_the_command_prints_what_it_checked(work: Work) -> None:
    done = earmark("verify", work.path)
    assert done.returncode == 0, done.stderr
    assert f"1 files, {CLIPS} rows of 2 runs" in done.stdout and "is intact" in done.stdout
    data_file(work).unlink()
    done = earmark("verify", work.path)
    assert done.returncode == 1
    assert "expected a file, found none" in done.stdout and "1 fault found" in done.stdout


def test_a_missing_table_is_an_error(tmp_path: Path, capsys: Any) -> None:
    assert cli.run(["verify", str(tmp_path / "nothing")]) == 2
    assert "expected a table that Earmark made" in capsys.readouterr().err


def test_it_only_reads(work: Work) -> None:
    def state() -> dict[str, tuple[int, int]]:
        paths = [p for p in Path(work.path).rglob("*") if p.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in paths}

    before = state()
    checked(work)
    assert state() == before


def missing(work: Work) -> str:
    data_file(work).unlink()
    return "expected a file, found none"


def cut_short(work: Work) -> str:
    content = data_file(work).read_bytes()
    data_file(work).write_bytes(content[:-100])
    return f"expected {len(content):,} bytes, found {len(content) - 100:,}"


def no_parquet(work: Work) -> str:
    data_file(work).write_bytes(b"x" * data_file(work).stat().st_size)
    return "expected a Parquet file that can be read"


def unreadable_page(work: Work) -> str:
    """A column that nothing else looks at, in the middle of the file."""
    column = pq.ParquetFile(data_file(work)).metadata.row_group(0)
    index = next(
        n for n in range(column.num_columns) if column.column(n).path_in_schema == "kind_label"
    )
    at = column.column(index).data_page_offset
    content = bytearray(data_file(work).read_bytes())
    content[at : at + 40] = b"\0" * 40
    data_file(work).write_bytes(content)
    return "expected a Parquet file that can be read"


def fewer_rows(work: Work) -> str:
    """Than the log says."""
    for path in logs(work):
        path.write_text(path.read_text().replace(f'numRecords\\":{CLIPS}', 'numRecords\\":41'))
    return f"expected 41 rows by the log, found {CLIPS}"


def lacking_a_column(work: Work) -> str:
    rows = DeltaTable(work.path).to_pyarrow_table().drop_columns(["kind_fingerprint"])
    write_deltalake(work.path, rows, mode="overwrite", schema_mode="overwrite")
    for path in Path(work.path).glob("part-*.parquet"):
        if path.name not in {Path(u).name for u in DeltaTable(work.path).file_uris()}:
            path.unlink()
    return "expected a column kind_fingerprint"


def leftover(work: Work) -> str:
    shutil.copy(data_file(work), Path(work.path) / "part-killed-1.parquet")
    return "part-killed-1.parquet: expected only data files that the log names"


def hidden_leftover(work: Work) -> str:
    (Path(work.path) / ".part-killed-1.parquet").write_bytes(b"half")
    return ".part-killed-1.parquet: expected only data files that the log names"


def half_a_compaction(work: Work) -> str:
    (Path(work.path) / "part-0-c000.zstd.parquet#1").write_bytes(b"half")
    return "part-0-c000.zstd.parquet#1: expected only data files that the log names"


def strange_parquet(work: Work) -> str:
    shutil.copy(data_file(work), Path(work.path) / "mine.parquet")
    return "mine.parquet: expected no Parquet file but those that the log names"


def clip_twice(work: Work) -> str:
    rewritten(work, lambda rows: pa.concat_tables([rows, rows.slice(3, 1)]))
    return "expected each clip_id once, found 1 more than once"


def place_twice(work: Work) -> str:
    rewritten(work, lambda rows: with_value(rows, "source", rows["source"][1].as_py()))
    return "expected one row for each place"


def damaged_shards(work: Work) -> str:
    path = Path(work.path) / "_earmark" / "shards.parquet"
    path.write_bytes(b"half")
    return "shards.parquet: expected how many clips each shard holds"


def emptied_version(work: Work) -> str:
    logs(work)[3].write_bytes(b"")
    return "3.json: expected a version of the table, found an empty file"


def missing_version(work: Work) -> str:
    logs(work)[2].unlink()
    return "expected a log that can be read"


def garbage_version(work: Work) -> str:
    logs(work)[2].write_text("{half")
    return "expected a log that can be read"


def vanished_commit(work: Work) -> str:
    """The newest versions are gone, as from a backup that was taken too early."""
    for path in logs(work)[-1:]:
        path.unlink()
    return "expected a file, found none"


def logs(work: Work) -> list[Path]:
    return sorted((Path(work.path) / "_delta_log").glob("*.json"))


def other_count(work: Work) -> str:
    """The log says that a run wrote more rows than there are."""
    for path in logs(work):
        text = path.read_text()
        path.write_text(text.replace('\\"rows\\": 10', '\\"rows\\": 11'))
    return "rows by the log, found"


def unknown_run(work: Work) -> str:
    run_id = DeltaTable(work.path).to_pyarrow_table()["run_id"][0].as_py()
    for path in logs(work):
        path.write_text(
            path.read_text().replace(f'run_id\\": \\"{run_id}', 'run_id\\": \\"another')
        )
    return "expected rows of runs that the log knows"


DAMAGES = [
    *(missing, cut_short, no_parquet, unreadable_page, fewer_rows, lacking_a_column),
    *(leftover, hidden_leftover, half_a_compaction, strange_parquet),
    *(clip_twice, place_twice),
    *(damaged_shards,),
    *(emptied_version, missing_version, garbage_version, vanished_commit),
    *(other_count, unknown_run),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_kind_of_damage_is_found_and_named(
    work: Work, damage: Callable[[Work], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_named(damage(work), work, capsys)


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("run_id", None, "found 1 rows with a null"),
        (
            "source_version",
            "9-9",
            "expected clip_id to be the hash of its place and version, found 1",
        ),
        ("error_kind", "model", "expected ok rows without an error"),
        ("kind_error", "model: it broke", "expected ok rows without an error"),
        ("status", "error", "partial and error rows with one"),
        ("status", "fine", "partial and error rows with one"),
        ("kind_fingerprint", "0" * 16, "expected one fingerprint for each task and run"),
        ("kind_fingerprint", None, "expected a fingerprint beside each label, found 1"),
    ],
)
def test_every_wrong_value_is_found_and_named(
    work: Work, column: str, value: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(work, lambda rows: with_value(rows, column, value))
    assert_named(line, work, capsys)


def assert_named(line: str, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with 1, and this is part of a fault that it prints."""
    assert cli.run(["verify", work.path]) == 1
    said = capsys.readouterr().out
    assert any(line in one for one in said.splitlines() if one.startswith("fault: ")), said


def test_a_file_name_cannot_control_the_terminal(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(work, lambda rows: with_value(rows, "source", "a\x1b[2Jb\nc"))
    assert_named("e.g. a\\x1b[2Jb\\nc", work, capsys)


def test_the_advice_in_a_fault_repairs_the_table(work: Work) -> None:
    no_parquet(work)
    [line] = checked(work).faults
    assert "remove it, then deltalake.DeltaTable(TABLE).repair()" in line
    data_file(work).unlink()
    [line] = checked(work).faults
    assert "deltalake.DeltaTable(TABLE).repair()" in line
    DeltaTable(work.path).repair()
    assert run(replace(work, clips=CLIPS, changed=5)) == 0
    assert_exact(work)


def test_rows_of_runs_before_a_foreign_change_are_not_counted(work: Work) -> None:
    DeltaTable(work.path).delete("source = '/audio/000007.wav'")
    report = checked(work)
    assert not report.faults
    assert "rows of 2 runs were not counted: version 8 (DELETE) has no counts" in report.notes[0]


def test_a_holder_is_a_note_dead_or_alive(work: Work) -> None:
    note = Path(work.path) / "_earmark" / "holder.json"
    table = held(work.path, "alive", existing(work.path).schema(), work.settings)
    leftover(work)  # what a run that goes on has not committed yet looks like this
    report = checked(work)
    assert report.is_intact
    assert "run alive" in report.notes[0] and "has held the table" in report.notes[0]
    assert "1 data files are not committed yet" in report.notes[1]
    alive = json.loads(note.read_text())
    table.release()
    (Path(work.path) / "part-killed-1.parquet").unlink()
    for content, said in (
        (json.dumps(alive | {"heartbeat": time.time() - 3600}), "run alive.* died"),
        ("[1]", "cannot be read"),
        ('{"run_id": 1}', "cannot be read"),
    ):
        note.write_text(content)
        report = checked(work)
        assert report.is_intact
        assert re.search(said, report.notes[0])


def test_rows_of_older_settings_are_a_note(work: Work) -> None:
    """Their files have vanished, so that a relabelling could not read them again."""
    assert run(replace(work, clips=CLIPS - 3, changed=5, setting=2)) == 0
    report = checked(work)
    assert report.is_intact
    assert "3 rows were labelled with earlier settings of the table" in report.notes[0]
    assert "vanished" in report.notes[0]


def test_a_table_on_s3_is_checked_with_its_storage_options(
    s3: S3,
    capsys: pytest.CaptureFixture[str],
) -> None:
    s3.bucket("verified")
    work = Work("s3://verified/table", s3.resolved)
    assert run(work) == 0
    options = [f"endpoint_url={s3.endpoint}", f"key={KEY}", f"secret={SECRET}"]
    options += ["client_kwargs.region_name=us-east-1"]
    command = ["verify", work.path, *(part for o in options for part in ("--storage-option", o))]
    assert cli.run(command) == 0, capsys.readouterr()
    [name] = [name for name in s3.files().ls("verified/table") if name.endswith(".parquet")]
    s3.files().rm_file(name)
    assert cli.run(command) == 1
    assert "expected a file, found none" in capsys.readouterr().out


def test_many_rows_are_checked_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip twice, far apart, among more rows than are looked at together."""
    monkeypatch.setattr("jobs.reports.verify.BATCH_ROWS", 100)
    work = Work(str(tmp_path / "table"), clips=2_000, per_file=500)
    assert run(work) == 0
    report = checked(work)
    assert report.is_intact and report.rows == 2_000
    rewritten(work, lambda rows: pa.concat_tables([rows, rows.sort_by("source").slice(3, 1)]))
    [line] = checked(work).faults
    assert "/audio/000003.wav" in line
