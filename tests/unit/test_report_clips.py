"""`earmark report` reads a table's clips again: those of every packaging, as they were labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from poison import poisoned, wav
from s3 import S3, s3  # noqa: F401  # the fixture
from sounds import encode, tone
from test_evaluate import SETTINGS, clip, make
from test_packagings import BUILD, TEXTS, rows_of_the_page
from test_sources import SOUNDS, settled, write_tar

from audio_ops.errors import ClipError
from audio_ops.schemas import Channels
from audio_ops.signal.waveforms import waveforms_of
from jobs.config import Audio
from jobs.input import Input
from jobs.planning.committed import NOTHING_COMMITTED
from jobs.planning.plan import plan
from jobs.planning.shards import plan_shards
from jobs.reports.page.clips import RATE, read_clips
from jobs.reports.page.media import WIDTH, spectrogram_picture, wave_picture, write_media
from jobs.reports.summary import packaging
from jobs.sources import NO_COLUMNS, load_source
from jobs.table.table import Table
from jobs.workers.read import ReadSettings, read


def labelled(
    folder: Path | str,
    input: Input,
    kept: pa.Schema = NO_COLUMNS,
    channels: Channels = "mean",
    **audio_keys: Any,
) -> tuple[Table, dict[str, Any]]:
    """A table of an input's clips, and the sound of each that a model got, or None, by clip_id."""
    source = load_source(input.format)
    found = source.find(input, print, kept)
    todo = (
        plan_shards(found, NOTHING_COMMITTED, {})
        if source.SHARDED
        else plan(found, NOTHING_COMMITTED, channels=channels)
    ).todo
    audio = Audio(channels=channels, max_clip_s=5.0, **audio_keys)
    tables = list(read(todo, ReadSettings(input, audio, (RATE,), "never", kept)))
    rows = pa.concat_tables(tables)
    sounds = [None if s is None else s[:] for s in waveforms_of(rows[f"sound_{RATE}"])]
    names = [n for n in rows.column_names if n not in (f"sound_{RATE}", "speech", "shard_end")]
    clips = [
        (row, sound)
        for row, sound in zip(rows.select(names).to_pylist(), sounds, strict=True)
        if row["clip_id"]
    ]
    settings = {**SETTINGS, "keep": kept.names, "audio": {"channels": channels, **audio_keys}}
    rows_of_clips = [row for row, _ in clips]
    options = input.storage_options
    table = make(folder, rows_of_clips, options=options, kept=kept, settings=settings)
    table.storage.write("_runs/run.json", json.dumps({"input": packaging(input)}).encode())
    return table, {row["clip_id"]: sound for row, sound in clips}


def rows_of(table: Table) -> list[dict[str, Any]]:
    return table.dataset().to_table().to_pylist()


def heard(table: Table, seconds: float = 60.0) -> dict[str, Any]:
    found = list(read_clips(table, rows_of(table), seconds))
    assert len({one.clip_id for one in found}) == len(found)
    return dict(found)


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for clip_id, sound in wanted.items():
        if sound is None:
            assert isinstance(found[clip_id], ClipError)
        else:
            assert np.array_equal(found[clip_id], sound)


