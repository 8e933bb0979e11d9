"""Exports with sound, on a real Ray: read back by each format's own library, killed, and run again."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import exports
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml
from exports import RATE, samples_of
from runs import ROOT, command
from s3 import KEY, S3, SECRET, s3  # noqa: F401  # the fixture
from tables import existing

from jobs.cli import run
from jobs.export.formats._fields import one_line
from jobs.table.table import Table

STEP = 1.01 / 32768  # of 16 bits
PAD_S = 0.05


class Read(NamedTuple):
    """An exported clip, as another library reads it."""

    text: str
    samples: np.ndarray
    rate: int


class World(NamedTuple):
    """The input and a table of its clips."""

    folder: Path
    inputs: Mapping[str, Any]
    table: Table

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.table.dataset().to_table().to_pylist()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    inputs = exports.pack(folder / "in")
    return World(folder, inputs, exports.make(folder, inputs))


def export(world: World, out: Path, format: str, *more: str) -> int:
    table = str(world.folder / "table")
    return run(["export", table, str(out), "--as", format, "--task", "t", *more])


def decoded(content: bytes | str | Path) -> tuple[np.ndarray, int]:
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def from_webdataset(out: Path) -> Iterator[Read]:
    import webdataset

    tars = sorted(map(str, out.glob("*.tar")))
    assert len(tars) > 1
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        about = json.loads(sample["json"])
        assert about["text"] == sample["txt"].decode() and len(str(about["score"])) <= 4
        assert about["reference"].startswith("reference ") and "t_suspect" in about
        [sound] = [sample[name] for name in ("flac", "wav") if name in sample]
        yield Read(about["text"], *decoded(sound))


def from_datasets(out: Path) -> Iterator[Read]:
    import datasets

    data = datasets.load_dataset(str(out), cache_dir=f"{out}-cache")["train"]
    assert isinstance(data.features["audio"], datasets.Audio)
    for row in data.cast_column("audio", datasets.Audio(decode=False)):
        assert row["reference"].startswith("reference ") and row["labelled_at"].year > 2000
        assert row["t_suspect"] in ([], ["repeats"]) and row["score"] is not None
        sound = row["audio"]["bytes"] or Path(row["audio"]["path"])
        yield Read(row["text"], *decoded(sound))


def from_audiofolder(out: Path) -> Iterator[Read]:
    """`datasets` finds the files; decoding them takes torchcodec, even to build the set."""
    import datasets

    builder = datasets.load_dataset_builder(str(out), cache_dir=f"{out}-cache")
    assert "AudioFolder" in {base.__name__ for base in type(builder).__mro__}
    found = {Path(str(path)).name for path in builder.config.data_files["train"]}
    for entry in lines(out / "metadata.jsonl"):
        assert {"metadata.jsonl", Path(entry["file_name"]).name} <= found
        yield Read(entry["text"], *decoded(out / entry["file_name"]))


def from_shar(out: Path) -> Iterator[Read]:
    from lhotse import CutSet

    yield from _from_cuts(CutSet.from_shar(in_dir=out / "all"))


def from_lhotse(out: Path) -> Iterator[Read]:
    from lhotse import CutSet, validate

    cuts = CutSet.from_file(out / "cuts.jsonl.gz")
    validate(cuts)
    yield from _from_cuts(cuts)


def _from_cuts(cuts: Any) -> Iterator[Read]:
    for cut in cuts:
        [supervision] = cut.supervisions
        assert supervision.duration == cut.duration
        sound = cut.load_audio().mean(axis=0)
        assert len(sound) == cut.num_samples
        yield Read(supervision.text, sound, cut.sampling_rate)


def from_nemo(out: Path) -> Iterator[Read]:
    """As `nemo.collections` reads it: a line of JSON for each, paths relative to the manifest."""
    for entry in lines(out / "manifest.json"):
        samples, rate = decoded(out / entry["audio_filepath"])
        assert entry["duration"] == pytest.approx(len(samples) / rate, abs=1e-5)
        yield Read(entry["text"], samples, rate)


def from_nemo_tarred(out: Path) -> Iterator[Read]:
    """Members of `audio_N.tar` by name, with the entries of the same `shard_id`."""
    entries = {
        (e["shard_id"], e["audio_filepath"]): e for e in lines(out / "tarred_audio_manifest.json")
    }
    for path in out.glob("audio_*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                number = int(path.stem.rpartition("_")[2])
                content = archive.extractfile(member).read()  # type: ignore[union-attr]
                yield Read(entries.pop((number, member.name))["text"], *decoded(content))
    assert not entries


def from_kaldi(out: Path) -> Iterator[Read]:
    """By the data folder's documentation: fields end at white space, lists are sorted by bytes."""
    tables = {}
    for name in ("wav.scp", "text", "utt2spk", "utt2dur", "spk2utt"):
        content = (out / name).read_bytes()
        keys = [line.split(b" ", 1)[0] for line in content.splitlines()]
        assert keys == sorted(set(keys)), name
        rows = (line.partition(" ")[::2] for line in content.decode().split("\n")[:-1])
        tables[name] = dict(rows)
    speakers = [tables["utt2spk"][key] for key in tables["text"]]
    assert speakers == sorted(speakers, key=str.encode)
    for speaker, utterances in tables["spk2utt"].items():
        assert all(tables["utt2spk"][key] == speaker for key in utterances.split())
    assert tables["wav.scp"].keys() == tables["text"].keys() == tables["utt2dur"].keys()
    for key, path in tables["wav.scp"].items():
        yield Read(tables["text"][key], *decoded(path))


