"""A clip that kills, hangs or bloats the process that works on it costs its own row."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from poison import poisoned, wav
from runs import PATHS, ROOT
from sounds import encode, tone

from audio_ops.prepare import prepare_clip
from jobs.config import Audio
from jobs.input import Input
from jobs.planning.committed import NOTHING_COMMITTED
from jobs.planning.plan import plan
from jobs.planning.shards import plan_shards
from jobs.sources import load_source
from jobs.workers import sandbox
from jobs.workers.lanes import LONG_BYTES, Lanes
from jobs.workers.read import ReadSettings, SandboxWork, prepared, read

PATIENCE_S = 120
AUDIO = Audio(decode_timeout_s=PATIENCE_S, decode_memory_mb=512)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that poisons every process that is started from now on."""
    folder = poisoned(tmp_path / "site")
    end_idle_sandboxes()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    end_idle_sandboxes()


def end_idle_sandboxes() -> None:
    while sandbox._idle:
        sandbox._idle.pop().end()


def planned(input: Input) -> pa.Table:
    """All that there is, as a plan."""
    source = load_source(input.format)
    found = source.find(input, print)
    if source.SHARDED:
        return plan_shards(found, NOTHING_COMMITTED, {}).todo
    return plan(found, NOTHING_COMMITTED).todo


def folder(path: Path, sounds: list[bytes]) -> Input:
    path.mkdir()
    for number, sound in enumerate(sounds):
        (path / f"{number:04}.wav").write_bytes(sound)
    return Input(path=str(path), format="files")


def tar(path: Path, members: dict[str, bytes]) -> Input:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, BytesIO(data))
    return Input(path=str(path), format="webdataset")


def rows(input: Input, audio: Audio = AUDIO, **options: Any) -> list[dict[str, Any]]:
    """The rows that `read` makes of all clips."""
    tables = read(planned(input), ReadSettings(input, audio, (16_000,), "never", **options))
    return pa.concat_tables(tables).to_pylist()


def in_process(input: Input) -> list[dict[str, Any]]:
    """The rows of all clips, prepared without a sandbox."""
    settings = ReadSettings(input, Audio(max_clip_s=100.0), (16_000,), "never")
    tables = prepared(sandbox.SharedMemory(), SandboxWork(planned(input), settings))
    return pa.concat_tables(tables).to_pylist()


def kinds(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["error_kind"] for row in rows]


def test_a_child_gives_the_same_tables(tmp_path: Path) -> None:
    sounds = [wav(0.01 * n, 100 + n) for n in range(1, 40)]
    input = folder(tmp_path / "audio", [*sounds, b"", b"words"])
    assert rows(input) == in_process(input)
    shards = tar(tmp_path / "a.tar", {f"{n}.wav": sound for n, sound in enumerate(sounds)})
    assert rows(shards) == in_process(shards)


@pytest.mark.parametrize("harm", ["segfault", "exit", "memory"])
def test_a_poison_clip_costs_its_own_row(tmp_path: Path, site: Path, harm: str) -> None:
    sounds = [wav(hz=100 + n, harm=harm if n in (0, 20, 21, 39) else "") for n in range(40)]
    input = folder(tmp_path / "audio", sounds)
    found = rows(input)
    bad = {0, 20, 21, 39}
    kind = "memory" if harm == "memory" else "crashed"
    assert kinds(found) == [kind if n in bad else None for n in range(40)]
    assert {row["error_stage"] for row in found} == {None, "decode"}
    assert [row["source"] for row in found] == planned(input)["source"].to_pylist()
    expected = in_process(input)
    assert all(found[n] == expected[n] for n in range(40) if n not in bad)
    decoded = len((site / "decoded").read_text().split())
    assert decoded <= 40 + 4 * 15  # what had not come out at a death is done again


def test_a_clip_that_hangs_is_given_up_after_its_time(tmp_path: Path, site: Path) -> None:
    input = folder(tmp_path / "audio", [wav(), wav(harm="loop"), wav()])
    found = rows(input, AUDIO.model_copy(update={"decode_timeout_s": 3.0}))
    assert kinds(found) == [None, "timeout", None]
    assert found[1]["error_message"] == "took longer than 3 s"


def test_nothing_but_poison(tmp_path: Path, site: Path) -> None:
    found = rows(folder(tmp_path / "audio", [wav(harm="segfault")] * 3))
    assert kinds(found) == ["crashed"] * 3
    assert found[0]["error_message"] == "the process that worked on it ended with SIGSEGV"


