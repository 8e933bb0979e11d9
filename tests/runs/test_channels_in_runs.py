"""Runs that label each channel of a recording as a clip of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from deltalake import DeltaTable
from runs import Job
from sounds import encode, tone
from tables import existing

from jobs.reports.verify import verify

HERTZ = (200, 900, 350, 1500, 500, 700)


def rows_of(job: Job) -> dict[tuple[str, int | None], dict[str, Any]]:
    rows = DeltaTable(str(job.table)).to_pyarrow_table().to_pylist()
    found = {(Path(row["source"]).stem, row["channel"]): row for row in rows}
    assert len(found) == len(rows) == len({row["clip_id"] for row in rows})
    return found


def write(job: Job, name: str, *hertz: float) -> None:
    sound = np.concatenate([tone(0.3, hz=hz) for hz in hertz])
    (job.audio / f"{name}.wav").write_bytes(encode(sound, 16_000, "wav"))


def test_channels_are_clips_that_come_and_go_together(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, audio={"channels": "each"}, max_error_fraction=1.0)
    job.sections["tasks"]["kind"] |= {"dtype": "float32", "when": "channel < 3"}
    job.write(resources={"commit_every_s": 0.0, "clips_per_block": 2})
    write(job, "six", *HERTZ)
    for number, hz in enumerate(HERTZ[:2], 1):
        write(job, f"only{number}", hz)
    (job.audio / "broken.wav").write_bytes(b"no sound at all")
    result = job.run()
    assert result.code == 0, result.text
    assert "9 found = 0 already done + 8 labelled + 1 failed" in result.text
    rows = rows_of(job)
    ones = [("only1", 1), ("only2", 1)]
    assert rows.keys() == {*(("six", n) for n in range(1, 7)), *ones, ("broken", None)}
    for number, one in enumerate(ones, 1):
        assert rows["six", number]["kind_label"] == rows[one]["kind_label"]
        assert abs(rows["six", number]["kind_score"] - rows[one]["kind_score"]) < 1e-5
        assert rows["six", number]["rms_dbfs"] == rows[one]["rms_dbfs"]
    assert rows["six", 3]["kind_label"] is None  # `when` knows the channel
    assert verify(existing(job.table)).is_intact
    assert "nothing to do: 9 clips found, all 9 already labelled" in job.run().text

    # A channel of the table is lost: it is missed, and all of its recording is labelled again.
    DeltaTable(str(job.table)).delete("channel = 2")
    report = verify(existing(job.table))
    assert any("recordings without some of them" in fault for fault in report.faults)
    result = job.run()
    assert "6 labelled" in result.text, result.text
    assert rows_of(job).keys() == rows.keys()

    # A recording changes, and so does the number of its channels; the broken one is mended.
    write(job, "six", *HERTZ[:2])
    write(job, "broken", *HERTZ[:2])
    result = job.run(retry_errors=True)
    assert result.code == 0, result.text
    assert rows_of(job).keys() == {("six", 1), ("six", 2), ("broken", 1), ("broken", 2), *ones}
