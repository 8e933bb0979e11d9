"""Runs of a config whose tasks come, change and go: real models, and what each run loads and leaves."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import tiny_clap
from runs import Job
from sounds import encode, tone
from tables import existing

from jobs.reports.verify import verify

MARKS = ("run_id", "labelled_at")


class History:
    """A job, and what its runs loaded."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, *overrides: str, **options: Any) -> list[str]:
        """The tasks whose models were loaded by a run that comes to its end."""
        file = self.job.folder / "summary.json"
        result = self.job.run(*overrides, summary_file=str(file), **options)
        assert result.code == 0, result.text
        summary = json.loads(file.read_text())
        report = verify(existing(self.job.table))
        assert report.is_intact, (report.faults, report.leftovers)
        assert "nothing to do" in self.job.run(*overrides).text
        return list(summary["models"] or ())

    def rows(self) -> pa.Table:
        return pq.read_table(self.job.table).sort_by(
            [("source", "ascending"), ("member", "ascending"), ("channel", "ascending")]
        )


def assert_same(before: pa.Table, after: pa.Table, but: str = "") -> None:
    """All columns are as they were, but the row's marks and those of the task `but`."""
    for name in before.column_names:
        if name not in MARKS and not (but and name.startswith(f"{but}_")):
            assert before[name].equals(after[name]), name


def test_tasks_come_change_and_go_and_each_run_loads_what_is_due(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, input={"path": str(tmp_path / "clips.jsonl")})
    history = History(job)
    kind = job.sections["tasks"]["kind"] | {"dtype": "float32"}
    for number in range(8):
        job.sound(f"{number}.wav", 200 + 170 * number)
    (job.audio / "bad.wav").write_text("no sound at all\n" * 40)
    names = [*(f"{number}.wav" for number in range(8)), "bad.wav"]

    def listed(*names: str) -> None:
        entries = [{"audio_filepath": f"audio/{n}", "said": f"it is {n}"} for n in names]
        (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, entries)))

    listed(*names)
    job.write(tasks={"kind": kind}, max_error_fraction=1, resources={"clips_per_block": 4})
    assert history.run() == ["kind"]
    before = history.rows()
    label = before["kind_label"][0].as_py()

    # One comes, at another rate, that reads a label of the first and a new column of the source; with
    # it a new clip, for which the first one runs as well.
    scene = {
        "task": "zero-shot-audio-classification",
        "model": str(tiny_clap(tmp_path / "clap")),
        "dtype": "float32",
        "candidate_labels": ["rain", "an engine"],
        "when": f"kind_label = '{label}'",
        "reference": "said",
    }
    job.sound("9.wav", 2000)
    listed(*names, "9.wav")
    job.write(tasks={"kind": kind, "scene": scene})
    assert history.run() == ["kind", "scene"]
    rows = history.rows()
    new = np.flatnonzero(np.asarray(rows["source"].to_pylist()) == str(job.audio / "9.wav"))
    old = rows.take(pa.array(np.setdiff1d(np.arange(len(rows)), new)))
    assert_same(before, old)
    assert set(old["kind_run_id"].to_pylist()) == set(before["run_id"].to_pylist())
    for row in rows.to_pylist():
        ran = row["kind_label"] == label
        assert (row["scene_label"] is not None) == ran, row
        assert row["scene_fingerprint"] and row["said"] == f"it is {Path(row['source']).name}"
        assert row["status"] == ("error" if row["source"].endswith("bad.wav") else "ok")
    assert rows["scene_label"].null_count not in (0, len(rows))

    # The one that reads changes; then the other, which takes it along.
    changed = {"kind": kind, "scene": scene | {"candidate_labels": ["rain", "a dog"]}}
    job.write(tasks=changed)
    refused = job.run()
    assert refused.code == 2 and "10 clips" in refused.text and "by scene: 10 clips" in refused.text
    assert history.rows().equals(rows)
    assert history.run(relabel=["scene"]) == ["scene"]
    assert_same(rows, history.rows(), but="scene")
    assert {x for x in history.rows()["scene_label"].to_pylist() if x} <= {"rain", "a dog"}

    # It goes, comes back as it was, and is dropped.
    rows = history.rows()
    job.write(tasks={"kind": kind})
    assert "nothing to do" in job.run().text
    job.write(tasks={"kind": kind | {"top_k": 2}})
    assert history.run(relabel=True) == ["kind"]
    assert_same(
        rows.select([name for name in rows.column_names if not name.startswith("kind_")]),
        history.rows(),
    )
    assert all(len(labels or [1, 2]) == 2 for labels in history.rows()["kind_labels"].to_pylist())
    assert history.run(drop=["scene"]) == []
    after = history.rows()
    assert not [name for name in after.column_names if name.startswith("scene_")]
    assert len(after) == 10
    again = job.run(drop=["scene", "no such task"])
    assert again.code == 0 and "the table has no task of that name" in again.text


@pytest.mark.chaos
@pytest.mark.parametrize("packed", ["files", "tar"])
def test_a_task_is_new_to_channels_and_another_tried_again(
    tmp_path: Path, local_ray: None, classifier: Path, packed: str
) -> None:
    """A channel that is too short for a model is its own row's error."""
    job = Job(tmp_path, classifier, audio={"channels": "each"}, max_error_fraction=1)
    history = History(job)
    for number in range(3):
        stereo = np.concatenate([tone(0.4, hz=300 + 90 * number), tone(0.4, hz=900)])
        content = encode(stereo, 16_000, "wav")
        if packed == "files":
            (job.audio / f"{number}.wav").write_bytes(content)
            continue
        with tarfile.open(job.audio / f"{number}.tar", "w") as tar:
            header = tarfile.TarInfo("a.wav")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    kind = job.sections["tasks"]["kind"] | {"dtype": "float32"}
    job.write(tasks={"kind": kind})
    if packed == "tar":
        job.write(input={"path": str(job.audio), "format": "webdataset"})
    assert history.run() == ["kind"]
    before = history.rows()
    assert before["channel"].to_pylist() == [1, 2] * 3
    loud = {"when": "channel = 1 and cast(kind_label as varchar) <> ''"}
    fails = {"when": "cast(kind_label as integer) > 0"}  # a text that is no number
    job.write(tasks={"kind": kind, "left": kind | loud, "never": kind | fails})
    assert sorted(history.run()) == ["left", "never"]
    rows = history.rows()
    assert_same(
        before.select(
            [n for n in before.column_names if n not in ("status",) and "error_" not in n]
        ),
        rows,
    )
    assert [row is not None for row in rows["left_label"].to_pylist()] == [True, False] * 3
    assert set(rows["status"].to_pylist()) == {"partial"}
    assert history.run(retry_errors=True) == ["never"]
    assert_same(rows, history.rows(), but="never")
    assert set(history.rows()["left_run_id"].to_pylist()) == set(rows["run_id"].to_pylist())
