"""`audio.channels`: the mean, one channel, or each as a clip of its own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plans import in_memory, with_known
from sounds import encode, noise, tone

from audio_ops.errors import ClipError
from audio_ops.prepare import prepare_clip, prepare_recording
from audio_ops.schemas import Channels
from jobs.clips import ALL, clip_id
from jobs.config import Audio
from jobs.input import Input
from jobs.planning.committed import COMMITTED
from jobs.planning.plan import Plan, plan
from jobs.planning.shards import plan_shards
from jobs.recordings import WholeRecordings
from jobs.sources import load_source
from jobs.workers.kept import without_kept
from jobs.workers.read import ReadSettings, SandboxWork, prepared

RATE = 16_000
LEFT, RIGHT = tone(1, RATE)[0], noise(1, RATE)[0]


def wav(*channels: np.ndarray, format: str = "wav_float", rate: int = RATE) -> bytes:
    return encode(np.stack(channels), rate, format)


def recording(data: bytes, channels: Channels, **options: Any) -> list[dict[str, Any]]:
    return prepare_recording(io.BytesIO(data), [RATE], 60.0, channels=channels, **options)


# --- sound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["wav_float", "flac", "mp3"])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_each_channel_is_labelled_by_itself(format: str, rate: int) -> None:
    channels = (tone(1, rate)[0], tone(1, rate, hz=880)[0] / 4)
    rows = recording(wav(*channels, format=format, rate=rate), "each")
    assert [(row["channel"], row["channels"]) for row in rows] == [(1, 2), (2, 2)]
    for row, channel, hz in zip(rows, channels, (440, 880), strict=True):
        sound = row[f"sound_{RATE}"][:]
        middle = sound[RATE // 4 : 3 * RATE // 4]
        found = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle))))) * 2
        assert abs(found - hz) <= 2
        # The evidence is that of the channel alone.
        assert row["rms_dbfs"] == pytest.approx(10 * np.log10((channel**2).mean()), abs=0.2)
        assert row["duration_s"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("channels", "expected"), [(1, LEFT), (2, RIGHT), ("mean", None)])
def test_one_channel_is_labelled_or_the_mean(channels: Channels, expected: Any) -> None:
    mean = (LEFT + RIGHT) / 2
    row = prepare_clip(io.BytesIO(wav(LEFT, RIGHT)), [RATE], 60.0, channels=channels)
    wanted = mean if expected is None else expected
    np.testing.assert_allclose(row[f"sound_{RATE}"][:], wanted, atol=1e-6)
    assert row["channel"] == (None if expected is None else channels)
    assert row["peak_dbfs"] == pytest.approx(20 * np.log10(np.abs(wanted).max()), abs=1e-3)
    assert row["channels"] == 2


def test_a_channel_that_the_sound_lacks_is_an_error_of_its_row() -> None:
    with pytest.raises(ClipError, match=r"audio\.channels: expected channel 3, found 2 channels"):
        recording(wav(LEFT, RIGHT), 3)


def test_channels_that_cancel_each_other_are_labelled_each_without_a_word() -> None:
    data = wav(RIGHT, -RIGHT)
    rows = recording(data, "each")
    assert [row["sound_flags"] for row in rows] == [[], []]
    np.testing.assert_allclose(rows[1][f"sound_{RATE}"][:], -RIGHT)
    [mean] = recording(data, "mean")
    assert mean["sound_flags"] == ["channels_cancel"]
    np.testing.assert_allclose(np.abs(mean[f"sound_{RATE}"][:]), np.abs(RIGHT))
    assert mean["rms_dbfs"] == pytest.approx(rows[0]["rms_dbfs"], abs=0.01)


@pytest.mark.parametrize("channels", ["each", 1, 2])
def test_flags_are_of_the_channel_alone(channels: Channels) -> None:
    rows = recording(wav(np.zeros_like(LEFT), np.clip(LEFT * 5, -1, 1)), channels)
    expected = {1: ["silent_channel"], 2: ["clipped"]}
    assert {row["channel"]: row["sound_flags"] for row in rows} == (
        expected if channels == "each" else {channels: expected[channels]}  # type: ignore[index]
    )


def test_nan_in_a_channel_that_is_not_labelled_is_no_error() -> None:
    broken = LEFT.copy()
    broken[100] = np.nan
    data = wav(LEFT, broken)
    assert len(recording(data, 1)) == 1
    for channels in ("mean", "each", 2):
        with pytest.raises(ClipError, match="not_finite"):
            recording(data, channels)  # type: ignore[arg-type]


# --- plan ----------------------------------------------------------------------------------------


def folder(path: Path, **sounds: bytes) -> Input:
    path.mkdir(exist_ok=True)
    for name, data in sounds.items():
        one = path / f"{name}.wav"
        if not one.exists() or one.read_bytes() != data:
            one.write_bytes(data)
    return Input(path=str(path), format="files")


def tar(path: Path, **sounds: bytes) -> Input:
    with tarfile.open(path, "w") as archive:
        for name, data in sounds.items():
            header = tarfile.TarInfo(f"{name}.wav")
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return Input(path=str(path), format="webdataset")


class Memory:
    """A sandbox's shared memory, without the sandbox."""

    def working_on(self, clip_id: str, row: int) -> None: ...
    def waits(self) -> None:
        pass

    def decoded(self, seconds: float) -> None: ...


