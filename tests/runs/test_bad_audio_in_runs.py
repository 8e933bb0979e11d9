"""Broken sounds in whole runs: each has its row, and each good one its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import Job
from test_bad_audio import assert_outcomes, pack_files, pack_parquet, pack_tar


@pytest.mark.parametrize(
    "pack",
    [pack_files, *(pytest.param(p, marks=pytest.mark.chaos) for p in (pack_tar, pack_parquet))],
)
def test_in_a_run_every_bad_clip_has_its_row_and_every_good_one_its_label(
    tmp_path: Path, local_ray: None, classifier: Path, pack: Callable[[Path], str]
) -> None:
    job = Job(tmp_path, classifier, max_error_fraction=1)
    job.write(input={"path": str(job.audio), "format": pack(job.audio)})
    result = job.run()
    assert result.code == 0, result.text
    assert "\x1b" not in result.text and "\u202e" not in result.text
    assert "\\x1b[2J\\n\\u202e" in result.text or pack is not pack_files
    found = pq.read_table(job.table).to_pylist()
    assert_outcomes(found, "too_short")  # for this model
    for row in found:
        assert row["status"] == ("error" if row["error_kind"] else "ok")
        assert bool(row["kind_label"]) == (row["status"] == "ok"), row
