"""Whole runs over inputs that grow, shrink, break, are mended and cannot be seen for a while."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from runs import Job
from sounds import encode, tone
from tables import existing
from test_sources import write_tar

from jobs.clips import clip_id
from jobs.reports.forecast import forecast
from jobs.reports.verify import verify


def wav(hz: float) -> bytes:
    return encode(tone(0.3, hz=hz), 16_000, "wav")


def rows(job: Job) -> list[dict[str, Any]]:
    """The rows as a plain reader sees them, by place; the table is whole."""
    report = verify(existing(job.table))
    assert report.is_intact, (report.faults, report.leftovers)
    found = pq.read_table(job.table).to_pylist()
    return sorted(found, key=lambda row: (row["source"], row["member"] or "", row["offset_s"]))


def members(job: Job) -> list[str | None]:
    return [row["member"] for row in rows(job)]


def test_of_a_tar_that_grows_only_the_new_clips_are_labelled(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    clips = [("a.wav", wav(300)), ("b.wav", wav(400)), ("c.wav", wav(500))]
    write_tar(job.audio / "day.tar", clips[:2])
    assert job.run().code == 0
    before = rows(job)
    write_tar(job.audio / "day.tar", clips)
    found = forecast(str(job.config), [])
    assert (found["found"], found["done"], found["due"], found["shards_to_read"]) == (2, 2, 0, 1)
    grown = job.run()
    assert "2 clips known, 2 already labelled, 1 shards to do" in grown.text
    assert grown.code == 0 and "2 already done + 1 labelled" in grown.text
    assert members(job) == ["a.wav", "b.wav", "c.wav"]
    assert rows(job)[:2] == before
    assert "nothing to do" in job.run().text
    write_tar(job.audio / "day.tar", [clips[0], ("c.wav", wav(600))])
    cut = job.run()
    assert cut.code == 0 and "1 already done + 1 labelled" in cut.text
    assert members(job) == ["a.wav", "c.wav"]
    assert rows(job)[0] == before[0]
    assert "nothing to do" in job.run().text


def test_a_tar_packed_anew_with_another_text_is_labelled_anew_where_rows_keep_the_text(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.write(output={"path": str(job.table), "keep": ["txt"]})
    path = job.audio / "day.tar"
    write_tar(path, [("a.wav", wav(300)), ("a.txt", b"wrong"), ("b.wav", wav(400))])
    assert job.run().code == 0
    write_tar(path, [("a.wav", wav(300)), ("a.txt", b"right"), ("b.wav", wav(400))])
    result = job.run()
    assert "1 already done + 1 labelled" in result.text
    assert [(row["member"], row["txt"]) for row in rows(job)] == [
        ("a.wav", "right"),
        ("b.wav", None),
    ]


@pytest.mark.chaos
@pytest.mark.parametrize("retry_errors", [False, True])
def test_a_tar_that_was_broken_and_is_mended_leaves_no_error_behind(
    tmp_path: Path, local_ray: None, classifier: Path, retry_errors: bool
) -> None:
    job = Job(tmp_path, classifier, max_error_fraction=1)
    path = write_tar(job.audio / "day.tar", [(f"{n}.wav", wav(300 + n)) for n in range(3)])
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(whole[: len(whole) // 2])
    os.utime(path, ns=times)
    assert job.run().code == 0
    assert None in members(job) and "0.wav" in members(job)
    assert "nothing to do" in job.run().text
    path.write_bytes(whole)
    if not retry_errors:
        os.utime(path, ns=(1, 1))
    result = job.run(retry_errors=retry_errors)
    assert result.code == 0
    assert members(job) == ["0.wav", "1.wav", "2.wav"]
    assert {row["status"] for row in rows(job)} == {"ok"}
    assert "nothing to do" in job.run().text


def test_a_tar_that_breaks_keeps_the_labels_of_what_cannot_be_reached_any_more(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, max_error_fraction=1)
    path = write_tar(job.audio / "day.tar", [(f"{n}.wav", wav(300 + n)) for n in range(4)])
    assert job.run().code == 0
    before = rows(job)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert job.run().code == 0
    after = rows(job)
    assert [row["member"] for row in after] == [None, "0.wav", "1.wav", "2.wav", "3.wav"]
    assert after[0]["error_kind"] == "truncated" and after[1:] == before
    assert "nothing to do" in job.run().text


@pytest.mark.chaos
def test_rows_that_a_parquet_file_has_no_more_are_removed(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)

    def write(*hertz: float) -> None:
        sounds = pa.array([wav(hz) for hz in hertz], pa.binary())
        pq.write_table(pa.table({"audio": sounds}), job.audio / "a.parquet")

    write(300, 400, 500, 600, 700, 800)
    assert job.run().code == 0
    write(300, 500, 700)
    result = job.run()
    assert result.code == 0 and "3 rows of clips that their files no longer hold" in result.text
    assert members(job) == ["0", "1", "2"]
    write()
    assert job.run().code == 0
    assert not len(DeltaTable(str(job.table)).to_pyarrow_table())
    empty = job.run()
    assert empty.code == 2 and "nothing to do" not in empty.text


@pytest.mark.chaos
def test_error_rows_of_lines_that_were_mended_go(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, max_error_fraction=1)
    for n in range(3):
        job.sound(f"{n}.wav", 300 + 50 * n)
    manifest = job.audio / "all.csv"
    job.write(input={"path": str(manifest)})
    manifest.write_text("sound,text\n0.wav,zero\n1.wav,one\n2.wav,two\n")
    refused = job.run()
    assert refused.code == 2 and "input.columns.audio" in refused.text
    assert not job.table.exists()
    job.write(input={"path": str(manifest), "columns": {"audio": "sound"}})
    assert job.run().code == 0
    assert [row["status"] for row in rows(job)] == ["ok"] * 3
    manifest.write_text('sound,text\n0.wav,zero\n1.wav,"o"ne\n2.wav,two\n')
    assert job.run().code == 0
    assert [row["status"] for row in rows(job)] == ["ok", "ok", "ok", "error"]
    manifest.write_text("sound,text\n0.wav,zero\n1.wav,one\n2.wav,two\n")
    mended = job.run()
    assert mended.code == 0 and "1 rows of clips" in mended.text
    assert [row["status"] for row in rows(job)] == ["ok"] * 3
    assert "nothing to do" in job.run().text


@pytest.mark.parametrize("kind", ["manifest", "links"])
def test_labels_outlive_a_folder_that_is_away_for_a_while(
    tmp_path: Path, local_ray: None, classifier: Path, kind: str
) -> None:
    job = Job(tmp_path, classifier, max_error_fraction=1)
    away = tmp_path / "mount"
    for n in range(2):
        job.sound(f"{n}.wav", 300 + 50 * n).rename(Path(job.audio.parent, f"{n}.wav"))
    away.mkdir()
    for n in range(2):
        (tmp_path / f"{n}.wav").rename(away / f"{n}.wav")
        (job.audio / f"{n}.wav").symlink_to(away / f"{n}.wav")
    if kind == "manifest":
        lines = [json.dumps({"audio_filepath": f"{away}/{n}.wav"}) for n in range(2)]
        (tmp_path / "all.jsonl").write_text("\n".join(lines))
        job.write(input={"path": str(tmp_path / "all.jsonl"), "audio_root": str(away)})
    assert job.run().code == 0
    before = rows(job)
    away.rename(tmp_path / "unmounted")
    for options in ({}, {"retry_errors": True}, {"relabel": True}):
        result = job.run(*(["tasks.kind.top_k=2"] if "relabel" in options else []), **options)
        assert result.code == 0 and "2 more have vanished" in result.text, result.text
        assert rows(job) == before
    (tmp_path / "unmounted").rename(away)
    assert "nothing to do: 2 clips found, all 2" in job.run().text
    assert rows(job) == before


@pytest.mark.chaos
def test_a_row_with_labels_outlives_that_its_new_version_cannot_be_read(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    """A Parquet file of paths is written anew while the files that it names are away."""
    job = Job(tmp_path, classifier, max_error_fraction=1)
    for n in range(2):
        job.sound(f"sounds/{n}.wav", 300 + 50 * n)
    paths = pa.table({"path": ["sounds/0.wav", "sounds/1.wav"]})

    def write(time_s: int) -> None:
        pq.write_table(paths, job.audio / "a.parquet")
        os.utime(job.audio / "a.parquet", (time_s, time_s))

    write(1)
    job.write(input={"path": str(job.audio), "format": "parquet"})
    assert job.run().code == 0
    before = rows(job)
    (job.audio / "sounds").rename(job.audio / "away")
    write(2)
    result = job.run()
    assert "2 × unreadable" in result.text and "0 labelled + 2 failed" in result.text
    assert rows(job) == before
    (job.audio / "away").rename(job.audio / "sounds")
    assert "2 labelled + 0 failed" in job.run().text
    assert [row["status"] for row in rows(job)] == ["ok", "ok"]


@pytest.mark.chaos
def test_a_table_whose_tar_rows_have_the_versions_of_their_tars_is_taken_over(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    """As earlier versions wrote them: nothing is labelled again, and what is doubled goes."""
    job = Job(tmp_path, classifier)
    path = write_tar(job.audio / "day.tar", [(f"{n}.wav", wav(300 + n)) for n in range(3)])
    assert job.run().code == 0
    version = f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
    [file] = job.table.glob("*.parquet")
    old = pq.read_table(file).to_pylist()
    for row in old:
        row["source_version"] = version
        row["clip_id"] = clip_id(row["source"], row["member"], version, row["offset_s"])
    doubled = old[0] | {"source_version": "1-1"}
    doubled["clip_id"] = clip_id(doubled["source"], doubled["member"], "1-1", 0.0)
    table = existing(job.table)
    content = pa.Table.from_pylist([*old, doubled], schema=table.schema())
    write_deltalake(str(job.table), content, mode="overwrite")
    (job.table / "_earmark" / "shards.parquet").unlink()
    result = job.run()
    assert result.code == 0 and "3 already done + 0 labelled" in result.text
    after = pq.read_table(job.table).to_pylist()
    key = "clip_id"
    assert sorted(after, key=lambda row: row[key]) == sorted(old, key=lambda row: row[key])
    assert "nothing to do" in job.run().text