class Labels:
    """A table's rows, to which runs add theirs as a commit does."""

    def __init__(self, input: Input, channels: Channels = "each") -> None:
        self.input, self.channels = input, channels
        self.rows: dict[str, dict[str, Any]] = {}
        self.ends: list[dict[str, Any]] = []

    def committed(self, retry_errors: bool = False, fingerprint: str = "f") -> pa.Table:
        rows = [
            row | {"file": 0, "row": number, "due": ALL if is_due else 0}
            for number, row in enumerate(self.rows.values())
            for is_due in [
                row["fingerprint"] != fingerprint or (retry_errors and row["status"] != "ok")
            ]
        ]
        return pa.Table.from_pylist(rows, schema=COMMITTED)

    def plan(self, **options: Any) -> Plan:
        source = load_source(self.input.format)
        committed = in_memory(self.committed(**options))
        found = source.find(self.input, print)
        if source.SHARDED:
            return plan_shards(found, committed, {})
        return plan(found, committed, channels=self.channels)

    def run(
        self, *, but: tuple[str, ...] = (), fingerprint: str = "f", **options: Any
    ) -> list[str]:
        """The ids of the rows that were written; those of `but` (file:channel) are lost."""
        todo = self.plan(fingerprint=fingerprint, **options).todo
        todo = with_known(todo, self.committed(fingerprint=fingerprint, **options))
        audio = Audio(channels=self.channels)
        work = SandboxWork(without_kept(todo), ReadSettings(self.input, audio, (RATE,), "never"))
        tables = list(prepared(Memory(), work))  # type: ignore[arg-type]
        found = pa.concat_tables(tables).to_pylist() if tables else []
        self.ends = [row["shard_end"] for row in found if row["shard_end"]]
        found = [row for row in found if not row["shard_end"]]
        old = {id for row in found for id in row["supersedes"] or ()}
        old |= {id for end in self.ends for id in end["obsolete"]}
        self.rows = {id: row for id, row in self.rows.items() if id not in old}
        for row in found:
            name = Path(row["member"] or row["source"]).stem
            if f"{name}:{row['channel']}" in but:
                continue
            status = "error" if row["error_kind"] else "ok"
            row |= {"status": status, "fingerprint": fingerprint}
            assert row["clip_id"] not in self.rows
            names = [name for name in COMMITTED.names if name not in ("due", "file", "row")]
            self.rows[row["clip_id"]] = {n: row[n] for n in (*names, "fingerprint")}
        return [row["clip_id"] for row in found]

    def places(self) -> list[tuple[str, int | None, str]]:
        return sorted(
            (
                (Path(row["member"] or row["source"]).stem, row["channel"], row["status"])
                for row in self.rows.values()
            ),
            key=str,
        )


STEREO, MONO = wav(LEFT, RIGHT), wav(LEFT)


@pytest.mark.parametrize("pack", [folder, tar])
def test_each_channel_has_its_row_and_is_done_with_the_others(tmp_path: Path, pack: Any) -> None:
    labels = Labels(pack(tmp_path / "x", a=STEREO, b=MONO, c=b"no sound"))
    assert len(labels.run()) == 4
    whole = [("a", 1, "ok"), ("a", 2, "ok"), ("b", 1, "ok"), ("c", None, "error")]
    assert labels.places() == sorted(whole, key=str)
    for id, row in labels.rows.items():
        place = (row[n] for n in ("source", "member", "source_version", "offset_s"))
        assert id == clip_id(*place, row["channel"])
    assert labels.run() == []  # all is done
    if pack is folder:
        done = labels.plan()
        assert (done.found, done.done, done.failed_before, done.is_empty) == (4, 4, 1, True)
    # What a shard's reader reports when nothing is left of it.
    assert [(end["clips"], end["skipped"]) for end in labels.ends] == ([(4, 4)] * (pack is tar))


@pytest.mark.parametrize("pack", [folder, tar])
def test_a_recording_that_lacks_a_channel_is_labelled_again_whole(
    tmp_path: Path, pack: Any
) -> None:
    labels = Labels(pack(tmp_path / "x", a=STEREO, b=MONO))
    labels.run(but=("a:2",))
    assert labels.places() == [("a", 1, "ok"), ("b", 1, "ok")]
    assert len(labels.run()) == 2
    assert labels.places() == [("a", 1, "ok"), ("a", 2, "ok"), ("b", 1, "ok")]


