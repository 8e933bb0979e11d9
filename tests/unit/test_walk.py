"""What a path names, what is passed over, and when there is nothing to label."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from runs import Job
from test_sources import SOUNDS, found, sounds, walk, write_lines, write_parquet, write_tar

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.sources import MISSING, load_source
from jobs.sources._braces import expand_braces

ODD = ["take [3]", "50%41", "a#b", "what?", "st*r", "{a,b}", "n_OP_0..1_CL_", "x::y", "c?sig=d"]


def names(path: str | Path, root: Path, **options: Any) -> list[str]:
    """The files of `format: files` below a root."""
    listed = found(Input(path=str(path), format="files", **options))["source"].to_pylist()
    return [source.removeprefix(f"{root}/") for source in listed]


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(SOUNDS[0])


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_exists_is_that_name(tmp_path: Path, name: str) -> None:
    tmp_path = tmp_path / "root" / "in"
    put(tmp_path, f"{name}/a.wav", f"{name}/b.wav", f"{name}.wav")
    put(
        tmp_path,
        "take 3/no.wav",
        "50A/no.wav",
        "whatx/no.wav",
        "star/no.wav",
        "a/no.wav",
        "b/no.wav",
    )
    both = [f"{name}/a.wav", f"{name}/b.wav"]
    assert names(tmp_path / name, tmp_path) == both
    assert names(tmp_path / name / "*.wav", tmp_path) == both
    assert names(f"{tmp_path}/{name}.wav", tmp_path) == [f"{name}.wav"]
    assert names(f"{tmp_path.parent}/*/{name}/a.wav", tmp_path) == [f"{name}/a.wav"]
    assert names(f"file://{tmp_path}/{name}/a.wav", tmp_path) == [f"{name}/a.wav"]
    manifest = write_lines(tmp_path / "a.jsonl", [json.dumps({"path": f"{name}/a.wav"})])
    assert sounds(walk(Input(path=str(manifest), format="manifest"))) == [0]


def test_globs_name_what_they_match(tmp_path: Path) -> None:
    put(tmp_path, "2024-01/a.wav", "2024-02/deep/b.wav", "x.wav", ".hidden/c.wav", "2024-01/n.txt")
    every = ["2024-01/a.wav", "2024-02/deep/b.wav"]
    assert names(f"{tmp_path}/2024-*", tmp_path) == every
    assert names(f"{tmp_path}/2024-0[12]", tmp_path) == every
    assert names(f"{tmp_path}/*", tmp_path) == [*every, "x.wav"]
    assert names(f"{tmp_path}/**/*.wav", tmp_path) == [*every, "x.wav"]
    assert names(f"{tmp_path}/**/deep", tmp_path) == [every[1]]
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*/none\*\.wav"):
        names(f"{tmp_path}/none*.wav", tmp_path)


@pytest.mark.parametrize("batch", [100, 150, 1 << 16])
def test_of_a_large_folder_every_file_is_found_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("jobs.sources._walk.TUPLES_AT_ONCE", 50)
    monkeypatch.setattr("jobs.sources._walk.FILES_AT_ONCE", batch)
    for folder in ("a", "a/b", "a-b"):
        for number in range(100):
            put(tmp_path, f"{folder}/{number}.wav")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "gone.wav").symlink_to(tmp_path / "nothing")
    opened = len(os.listdir("/proc/self/fd"))
    listed = found(Input(path=str(tmp_path), format="files"))
    assert len(os.listdir("/proc/self/fd")) == opened
    sources = listed["source"].to_pylist()
    assert sources == sorted(map(str, tmp_path.rglob("*.wav"))) and len(sources) == 301
    for source, version in zip(sources, listed["source_version"].to_pylist(), strict=True):
        if source.endswith("gone.wav"):
            assert version == MISSING
        else:
            status = os.stat(source)
            assert version == f"{status.st_size}-{status.st_mtime_ns}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s-{000000..000002}.tar", ["s-000000.tar", "s-000001.tar", "s-000002.tar"]),
        ("s_OP_8..11_CL_.tar", ["s8.tar", "s9.tar", "s10.tar", "s11.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{a,{1..3..2}}", ["a", "1", "3"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{08..10}", ["08", "09", "10"]),
        ("x{y}z", ["x{y}z"]),
        ("{a,b}", ["a", "b"]),
        ("{x,}", ["x", ""]),
    ],
)
def test_braces_are_ranges_and_lists(path: str, expected: list[str]) -> None:
    assert expand_braces(path) == expected


def test_braces_are_those_of_webdataset() -> None:
    from braceexpand import braceexpand

    for path in ("s-{000000..000012}.tar", "{a,b}-{9..11}.tar", "p{00..4..2}", "q{c,d{1..2}}"):
        assert expand_braces(path) == list(braceexpand(path))


def test_a_range_of_names_wants_all_of_them(tmp_path: Path) -> None:
    for n in range(3):
        write_tar(tmp_path / f"shard-{n:06}.tar", [(f"{n}.wav", SOUNDS[n])])
    tars = f"{tmp_path}/shard-{{000000..000002}}.tar"
    assert sounds(walk(Input(path=tars, format="webdataset"))) == [0, 1, 2]
    nemo = f"{tmp_path}/shard-00000_OP_1..2_CL_.tar"
    assert sounds(walk(Input(path=nemo, format="webdataset"))) == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"shard-000003\.tar nor at 1 more"):
        walk(Input(path=tars.replace("2}", "4}"), format="webdataset"))
    with pytest.raises(ValueError, match="names"):
        walk(Input(path=f"{tmp_path}/{{0..99999999999}}.tar", format="webdataset"))


@pytest.mark.parametrize("format", ["files", "webdataset", "parquet", "manifest", "auto"])
def test_files_that_are_passed_over_are_counted(
    tmp_path: Path, classifier: Path, format: str
) -> None:
    """Two kinds of files that nothing reads, in a folder with one that is read or with none."""
    job = Job(tmp_path, classifier)
    put(job.audio, "a.TXT", "deep/b.txt", "c.xyz", ".hidden.txt", "none")
    job.write(input={"path": str(job.audio), "format": format})
    empty = job.run(summary_file=str(tmp_path / "s.json"))
    assert empty.code == 2 and "2 .txt, 1 .xyz, 1 no extension" in empty.text
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["passed_over"] == {".txt": 2, ".xyz": 1, "no extension": 1}
    assert not job.table.exists()
    kind = "files" if format == "auto" else format
    write = {
        "files": lambda: put(job.audio, "a.wav"),
        "webdataset": lambda: write_tar(job.audio / "a.tar", [("a.wav", SOUNDS[0])]),
        "parquet": lambda: write_parquet(job.audio / "a.parquet", pa.table({"audio": SOUNDS[:1]})),
        "manifest": lambda: write_lines(job.audio / "a.jsonl", ['{"path": "none"}']),
    }[kind]
    write()
    source = load_source(kind)
    input = Input(path=str(job.audio), format=kind)
    assert source.find(input, print).passed_over == summary["passed_over"]


EMPTY: dict[str, Any] = {
    "an empty folder": lambda folder: folder,
    "a tar without members": lambda folder: write_tar(folder / "a.tar", []),
    "a tar without audio": lambda folder: write_tar(
        folder / "a.tar", [("1.npy", b"x"), ("1.label", b"1"), ("2.NPY", b"y")]
    ),
    "an empty list": lambda folder: write_lines(folder / "a.csv", ["path,text"]),
    "Parquet without rows": lambda folder: write_parquet(
        folder / "a.parquet", pa.table({"audio": pa.array([], pa.binary())})
    ),
    "save_to_disk": lambda folder: saved_to_disk(folder),
    "a dictionary of splits": lambda folder: saved_to_disk(folder, "train", "test"),
}
SEEN = {
    "a tar without audio": "2 .npy, 1 .label",
    "save_to_disk": "to_parquet",
    "a dictionary of splits": "to_parquet",
}


def saved_to_disk(folder: Path, *splits: str) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"text": ["x", "y"]})
    saved = DatasetDict(dict.fromkeys(splits, data)) if splits else data
    saved.save_to_disk(str(folder / "saved"))


@pytest.mark.parametrize("what", EMPTY)
def test_nothing_to_label_in_what_is_there_is_a_mistake(
    tmp_path: Path, classifier: Path, what: str
) -> None:
    job = Job(tmp_path, classifier)
    EMPTY[what](job.audio)
    result = job.run()
    assert result.code == 2 and "input.path: expected clips" in result.text, result.text
    assert SEEN.get(what, "found ") in result.text and "nothing to do" not in result.text
    assert not job.table.exists()


def test_sound_of_a_saved_dataset_gets_into_parquet_as_the_message_says(tmp_path: Path) -> None:
    import datasets

    put(tmp_path, "a.wav")
    data = datasets.Dataset.from_dict({"audio": [str(tmp_path / "a.wav")]})
    data = data.cast_column("audio", datasets.Audio(decode=False))
    data.save_to_disk(str(tmp_path / "saved"))
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    loaded.to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "a.wav").rename(tmp_path / "away.wav")
    assert sounds(walk(Input(path=str(tmp_path / "a.parquet"), format="parquet"))) == [0]


def test_a_tar_without_audio_among_others_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.wav", SOUNDS[1])])
    write_tar(tmp_path / "b.tar", [("1.npy", b"x")])
    walked = walk(Input(path=str(tmp_path), format="webdataset"))
    assert sounds(walked) == [1, "no_audio"]
    error = walked[1][1]
    assert isinstance(error, ClipError) and "1 .npy" in error.message


def test_members_with_compound_extensions_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    members = [("S/V0.wav.data", SOUNDS[0]), ("S/V0.wav.label", b"1"), ("S/V1.WAV.bin", SOUNDS[1])]
    members += [
        ("S/V2.wav", SOUNDS[2]),
        ("S/V2.wav.json", b'{"x": 2}'),
        ("S/V3.sound.raw", SOUNDS[3]),
    ]
    write_tar(tmp_path / "a.tar", members)
    input = Input(path=str(tmp_path), format="webdataset")
    walked = walk(input, ["json.x"])
    assert [row["member"] for row, _ in walked] == ["S/V0.wav.data", "S/V1.WAV.bin", "S/V2.wav"]
    assert sounds(walked) == [0, 1, 2] and walked[2][0]["json.x"] == "2"
    passed_over = Counter[str]()
    source = load_source("webdataset")
    assert len(list(source.clips(found(input), input, pa.schema([]), passed_over))) == 3
    assert passed_over == {".label": 1, ".raw": 1}
    own = Input(path=str(tmp_path), format="webdataset", extensions=["sound.raw"])
    assert sounds(walk(own)) == ["no_audio", 3]  # the first for V2.wav.json