@pytest.mark.parametrize("name", BUILD)
def test_a_clip_of_each_packaging_is_read_again(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By what the run's summary says of the packaging, and without one by the files' names."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    BUILD[name]()
    input, _, column = rows_of_the_page()[name]
    if root := input.get("audio_root"):
        input = {**input, "audio_root": str(Path(root).absolute())}
    config, kept, _ = settled(
        tmp_path, classifier, input=input, output={"path": str(tmp_path / "o"), "keep": [column]}
    )
    table, wanted = labelled(tmp_path, config.input, kept)
    assert len(wanted) == len(TEXTS) and all(sound is not None for sound in wanted.values())
    monkeypatch.chdir(tmp_path)
    assert_same(heard(table), wanted)
    Path(table.path, "_runs", "run.json").unlink()
    if root:  # nothing else says what the paths in it are relative to
        wanted = dict.fromkeys(wanted)
    assert_same(heard(table), wanted)


def stereo(folder: Path) -> Input:
    data = encode(np.stack([tone(1.0)[0], tone(1.0, hz=880)[0] / 4]), 16_000, "wav")
    if folder.name == "tar":
        write_tar(folder / "a.tar", [("0.wav", data), ("1.wav", SOUNDS[0])])
        return Input(path=str(folder), format="webdataset")
    (folder / "0.wav").write_bytes(data)
    return Input(path=str(folder), format="files")


@pytest.mark.parametrize("packaging", ["files", "tar"])
@pytest.mark.parametrize("channels", ["mean", "each", 2])
def test_the_channel_that_was_labelled_is_read_again(
    tmp_path: Path, packaging: str, channels: Channels
) -> None:
    (tmp_path / packaging).mkdir()
    table, wanted = labelled(tmp_path, stereo(tmp_path / packaging), channels=channels)
    assert_same(heard(table), wanted)


def test_sound_without_a_header_is_read_again_as_it_was_declared(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ulaw", tone(0.5, 8_000)[0], 8_000, "ULAW", format="RAW")
    raw = {"extensions": ["ulaw"], "encoding": "mulaw", "sample_rate": 8_000, "channels": 1}
    input = Input(path=str(tmp_path / "a.ulaw"), format="files")
    table, wanted = labelled(tmp_path, input, raw=[raw])
    assert [len(sound) for sound in wanted.values()] == [RATE // 2]
    assert_same(heard(table), wanted)


@pytest.mark.parametrize("name", ["a.wav", "a.tar"])
def test_clips_and_tables_may_lie_on_a_store(tmp_path: Path, s3: S3, name: str) -> None:
    bucket = f"report-{name[2:]}"
    s3.bucket(bucket)
    content = (
        SOUNDS[0]
        if name == "a.wav"
        else write_tar(tmp_path / name, [("0.wav", SOUNDS[0])]).read_bytes()
    )
    s3.files().pipe_file(f"{bucket}/{name}", content)
    format = "files" if name == "a.wav" else "webdataset"
    input = Input(path=f"s3://{bucket}/{name}", format=format, storage_options=s3.resolved)
    table, wanted = labelled(f"s3://{bucket}", input)
    assert_same(heard(table), wanted)


def test_an_input_that_does_not_answer_costs_the_report_its_sound_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**clip(0), "source": "nostore://bucket/a.tar", "member": "0.wav"},
        {**clip(1), "source": "nostore://bucket/a.wav"},
    ]
    found = heard(make(tmp_path, rows))
    assert all("nostore" in str(sound) for sound in found.values())


def by_name(table: Table, found: dict[str, Any]) -> dict[str, Any]:
    names = {row["clip_id"]: row["member"] or Path(row["source"]).name for row in rows_of(table)}
    return {names[clip_id]: sound for clip_id, sound in found.items()}


def test_a_clip_that_cannot_be_read_says_why_and_takes_no_other_with_it(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    for name in ("good.wav", "gone.wav", "other.wav"):
        (audio / name).write_bytes(SOUNDS[0])
    (audio / "text.wav").write_text("no sound at all\n" * 20)
    soundfile.write(audio / "long.wav", np.tile(tone(1.0)[0], 7), 16_000)
    table, _ = labelled(tmp_path, Input(path=str(audio), format="files"))
    (audio / "gone.wav").unlink()
    (audio / "other.wav").write_bytes(SOUNDS[1] + b"\0\0")
    found = by_name(table, heard(table, 6.0))
    assert len(found["good.wav"]) == 0.3 * RATE
    assert "is gone" in str(found["gone.wav"]) and "has changed" in str(found["other.wav"])
    assert str(found["text.wav"]).startswith("not_audio: ")
    assert len(found["long.wav"]) == 6 * RATE  # too long to be labelled, and played all the same


def test_a_member_of_a_tar_that_has_changed_or_gone_says_so(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, [(f"{n}.wav", SOUNDS[n]) for n in range(3)])
    table, wanted = labelled(tmp_path, Input(path=str(tar), format="webdataset"))
    write_tar(tar, [("0.wav", SOUNDS[0]), ("1.wav", SOUNDS[2]), ("9.wav", SOUNDS[1])])
    found = by_name(table, heard(table))
    assert np.array_equal(found["0.wav"], by_name(table, wanted)["0.wav"])
    assert "has changed since" in str(found["1.wav"])
    assert "not found" in str(found["2.wav"])
    tar.unlink()
    assert {str(sound) for sound in heard(table).values()} == {"unreadable: there is no such file"}


def test_a_clip_that_kills_or_blocks_its_reader_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    for name, harm in {"a.wav": "", "b.wav": "segfault", "c.wav": "loop", "d.wav": ""}.items():
        (audio / name).write_bytes(wav(0.2, harm=harm))
    table, wanted = labelled(tmp_path, Input(path=str(audio), format="files"))
    monkeypatch.setattr("jobs.workers.sandbox._idle", [])
    monkeypatch.setattr("jobs.reports.page.clips.TIMEOUT_S", 5.0)
    monkeypatch.setenv("PYTHONPATH", str(poisoned(tmp_path / "site")), prepend=":")
    found, wanted = by_name(table, heard(table)), by_name(table, wanted)
    assert str(found["b.wav"]).startswith("crashed: ")
    assert str(found["c.wav"]).startswith("timeout: ")
    assert all(np.array_equal(found[name], wanted[name]) for name in ("a.wav", "d.wav"))


def test_only_the_first_seconds_of_a_clip_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(tone(3.0), 16_000, "wav"))
    table, wanted = labelled(tmp_path, Input(path=str(tmp_path / "a.wav"), format="files"))
    [(clip_id, sound)] = heard(table, 1.0).items()
    assert len(sound) == RATE and np.allclose(sound[: RATE // 2], wanted[clip_id][: RATE // 2])


def test_files_are_as_long_as_the_sound_and_pictures_show_it(tmp_path: Path) -> None:
    silence = np.zeros(RATE, np.float32)
    sound = np.concatenate([silence, tone(1.0, RATE, hz=1000)[0], silence]).astype(np.float32)
    media = write_media(tmp_path, "x", sound, 16_000)
    read_again, rate = soundfile.read(tmp_path / media.sound)
    assert media.seconds == 3.0 and len(read_again) / rate == 3.0
    middle = read_again[int(1.2 * rate) : int(1.8 * rate)]
    assert np.argmax(np.abs(np.fft.rfft(middle))) / 0.6 == pytest.approx(1000, abs=5)
    heights = (wave_picture(sound) == 0).sum(0)
    assert heights[: WIDTH // 4].max() <= 3 and heights[int(0.4 * WIDTH) : WIDTH // 2].min() > 80
    picture = spectrogram_picture(sound, 8000.0)
    assert picture[:, : WIDTH // 4].min() > 200 and picture[:, WIDTH // 2].min() < 30
    assert (tmp_path / media.wave).stat().st_size < 5000
    assert (tmp_path / media.spectrogram).read_bytes()[8:12] == b"WEBP"


@pytest.mark.parametrize("samples", [1, 10, 500])
def test_the_shortest_and_loudest_sounds_have_files(tmp_path: Path, samples: int) -> None:
    media = write_media(tmp_path, "x", np.full(samples, 3.0, np.float32), 8_000)
    assert soundfile.info(tmp_path / media.sound).duration == pytest.approx(
        samples / RATE, abs=1e-4
    )
