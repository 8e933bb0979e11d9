"""The hard case, whole: tars on S3, three tasks with a `when`, references, a table on S3, a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import tiny_clap, tiny_whisper
from deltalake import DeltaTable
from runs import Job
from s3 import S3, s3  # noqa: F401  # the fixture
from sounds import encode, tone
from test_kill import Running
from test_several_tasks import sound_label
from test_sources import write_tar

from jobs.table.storage import delta_options

pytestmark = pytest.mark.timeout(1800)

TARS, CLIPS = 8, 3


def committed(s3: S3, table: str) -> pa.Table:
    """The rows as a plain Parquet reader of the bucket sees them; a Delta reader sees the same."""
    fs = s3.files()
    plain = pa.concat_tables(
        pq.read_table(fs.open(path)) for path in fs.ls(table) if path.endswith(".parquet")
    )
    delta = DeltaTable(f"s3://{table}", storage_options=delta_options(s3.resolved))
    assert sorted(delta.to_pyarrow_table()["clip_id"].to_pylist()) == sorted(
        plain["clip_id"].to_pylist()
    )
    return plain


@pytest.mark.chaos
def test_three_tasks_over_tars_on_s3_survive_a_kill_half_way(
    tmp_path: Path,
    local_ray: None,
    classifier: Path,
    s3: S3,
) -> None:
    s3.bucket("killed")
    table = "killed/labels"
    clap, whisper = tiny_clap(tmp_path / "clap"), tiny_whisper(tmp_path / "whisper")
    job = Job(tmp_path, classifier)
    spoken = sound_label(job)
    model: dict[str, Any] = {"dtype": "float32"}
    job.write(
        input={"path": "s3://killed/tars", "storage_options": s3.options},
        tasks={
            "kind": {
                "task": "audio-classification",
                "model": str(classifier),
                "reference": "json.kind",
                **model,
            },
            "scene": {
                "task": "zero-shot-audio-classification",
                "model": str(clap),
                "candidate_labels": ["rain", "an engine"],
                **model,
            },
            "words": {
                "task": "automatic-speech-recognition",
                "model": str(whisper),
                "language": "en",
                "reference": "txt",
                "when": f"kind_label = '{spoken}'",
                **model,
            },
        },
        output={"path": f"s3://{table}", "keep": ["json.speaker"]},
        resources={"commit_every_s": 0},
    )
    fs = s3.files()
    for number in range(TARS):
        members = []
        for clip in range(CLIPS):
            hz = 200 + 150 * ((number * CLIPS + clip) % 12)
            facts = {"kind": spoken, "speaker": "ab"[clip % 2]}
            members += [
                (f"{clip}.json", json.dumps(facts).encode()),
                (f"{clip}.wav", encode(tone(0.3, hz=hz), 16_000, "wav")),
                (f"{clip}.txt", b"ten words of a reference that nobody said at all"),
            ]
        path = write_tar(tmp_path / f"{number}.tar", members)
        fs.pipe_file(f"killed/tars/{number}.tar", path.read_bytes())

    run = Running(job)
    try:
        run.wait_for(
            lambda: fs.exists(table) and len(fs.glob(f"{table}/_delta_log/*.json")) >= 3,
            "the first commit of rows, after two of its own",
        )
        os.kill(run.process.pid, signal.SIGKILL)
        run.end()
        run.leaves_nothing()
    finally:
        run.stop()
    log = delta_options(s3.resolved)
    before = DeltaTable(f"s3://{table}", storage_options=log).to_pyarrow_table()
    assert 0 < len(before) < TARS * CLIPS
    reads = len(s3.asked("killed/tars/"))

    result = job.run()
    assert result.code == 0, result.text
    rows = committed(s3, table).to_pylist()
    assert len(rows) == TARS * CLIPS == len({row["clip_id"] for row in rows})
    assert {row["status"] for row in rows} == {"ok"}
    kept = {row["clip_id"]: row for row in rows}
    for row in before.to_pylist():  # what was committed is as it was
        assert kept[row["clip_id"]] == row
    assert all(row["kind_loss"] > 0 and row["scene_label"] for row in rows)
    heard = [row for row in rows if row["kind_label"] == spoken]
    assert 0 < len(heard) < len(rows)
    assert all((row["words_wer"] is not None) == (row in heard) for row in rows)
    [report] = [json.loads(fs.cat_file(path)) for path in fs.glob(f"{table}/_runs/*.json")]
    assert "words" in json.dumps(report) and "kind" in json.dumps(report)
    assert "WER" in result.text and "loss" in result.text

    again = len(s3.asked("killed/tars/"))
    assert again > reads
    result = job.run()
    assert result.code == 0 and "nothing to do" in result.text
    opened = s3.asked("killed/tars/")[again:]
    assert not opened, "a finished tar is not opened again"
