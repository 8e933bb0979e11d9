"""The main job from end to end, on a real Ray, with tiny models and tiny sounds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import tiny_classifier
from conftest import HOME
from runs import ROOT, Job, Result, earmark, labels
from sounds import encode, silent_video, tone
from tables import existing

from audio_ops.errors import KINDS, ClipError
from jobs.sources import PLACE, files
from jobs.sources._paths import local_path, open_file

SECRET = "wJalrXUtnFEMI-in-the-zoo"
NOT_UTF8 = b"caf\xe9.wav"
GOOD = {
    "a.wav",
    "b.flac",
    "sub/c.mp3",
    "sub/deep/d.ogg",
    "name with spaces.wav",
    "emoji \N{HEADPHONE}.wav",
    "new\nline.wav",
    "UPPER.WAV",
    "twin1.wav",
    "twin2.wav",
    "folder.wav/inner.wav",
}
BAD = {  # name: what its row says
    "empty.wav": ("read", "decode", "empty"),
    "text.wav": ("decode", "not_audio"),
    "truncated.wav": ("decode", "truncated"),
    "silent.mp4": ("decode", "no_audio"),
    "nan.wav": ("decode", "not_finite"),
    "long.wav": ("decode", "too_long"),
    "gone.wav": ("read", "unreadable"),
    "pipe.wav": ("read", "unreadable"),
}
PARTIAL = "short.wav"  # 0.01 s: too short for wav2vec2, not for Whisper's classifier


class Zoo(NamedTuple):
    """All kinds of clips, labelled by two tasks in one run."""

    job: Job
    result: Result
    rows: dict[str, dict[str, Any]]


def fill(job: Job) -> None:
    (job.audio / "sub" / "deep").mkdir(parents=True)
    for n, name in enumerate(sorted(GOOD - {"b.flac", "sub/c.mp3", "sub/deep/d.ogg", "twin2.wav"})):
        job.sound(name, 200 + 50 * n)
    for name, format in (("b.flac", "flac"), ("sub/c.mp3", "mp3"), ("sub/deep/d.ogg", "ogg")):
        (job.audio / name).write_bytes(encode(tone(0.4, 22_050, 2), 22_050, format))
    shutil.copy(job.audio / "twin1.wav", job.audio / "twin2.wav")
    Path(os.fsdecode(os.fsencode(job.audio) + b"/" + NOT_UTF8)).write_bytes(
        (job.audio / "a.wav").read_bytes()
    )
    (job.audio / "empty.wav").touch()
    (job.audio / "text.wav").write_text("this is no sound at all\n" * 40)
    whole = encode(tone(1.0), 16_000, "wav")
    (job.audio / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (job.audio / "silent.mp4").write_bytes(silent_video())
    broken = tone(0.3)
    broken[0, 100] = np.nan
    (job.audio / "nan.wav").write_bytes(encode(broken, 16_000, "wav_float"))
    job.sound("long.wav", 300, seconds=2.5)
    job.sound(PARTIAL, 300, seconds=0.01)
    (job.audio / "gone.wav").symlink_to(job.audio / "nowhere.wav")
    os.mkfifo(job.audio / "pipe.wav")
    job.sound(".hidden.wav", 100)
    job.sound(".hidden/clip.wav", 100)
    (job.audio / "notes.txt").write_text("not looked at")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, local_ray: None, classifier: Path) -> Zoo:
    folder = tmp_path_factory.mktemp("zoo")
    whisper = tiny_classifier(folder / "whisper", "whisper")
    os.environ["ZOO_SECRET"] = SECRET
    job = Job(
        folder,
        classifier,
        input={"path": str(folder / "audio"), "storage_options": {"secret": "${ZOO_SECRET}"}},
        audio={"max_clip_s": 2},
        tasks={
            "kind": {"task": "audio-classification", "model": str(classifier)},
            "mood": {"task": "audio-classification", "model": str(whisper), "top_k": 2},
        },
        output={"path": str(folder / "table"), "keep": ["file_name", "folder", "size_bytes"]},
        resources={"clips_per_block": 8},
    )
    fill(job)
    result = job.run()
    return Zoo(job, result, job.by_name())


def test_every_clip_found_has_one_row(zoo: Zoo) -> None:
    strange = {name for name in zoo.rows if name.startswith("file://")}
    assert set(zoo.rows) - strange == GOOD | set(BAD) | {PARTIAL}
    assert len(strange) == 1


def test_a_name_that_is_not_utf8_becomes_a_uri(zoo: Zoo) -> None:
    uri = (zoo.job.audio / os.fsdecode(NOT_UTF8)).as_uri()
    assert uri.endswith("caf%E9.wav")
    assert zoo.rows[uri]["status"] == "ok"
    assert os.fsencode(local_path(uri)).endswith(NOT_UTF8)


def test_statuses_add_up_to_all_rows(zoo: Zoo) -> None:
    statuses = [row["status"] for row in zoo.rows.values()]
    assert statuses.count("ok") == len(GOOD) + 1
    assert statuses.count("partial") == 1
    assert statuses.count("error") == len(BAD)


def test_a_bad_clip_takes_no_good_one_with_it(zoo: Zoo) -> None:
    for name in GOOD:
        row = zoo.rows[name]
        assert row["status"] == "ok", name
        assert row["error_kind"] is row["error_message"] is row["error_stage"] is None
        assert row["kind_label"] == row["kind_labels"][0]
        assert row["kind_score"] == row["kind_scores"][0]
        assert len(row["mood_labels"]) == len(row["mood_scores"]) == 2
        assert row["kind_error"] is row["mood_error"] is None


@pytest.mark.parametrize("name", BAD)
def test_a_bad_clip_says_why(zoo: Zoo, name: str) -> None:
    *stages, kind = BAD[name]
    row = zoo.rows[name]
    assert (row["status"], row["error_kind"]) == ("error", kind)
    assert row["error_stage"] in stages
    assert row["error_message"]
    assert row["error_kind"] in KINDS
    assert row["kind_label"] is row["kind_labels"] is row["mood_label"] is None


def test_a_clip_that_one_task_fails_keeps_the_others_label(zoo: Zoo) -> None:
    row = zoo.rows[PARTIAL]
    assert (row["status"], row["error_stage"], row["kind_label"]) == ("partial", "kind", None)
    assert row["kind_error"] == f"{row['error_kind']}: {row['error_message']}"
    assert row["mood_label"] and row["mood_error"] is None


def test_a_clip_over_the_limit_names_the_limit(zoo: Zoo) -> None:
    assert "audio.max_clip_s" in zoo.rows["long.wav"]["error_message"]


def test_two_files_with_the_same_content_are_two_clips(zoo: Zoo) -> None:
    one, two = zoo.rows["twin1.wav"], zoo.rows["twin2.wav"]
    assert one["clip_id"] != two["clip_id"]
    assert one["kind_scores"] == two["kind_scores"]


def test_sound_columns_describe_the_file_as_stored_and_levels_what_is_labelled(zoo: Zoo) -> None:
    row = zoo.rows["b.flac"]
    assert (row["sample_rate"], row["channels"], row["format"]) == (22_050, 2, "flac")
    assert row["duration_s"] == pytest.approx(0.4, abs=0.01)
    mean = tone(0.4, 22_050, 2).mean(0)
    assert row["peak_dbfs"] == pytest.approx(20 * np.log10(np.abs(mean).max()), abs=0.1)
    assert row["rms_dbfs"] == pytest.approx(10 * np.log10(np.square(mean).mean()), abs=0.1)


def test_columns_are_exactly_those_of_the_design(zoo: Zoo) -> None:
    schema = pq.read_table(zoo.job.table).schema
    per_task = [("label", pa.string()), ("score", pa.float32())]
    per_task += [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    per_task += [(name, pa.string()) for name in ("error", "fingerprint", "run_id")]
    wanted = {
        "clip_id": pa.string(),
        "source": pa.string(),
        "member": pa.string(),
        "source_version": pa.string(),
        "offset_s": pa.float64(),
        "channel": pa.int32(),
        "duration_s": pa.float64(),
        "sample_rate": pa.int32(),
        "channels": pa.int32(),
        "format": pa.string(),
        "peak_dbfs": pa.float32(),
        "rms_dbfs": pa.float32(),
        "sound_flags": pa.list_(pa.string()),
        "status": pa.string(),
        "error_stage": pa.string(),
        "error_kind": pa.string(),
        "error_message": pa.string(),
        **{f"{task}_{name}": type_ for task in ("kind", "mood") for name, type_ in per_task},
        "file_name": pa.string(),
        "folder": pa.string(),
        "size_bytes": pa.int64(),
        "run_id": pa.string(),
        "labelled_at": pa.timestamp("us", "UTC"),
    }
    assert schema.names == list(wanted)
    for name, type_ in wanted.items():
        found = schema.field(name).type
        if pa.types.is_list(type_):
            assert pa.types.is_list(found) and found.value_type == type_.value_type, name
        else:
            assert found == type_, name


def test_columns_of_the_source_are_carried_along_if_asked_for(zoo: Zoo) -> None:
    row = zoo.rows["sub/c.mp3"]
    assert (row["file_name"], row["folder"]) == ("c.mp3", "sub")
    assert row["size_bytes"] == (zoo.job.audio / "sub" / "c.mp3").stat().st_size
    assert "modified_at" not in row


def test_data_files_are_compressed_with_zstd(zoo: Zoo) -> None:
    for path in zoo.job.table.glob("*.parquet"):
        group = pq.ParquetFile(path).metadata.row_group(0)
        assert {group.column(n).compression for n in range(group.num_columns)} == {"ZSTD"}


def test_times_are_utc(zoo: Zoo) -> None:
    for row in zoo.rows.values():
        assert row["labelled_at"].utcoffset() == timedelta(0)


def test_pandas_and_duckdb_open_the_folder(zoo: Zoo) -> None:
    assert len(pd.read_parquet(zoo.job.table)) == len(zoo.rows)
    query = f"SELECT status, count(*) FROM read_parquet('{zoo.job.table}/*.parquet') GROUP BY 1"
    counts = dict(duckdb.sql(query).fetchall())
    assert counts == {"ok": len(GOOD) + 1, "partial": 1, "error": len(BAD)}


def test_too_many_failures_exit_with_3_and_name_each_kind_with_an_example(zoo: Zoo) -> None:
    assert zoo.result.code == 3
    kinds = {row["error_kind"]: row for row in zoo.rows.values() if row["error_kind"]}
    for kind in kinds:
        assert re.search(rf"\d × {kind}, e\.g\. .*\w: \w", zoo.result.text, re.S), kind
    assert "max_error_fraction" in zoo.result.text


def test_the_end_accounts_for_every_clip(zoo: Zoo) -> None:
    found, ok, failed = len(zoo.rows), len(GOOD) + 1, len(BAD) + 1
    line = f"{found} found = 0 already done + {ok} labelled + {failed} failed"
    assert line in zoo.result.text


def test_the_end_names_the_table_and_the_log(zoo: Zoo) -> None:
    log = re.search(r"^log: (.+)$", zoo.result.text, re.M)
    assert log and Path(log[1]).is_file()
    assert f"table: {zoo.job.table}" in zoo.result.text


def test_the_table_is_named_by_its_absolute_path(
    tmp_path: Path, local_ray: None, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(1)
    monkeypatch.chdir(tmp_path)
    for _ in ("labelled", "nothing to do"):
        assert f"\ntable: {job.table}\n" in job.run("output.path=table").text


def test_nothing_of_ray_is_on_the_screen(zoo: Zoo) -> None:
    for line in zoo.result.text.splitlines():
        assert not re.search(r"WARNING|INFO|raylet|\(pid=|Dataset", line), line


def test_a_secret_is_neither_printed_nor_stored(zoo: Zoo) -> None:
    """Not in the run's log, not in Ray's, not in the table and its log."""
    assert SECRET not in zoo.result.text
    texts = [HOME / "state", *HOME.glob("ray/session_*/logs"), zoo.job.folder]
    read = [path for folder in texts for path in folder.rglob("*") if path.is_file()]
    assert len(read) > 10
    for path in read:
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_second_run_over_unchanged_input_writes_nothing(zoo: Zoo) -> None:
    before = zoo.job.files(), zoo.job.committed()
    result = zoo.job.run()
    assert result.code == 0
    assert f"nothing to do: {len(zoo.rows)} clips found" in result.text
    assert (zoo.job.files(), zoo.job.committed()) == before


def test_a_second_run_imports_neither_torch_nor_ray_nor_a_decoder(zoo: Zoo) -> None:
    script = (
        "import sys; from jobs.label import run; code = run(sys.argv[1]);"
        "heavy = {'torch', 'transformers', 'ray', 'silero_vad'} & sys.modules.keys();"
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(zoo.job.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert "heavy: []" in done.stdout


def test_failed_rows_stay_failed_until_retry_errors(zoo: Zoo, tmp_path: Path) -> None:
    """On a copy of the table, with a limit that is now no reason to fail any more."""
    job = Job(tmp_path, Path("unused"))
    job.write(**zoo.job.sections)
    job.table = tmp_path / "table"
    shutil.copytree(zoo.job.table, job.table)
    job.write(output=zoo.job.sections["output"] | {"path": str(job.table)})
    failed = len(BAD) + 1
    assert f"{failed} of them failed (--retry-errors)" in job.run().text
    job.audio = zoo.job.audio
    result = job.run(retry_errors=True)
    assert f"{len(zoo.rows)} found = {len(GOOD) + 1} already done + 0 labelled" in result.text
    assert result.code == 3
    again = job.by_name()
    assert {name: row["status"] for name, row in again.items()} == {
        name: row["status"] for name, row in zoo.rows.items()
    }
    for name, row in again.items():
        assert (row["run_id"] == zoo.rows[name]["run_id"]) == (row["status"] == "ok"), name


def test_new_changed_and_vanished_files(tmp_path: Path, local_ray: None, classifier: Path) -> None:
    job = Job(tmp_path, classifier)
    for hz, name in enumerate(("same.wav", "changed.wav", "vanished.wav"), 2):
        job.sound(name, hz * 150)
    assert job.run().code == 0
    before = job.by_name()
    job.sound("changed.wav", 900, seconds=0.5)
    job.sound("new.wav", 1000)
    (job.audio / "vanished.wav").unlink()
    result = job.run()
    assert result.code == 0
    assert "3 found = 1 already done + 2 labelled + 0 failed" in result.text
    after = job.by_name()
    assert set(after) == {"same.wav", "changed.wav", "vanished.wav", "new.wav"}
    assert after["same.wav"] == before["same.wav"]
    assert after["vanished.wav"] == before["vanished.wav"]
    assert after["changed.wav"]["duration_s"] == 0.5
    assert after["changed.wav"]["clip_id"] != before["changed.wav"]["clip_id"]
    assert after["new.wav"]["status"] == "ok"


def test_other_settings_are_refused_until_relabel(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(5)
    assert job.run().code == 0
    before, files_before = job.by_name(), job.files()

    refused = job.run("tasks.kind.top_k=2")
    assert refused.code == 2
    assert "tasks.kind.top_k: 5 in the table, 2 in this run" in refused.text
    assert "--relabel" in refused.text
    assert job.run("output.keep=[folder]").code == 2  # a column that the table lacks
    assert job.files() == files_before

    assert job.run("tasks.kind.top_k=2", relabel=True).code == 0
    after = job.by_name()
    assert set(after) == set(before)
    assert all(len(row["kind_labels"]) == 2 for row in after.values())
    old, new = ({row["kind_fingerprint"] for row in rows.values()} for rows in (before, after))
    assert len(new) == 1 and not new & old

    job.write(  # another task, and a column of the source that was not kept so far
        tasks={"type": job.sections["tasks"]["kind"] | {"segments": True}},
        output=job.sections["output"] | {"keep": ["file_name"]},
    )
    refused = job.run()
    assert refused.code == 2
    assert "column file_name: expected" in refused.text and "no such column" in refused.text
    assert job.run(relabel=True).code == 0
    for name, row in job.by_name().items():
        assert row["type_label"] and row["file_name"] == name
        assert row["type_segments"][0]["start_s"] == 0
        assert row["kind_labels"] == after[name]["kind_labels"]  # of the task that is no more
    # The columns of the task that is no more are no reason to refuse the run from now on.
    assert "nothing to do" in job.run().text
    job.sound("late.wav", 3000)
    assert job.run().code == 0
    assert job.by_name()["late.wav"]["type_label"]


def test_labels_do_not_depend_on_blocks_actors_or_batches(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    for n in range(9):
        job.sound(f"clip{n}.wav", 150 + 90 * n, seconds=0.2 + 0.13 * (n * 4 % 9))
    ways = (
        ("clips_per_block=64", "tasks.kind.actors=1"),
        ("clips_per_block=2", "tasks.kind.actors=2", "tasks.kind.batch_s=0.5"),
    )
    seen = []
    for n, way in enumerate(ways):
        job.table = tmp_path / f"table{n}"
        settings = (f"resources.{setting}" for setting in way)
        assert job.run(f"output.path={job.table}", *settings).code == 0
        seen.append(labels(job.by_name()))
    one, other = seen
    assert set(other) == set(one)
    for name, row in one.items():
        assert other[name]["kind_labels"] == row["kind_labels"]
        assert other[name]["kind_scores"] == pytest.approx(row["kind_scores"], abs=1e-5)
    assert len({row["kind_score"] for row in one.values()}) > 1


def test_a_table_of_failures_alone_has_all_columns(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    for n in range(3):
        (job.audio / f"{n}.wav").write_text(f"no sound {n}")
    result = job.run("max_error_fraction=1")
    assert result.code == 0
    assert "3 found = 0 already done + 0 labelled + 3 failed" in result.text
    schema = pq.read_table(job.table).schema
    assert schema.field("kind_scores").type.value_type == pa.float32()
    assert {row["status"] for row in job.rows().values()} == {"error"}


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.wav"])
def test_an_input_that_is_not_there_is_refused(tmp_path: Path, classifier: Path, name: str) -> None:
    job = Job(tmp_path, classifier, input={"path": [str(tmp_path / "audio"), f"{tmp_path}/{name}"]})
    result = job.run()
    assert result.code == 2
    assert "input.path" in result.text and name in result.text
    assert not job.table.exists()


def test_a_folder_that_holds_other_files_is_no_table(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(2)
    result = job.run(f"output.path={job.audio}")
    assert result.code == 2
    assert "output.path" in result.text and "clip000.wav" in result.text
    assert {path.name for path in job.audio.iterdir()} == {"clip000.wav", "clip001.wav"}


def test_one_file_a_glob_and_a_folder_name_each_clip_once(tmp_path: Path, classifier: Path) -> None:
    from jobs.input import Input

    job = Job(tmp_path, classifier)
    job.sound("a.wav", 300)
    job.sound("b[1].wav", 300)
    job.sound("c.dat", 300)
    paths = (f"{job.audio}/a.wav", f"{job.audio}/*.dat", str(job.audio), f"{job.audio}/b[1].wav")
    found = files.find(Input(path=paths), print).clips
    names = [source.removeprefix(f"{job.audio}/") for source in found["source"].to_pylist()]
    assert names == ["a.wav", "b[1].wav", "c.dat"]


def test_a_link_to_its_own_parent_is_walked_once(tmp_path: Path, classifier: Path) -> None:
    from jobs.input import Input

    job = Job(tmp_path, classifier)
    job.sound("sub/a.wav", 300)
    (job.audio / "sub" / "up").symlink_to(job.audio)
    assert len(files.find(Input(path=str(job.audio)), print).clips) == 1


def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "locked.wav"
    path.write_bytes(encode(tone(0.2), 16_000, "wav"))
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        with pytest.raises(ClipError) as error:
            open_file(str(path), None, {})
    finally:
        if is_root:
            os.seteuid(0)
    assert error.value.kind == "unreadable" and "EACCES" in error.value.message


def test_a_file_that_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(ClipError, match="changed since the run was planned"):
        open_file(str(tmp_path / "a.wav"), "1000-2000", {})


def test_what_a_driver_that_died_left_behind_is_no_reason_to_start_ray_twice(
    zoo: Zoo, tmp_path: Path
) -> None:
    """Half a file and a whole one that was never committed go with the next run, which is tidy."""
    table = tmp_path / "table"
    shutil.copytree(zoo.job.table, table)
    (table / ".part-x.parquet").write_bytes(b"half")
    shutil.copy(next(table.glob("*.parquet")), table / "part-orphan.parquet")
    (table / "notes.txt").write_text("mine")
    before = existing(table).rows(["clip_id", *PLACE.names, "status", "kind_fingerprint"])
    result = zoo.job.run(f"output.path={table}")
    assert result.code == 0
    assert "labelled" not in result.text.partition("found =")[0]
    assert existing(table).is_tidy()
    assert (
        existing(table).rows(["clip_id", *PLACE.names, "status", "kind_fingerprint"]).equals(before)
    )
    names = {path.name for path in table.iterdir()}
    assert {"notes.txt"} <= names and not names & {".part-x.parquet", "part-orphan.parquet"}
    assert "nothing to do" in zoo.job.run(f"output.path={table}").text


def test_the_console_script_runs_and_exits_with_the_jobs_code(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("input: {path: /nowhere}\ntaskz: {}\noutput: {path: x}\n")
    done = earmark("run", bad)
    assert done.returncode == 2
    assert f"{bad}: taskz: unknown key (did you mean 'tasks'?)" in done.stdout + done.stderr


def test_a_run_joins_the_cluster_that_ray_address_names(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    import ray

    job = Job(tmp_path, classifier)
    job.sounds(3)
    sessions = {path.name for path in HOME.rglob("session_2*")}
    address = ray.get_runtime_context().gcs_address
    result = earmark("run", job.config, env=os.environ | {"RAY_ADDRESS": address})
    assert result.returncode == 0, result.stdout
    assert len(job.rows()) == 3
    assert {path.name for path in HOME.rglob("session_2*")} == sessions, (
        "it started a Ray of its own"
    )
    assert len(ray.nodes()) == 1, "and it left the cluster as it was"
