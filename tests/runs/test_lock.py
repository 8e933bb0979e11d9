"""One run at a time per table: who holds it, who may take it over, and who loses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import PATHS, ROOT, Job
from tables import existing, held
from test_table import KEPT, SETTINGS, TASKS, by_id, labelled, opened, written

from jobs.fingerprints import LAYOUT
from jobs.table.lease import TableInUse, start_of, this_machine
from jobs.table.log import Transactions
from jobs.table.schema import table_schema
from jobs.table.storage import Storage
from jobs.table.table import HeldTable, hold

HOLD = f"""
import sys
sys.path[:0] = {PATHS!r}
from pathlib import Path
from test_table import opened
table = opened(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
RACE = f"""
import os, sys
sys.path[:0] = {PATHS!r}
from pathlib import Path
from test_table import opened
from jobs.table.lease import TableInUse
print("ready", flush=True)
for line in sys.stdin:
    try:
        opened(Path(line.strip()))
        print("won", flush=True)
    except TableInUse:
        print("lost", flush=True)
os._exit(0)
"""


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


NEW = pa.field("late", pa.string())


def pretend_holder(folder: Path, **changes: Any) -> None:
    """As if a run of that description had taken the table and left no other trace."""
    opened(folder).release()
    holder = {
        "run_id": "other",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": "2030-01-02T03:04:05+00:00",
        "heartbeat": time.time(),
        "machine": this_machine(),
        "started": start_of(os.getpid()),
    }
    path = folder / "table" / "_earmark" / "holder.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(holder | changes))


def take(folder: Path, run_id: str = "mine") -> HeldTable:
    return held(folder / "table", run_id, table_schema(TASKS, KEPT), SETTINGS)


def test_a_run_on_a_table_in_use_exits_with_75_and_says_who_holds_it_since_when(
    tmp_path: Path, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(1)
    pretend_holder(tmp_path)
    result = job.run(relabel=True)
    assert result.code == 75
    for what in ("run other", f"process {os.getpid()}", socket.gethostname(), "2030-01-02T03:04"):
        assert what in result.text, what
    assert json.loads((job.table / "_earmark" / "holder.json").read_text())["run_id"] == "other"


def test_a_holder_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    holder = child(HOLD, str(tmp_path))
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(TableInUse, match=f"process {holder.pid}"):
        take(tmp_path)
    holder.kill()
    holder.communicate()
    table = take(tmp_path)
    assert table.holder().run_id == "mine"
    table.release()


CLOCKS_S = (0.0, 3600.0, -3600.0)  # ahead of this machine's
ELSEWHERE: tuple[dict[str, Any], ...] = (
    {"host": "elsewhere", "machine": "another kernel", "pid": 1},
    {"machine": this_machine() + "0"},  # a container with this one's host name, and a pid as here
    {"machine": "", "started": ""},  # a note of an earlier version
)


@pytest.mark.parametrize("ahead_s", CLOCKS_S)
@pytest.mark.parametrize("elsewhere", ELSEWHERE, ids=["host", "container", "earlier version"])
def test_a_holder_elsewhere_lives_if_it_beats_while_it_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, Any], ahead_s: float
) -> None:
    """Whatever its clock says."""
    monkeypatch.setattr("jobs.table.lease.LOOK_EVERY_S", 0.01)
    then = time.time() + ahead_s
    note = tmp_path / "table" / "_earmark" / "holder.json"
    pretend_holder(tmp_path, heartbeat=then, **elsewhere)
    later = json.dumps(json.loads(note.read_text()) | {"heartbeat": then + 10})
    threading.Timer(0.2, note.write_text, [later]).start()
    with pytest.raises(TableInUse, match="run other"):
        take(tmp_path)
    monkeypatch.setattr("jobs.table.lease.HOLDER_IS_DEAD_S", 0.1)
    take(tmp_path).release()


def test_a_pid_that_another_process_has_got_since_is_no_holder(tmp_path: Path) -> None:
    pretend_holder(tmp_path, started="1")
    take(tmp_path).release()


def test_a_late_heartbeat_does_not_silence_the_run_that_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.table.lease.HEARTBEAT_S", 0.05)
    slow = opened(tmp_path)
    note = tmp_path / "table" / "_earmark" / "holder.json"
    slow.lease._ended.set()  # it sleeps in the middle of a beat
    slow.lease._beat.join()
    late = note.read_text()
    note.unlink()
    quick = take(tmp_path)
    for _ in range(3):
        note.write_text(late)
        until = time.monotonic() + 60
        while json.loads(note.read_text())["run_id"] != "mine" and time.monotonic() < until:
            time.sleep(0.01)
        assert quick.holder().run_id == "mine"
    slow.release()
    assert quick.holder().run_id == "mine"
    quick.release()
    assert not note.exists()