def test_poison_in_a_tar_changes_no_count(tmp_path: Path, site: Path) -> None:
    names = {f"{n:02}.wav": wav(hz=100 + n, harm="exit" if n in (5, 19) else "") for n in range(20)}
    input = tar(tmp_path / "a.tar", names)
    *found, end = rows(input)
    assert [row["member"] for row in found] == list(names)
    assert kinds(found) == ["crashed" if n in (5, 19) else None for n in range(20)]
    assert end["error_kind"] is None
    assert (end["shard_end"]["clips"], end["shard_end"]["skipped"]) == (20, 0)


def test_a_tar_that_cannot_be_read_alive_is_given_up(tmp_path: Path, site: Path) -> None:
    """After what came before that, and with a count under which the tar is done."""
    names = [f"{n:02}.wav" for n in range(20)]
    names[18] = "segfault@18.wav"
    input = tar(tmp_path / "a.tar", {name: wav() for name in names})
    *found, lost, end = rows(input)
    assert [row["member"] for row in found] == names[:16]  # the last table that came
    assert (lost["member"], lost["error_stage"], lost["error_kind"]) == (None, "read", "crashed")
    assert (end["shard_end"]["clips"], end["shard_end"]["skipped"]) == (17, 0)


def test_what_is_killed_by_chance_gets_more_chances_alone(tmp_path: Path, site: Path) -> None:
    """As by the kernel, for the memory that other recordings take: then after those."""
    input = folder(tmp_path / "audio", [wav(), wav(harm="killed twice"), wav(harm="killed"), wav()])
    lanes = Lanes(AUDIO.max_clip_s * 64_000)
    lanes.take()
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: found.extend(rows(input)))
    reader.start()
    while not (site / "a").exists():
        time.sleep(0.01)
    reader.join(1.0)
    assert not (site / "b").exists()
    lanes.release()
    reader.join()
    assert kinds(found) == [None, None, "crashed", None]


def test_a_long_recording_waits_for_a_lane_and_a_short_one_does_not(tmp_path: Path) -> None:
    """And the time in which it waits is not its own."""
    audio = Audio(decode_timeout_s=3.0, max_clip_s=24 * 3600)  # so that there is one lane
    settings = {"audio": audio, "rates": (16_000, 96_000)}
    long = encode(tone(LONG_BYTES / 4 / 112_000 + 5), 16_000, "wav")
    short, both = folder(tmp_path / "short", [wav(9.0)]), folder(tmp_path / "both", [wav(), long])

    def read_all(input: Input) -> list[str | None]:
        tables = read(planned(input), ReadSettings(input, want_speech="never", **settings))
        return [kind for table in tables for kind in table["error_kind"].to_pylist()]

    lanes = Lanes(24 * 3600 * 4 * 112_000)
    assert lanes.count == 1
    lanes.take()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_all, both)
        assert read_all(short) == [None]
        with pytest.raises(TimeoutError):
            reading.result(timeout=5.0)
        lanes.release()
        assert reading.result(timeout=PATIENCE_S) == [None, None]
    lanes.take_all()  # it has let go of its own
    lanes.release()


def test_lanes_are_free_where_there_can_be_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    for lanes in (Lanes(1 << 40), Lanes(1 << 40)):
        lanes.take()
        lanes.take_all()


def test_a_bug_is_no_poison(tmp_path: Path, site: Path) -> None:
    input = folder(tmp_path / "audio", [wav(), wav(harm="bug")])
    with pytest.raises(RuntimeError, match="Odd: a bug, not a clip") as caught:
        rows(input)
    assert "in poisoned" in str(caught.value.__cause__)


def test_time_in_which_nobody_asks_for_a_table_is_free(tmp_path: Path) -> None:
    input = folder(tmp_path / "audio", [wav()] * 60)
    limits = AUDIO.model_copy(update={"decode_timeout_s": 4.0})
    tables = read(planned(input), ReadSettings(input, limits, (16_000,), "never"))
    first = next(tables)
    time.sleep(5)
    assert kinds(pa.concat_tables([first, *tables]).to_pylist()) == [None] * 60


