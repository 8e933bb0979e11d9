"""The Delta log of a table with many transactions: what is read of it, and what is left of it."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from faults import Work, assert_exact, run
from s3 import S3, s3  # noqa: F401  # the fixture
from tables import existing, held

from jobs.cli import run as cli
from jobs.reports.verify import verify
from jobs.table.lease import TableInUse
from jobs.table.rewrite import add
from jobs.table.schema import RUN
from jobs.table.table import HeldTable

SCHEMA = pa.schema([("clip_id", pa.string()), ("source", pa.string()), *RUN])
SETTINGS = {"tasks": {}}
CHECKPOINT_EVERY = 100  # Delta's default


def append(table: HeldTable, transactions: int) -> None:
    """Transactions that each add a data file, which is not there."""
    for _ in range(transactions):
        file = add(f"part-run-{table.version}.parquet", 100, 10)
        table.transactions.append([file], "label", {"rows": 10})


def test_commits_read_no_more_of_a_store_the_more_there_were(s3: S3) -> None:
    s3.bucket("many-commits")
    table = held("s3://many-commits/table", "run", SCHEMA, SETTINGS, s3.resolved)

    def asked() -> Counter[int]:
        """How often each transaction has been read."""
        found: Counter[int] = Counter()
        for request in s3.asked("many-commits/table/_delta_log"):
            found.update(int(number) for number in re.findall(r"/(\d+)\.json", request.path))
        return found

    append(table, 16)
    before = asked()
    append(table, 1)
    assert max(asked() - before) - min(asked() - before) <= 1  # the last one and its own
    whole = [r for r in s3.asked("many-commits") if r.path.endswith("prefix=table/_delta_log/")]
    assert len(whole) <= 2  # listings: while the table was made
    before = asked()
    assert table.log.newest_run() == "run"
    assert (asked() - before).total() < 10
    table.release()


def test_a_log_is_cleaned_after_30_days_and_loses_nothing_that_a_run_needs(tmp_path: Path) -> None:
    table = held(tmp_path / "table", "old", SCHEMA, SETTINGS)
    append(table, CHECKPOINT_EVERY)
    table.lease.end()  # a run that was suspended, and taken for dead
    log = Path(table.path, "_delta_log")
    for file in log.iterdir():
        os.utime(file, (0, time.time() - 40 * 86_400))
    later = held(tmp_path / "table", "later", SCHEMA, SETTINGS)
    append(later, CHECKPOINT_EVERY)
    left = sorted(int(file.stem) for file in log.glob("*.json"))
    assert left[0] > 0 and left[-1] == later.version
    found = existing(tmp_path / "table")
    assert found.log.newest_run() == "later"
    assert found.log.number() == later.transactions.number == 2 * CHECKPOINT_EVERY + 2
    assert len(found.files()) == 2 * CHECKPOINT_EVERY and found.settings() == table.settings()
    with pytest.raises(TableInUse):
        append(table, 1)
    later.release()


def test_a_table_with_a_cleaned_log_is_whole_and_goes_on(tmp_path: Path) -> None:
    work = Work(str(tmp_path / "table"))
    assert run(work) == 0
    table = DeltaTable(work.path)
    for file in Path(work.path, "_delta_log").iterdir():
        os.utime(file, (0, time.time() - 40 * 86_400))
    table.create_checkpoint()  # which a commit in a hundred does
    table.cleanup_metadata()
    assert table.history()[-1]["version"] > 0
    report = verify(existing(work.path))
    assert report.is_intact and report.rows == work.clips
    assert report.notes == [
        "the rows of 1 runs were not counted: the log no longer goes back to its beginning"
    ]
    work = replace(work, changed=20)
    assert run(work) == 0
    assert_exact(work)


def test_a_log_of_a_checkpoint_alone_cannot_be_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = held(tmp_path / "table", "run", SCHEMA, SETTINGS)
    table.release()
    DeltaTable(table.path).create_checkpoint()
    for file in Path(table.path, "_delta_log").glob("*.json"):
        file.unlink()
    expected = f"expected version {table.version} in {table.path}/_delta_log"
    assert cli(["verify", table.path]) == 1
    assert expected in capsys.readouterr().out
    with pytest.raises(OSError, match=expected):
        held(table.path, "later", SCHEMA, SETTINGS)