def test_a_sleepers_settings_and_columns_do_not_land_after_it_was_taken_over(
    tmp_path: Path,
) -> None:
    slow = opened(tmp_path)
    (tmp_path / "table" / "_earmark" / "holder.json").unlink()
    slow.transactions.check()  # and it sleeps
    delta = slow.log.delta
    quick = take(tmp_path)
    for schema in (table_schema(TASKS, KEPT), table_schema(TASKS, KEPT).append(NEW)):
        with pytest.raises(TableInUse, match=r"taken over.*run mine"):
            slow.transactions.adapt(schema, {"label_version": 99})
    slow.log.delta = delta
    quick.release()
    after = existing(tmp_path / "table")
    assert (
        after.settings() == SETTINGS | {"layout": LAYOUT} and NEW.name not in after.schema().names
    )


@pytest.mark.parametrize("content", [b"", b"{half", b"[]", b"{}"])
def test_a_damaged_note_of_the_holder_holds_nobody_up(tmp_path: Path, content: bytes) -> None:
    pretend_holder(tmp_path)
    (tmp_path / "table" / "_earmark" / "holder.json").write_bytes(content)
    take(tmp_path).release()


def test_a_holder_that_was_taken_over_fails_at_its_next_commit_and_writes_nothing(
    tmp_path: Path,
) -> None:
    slow = opened(tmp_path)
    slow.commit(written(slow, labelled({"a": None})))
    file = written(slow, labelled({"late": None}))
    replacing = written(slow, labelled({"late": "a"}))
    (tmp_path / "table" / "_earmark" / "holder.json").unlink()  # as if unheard of for long
    quick = take(tmp_path)
    for action in (lambda: slow.commit(file), lambda: slow.commit(replacing), slow.tidy):
        with pytest.raises(TableInUse, match=r"taken over.*run mine"):
            action()
    slow.release()
    assert quick.holder().run_id == "mine"
    quick.commit(written(quick, labelled({"b": None})))
    quick.tidy()
    quick.release()
    assert set(by_id(quick)) == {"a", "b"}


@pytest.mark.parametrize("beats_again", [False, True])
def test_what_a_worker_still_writes_after_its_run_was_taken_over_is_removed(
    tmp_path: Path, beats_again: bool
) -> None:
    slow = opened(tmp_path)
    written(slow, labelled({"early": None}))
    holder = tmp_path / "table" / "_earmark" / "holder.json"
    said = holder.read_text()
    holder.unlink()  # as if unheard of for long
    quick = take(tmp_path)
    quick.commit(written(quick, labelled({"a": None})))
    quick.release()
    if beats_again:  # it wakes up, and finds nobody there
        holder.write_text(said)
    worker = threading.Timer(1.0, written, (slow, labelled({"late": None})))
    worker.start()
    slow.release()
    worker.join()
    [file] = (tmp_path / "table").glob("*.parquet")
    assert pq.read_table(file)["clip_id"].to_pylist() == ["a"]


def test_of_two_commits_from_one_version_one_fails(tmp_path: Path) -> None:
    """Should two runs hold the table all the same, the log itself decides."""
    one = opened(tmp_path)
    table = existing(tmp_path / "table")
    two = HeldTable(table, Transactions(table.log, "two"), one.lease)
    one.commit(written(one, labelled({"a": None})))
    with pytest.raises(TableInUse):
        two.commit(written(two, labelled({"a": None})))
    one.release()
    assert set(by_id(one)) == {"a"}


def test_of_runs_that_start_at_once_one_wins(tmp_path: Path) -> None:
    racers = [child(RACE) for _ in range(4)]
    try:
        for racer in racers:
            assert racer.stdout and racer.stdout.readline() == "ready\n"
        for round_ in range(6):
            folder = tmp_path / str(round_)
            if round_ > 3:  # the last ones for a table that exists
                opened(folder).release()
            for racer in racers:
                assert racer.stdin
                racer.stdin.write(f"{folder}\n")
                racer.stdin.flush()
            ends = sorted(racer.stdout.readline().strip() for racer in racers if racer.stdout)
            assert ends == ["lost", "lost", "lost", "won"], round_
            assert existing(folder / "table").holder().pid in {racer.pid for racer in racers}
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_a_run_that_has_just_taken_the_table_gets_a_moment_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.table.table.NOTE_DELAY_S", 60.0)
    first = opened(tmp_path)
    note = tmp_path / "table" / "_earmark" / "holder.json"
    note.rename(tmp_path / "later.json")
    threading.Timer(0.2, (tmp_path / "later.json").rename, [note]).start()
    with pytest.raises(TableInUse, match="run run"):
        take(tmp_path)
    first.release()


def test_a_table_made_meanwhile_with_other_settings_is_not_relabelled(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "table"))  # where there is none at the first look
    opened(tmp_path).release()
    with pytest.raises(TableInUse, match="with other settings"):
        hold(storage, "late", table_schema(TASKS, KEPT), {"label_version": 99}, seen={})
    assert existing(tmp_path / "table").settings() == SETTINGS | {"layout": LAYOUT}
