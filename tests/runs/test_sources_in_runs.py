"""Packagings in whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import Job
from test_sources import GARBAGE, PACK, SOUNDS, SPEAKERS, rewrite, write_lines, write_tar

from jobs.sources import load_source


@pytest.mark.parametrize(
    "name",
    [
        "webdataset",
        *(
            pytest.param(name, marks=pytest.mark.chaos)
            for name in ("files", "audiofolder", "manifest", "parquet")
        ),
    ],
)
def test_a_run_takes_up_in_the_middle_and_decodes_nothing_twice(
    tmp_path: Path, local_ray: None, classifier: Path, name: str
) -> None:
    """The two middle clips fail. Then they are mended, and the finished ones spoilt, unnoticed (but
    not those in tars, whose members are compared by their bytes)."""

    def by_place() -> dict[Any, dict[str, Any]]:
        rows = pq.read_table(job.table).to_pylist()
        return {(row["source"], row["member"], row["offset_s"]): row for row in rows}

    broken = [b"\xfe" * len(GARBAGE), b"\xfd" * len(GARBAGE)]
    (tmp_path / "data").mkdir()
    packed = PACK[name](tmp_path / "data", [SOUNDS[0], *broken, SOUNDS[3], SOUNDS[4]])
    keep = [packed.speaker] if packed.speaker else []
    job = Job(tmp_path, classifier, input=packed.input, max_error_fraction=1)
    job.write(output={"path": str(job.table), "keep": keep})
    result = job.run()
    assert result.code == 0 and "3 labelled + 2 failed" in result.text
    before = by_place()
    spoilt = [(SOUNDS[n], bytes([0xE0 + n]) * len(GARBAGE)) for n in (0, 3, 4)]
    if load_source(name).SHARDED:
        spoilt = []
    rewrite(packed.files, *spoilt, (broken[0], SOUNDS[1]), (broken[1], SOUNDS[2]))
    again = job.run()
    assert again.code == 0 and "nothing to do" in again.text
    retried = job.run(retry_errors=True)
    assert retried.code == 0 and "3 already done + 2 labelled + 0 failed" in retried.text
    after = by_place()
    assert before.keys() == after.keys()
    assert all(row["status"] == "ok" and row["kind_label"] for row in after.values())
    assert all(after[place] == row for place, row in before.items() if row["status"] == "ok")
    if packed.speaker:
        assert sorted(row[packed.speaker] for row in after.values()) == SPEAKERS


def test_stretches_of_one_recording_are_clips(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sound("long.wav", 300, seconds=3.0)
    entries = [
        {"audio_filepath": "long.wav", "offset": at, "duration": 0.5, "text": f"from {at}"}
        for at in (0.0, 1.0, 2.0, 2.9)
    ]
    path = write_lines(job.audio / "a.jsonl", [json.dumps(entry) for entry in entries])
    output = {"path": str(job.table), "keep": ["text"]}
    job.write(input={"path": str(path)}, output=output, max_error_fraction=1)
    result = job.run()
    assert result.code == 0 and "3 labelled + 1 failed" in result.text
    rows = sorted(pq.read_table(job.table).to_pylist(), key=lambda row: row["offset_s"])
    assert [row["text"] for row in rows] == ["from 0.0", "from 1.0", "from 2.0", "from 2.9"]
    assert [row["duration_s"] for row in rows] == [0.5, 0.5, 0.5, None]
    assert rows[-1]["error_kind"] == "truncated"
    assert "nothing to do" in job.run().text


def test_members_of_tars_keep_what_their_list_says_and_others_are_counted(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    """A tarred set of NeMo with parts of a member, a member that is missing, and one of another kind."""
    job = Job(tmp_path, classifier, max_error_fraction=1)
    write_tar(
        job.audio / "audio_0.tar", [("a.wav", SOUNDS[0]), ("a.npy", b"x"), ("b.wav", SOUNDS[1])]
    )
    write_tar(job.audio / "audio_1.tar", [("c.wav.data", SOUNDS[2]), ("d.npy", b"x")])
    entries = [
        {"audio_filepath": "a.wav", "offset": 0.0, "duration": 0.1, "text": "one", "shard_id": 0},
        {"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.2, "text": "two", "shard_id": 0},
        {"audio_filepath": "gone.wav", "duration": 0.3, "text": "gone", "shard_id": 1},
    ]
    write_lines(job.audio / "tarred_audio_manifest.json", map(json.dumps, entries))
    (job.audio / "notes.md").write_text("notes")
    job.write(output={"path": str(job.table), "keep": ["text"]})
    summary = tmp_path / "summary.json"
    result = job.run(summary_file=str(summary))
    assert result.code == 0 and "4 labelled + 1 failed" in result.text, result.text
    rows = sorted(pq.read_table(job.table).to_pylist(), key=lambda row: row["member"])
    assert [(row["member"], row["text"], row["offset_s"], row["duration_s"]) for row in rows] == [
        ("a.wav 0.1 s", "one", 0.0, pytest.approx(0.1)),
        ("a.wav 0.2 s", "two", 0.1, pytest.approx(0.2)),
        ("b.wav", None, 0.0, pytest.approx(0.3)),
        ("c.wav.data", None, 0.0, pytest.approx(0.3)),
        ("gone", "gone", 0.0, None),
    ]
    assert "passed over, by extension: 1 .md\n" in result.text
    assert "passed over in shards: 2 .npy\n" in result.text
    assert json.loads(summary.read_text())["passed_over"] == {".md": 1, ".npy": 2}
    assert "nothing to do" in job.run().text
