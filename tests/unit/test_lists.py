"""Lists of audio files as people have them: encodings, delimiters, headers, roots, links."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from runs import Job
from test_sources import (  # noqa: F401
    SOUNDS,
    manifest,
    recordings,
    settled,
    sounds,
    walk,
    write_lines,
    write_parquet,
)

from audio_ops.errors import ClipError
from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.input import Input
from jobs.sources import BadInput

TEXT = "Übung in Zürich"
ROWS = [("clips/0.wav", TEXT), ("clips/1.wav", "naïve"), ("clips/2.wav", "plain")]


def table(delimiter: str = ",", header: str | None = "path,text") -> str:
    lines = [*([header.replace(",", delimiter)] if header else ())]
    lines += [delimiter.join(row) for row in ROWS]
    return "\n".join(lines) + "\n"


def texts(input: Input) -> list[Any]:
    walked = walk(input, ["text"])
    assert sounds(walked) == [0, 1, 2]
    return [row["text"] for row, _ in walked]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_gives_a_column_of_paths(
    recordings: Path, name: str, delimiter: str
) -> None:
    data = table(delimiter).encode()
    (recordings / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    root = {"audio_root": str(recordings)}
    assert texts(manifest(recordings / name, **root)) == [text for _, text in ROWS]
    data = table(delimiter, "Datei,text").encode()
    (recordings / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    named = manifest(recordings / name, columns={"audio": "Datei"}, **root)
    assert texts(named) == [text for _, text in ROWS]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_text_is_read_in_its_encoding_or_the_encoding_is_asked_for(
    recordings: Path, classifier: Path, name: str, encoding: str
) -> None:
    entries = [{"path": path, "text": text} for path, text in ROWS]
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    text = "".join(lines) if name.endswith("jsonl") else table("\t" if name == "a.tsv" else ",")
    path = recordings / name
    path.write_bytes(text.encode(encoding))
    has_mark = encoding in ("utf-8-sig", "utf-16")
    own = {"audio_root": str(recordings)} | ({} if has_mark else {"encoding": encoding})
    assert texts(manifest(path, **own)) == [text for _, text in ROWS]
    job = Job(recordings / "job", classifier, input={"path": str(path)})
    result = job.run(f"input.audio_root={recordings}", "output.keep=[text]", "max_error_fraction=2")
    assert result.code == 2  # for the last override: nothing is run here
    if not has_mark:
        result = job.run(f"input.audio_root={recordings}")
        assert result.code == 2 and "input.encoding" in result.text, result.text
        assert str(path) in result.text and not job.table.exists()


def test_a_stray_byte_costs_its_line_alone(recordings: Path) -> None:
    lines = [f"clips/{n % 5}.wav,{n}," for n in range(150)]
    path = write_lines(recordings / "a.csv", ["path,offset,text", *lines])
    path.write_bytes(path.read_bytes().replace(b",77,", b",77,\xff"))
    walked = walk(manifest(path))
    assert [type(sound) for _, sound in walked].count(ClipError) == 1 and len(walked) == 150


BAD = {
    "no column of paths": ("a.csv", "name,text\nx,y\n", r"input\.columns\.audio.*name,text"),
    "no header": ("a.csv", "clips/0.wav,x\nclips/1.wav,y\n", r"input\.columns\.names"),
    "no header, tabs": ("a.tsv", "clips/0.wav\tx\n", r"input\.columns\.names"),
    "another delimiter": ("a.csv", "path:text\nclips/0.wav:x\n", r"input\.delimiter"),
    "a column twice": ("a.csv", "path,text,path\nclips/0.wav,x,y\n", "'path' twice"),
    "JSON without paths": (
        "a.jsonl",
        '{"text": "x"}\n{"text": "y"}\n',
        "expected a path in audio_",
    ),
    "no JSON": ("a.jsonl", "path,text\nclips/0.wav,x\n", "line 1: expected a whole JSON object"),
    "JSON of lists": ("a.jsonl", '["clips/0.wav", "x"]\n', r"JSON object, found (list|str)"),
    "broken JSON array": ("a.json", '[{"path": "clips/0.wav"},\n', "expected JSON"),
    "members of tars": (
        "a.json",
        '{"audio_filepath": "0.wav", "shard_id": 0}\n',
        r"input\.manifest",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_metadata_never_becomes_rows(recordings: Path, classifier: Path, kind: str) -> None:
    name, text, message = BAD[kind]
    (recordings / name).write_text(text)
    input = {"path": str(recordings / name), "format": "manifest"}
    job = Job(recordings / "job", classifier, input=input)
    result = job.run()
    assert result.code == 2 and str(recordings / name) in result.text, result.text
    with pytest.raises(BadInput, match=message):
        walk(manifest(recordings / name))
    assert not job.table.exists()


def test_a_json_object_in_several_lines_is_told_of_by_its_first(recordings: Path) -> None:
    text = json.dumps({"0": {"path": "clips/0.wav"}}, indent=2)
    (recordings / "a.json").write_text(text)
    with pytest.raises(BadInput, match=r"line 1: expected a whole JSON object, found '{'"):
        walk(manifest(recordings / "a.json"))


def test_a_list_without_a_header_gets_names(recordings: Path) -> None:
    for delimiter in (",", "\t", "|"):
        (recordings / "a.csv").write_text(table(delimiter, None))
        named = manifest(recordings / "a.csv", columns={"names": ["path", "text"]})
        assert texts(named) == [text for _, text in ROWS]
    (recordings / "a.csv").write_text(table(":", None))
    named = manifest(
        recordings / "a.csv", columns={"names": ["x", "text"], "audio": "x"}, delimiter=":"
    )
    assert texts(named) == [text for _, text in ROWS]


@pytest.mark.parametrize("column", ["wav_filename", "filename", "wav_path", "Path", "AUDIO"])
def test_columns_of_paths_are_known_by_their_usual_names(recordings: Path, column: str) -> None:
    write_lines(recordings / "a.csv", [f"{column},text", *(",".join(row) for row in ROWS)])
    assert texts(manifest(recordings / "a.csv")) == [text for _, text in ROWS]
    lines = [json.dumps({column: path, "text": text}) for path, text in ROWS]
    assert texts(manifest(write_lines(recordings / "a.jsonl", lines))) == [text for _, text in ROWS]


@pytest.mark.parametrize("kind", ["lines", "array", "printed array", "misnamed array", "gzip"])
def test_a_json_file_of_objects_is_a_manifest_to_auto(
    recordings: Path, classifier: Path, kind: str
) -> None:
    """As NeMo writes it, or other tools: also with the path in a struct, as `datasets` has it."""
    entries = [{"audio_filepath": path, "text": text} for path, text in ROWS[:2]]
    entries += [{"audio": {"path": ROWS[2][0]}, "text": ROWS[2][1]}]  # type: ignore[dict-item]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    array = json.dumps(entries, indent=None if kind == "array" else 2)
    text = array if kind.endswith("array") else lines
    name = {"gzip": "dev.json.gz", "misnamed array": "dev.jsonl"}.get(kind, "dev.json")
    path = recordings / name
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode())
    config, _, _ = settled(recordings, classifier, input={"path": str(path)})
    assert config.input.format == "manifest"
    assert texts(config.input) == [text for _, text in ROWS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_file_with_a_column_of_paths_is_a_manifest_to_auto(
    recordings: Path, classifier: Path, encoding: str
) -> None:
    """A spreadsheet writes its "Unicode text" so. A text without one is no list."""
    path = recordings / "sheet.txt"
    path.write_bytes(table("\t").encode(encoding))
    config, _, _ = settled(recordings, classifier, input={"path": str(path)})
    assert config.input.format == "manifest"
    assert texts(config.input) == [text for _, text in ROWS]
    path.write_bytes("some words, and more".encode(encoding))
    config, _, _ = settled(recordings, classifier, input={"path": str(path)})
    assert config.input.format == "files"


# --- roots and links -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["manifest", "parquet"])
def test_audio_root_is_where_paths_begin_and_audio_allow_where_they_may_lead(
    tmp_path: Path, format: str
) -> None:
    for n, name in enumerate(["lists/0", "root/1", "more/2", "else/3"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.wav").write_bytes(SOUNDS[n])
    (tmp_path / "root/to_more.wav").symlink_to(tmp_path / "more/2.wav")
    (tmp_path / "more/to_root.wav").symlink_to(tmp_path / "root/1.wav")
    (tmp_path / "root/to_else.wav").symlink_to(tmp_path / "else/3.wav")
    absolute = [
        f"{tmp_path}/{name}.wav" for name in ("lists/0", "more/2", "more/to_root", "else/3")
    ]
    paths = ["1.wav", "to_more.wav", "to_else.wav", *absolute]
    if format == "manifest":
        path = write_lines(tmp_path / "lists/a.jsonl", [json.dumps({"path": p}) for p in paths])
    else:
        path = write_parquet(tmp_path / "lists/a.parquet", pa.table({"path": paths}))
    options: dict[str, Any] = {
        "path": str(path),
        "format": format,
        "audio_root": f"{tmp_path}/root",
    }
    no = "unreadable"
    assert sounds(walk(Input(**options))) == [1, no, no, 0, no, no, no]
    options["audio_allow"] = [f"{tmp_path}/more"]
    walked = walk(Input(**options))
    assert sounds(walked) == [1, 2, no, 0, 2, 1, no]
    assert "input.audio_allow" in str(walked[-1][1])
    del options["audio_root"]  # then they begin at the list's folder
    assert sounds(walk(Input(**options))) == [no, no, no, 0, 2, no, no]


def test_a_folder_that_is_allowed_is_no_url_with_a_secret(tmp_path: Path, classifier: Path) -> None:
    job = Job(tmp_path, classifier)
    job.write(input={"path": "x", "audio_allow": ["https://u:secret@host/x"]})
    with pytest.raises(ConfigError, match=r"input\.audio_allow: expected a URL without"):
        load_config(job.config)


@pytest.mark.parametrize("what", ["metadata.csv", "folder", "parquet"])
def test_links_within_a_hub_cache_are_followed(tmp_path: Path, classifier: Path, what: str) -> None:
    """Files of a snapshot are links to `blobs/`: those that lead elsewhere are refused."""
    repo = tmp_path / "hub" / "datasets--a--b"
    snapshot, blobs = repo / "snapshots" / "abc", repo / "blobs"
    (snapshot / "audio").mkdir(parents=True)
    blobs.mkdir()
    (tmp_path / "outside.wav").write_bytes(SOUNDS[4])
    (repo.parent / "datasets--c--d" / "blobs").mkdir(parents=True)
    (repo.parent / "datasets--c--d" / "blobs" / "x").write_bytes(SOUNDS[3])
    for n in range(2):
        (blobs / f"hash{n}").write_bytes(SOUNDS[n])
        (snapshot / "audio" / f"{n}.wav").symlink_to(f"../../../blobs/hash{n}")
    (snapshot / "audio" / "2.wav").symlink_to(tmp_path / "outside.wav")
    (snapshot / "audio" / "3.wav").symlink_to(repo.parent / "datasets--c--d" / "blobs" / "x")
    paths = [f"audio/{n}.wav" for n in range(4)]
    if what == "parquet":
        write_parquet(blobs / "table", pa.table({"audio": [{"path": path} for path in paths]}))
        (snapshot / "a.parquet").symlink_to("../../blobs/table")
    else:
        lines = ["file_name,transcription", *(f"{path},text {path}" for path in paths)]
        write_lines(blobs / "list", lines)
        (snapshot / "metadata.csv").symlink_to("../../blobs/list")
    name = {"folder": "", "parquet": "a.parquet"}.get(what, what)
    keep = [] if what == "parquet" else ["transcription"]
    output = {"path": str(tmp_path / "table"), "keep": keep}
    config, _, _ = settled(
        tmp_path, classifier, input={"path": str(snapshot / name)}, output=output
    )
    walked = walk(config.input, keep)
    no = [4, 3] if what == "folder" else ["unreadable"] * 2  # in a folder the links are the user's
    assert sounds(walked) == [0, 1, *no]
    assert all(row[name] for row, _ in walked for name in keep)
