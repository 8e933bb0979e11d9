"""Each class of bad input has one outcome, by its name, in bounded memory, and costs nobody else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_audio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_audio import (
    MAX_CLIP_S,
    Packed,
    bounded_memory,
    good,
    manifests,
    outcome,
    parquets,
    sounds,
    tars,
)
from sounds import encode
from test_poison import rows

from audio_ops.flags import Damage
from audio_ops.prepare import prepare
from jobs.input import Input
from jobs.sources import PLACE, load_source


@pytest.mark.parametrize("name", sounds())
def test_a_bad_file_has_its_outcome(tmp_path: Path, name: str) -> None:
    """In memory, as a member of a tar is, and on a disk, whose files can't be sought in so far."""
    bad = sounds()[name]
    (tmp_path / "x.wav").write_bytes(bad.data)
    with bounded_memory(), (tmp_path / "x.wav").open("rb") as file:
        assert outcome(io.BytesIO(bad.data)) in bad.outcome.split("|")
        assert outcome(file) in bad.outcome.split("|")
        file.seek(0)
        assert outcome(file, Damage("error")) in (bad.strict or bad.outcome).split("|")


def outcomes(input: Input, keep: list[str]) -> list[str]:
    """Of every clip of a source, prepared as a run does it."""
    source = load_source(input.format)
    kept = source.columns(input, keep)
    walked = source.clips(source.find(input, lambda _: None, kept).clips, input, kept)
    tables = prepare(walked, pa.schema([*PLACE, *kept]), [16_000], MAX_CLIP_S)
    return [kind or "ok" for table in tables for kind in table["error_kind"].to_pylist()]


@pytest.mark.parametrize("packed", tars(), ids=lambda packed: packed.name)
def test_a_bad_tar_has_its_outcomes(tmp_path: Path, packed: Packed) -> None:
    (tmp_path / "x.tar").write_bytes(packed.data)
    input = Input(path=str(tmp_path), format="webdataset")
    with bounded_memory():
        assert outcomes(input, ["key", "json.x"]) == packed.outcomes


@pytest.mark.parametrize("packed", parquets(), ids=lambda packed: packed.name)
def test_a_bad_parquet_file_has_its_outcomes(tmp_path: Path, packed: Packed) -> None:
    (tmp_path / "0.parquet").write_bytes(bad_audio._parquet({"audio": [good()]}))
    (tmp_path / "x.parquet").write_bytes(packed.data)
    with bounded_memory():
        found = outcomes(Input(path=str(tmp_path), format="parquet"), [])
    assert found == ["ok", *packed.outcomes]


@pytest.mark.parametrize("packed", manifests(), ids=lambda packed: packed.name)
def test_a_bad_manifest_has_its_outcomes(tmp_path: Path, packed: Packed) -> None:
    (tmp_path / "good.wav").write_bytes(good())
    (tmp_path / packed.name).write_bytes(packed.data)
    keep = ["text"] if "surrogate" in packed.name else []
    with bounded_memory():
        found = outcomes(Input(path=str(tmp_path / packed.name), format="manifest"), keep)
    assert found == packed.outcomes


# --- bombs ---------------------------------------------------------------------------------------


def hour_of_silence(channels: int = 1, rate: int = 16_000) -> bytes:
    return encode(np.zeros((channels, 3600 * rate), np.float32), rate, "flac")


def without_length(flac: bytes) -> bytes:
    at = 8 + 13  # in STREAMINFO: 36 bits
    return flac[:at] + bytes([flac[at] & 0xF0]) + bytes(4) + flac[at + 5 :]