def test_a_child_that_is_left_in_the_middle_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_idle_sandboxes()
    input = folder(tmp_path / "audio", [wav(hz=100 + n) for n in range(40)])
    settings = ReadSettings(input, AUDIO, (16_000,), "never", table_bytes=1)
    tables = read(planned(input), settings)
    next(tables)
    tables.close()
    assert not sandbox._idle
    assert rows(input) == in_process(input)
    (one,) = sandbox._idle
    assert rows(input) == in_process(input)
    assert sandbox._idle == [one]


def test_few_clips_at_a_time_become_tables_of_one_chunk(tmp_path: Path) -> None:
    input = folder(tmp_path / "audio", [wav(10.0 + n % 2) for n in range(60)])
    plan = planned(input)
    tables = list(read(plan, ReadSettings(input, AUDIO, (16_000,), "never")))
    assert 1 < len(tables) < 60 / 16
    assert {column.num_chunks for table in tables for column in table.columns} == {1}
    assert pa.concat_tables(tables).to_pylist() == in_process(input)


@pytest.mark.parametrize("pack", [folder, tar])
def test_a_reader_that_is_started_again_hands_on_the_same_clips_in_each_table(
    tmp_path: Path, pack: Callable[..., Input]
) -> None:
    """Though clips fail this time, which have no sound that takes space in a table."""
    sounds = [wav(1.0, 100 + n) for n in range(40)]
    named = {f"{n:04}.wav": sound for n, sound in enumerate(sounds)}
    input = pack(tmp_path / "all", sounds if pack is folder else named)
    plan = planned(input)
    settings = ReadSettings(input, AUDIO, (16_000,), "never", table_bytes=150_000)

    def clips(settings: ReadSettings, cuts: Sequence[int] = ()) -> list[list[Any]]:
        return [table["clip_id"].to_pylist() for table in read(plan, settings, cuts)]

    first = clips(settings)
    assert len(first) == 3
    fails = replace(settings, audio=AUDIO.model_copy(update={"max_clip_s": 0.5}))
    assert clips(fails) != first
    for known in range(1, len(first) + 1):
        again = clips(fails, [len(table) for table in first[:known]])
        assert again[:known] == first[:known]
        assert [*chain(*again)] == [*chain(*first)]


def pages_taken(_: sandbox.SharedMemory, sound: bytes) -> Iterator[pa.Table]:
    """The number of new pages from the kernel for each of six equal clips."""
    pages = []
    for _clip in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        prepare_clip(BytesIO(sound), [16_000], 3600.0)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    yield pa.table({"pages": pages})


def test_a_child_decodes_into_the_memory_that_it_has() -> None:
    sound = encode(tone(60, 48_000, 2), 48_000, "flac")
    with sandbox.sandbox() as process:
        (table,) = process.tables(pages_taken, {"sound": sound}, PATIENCE_S, 1 << 30)
    first, *later = table["pages"].to_pylist()
    assert first > 60 * 16_000 * 4 / resource.getpagesize()
    assert min(later) < first / 10, later  # other threads of the process may add pages


def test_a_child_that_died_of_idleness_is_replaced(tmp_path: Path) -> None:
    input = folder(tmp_path / "audio", [wav()])
    rows(input)
    sandbox._idle[-1].process.kill()
    assert kinds(rows(input)) == [None]


def test_a_child_that_cannot_start_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    end_idle_sandboxes()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="exit code 3"):
        rows(folder(tmp_path / "audio", [wav()]))


def left_over(site: Path) -> list[int]:
    """Processes that were started with the poison and still live."""
    mark = f"PYTHONPATH={site}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # gone, or another user's
            continue
    return found


PARENT = """
import sys
sys.path[:0] = {paths!r}
from test_poison import AUDIO, Input, ReadSettings, planned, read
from jobs.workers import sandbox
from jobs.workers.lanes import LONG_BYTES, Lanes
input = Input(path=sys.argv[1], format="files")
start = sandbox.Sandbox.__init__
def started(self):
    start(self)
    print(self.process.pid, flush=True)
sandbox.Sandbox.__init__ = started
list(read(planned(input), ReadSettings(input, AUDIO, (16_000,), "never")))
"""


def test_a_child_ends_with_its_parent(tmp_path: Path, site: Path) -> None:
    folder(tmp_path / "audio", [wav(harm="loop")])
    script = PARENT.format(paths=PATHS)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "audio")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        until(lambda: (site / "decoded").exists())
        parent.kill()
    until(lambda: not Path(f"/proc/{pid}").exists())


def until(reached: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
