"""Inputs as other tools and people leave them: lists, tars, Parquet files."""

from __future__ import annotations

import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_sources import (  # noqa: F401
    SOUNDS,
    manifest,
    recordings,
    settled,
    sounds,
    walk,
    write_lines,
    write_parquet,
    write_tar,
)

from audio_ops.errors import ClipError
from jobs.config import ConfigError
from jobs.input import Input
from jobs.sources import BadInput, load_source
from jobs.sources import manifest as manifest_source
from jobs.sources._walk import Search, find_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9\n"


def error_of(walked: list[Any], number: int = 0) -> str:
    error = walked[number][1]
    assert isinstance(error, ClipError)
    return error.message


# --- lists ------------------------------------------------------------------------------------------


def test_a_text_of_paths_alone_wants_the_name_of_its_column(
    recordings: Path, classifier: Path
) -> None:
    path = write_lines(recordings / "all.txt", ["clips/0.wav", "clips/1.wav"])
    with pytest.raises(ConfigError, match=r"input\.columns\.names"):
        settled(recordings, classifier, input={"path": str(path)})
    names = {"path": str(path), "columns": {"names": ["path"]}}
    config, _, _ = settled(recordings, classifier, input=names)
    assert config.input.format == "manifest" and sounds(walk(config.input)) == [0, 1]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.zst", "a.csv.zst"])
def test_lists_in_zstd_are_lists(recordings: Path, classifier: Path, name: str) -> None:
    text = "path\nclips/0.wav\n" if ".csv" in name else '{"path": "clips/0.wav"}\n'
    with pa.CompressedOutputStream(str(recordings / name), "zstd") as file:
        file.write(text.encode())
    config, _, _ = settled(recordings, classifier, input={"path": str(recordings / name)})
    assert config.input.format == "manifest" and sounds(walk(config.input)) == [0]


def test_empty_columns_behind_the_others_may_be_several(recordings: Path) -> None:
    path = write_lines(recordings / "a.csv", ["path;text;;", "clips/0.wav;x;;"])
    assert walk(manifest(path), ["text"])[0][0]["text"] == "x"


def test_parts_that_are_not_named_are_told_of(recordings: Path) -> None:
    lines = ["path,start,end", "clips/0.wav,0,1", "clips/0.wav,1,2"]
    told: list[str] = []
    path = write_lines(recordings / "a.csv", lines)
    manifest_source.find(manifest(path), told.append)
    assert len(told) == 1 and "if end, start delimit a part of the file" in told[0], told
    manifest_source.find(manifest(path, columns={"offset": "start"}), told.append)
    assert len(told) == 1


@pytest.mark.parametrize("key", ["offset", "duration"])
def test_a_column_of_parts_that_no_list_has_is_refused(recordings: Path, key: str) -> None:
    write_lines(recordings / "a.jsonl", ['{"path": "clips/0.wav"}', '{"path": "clips/1.wav"}'])
    write_lines(recordings / "b.csv", ["path,begin", "clips/2.wav,0.1"])
    lists = [str(recordings / name) for name in ("a.jsonl", "b.csv")]
    columns = {key: "begin"}
    found = manifest_source.find(Input(path=lists, format="manifest", columns=columns), print)
    assert len(found.clips) == 3
    with pytest.raises(BadInput, match=rf"columns\.{key}: .* \(path\), found 'begin'"):
        manifest_source.find(Input(path=lists[0], format="manifest", columns=columns), print)


def test_a_list_of_which_no_file_exists_names_the_folder_to_set(recordings: Path) -> None:
    path = write_lines(recordings / "a.csv", ["path", "x/0.wav", "x/1.wav"])
    told: list[str] = []
    manifest_source.find(manifest(path), told.append)
    assert len(told) == 1 and "none of the 2 files" in told[0] and "audio_root" in told[0]
    manifest_source.find(manifest(path, audio_root=str(recordings / "clips")), told.append)
    write_lines(path, ["path", "x/0.wav", "clips/1.wav"])
    manifest_source.find(manifest(path), told.append)
    assert len(told) == 2  # not of the last one