BOMBS: dict[str, Callable[[], bytes]] = {
    "an hour of silence": lambda: hour_of_silence(),
    "an hour of silence of no known length": lambda: without_length(hour_of_silence()),
    "2 channels of no known length": lambda: without_length(hour_of_silence(2, 8000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_of_much_sound_are_given_up(name: str) -> None:
    bomb = io.BytesIO(BOMBS[name]())
    with bounded_memory():
        assert outcome(bomb) == "too_long"


def test_a_sound_has_an_end_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audio_ops.decode.sound.MAX_SAMPLES", 44_100)
    assert outcome(io.BytesIO(good(0.5))) == "ok"
    assert (
        outcome(io.BytesIO(encode(np.zeros((2, 30_000), np.float32), 44_100, "wav"))) == "too_large"
    )


def test_a_file_of_holes_is_not_read_into_memory(tmp_path: Path) -> None:
    """A WAV of 3 GB that takes no space on disk."""
    size = 3 << 30
    with (tmp_path / "x.wav").open("wb") as file:
        header = bytearray(good(0.5)[:44])
        header[40:44] = (size - 44).to_bytes(4, "little")
        file.write(header)
        file.truncate(size)
    with bounded_memory(), (tmp_path / "x.wav").open("rb") as file:
        assert outcome(file) == "too_long"


def test_a_packed_clip_may_be_as_large_as_the_config_says(tmp_path: Path) -> None:
    wav = good(0.5)
    for name, data in {
        "x.tar": bad_audio._tar([("a.wav", wav), ("b.wav", wav)]),
        "x.parquet": bad_audio._parquet({"audio": [wav]}),
    }.items():
        (tmp_path / name).write_bytes(data)
        format = {"x.tar": "webdataset", "x.parquet": "parquet"}[name]
        for limit, expected in ((len(wav), {"ok"}), (len(wav) - 1, {"too_large"})):
            path = str(tmp_path / name)
            assert (
                set(outcomes(Input(path=path, format=format, max_clip_bytes=limit), [])) == expected
            )


# --- a whole run ---------------------------------------------------------------------------------


NAME = "{:03}\x1b[2J\n\u202e.wav"  # on a terminal it would erase the screen, and turn its end round


def pack_files(folder: Path) -> str:
    for number, bad in enumerate(sounds().values()):
        (folder / NAME.format(number)).write_bytes(bad.data)
    return "files"


def pack_tar(folder: Path) -> str:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number, bad in enumerate(sounds().values()):
            header = tarfile.TarInfo(NAME.format(number))
            header.size = len(bad.data)
            tar.addfile(header, io.BytesIO(bad.data))
    return "webdataset"


def pack_parquet(folder: Path) -> str:
    table = pa.table({"audio": [bad.data for bad in sounds().values()]})
    pq.write_table(table, folder / "x.parquet", row_group_size=50)
    return "parquet"


def assert_outcomes(rows: list[dict[str, Any]], one_sample: str) -> None:
    """Each clip of `sounds()` has its row, and in that what is to become of it."""
    found = {int((row["member"] or Path(row["source"]).name)[:3]): row for row in rows}
    assert sorted(found) == list(range(len(sounds()))) and len(rows) == len(found)
    for number, (name, bad) in enumerate(sounds().items()):
        expected = one_sample if name == "one sample" else bad.outcome
        assert (found[number]["error_kind"] or "ok") in expected.split("|"), name


@pytest.mark.parametrize("pack", [pack_files, pack_tar, pack_parquet])
def test_every_bad_clip_of_a_packaging_has_its_row(
    tmp_path: Path, pack: Callable[[Path], str]
) -> None:
    found = rows(Input(path=str(tmp_path), format=pack(tmp_path)))
    assert_outcomes([row for row in found if row["shard_end"] is None], "ok")


# --- mutants -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "count"),
    [(0, 400), pytest.param(1_000_000, 10_000, marks=pytest.mark.chaos)],
)
def test_a_mutant_raises_nothing_but_its_error(seed: int, count: int) -> None:
    done = subprocess.run(
        [sys.executable, bad_audio.__file__, str(seed), str(count)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, (said[-1:], done.stderr[-2000:])
    found = json.loads(said[-1])
    assert sum(found.values()) == count
    assert min(found["ok"], found["damaged"], found["truncated"]) > count / 50  # not all alike