def from_table(out: Path, name: str) -> Iterator[Read]:
    import pandas as pd

    quoting = {"quoting": 3} if name.endswith("tsv") else {}
    table = pd.read_table(
        out / name, sep="\t" if quoting else ",", keep_default_na=False, dtype=str, **quoting
    )
    for _, row in table.iterrows():
        yield Read(row["text"], *decoded(out / row["path"]))


READERS = {
    "audiofolder": from_audiofolder,
    "csv": partial(from_table, name="clips.csv"),
    "datasets": from_datasets,
    "kaldi": from_kaldi,
    "lhotse": from_lhotse,
    "lhotse-shar": from_shar,
    "nemo": from_nemo,
    "nemo-tarred": from_nemo_tarred,
    "tsv": partial(from_table, name="clips.tsv"),
    "webdataset": from_webdataset,
}
ONE_LINE = ("kaldi", "tsv")  # formats in which white space is a single space


def expected(world: World, format: str, *, cut: bool) -> dict[str, np.ndarray]:
    """The sound of each text of an export of the whole table, computed from the table's rows."""
    found = {}
    for row in world.rows:
        sound = samples_of(row)
        parts = [(row["t_text"], sound)]
        if cut:
            parts = []
            for segment in row["t_segments"]:
                start = max(0.0, segment["start_s"] - PAD_S)
                end = min(row["duration_s"], segment["end_s"] + PAD_S)
                parts.append((segment["text"], sound[round(start * RATE) : round(end * RATE)]))
        for text, samples in parts:
            found[one_line(text) if format in ONE_LINE else text] = samples
    return found


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("format", READERS)
def test_each_format_is_read_by_its_own_library(
    tmp_path: Path, local_ray: None, world: World, format: str, cut: bool
) -> None:
    audio = "wav" if format == "kaldi" else "flac" if cut else "copy"
    more = ["--cut", "segments", "--pad-s", str(PAD_S)] if cut else []
    if format == "kaldi":
        more += ["--speaker", "speaker"]
    more += ["--columns", "text=reference,labelled_at", "--columns", "t_suspect"]
    out = tmp_path / "out"
    assert export(world, out, format, "--audio", audio, "--shard-clips", "7", *more) == 0
    wanted = expected(world, format, cut=cut)
    found = list(READERS[format](out))
    assert sorted(one.text for one in found) == sorted(wanted)
    for one in found:
        assert one.rate == RATE and len(one.samples) == len(wanted[one.text]), one.text
        assert np.abs(one.samples - wanted[one.text]).max() <= 2 * STEP, one.text
    assert not list(tmp_path.glob("*.unfinished")) and not list(out.rglob("records"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("format", ["datasets", "lhotse-shar", "webdataset"])
def test_whole_files_and_members_are_copied_as_they_are_and_stretches_are_flac(
    tmp_path: Path, local_ray: None, world: World, format: str
) -> None:
    assert export(world, tmp_path / "out", format, "--audio", "copy") == 0
    stored = b"".join(tree(tmp_path / "out").values())
    if format == "datasets":
        import pyarrow.parquet as pq

        cells = pq.read_table(tmp_path / "out" / "data")["audio"].to_pylist()
        stored = b"".join(cell["bytes"] for cell in cells)
        names = {Path(cell["path"]).suffix for cell in cells}
        assert names == {".wav", ".flac"}  # and none for what lies in Parquet
    for name in ("plain.wav", "flat.flac", 'a "b", c.wav', "x.ark:12"):
        assert (world.folder / "in" / "files" / name).read_bytes() in stored, name
    assert (world.folder / "in" / "list" / "long.wav").read_bytes() not in stored


def test_the_same_table_and_options_give_the_same_bytes(
    tmp_path: Path, local_ray: None, world: World
) -> None:
    for format in ("nemo-tarred", "lhotse-shar", "datasets"):
        for out in ("a", "b"):
            more = ("--split", "train=0.6,dev=0.4", "--shard-clips", "3", "--audio", "flac")
            assert export(world, tmp_path / f"{out}-{format}", format, *more) == 0
            time.sleep(1.1 if out == "a" and format == "nemo-tarred" else 0)  # times are of seconds
        assert tree(tmp_path / f"a-{format}") == tree(tmp_path / f"b-{format}")


def test_what_cannot_be_read_any_more_is_counted_named_and_left_out(
    tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = exports.pack(tmp_path / "in")
    world = World(tmp_path, inputs, exports.make(tmp_path, inputs))
    files = tmp_path / "in" / "files"
    (files / "plain.wav").unlink()
    (files / "flat.flac").write_bytes(exports.sounding(1.0, 999, "flac"))
    tar = tmp_path / "in" / "tar" / "0.tar"
    with tarfile.open(tar) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    del members["deep/m 0.flac"]
    members["deep/m 1.flac"] = exports.sounding(0.6, 777, "flac")
    exports.write_tar(tar, list(members.items()))
    capfd.readouterr()
    assert export(world, tmp_path / "out", "webdataset", "--audio", "flac") == 3
    printed = capfd.readouterr().out
    assert "4 × unreadable, e.g. " in printed and "19 selected = 15 exported + 4 failed" in printed
    assert "exit code 3" in printed
    failed = {
        e["source"] + e.get("member", ""): e for e in lines(tmp_path / "out/.earmark/failed.jsonl")
    }
    reasons = {name.rpartition("/")[2]: entry["message"] for name, entry in failed.items()}
    assert "is gone" in reasons["plain.wav"] and "has changed" in reasons["flat.flac"]
    assert "no such member" in reasons["m 0.flac"] and "has changed" in reasons["m 1.flac"]
    texts = {one.text for one in from_webdataset_of_one(tmp_path / "out")}
    assert len(texts) == 15


def from_webdataset_of_one(out: Path) -> Iterator[Read]:
    import webdataset

    for sample in webdataset.WebDataset([str(out / "000000.tar")], shardshuffle=False):
        yield Read(sample["txt"].decode(), *decoded(sample["flac"]))


# What `input.path` names below a part, and the column with the text.
RUNNABLE = {
    "audiofolder": ("", "text"),
    "csv": ("clips.csv", "text"),
    "datasets": ("", "text"),
    "kaldi": ("wav.scp", "text"),
    "lhotse": ("cuts.jsonl.gz", "text"),
    "lhotse-shar": ("", "text"),
    "nemo": ("manifest.json", "text"),
    "nemo-tarred": ("", "text"),
    "tsv": ("clips.tsv", "text"),
    "webdataset": ("", "txt"),
}


@pytest.mark.parametrize("format", RUNNABLE)
def test_a_run_finds_what_an_export_has_written(
    tmp_path: Path, local_ray: None, world: World, format: str
) -> None:
    """By `format: auto`, with each clip's text; split, as people train on it."""
    from jobs.input import Input
    from jobs.sources._auto import recognise

    audio = "wav" if format == "kaldi" else "flac"
    out = tmp_path / "out"
    assert export(world, out, format, "--audio", audio, "--split", "a=0.5,b=0.5") == 0
    name, column = RUNNABLE[format]
    if format == "datasets":
        given = {"path": str(out)}
    else:
        given = {"path": [str(out / part / name) for part in ("a", "b")]}
    input, _ = recognise(Input(**given), str(tmp_path / "labels"))
    found = exports.found_clips(input.model_dump(exclude_defaults=True), keep=[column])
    assert all(row["error_kind"] is None for row in found)
    wanted = expected(world, format, cut=False)
    texts = sorted(row[column] or "" for row in found)
    strip = str.strip if format == "webdataset" else str
    assert texts == sorted(map(strip, wanted))


def test_an_export_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, local_ray: None, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """A driver on a cluster, killed when some of its shards are there; a reader has seen none of it."""
    import ray

    more = ["--as", "webdataset", "--task", "t", "--shard-clips", "1", "--audio", "flac"]
    out, table = tmp_path / "killed", world.folder / "table"
    process = subprocess.Popen(
        command("export", table, out, *more),
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.DEVNULL,
    )
    records = Path(f"{out}.unfinished/.earmark/records")
    until = time.monotonic() + 120
    while not (records.is_dir() and len(list(records.glob("*.parquet"))) >= 2):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = sorted(path.stem for path in records.glob("[!.]*.parquet"))
    assert not out.exists() and 2 <= len(done) < 19
    unfinished = Path(f"{out}.unfinished")
    (unfinished / f"{int(done[0]):06d}.tar").write_bytes(b"not written again")
    (unfinished / "000018.tar").write_bytes(b"half")
    capfd.readouterr()
    assert run(["export", str(table), str(out), *more]) == 0
    assert "is continued" in capfd.readouterr().out
    assert run(["export", str(table), str(tmp_path / "whole"), *more]) == 0
    continued, whole = tree(out), tree(tmp_path / "whole")
    assert continued.pop(f"{int(done[0]):06d}.tar") == b"not written again"
    assert continued == {name: whole[name] for name in continued} and len(whole) == 21
    assert run(["export", str(table), str(tmp_path / "whole"), *more]) == 0
    assert "nothing to do" in capfd.readouterr().out


def test_an_export_from_a_store_to_a_store_is_there_as_a_whole(
    tmp_path: Path, local_ray: None, s3: S3, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files, a tar and the table lie on S3; the store's copies end with what names the others."""
    s3.bucket("exports")
    fs = s3.files()
    exports.pack(tmp_path / "in")
    for name in ("files/plain.wav", "files/ünï 中.wav", "tar/0.tar"):
        fs.put_file(str(tmp_path / "in" / name), f"exports/in/{name}")
    where = {"storage_options": s3.resolved}
    inputs = {
        "a": {"path": "s3://exports/in/files", "format": "files", **where},
        "b": {"path": "s3://exports/in/tar", "format": "webdataset", **where},
    }
    exports.make("s3://exports", inputs, s3.resolved)
    options = ["endpoint_url=" + s3.endpoint, f"key={KEY}", f"secret={SECRET}"]
    given = [part for option in options for part in ("--storage-option", option)]
    out = "s3://exports/deep/out"
    command = ["export", "s3://exports/table", out, "--as", "nemo-tarred", "--task", "t", *given]
    more = ["--audio", "flac", "--shard-clips", "2"]
    assert run([*command, *more]) == 0, capfd.readouterr().out
    assert not fs.exists("exports/deep/out.unfinished")
    fs.get("exports/deep/out", str(tmp_path / "out"), recursive=True)
    found = sorted(one.text for one in from_nemo_tarred(tmp_path / "out"))
    assert found == sorted(exports.text_of(n) for n in range(5))
    puts = [request.path for request in s3.asked("/exports/deep/out/", "PUT")]
    assert puts[-1].endswith(".earmark/export.json") and "manifest.json" in puts[-2]
    assert len([path for path in puts if path.endswith(".tar")]) == 3
    assert run([*command, *more]) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert run([*command, "--audio", "wav"]) == 2
    linked = [*command[:2], "s3://exports/linked", "--as", "lhotse", *command[5:]]
    assert run([*linked, "--where", "member IS NULL"]) == 0


def test_the_runs_config_says_which_column_has_the_sound(
    tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    columns = {
        name: [{"bytes": exports.sounding(0.5, hz), "path": "x.wav"}]
        for name, hz in (("near", 300), ("far", 500))
    }
    exports.write_parquet(tmp_path / "in" / "0.parquet", pa.table(columns), rows=1)
    given = {"path": str(tmp_path / "in"), "format": "parquet", "columns": {"audio": "far"}}
    exports.make(tmp_path, {"parquet": given})
    world = World(tmp_path, {}, existing(tmp_path / "table"))
    assert export(world, tmp_path / "out", "nemo", "--audio", "wav") == 2
    assert "× unreadable" in capfd.readouterr().out and not (tmp_path / "out").exists()
    config = tmp_path / "run.yaml"
    tasks = {"t": {"task": exports.ASR, "model": "x"}}
    config.write_text(yaml.safe_dump({"input": given, "tasks": tasks, "output": {"path": "x"}}))
    more = ("--audio", "wav", "--config", str(config))
    assert export(world, tmp_path / "out", "nemo", *more) == 0
    [one] = from_nemo(tmp_path / "out")
    far, _ = decoded(columns["far"][0]["bytes"])
    assert np.array_equal(one.samples, far)


def test_a_signal_stops_an_export_and_leaves_nothing_running(
    tmp_path: Path, local_ray: None, world: World
) -> None:
    """The signal comes when the first shard is there; the same command then makes the rest."""
    records = tmp_path / "out.unfinished" / ".earmark" / "records"

    def stop() -> None:
        while not list(records.glob("*.parquet")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    more = ("--audio", "flac", "--shard-clips", "1")
    threading.Thread(target=stop, daemon=True).start()
    assert export(world, tmp_path / "out", "webdataset", *more) == 128 + signal.SIGTERM
    assert not (tmp_path / "out").exists()
    assert export(world, tmp_path / "out", "webdataset", *more) == 0
    assert len(list((tmp_path / "out").glob("*.tar"))) == 19