def test_a_name_in_another_unicode_form_is_told_of(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Zoë.wav") for form in ("NFC", "NFD"))
    (tmp_path / apart).write_bytes(SOUNDS[0])
    path = write_lines(tmp_path / "a.csv", ["path", composed, "none.wav"])
    walked = walk(manifest(path))
    assert "NFC" in error_of(walked) and "NFC" not in error_of(walked, 1)
    with pytest.raises(FileNotFoundError, match="NFC"):
        find_files([str(tmp_path / composed)], Search((), {}, print))


def test_a_path_that_is_no_path_takes_no_room(recordings: Path) -> None:
    path = write_lines(recordings / "a.csv", ["path", "x" * 100_000, "clips/0.wav"])
    walked = walk(manifest(path))
    assert len(error_of(walked)) < 300 and len(walked[0][0]["source"]) < 300


def test_what_is_in_place_of_a_path_is_named(recordings: Path) -> None:
    lines = ['{"path": {"0": "clips/0.wav"}}', '{"audio_filepath": ["x"]}', '{"path": "", "x": 1}']
    path = write_lines(recordings / "a.jsonl", [*lines, '{"path": "clips/0.wav"}'])
    walked = walk(manifest(path))
    ends = ["path: dict", "audio_filepath: list", "path: an empty text, x"]
    for number, end in enumerate(ends):
        assert error_of(walked, number).endswith(f"found {end}")


# --- packagings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.zip", "a.tar.bz2", "a.csv.xz", "data-0.arrow", "a.lance"])
def test_a_named_file_that_nothing_reads_is_refused(
    tmp_path: Path, classifier: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match=rf"input\.path.*{name}.*not read.*(unpack|Parquet)"):
        settled(tmp_path, classifier, input={"path": str(tmp_path / name)})


def test_links_and_sparse_files_in_tars_say_what_packs_them(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(SOUNDS[0])
    (tmp_path / "b.wav").hardlink_to(tmp_path / "a.wav")
    with (tmp_path / "c.wav").open("wb") as file:
        file.write(SOUNDS[1])
        file.truncate(1 << 22)
    command = ["tar", "-cSf", "x.tar", "a.wav", "b.wav", "c.wav"]
    subprocess.run(command, cwd=tmp_path, check=True)
    walked = walk(Input(path=str(tmp_path / "x.tar"), format="webdataset"))
    assert sounds(walked) == [0, "unreadable", "unreadable"]
    assert "a link to a.wav: `tar --dereference" in error_of(walked, 1)
    assert "a sparse file: `tar` without --sparse" in error_of(walked, 2)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    kind = "parquet" if name.endswith("parquet") else "webdataset"
    walked = walk(Input(path=str(tmp_path / name), format=kind))
    assert "git lfs pull" in error_of(walked)


def test_a_list_that_is_a_pointer_of_git_lfs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(POINTER)
    with pytest.raises(FileNotFoundError, match="git lfs pull"):
        walk(manifest(tmp_path / "a.csv"))


def test_a_parquet_file_without_rows_says_nothing_of_the_others(tmp_path: Path) -> None:
    """As pandas writes the table of a day without clips: without types."""
    write_parquet(tmp_path / "0.parquet", pa.table({"audio": pa.nulls(0), "text": pa.nulls(0)}))
    write_parquet(tmp_path / "1.parquet", pa.table({"audio": SOUNDS[:1], "text": ["x"]}))
    walked = walk(Input(path=str(tmp_path), format="parquet"), ["text"])
    assert sounds(walked) == [0] and walked[0][0]["text"] == "x"


def test_a_column_that_only_later_files_have_is_kept(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", pa.table({"audio": SOUNDS[:1]}))
    write_parquet(tmp_path / "1.parquet", pa.table({"audio": SOUNDS[1:2], "n": [7]}))
    input = Input(path=str(tmp_path), format="parquet")
    assert [row["n"] for row, _ in walk(input, ["n"])] == [None, 7]
    assert load_source("parquet").columns(input, ["n"]) == pa.schema([("n", pa.int64())])


def test_the_parquet_file_without_sound_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "0.parquet", pa.table({"x": [1]}))
    with pytest.raises(BadInput, match=rf"input\.columns\.audio.*among x in {path}"):
        load_source("parquet").columns(Input(path=str(tmp_path), format="parquet"), [])


def test_a_column_of_a_type_that_no_table_has_is_refused(tmp_path: Path) -> None:
    columns = {
        "took": pa.array([1], pa.duration("s")),
        "within": pa.array([[1]], pa.list_(pa.duration("s"))),
        "price": pa.array([None], pa.decimal64(10, 2)),
        "counts": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.uint8())),
    }
    write_parquet(tmp_path / "0.parquet", pa.table({"audio": SOUNDS[:1], **columns}))
    input = Input(path=str(tmp_path), format="parquet")
    for name in ("took", "within"):
        with pytest.raises(BadInput, match=rf"output\.keep: expected .*'{name}': .*duration"):
            load_source("parquet").columns(input, [name])
    kept = load_source("parquet").columns(input, ["price", "counts"])
    assert kept.types == [pa.decimal128(10, 2), pa.map_(pa.string(), pa.int64())]
    assert walk(input, ["price", "counts"])[0][0]["counts"] == [("a", 1)]