@pytest.mark.parametrize("pack", [folder, tar])
def test_channels_of_a_recording_are_retried_together(tmp_path: Path, pack: Any) -> None:
    labels = Labels(pack(tmp_path / "x", a=STEREO, b=MONO, c=b"no sound"))
    labels.run()
    [second] = [row for row in labels.rows.values() if row["channel"] == 2]
    second["status"] = "error"
    assert labels.run() == []
    assert len(labels.run(retry_errors=True)) == 3  # both of a, and c
    assert ("a", 2, "ok") in labels.places() and len(labels.rows) == 4


@pytest.mark.parametrize("pack", [folder, tar])
@pytest.mark.parametrize(
    ("other", "channels"),
    [(wav(RIGHT), [1]), (wav(RIGHT, LEFT, RIGHT), [1, 2, 3]), (b"no longer a sound", [None])],
    ids=["mono", "three", "broken"],
)
def test_all_channels_of_a_changed_recording_are_replaced(
    tmp_path: Path, pack: Any, other: bytes, channels: list[int | None]
) -> None:
    labels = Labels(pack(tmp_path / "x", a=STEREO, b=MONO))
    labels.run()
    before = set(labels.rows)
    pack(tmp_path / "x", a=other, b=MONO)
    assert len(labels.run()) == len(channels)
    assert len(before & set(labels.rows)) == 1  # that of b
    assert [channel for name, channel, _ in labels.places() if name == "a"] == channels


@pytest.mark.parametrize("pack", [folder, tar])
@pytest.mark.parametrize(
    ("before", "after"), [("mean", "each"), ("each", "mean"), (1, "each"), ("each", 2), (1, 2)]
)
def test_another_choice_of_channels_replaces_the_rows_of_the_last(
    tmp_path: Path, pack: Any, before: Channels, after: Channels
) -> None:
    labels = Labels(pack(tmp_path / "x", a=STEREO), before)
    labels.run(fingerprint="before")
    labels.channels = after
    labels.run(fingerprint="after")
    channels = [channel for _, channel, _ in labels.places()]
    assert channels == {"mean": [None], "each": [1, 2]}.get(after, [after])  # type: ignore[call-overload]
    assert labels.run(fingerprint="after") == []


def test_the_rows_of_a_recording_that_vanished_stay(tmp_path: Path) -> None:
    labels = Labels(folder(tmp_path / "x", a=STEREO, b=MONO))
    labels.run()
    (tmp_path / "x/a.wav").unlink()
    found = labels.plan()
    assert (found.found, found.done, found.vanished, found.is_empty) == (1, 1, 2, True)


def test_a_shard_that_is_read_again_counts_what_was_delivered(tmp_path: Path) -> None:
    """As after the death of the process that read it."""
    labels = Labels(tar(tmp_path / "x.tar", a=STEREO, b=STEREO))
    todo = labels.plan().todo
    settings = ReadSettings(labels.input, Audio(channels="each"), (RATE,), "never")
    first = pa.concat_tables(prepared(Memory(), SandboxWork(todo, settings))).to_pylist()  # type: ignore[arg-type]
    delivered: dict[str, list[str]] = {}
    for row in first[:2]:
        delivered.setdefault(row["_recording"]["id"], []).append(row["clip_id"])
    work = SandboxWork(todo, settings, delivered)
    again = pa.concat_tables(prepared(Memory(), work)).to_pylist()  # type: ignore[arg-type]
    assert [row["clip_id"] for row in again[:-1]] == [row["clip_id"] for row in first[2:4]]
    assert again[-1]["shard_end"] == first[-1]["shard_end"]


# --- commits -------------------------------------------------------------------------------------


def file(name: str, *recordings: str | None) -> dict[str, Any]:
    """A data file with a row of each of these recordings, of two rows each."""
    rows = [recording and {"id": recording, "rows": 2} for recording in recordings]
    ids = [f"{name} {number}" for number in range(len(rows))]
    return {"path": name, "clip_ids": ids, "recordings": rows}


def test_files_wait_for_the_other_rows_of_their_recordings() -> None:
    whole = WholeRecordings()

    def ready(*arguments: Any) -> list[str]:
        whole.add(file(*arguments))
        return [one["path"] for one in whole.ready()]

    assert ready("plain") == ["plain"]
    assert ready("whole", "a", "a", None) == ["whole"]
    assert ready("one", "b", "b", "c") == []
    assert whole.missing == {"c"}
    assert ready("other", "d", "d") == ["other"]
    assert ready("two", "c", "e") == []  # c is whole now, but shares a file with e, which is not
    assert ready("three", "e") == ["one", "two", "three"]
    assert not whole.missing
