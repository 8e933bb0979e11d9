"""Every clip is accounted for, once, by what the write stage tells of its data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.config import Config
from jobs.console import Console
from jobs.planning.plan import Plan
from jobs.planning.shards import FILES
from jobs.progress import Incomplete, Progress
from jobs.reports.summary import _counts
from jobs.resources import Shares, TaskShare
from jobs.sample import whole_of
from jobs.stop import Stop

File = dict[str, Any]


def progress(folder: Path, monkeypatch: pytest.MonkeyPatch, todo: dict[str, list[Any]]) -> Progress:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    with Console("run") as console:
        return Progress(
            console,
            Plan(pa.table(todo), obsolete=(), found=0, done=0, failed_before=0, vanished=0),
            0.0,
        )


def file(shard: str, clips: str, of: int | None = None, skipped: int = 0) -> File:
    """The record of a data file with these clips; with `of` also that its shard has so many."""
    end = {"source": shard, "source_version": "1", "clips": of, "skipped": skipped}
    return {
        "path": "part.parquet",
        "source": shard if clips else None,
        "clip_ids": list(clips),
        "shards": [] if of is None else [end],
    }


@pytest.mark.parametrize(
    "files",
    [
        [file("a.tar", "12"), file("a.tar", "23")],
        [file("a.tar", "11")],
        [file("a.tar", "12", of=2), file("a.tar", "2")],  # after its shard was whole
        [file("a.tar", "2", of=2), file("b.tar", "5"), file("a.tar", "1"), file("a.tar", "3")],
    ],
)
def test_a_file_with_a_clip_of_a_shard_that_came_before_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[File]
) -> None:
    seen = progress(tmp_path, monkeypatch, {"source": ["a.tar", "b.tar"], FILES: [[], []]})
    assert all(map(seen.accepts, files[:-1]))
    parts, whole = {name: set(part.clip_ids) for name, part in seen.parts.items()}, set(seen.whole)
    assert not seen.accepts(files[-1])
    assert {name: part.clip_ids for name, part in seen.parts.items()} == parts
    assert seen.whole == whole


def test_clips_are_forgotten_when_their_shard_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ["a.tar", "b.tar", "c.tar"]
    seen = progress(tmp_path, monkeypatch, {"source": shards, FILES: [[]] * 3})
    for one in (
        file("a.tar", "12"),
        file("b.tar", "4", of=3, skipped=1),  # its end came before its other clip
        file("c.tar", "", of=5, skipped=5),
        file("a.tar", "3", of=3),
        file("b.tar", "5"),
    ):
        assert seen.accepts(one)
    assert seen.whole == set(shards) and not seen.parts


def test_a_recording_has_come_when_all_its_channels_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = progress(tmp_path, monkeypatch, {"clip_id": ["r", "3"]})

    def channels(ids: str, rows: int) -> File:
        return file("a.wav", ids) | {"recordings": [{"id": "r", "rows": rows}] * len(ids)}

    assert seen.accepts(channels("1", 2)) and seen.pending == {"r", "3"}
    assert not seen.accepts(channels("1", 2))  # read again
    assert not seen.accepts(channels("12", 2))
    assert seen.accepts(channels("2", 2)) and seen.pending == {"3"}
    assert not seen.accepts(channels("2", 2))
    assert seen.accepts(file("b.wav", "3")) and not seen.pending and not seen.recordings.missing


def test_channels_count_as_clips_and_their_recordings_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = progress(tmp_path, monkeypatch, {"clip_id": ["r", "s", "t"]})
    for recording, ids in (("r", "12"), ("s", "34")):
        came = file("a.wav", ids) | {"recordings": [{"id": recording, "rows": 2}] * 2}
        assert seen.accepts(came | {"statuses": ["ok"] * 2, "audio_s": 6.0, "errors": None})
        seen.committed(seen.recordings.ready())
    assert (seen.labelled, seen.ready, seen.found) == (4, 2, 2)  # `found` begins with 0 here
    assert _counts(seen, seen.plan, 1.0)["clips"]["left"] == 1
    shares = Shares(0.25, {"kind": TaskShare(1, 1, 1.0, 0.0, 1, None)})
    models = {"kind": {"times_real_time": 2.0, "heard_s": 12.0}}
    whole = whole_of(10, seen, models, shares, shares)
    assert whole and (whole["clips"], whole["audio_hours"] * 3600) == (20, 60.0)
    assert whole["seconds"] == 30.0


def test_a_run_with_a_dropped_file_says_what_is_left_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = progress(tmp_path, monkeypatch, {"clip_id": ["1", "2", "3"]})
    assert seen.accepts(file("a.wav", "1"))
    assert not seen.accepts(file("a.wav", "12"))
    assert not seen.accepts(file("a.wav", "4"))
    assert seen.accepts(file("a.wav", "2"))
    config = Config(input={"path": "in"}, tasks={}, output={"path": "out"})  # type: ignore[arg-type]
    with (
        Console("run") as seen.console,
        pytest.raises(Incomplete, match=r"^1 of 3 clips are not labelled.*same command"),
    ):
        seen.finish(Stop(), config, tmp_path / "log", drifted=False)
