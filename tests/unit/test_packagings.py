"""Each packaging on the page of inputs, as its own library writes it, read with the page's config."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml
from deltalake import DeltaTable, write_deltalake
from runs import ROOT
from test_sources import RATE, SOUNDS, settled, walk, write_lines, write_parquet, write_tar

from audio_ops.errors import ClipError
from audio_ops.prepare import prepare_clip
from jobs.input import Input
from jobs.sources import BadInput, NoSuchColumn, load_source, parquet

TEXTS = ["one", "zwölf", 'trois, "3"']
SAMPLES = [soundfile.read(io.BytesIO(sound), dtype="float32")[0] for sound in SOUNDS[:3]]


def wavs(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, sound in zip(names or ("0.wav", "1.wav", "2.wav"), SOUNDS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(sound)
    return sorted(str(path) for path in folder.rglob("*.wav"))


def json_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [json.dumps(entry, ensure_ascii=False) for entry in entries])


def build_files() -> None:
    wavs(Path("audio"))


def build_webdataset() -> None:
    import webdataset

    Path("shards").mkdir()
    with webdataset.ShardWriter("shards/train-%06d.tar", maxcount=2, verbose=0) as shards:
        for n, text in enumerate(TEXTS):
            shards.write({"__key__": f"s{n}", "wav": SOUNDS[n], "json": {"text": text}})


def build_nemo() -> None:
    wavs(Path("nemo/wavs"))
    json_lines(
        Path("nemo/dev.json"),
        [
            {"audio_filepath": f"wavs/{n}.wav", "duration": 0.3, "text": text}
            for n, text in enumerate(TEXTS)
        ],
    )


def build_nemo_tarred() -> None:
    Path("tarred").mkdir()
    write_tar(Path("tarred/audio_0.tar"), [("0.wav", SOUNDS[0]), ("1.wav", SOUNDS[1])])
    write_tar(Path("tarred/audio_1.tar"), [("2.wav", SOUNDS[2])])
    json_lines(
        Path("tarred/tarred_audio_manifest.json"),
        [
            {"audio_filepath": f"{n}.wav", "duration": 0.3, "text": text, "shard_id": n // 2}
            for n, text in enumerate(TEXTS)
        ],
    )


def build_csv() -> None:
    import csv

    wavs(Path("lists/clips"))
    with Path("lists/train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["wav_filename", "wav_filesize", "transcript"])
        writer.writerows((f"clips/{n}.wav", 1, text) for n, text in enumerate(TEXTS))


def build_no_header() -> None:
    wavs(Path("lists"))
    write_lines(Path("lists/train.txt"), [f"{n}.wav|{text}" for n, text in enumerate(TEXTS)])


def build_common_voice() -> None:
    wavs(Path("cv/de/clips"))
    rows = [f"id\t{n}.wav\t{text}\t2\t0" for n, text in enumerate(TEXTS)]
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes"
    write_lines(Path("cv/de/validated.tsv"), [header, *rows])


def build_ljspeech() -> None:
    wavs(Path("LJSpeech-1.1/wavs"), "LJ001-0001.wav", "LJ001-0002.wav", "LJ001-0003.wav")
    lines = [f"LJ001-000{n + 1}|{text}|{text.lower()}" for n, text in enumerate(TEXTS)]
    write_lines(Path("LJSpeech-1.1/metadata.csv"), lines)


def supervisions() -> Any:
    from lhotse import SupervisionSegment, SupervisionSet

    return SupervisionSet.from_segments(
        SupervisionSegment(
            id=f"utt{n}", recording_id=str(n), start=0.0, duration=0.3, text=text, speaker=f"ada{n}"
        )
        for n, text in enumerate(TEXTS)
    )


def recordings(folder: str) -> Any:
    from lhotse import Recording, RecordingSet

    return RecordingSet.from_recordings(map(Recording.from_file, wavs(Path(folder))))


def build_kaldi() -> None:
    from lhotse.kaldi import export_to_kaldi

    export_to_kaldi(
        recordings("corpus/wav").with_path_prefix(Path.cwd()), supervisions(), "data/train"
    )


def cuts(folder: str) -> Any:
    from lhotse import CutSet

    return CutSet.from_manifests(recordings=recordings(folder), supervisions=supervisions())


def build_lhotse() -> None:
    cuts("lhotse/wav").with_recording_path_prefix(Path.cwd()).to_file("lhotse/cuts.jsonl.gz")


def build_shar() -> None:
    Path("shar").mkdir()
    cuts("corpus").to_shar("shar", fields={"recording": "flac"}, shard_size=2)


def build_audiofolder() -> None:
    for n, split in enumerate(["train", "train", "valid"]):
        wavs(Path("set") / split, f"{n}.wav")
        (Path("set") / split / f"{n}.wav").write_bytes(SOUNDS[n])
    import pandas

    frame = pandas.DataFrame({"file_name": [f"{n}.wav" for n in range(3)], "transcription": TEXTS})
    frame[:2].to_csv("set/train/metadata.csv", index=False)
    frame[2:].to_json("set/valid/metadata.jsonl", orient="records", lines=True)


def dataset(decode: bool | None = True) -> Any:
    """With the sound as `datasets` has it (None: decoded samples)."""
    import datasets

    paths = wavs(Path("corpus"))
    if decode is None:
        audio: list[Any] = [
            {"array": samples, "path": path, "sampling_rate": RATE}
            for samples, path in zip(SAMPLES, paths, strict=True)
        ]
        return datasets.Dataset.from_dict({"audio": audio, "text": TEXTS})
    data = datasets.Dataset.from_dict({"audio": paths, "text": TEXTS})
    return data.cast_column("audio", datasets.Audio(decode=decode))


def build_parquet() -> None:
    import datasets

    Path("data").mkdir()
    dataset().save_to_disk("saved")  # which puts the sounds into the rows, as `push_to_hub` does
    datasets.load_from_disk("saved").to_parquet("data/train-00000-of-00001.parquet")
    for path in wavs(Path("corpus")):
        Path(path).unlink()


def build_parquet_paths() -> None:
    Path("data").mkdir()
    write_parquet(
        Path("data/train.parquet"),
        pa.table(
            {
                "audio": [{"path": os.path.relpath(p, ".")} for p in wavs(Path("corpus"))],
                "text": TEXTS,
            }
        ),
    )


def build_parquet_decoded() -> None:
    Path("data").mkdir()
    dataset(decode=None).to_parquet("data/train.parquet")


def build_delta() -> None:
    table = pa.table({"audio": SOUNDS[:3] + SOUNDS[:2], "text": [*TEXTS, "x", "y"]})
    write_deltalake("lake", table)
    DeltaTable("lake").delete("text in ('x', 'y')")


def build_hub_cache() -> None:
    """As `huggingface_hub` lays it out: a snapshot of links into `blobs/`."""
    repo = Path("hub/datasets--user--name")
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "0123"
    wavs(blobs, "a", "b", "c")
    write_lines(blobs / "d", ["file_name,text", *(f"audio/{n}.wav,t{n}" for n in range(3))])
    (snapshot / "audio").mkdir(parents=True)
    for n, name in enumerate("abc"):
        (snapshot / "audio" / f"{n}.wav").symlink_to(f"../../../blobs/{name}")
    (snapshot / "metadata.csv").symlink_to("../../blobs/d")


BUILD: dict[str, Callable[[], None]] = {
    "Audio files": build_files,
    "WebDataset": build_webdataset,
    "NeMo": build_nemo,
    "NeMo, tarred": build_nemo_tarred,
    "CSV, TSV": build_csv,
    "CSV without a header": build_no_header,
    "Common Voice": build_common_voice,
    "LJSpeech": build_ljspeech,
    "Kaldi": build_kaldi,
    "Lhotse, cuts or recordings": build_lhotse,
    "Lhotse, Shar": build_shar,
    "Hugging Face, AudioFolder": build_audiofolder,
    "Hugging Face, Parquet with sound": build_parquet,
    "Hugging Face, Parquet with paths": build_parquet_paths,
    "Hugging Face, Parquet with samples": build_parquet_decoded,
    "Hugging Face, cache of the hub": build_hub_cache,
    "Delta Lake": build_delta,
}


def rows_of_the_page() -> dict[str, tuple[dict[str, Any], str, str]]:
    """By packaging: its config, the format that `auto` chooses, a column of text."""
    page = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    section = page.partition("## Packagings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `(\{[^|]+\})` \| `(\w+)` \| `([\w.]+)`", section, re.M)
    return {name: (yaml.safe_load(input), format, column) for name, input, format, column in rows}


def samples(walked: list[tuple[dict[str, Any], Any]]) -> list[Any]:
    """The sounds' numbers by their samples (Shar holds them as FLAC), or the kind of each error."""
    numbers: list[Any] = []
    for row, sound in walked:
        if isinstance(sound, ClipError):
            numbers.append(sound.kind)
            continue
        stretch = (row["offset_s"], row["duration_s"]) if "duration_s" in row else None
        own = prepare_clip(io.BytesIO(sound), [RATE], 10.0, stretch)[f"sound_{RATE}"][:]
        near = [len(own) == len(other) and np.abs(own - other).max() < 1e-3 for other in SAMPLES]
        numbers.append(near.index(True))
    return numbers


def test_every_packaging_has_a_row_and_a_fixture() -> None:
    page = rows_of_the_page()
    assert page.keys() - {"Hugging Face, dataset by name"} == BUILD.keys()


@pytest.mark.parametrize("name", BUILD)
def test_the_config_on_the_page_reads_the_packaging(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(data)
    BUILD[name]()
    input, format, column = rows_of_the_page()[name]
    config, _, _ = settled(
        tmp_path, classifier, input=input, output={"path": str(tmp_path / "o"), "keep": [column]}
    )
    assert config.input.format == format
    walked = walk(config.input, [column])
    assert samples(walked) == [0, 1, 2]
    texts = [row[column] for row, _ in walked]
    own = {
        "Audio files": ["0.wav", "1.wav", "2.wav"],
        "Hugging Face, cache of the hub": ["t0", "t1", "t2"],
    }
    assert texts == own.get(name, TEXTS)
    assert [row["source"].startswith("/") for row, _ in walked] == [True] * 3


# --- Arrow's types -------------------------------------------------------------------------------

SOUND_TYPES: dict[str, pa.DataType] = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
}
TEXT_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}


def typed(values: list[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type_):
        return pa.array(values, type_.value_type).dictionary_encode()
    return pa.array(values, type_)


@pytest.mark.parametrize("text", TEXT_TYPES)
@pytest.mark.parametrize("sound", [*SOUND_TYPES, "struct"])
def test_views_and_large_types_are_read_like_the_others(
    tmp_path: Path, sound: str, text: str
) -> None:
    columns = {"text": typed(TEXTS, TEXT_TYPES[text])}
    if sound == "struct":
        fields = [("bytes", pa.binary_view()), ("path", pa.string_view())]
        rows = [{"bytes": sound, "path": "x"} for sound in SOUNDS[:3]]
        columns["audio"] = pa.array(rows, pa.struct(fields))
    else:
        columns["audio"] = typed(SOUNDS[:3], SOUND_TYPES[sound])
    write_parquet(tmp_path / "a.parquet", pa.table(columns))
    walked = walk(Input(path=str(tmp_path), format="parquet"), ["text"])
    assert samples(walked) == [0, 1, 2]
    assert [row["text"] for row, _ in walked] == TEXTS


@pytest.mark.parametrize("text", TEXT_TYPES)
@pytest.mark.parametrize("fields", [None, ["path"], ["path", "bytes"]])
def test_paths_of_every_type_of_text_are_followed(
    tmp_path: Path, text: str, fields: list[str] | None
) -> None:
    paths = typed([Path(path).name for path in wavs(tmp_path)], TEXT_TYPES[text])
    column = paths
    if fields:
        column = pa.StructArray.from_arrays([paths, pa.nulls(3)][: len(fields)], fields)
    write_parquet(tmp_path / "a.parquet", pa.table({"audio": column, "n": [0, 1, 2]}))
    assert samples(walk(Input(path=str(tmp_path / "a.parquet"), format="parquet"))) == [0, 1, 2]


NESTED = {
    "list_view": pa.list_view(pa.string_view()),
    "large_list": pa.large_list(pa.large_string()),
    "large_list_view": pa.large_list_view(pa.string()),
    "struct": pa.struct([("x", pa.string_view()), ("y", pa.list_view(pa.int8()))]),
    "map": pa.map_(pa.string_view(), pa.binary_view()),
}


@pytest.mark.parametrize("kind", NESTED)
def test_nested_columns_of_every_type_are_kept(tmp_path: Path, kind: str) -> None:
    value: Any = {"struct": {"x": "a", "y": [1]}, "map": [("k", b"v")]}.get(kind, ["a", "b"])
    column = pa.array([value, None], NESTED[kind])
    write_parquet(tmp_path / "a.parquet", pa.table({"audio": SOUNDS[:2], "kept": column}))
    input = Input(path=str(tmp_path), format="parquet")
    assert [row["kept"] for row, _ in walk(input, ["kept"])] == [value, None]
    type_ = str(parquet.columns(input, ["kept"]))
    assert "view" not in type_ and "large" not in type_


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int16", "int32"])
@pytest.mark.parametrize("channels", [0, 1, 2])
def test_samples_in_a_column_are_sound(tmp_path: Path, dtype: str, channels: int) -> None:
    scale = {"int16": 1 << 15, "int32": 1 << 31}.get(dtype, 1)
    own = (SAMPLES[0].astype(np.float64) * scale).astype(dtype)
    array = [own] * channels if channels else own
    kind = pa.list_(pa.from_numpy_dtype(own.dtype))
    fields = [("array", pa.list_(kind) if channels else kind), ("sampling_rate", pa.int64())]
    rows = [
        {"array": array, "sampling_rate": RATE},
        {"array": array, "sampling_rate": 0},
        {"array": array, "sampling_rate": None},
        {"array": None, "sampling_rate": RATE},
        None,
    ]
    table = pa.table({"speech": pa.array(rows, pa.struct(fields))})
    write_parquet(tmp_path / "a.parquet", table)
    walked = walk(Input(path=str(tmp_path), format="parquet"))
    (_, sound), *bad = walked
    read, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
    assert rate == RATE and read.shape == (len(own), channels or 1)
    assert np.abs(read[:, 0] - SAMPLES[0]).max() < 1e-3
    assert [error.kind for _, error in bad] == ["damaged", "damaged", "unreadable", "unreadable"]
    small = walk(Input(path=str(tmp_path), format="parquet", max_clip_bytes=100))
    assert small[0][1].kind == "too_large"


@pytest.mark.parametrize("count", [100, 20_000])  # channels that a WAV file can and cannot have
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_in_rows_of_channels_are_sound(tmp_path: Path, count: int, channels: int) -> None:
    ramp = np.arange(count * channels, dtype=np.int16).reshape(count, channels)
    arrays = [ramp.tolist(), [[1, 2], None], [[1, 2], [1]], [[1] * 65] * 65]
    kind = pa.list_(pa.list_(pa.int16()))
    rows = [{"array": array, "sampling_rate": RATE} for array in arrays]
    fields = [("array", kind), ("sampling_rate", pa.int64())]
    table = pa.table({"speech": pa.array(rows, pa.struct(fields))})
    write_parquet(tmp_path / "a.parquet", table)
    (_, sound), *bad = walk(Input(path=str(tmp_path), format="parquet"))
    read, _ = soundfile.read(io.BytesIO(sound), dtype="int16", always_2d=True)
    assert np.array_equal(read, ramp)
    assert [error.kind for _, error in bad] == ["damaged"] * 3


# --- tables --------------------------------------------------------------------------------------


def lake(folder: Path, **options: Any) -> DeltaTable:
    rows = {"id": [0, 1, 2], "audio": SOUNDS[:3], "lang": ["de DE", "a/b", "x%41"]}
    write_deltalake(str(folder), pa.table(rows), **options)
    return DeltaTable(str(folder))


@pytest.mark.parametrize("partition_by", [None, ["lang"]])
def test_a_delta_table_is_read_through_its_log(
    tmp_path: Path, partition_by: list[str] | None
) -> None:
    table = lake(tmp_path / "lake", partition_by=partition_by)
    table.delete("id = 1")
    more = pa.table({"id": [3], "audio": [SOUNDS[3]], "lang": ["fr"]})
    write_deltalake(str(tmp_path / "lake"), more, mode="append")
    DeltaTable(str(tmp_path / "lake")).optimize.compact()
    write_parquet(tmp_path / "lake" / "stray.parquet", pa.table({"audio": SOUNDS}))
    write_parquet(
        tmp_path / "loose" / "a.parquet",
        pa.table({"id": [9], "audio": [SOUNDS[4]], "lang": ["it"]}),
    )
    for path in (tmp_path / "lake", tmp_path, f"{tmp_path}/lake/**/*.parquet"):
        walked = walk(Input(path=str(path), format="parquet"), ["id", "lang"])
        found = {row["id"]: (row["lang"], SOUNDS.index(sound)) for row, sound in walked}
        extra = {9: ("it", 4)} if path == tmp_path else {}
        assert found == {0: ("de DE", 0), 2: ("x%41", 2), 3: ("fr", 3), **extra}
        assert len(walked) == len(found)


def test_a_file_that_a_delta_table_has_lost_is_an_error(tmp_path: Path) -> None:
    [path] = map(Path, lake(tmp_path).file_uris())
    path.unlink()
    write_deltalake(
        str(tmp_path), pa.table({"id": [3], "audio": [SOUNDS[3]], "lang": ["x"]}), mode="append"
    )
    walked = walk(Input(path=str(tmp_path), format="parquet"))
    kinds = sorted(s.kind if isinstance(s, ClipError) else "ok" for _, s in walked)
    assert kinds == ["ok", "unreadable"]


def test_rows_that_a_deletion_vector_deletes_are_not_read(tmp_path: Path) -> None:
    """The vector is that of Delta's specification: rows 3, 4, 7, 11, 18 and 29 are deleted."""
    properties = {"delta.enableDeletionVectors": "true"}
    table = pa.table({"audio": [SOUNDS[n % 5] for n in range(30)], "n": list(range(30))})
    write_deltalake(str(tmp_path), table, configuration=properties)
    assert len(walk(Input(path=str(tmp_path), format="parquet"))) == 30
    [first] = sorted((tmp_path / "_delta_log").glob("*.json"))
    [add] = [json.loads(line)["add"] for line in first.read_text().splitlines() if '"add"' in line]
    vector = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 44,
        "cardinality": 6,
    }
    remove = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    lines = [{"remove": remove}, {"add": add | {"deletionVector": vector}}]
    write_lines(first.with_name(f"{1:020}.json"), [json.dumps(line) for line in lines])
    walked = walk(Input(path=str(tmp_path), format="parquet"), ["n"])
    assert [row["n"] for row, _ in walked] == [
        n for n in range(30) if n not in (3, 4, 7, 11, 18, 29)
    ]
    assert [row["member"] for row, _ in walked][:4] == ["0", "1", "2", "5"]


@pytest.mark.parametrize(
    "kind", ["column mapping", "Hudi", "Iceberg", "Iceberg of a catalog", "broken"]
)
def test_a_table_that_is_not_read_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "column mapping":
        lake(tmp_path, configuration={"delta.columnMapping.mode": "name"})
    elif kind == "broken":
        lake(tmp_path)
        [log] = (tmp_path / "_delta_log").glob("*.json")
        log.write_text("{no json")
    else:
        write_parquet(tmp_path / "data" / "a.parquet", pa.table({"audio": SOUNDS}))
        mark = {"Hudi": "data/.hoodie/hoodie.properties", "Iceberg": "metadata/version-hint.text"}
        path = tmp_path / mark.get(kind, "metadata/00000-uuid.metadata.json")
        path.parent.mkdir()
        path.write_text("1")
    with pytest.raises(BadInput, match=r"input\.path: expected .*Delta table"):
        walk(Input(path=str(tmp_path), format="parquet"))


# --- lists of members of tars --------------------------------------------------------------------


def tarred(
    folder: Path, entries: list[dict[str, Any]], name: str = "m.json", **options: Any
) -> Any:
    """The member, offset, duration, text and sound or error of each clip."""
    json_lines(folder / name, entries)
    options = {"path": f"{folder}/*.tar", "manifest": str(folder / name), **options}
    return [
        (row["member"], row["offset_s"], row.get("duration_s"), row["text"], sound)
        for row, sound in walk(Input(format="webdataset", **options), ["text"])
    ]


def test_parts_of_members_are_clips_and_missing_members_errors(tmp_path: Path) -> None:
    write_tar(tmp_path / "audio_0.tar", [("a.wav", SOUNDS[0]), ("b.wav", SOUNDS[1])])
    write_tar(tmp_path / "audio_1.tar", [("c.wav", SOUNDS[2]), ("d.wav", SOUNDS[3])])
    entries: list[dict[str, Any]] = [
        {"audio_filepath": "a.wav", "offset": 0.0, "duration": 0.1, "text": "one"},
        {"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.2, "text": "two"},
        {"audio_filepath": "b.wav", "duration": 0.3, "text": "whole"},
        {"audio_filepath": "gone.wav", "duration": 0.3, "text": "gone"},
        {"audio_filepath": "c.wav", "offset": 0.1, "duration": 0.1, "text": "cut"},
    ]
    for number, entry in enumerate(entries):
        entry["shard_id"] = int(number == 4)
    first, second, whole, gone, cut, unlisted = tarred(tmp_path, entries)
    assert first == ("a.wav 0.1 s", 0.0, 0.1, "one", SOUNDS[0])
    assert second == ("a.wav 0.2 s", 0.1, 0.2, "two", SOUNDS[0])
    assert whole == ("b.wav", 0.0, None, "whole", SOUNDS[1])
    assert gone[:4] == ("gone", 0.0, None, "gone") and gone[4].kind == "unreadable"
    assert cut == ("c.wav 0.1 s", 0.1, 0.1, "cut", SOUNDS[2])
    assert unlisted == ("d.wav", 0.0, None, None, SOUNDS[3])


def test_the_list_of_tars_may_be_split_or_unnumbered(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"audio_{n}.tar", [("x.wav", SOUNDS[n])])
        json_lines(
            tmp_path / "lists" / f"manifest_{n}.json", [{"audio_filepath": "x.wav", "text": str(n)}]
        )
    pattern = f"{tmp_path}/lists/manifest__OP_0..1_CL_.json"
    input = Input(path=f"{tmp_path}/audio__OP_0..1_CL_.tar", format="webdataset", manifest=pattern)
    assert [row["text"] for row, _ in walk(input, ["text"])] == ["0", "1"]
    entry = {"audio_filepath": "x.wav", "text": "only"}
    alone = tarred(tmp_path, [entry], path=str(tmp_path / "audio_1.tar"))
    assert [text for *_, text, _ in alone] == ["only"]
    with pytest.raises(
        BadInput, match=r"input\.manifest: expected entries of the tars by shard_id"
    ):
        tarred(tmp_path, [entry | {"shard_id": 7}])
    with pytest.raises(NoSuchColumn, match=r"txt.*audio_filepath, text"):
        walk(input, ["txet"])


def test_entries_of_tars_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"audio_{n}.tar", [("x.wav", SOUNDS[n])])
    shards = [0, 1, 7, 8, 7]
    entries = [{"audio_filepath": "x.wav", "text": "", "shard_id": shard} for shard in shards]
    json_lines(tmp_path / "tarred_audio_manifest.json", entries)
    told: list[str] = []
    load_source("webdataset").find(Input(path=str(tmp_path), format="webdataset"), told.append)
    assert told[1:] == ["3 entries of lists are of tars that the input does not have: 7, 8"]


def test_a_text_that_changes_in_the_list_changes_no_clip(tmp_path: Path) -> None:
    from test_sources import ids

    write_tar(tmp_path / "a_0.tar", [("x.wav", SOUNDS[0])])
    names = []
    for text in ("before", "after"):
        json_lines(tmp_path / "m.json", [{"audio_filepath": "x.wav", "text": text}])
        input = Input(path=str(tmp_path), format="webdataset", manifest=str(tmp_path / "m.json"))
        names += ids(walk(input, ["text"]))
    assert names[0] == names[1]


@pytest.mark.parametrize("what", ["folder", "list", "tars"])
def test_a_tarred_set_is_found_by_any_of_its_paths(
    tmp_path: Path, classifier: Path, what: str
) -> None:
    (tmp_path / "data").mkdir()
    os.chdir(tmp_path / "data")
    build_nemo_tarred()
    paths = {
        "folder": "tarred",
        "list": "tarred/tarred_audio_manifest.json",
        "tars": "tarred/*.tar",
    }
    output = {"path": str(tmp_path / "o"), "keep": ["text"]}
    config, _, _ = settled(tmp_path, classifier, input={"path": paths[what]}, output=output)
    walked = walk(config.input, ["text"])
    assert samples(walked) == [0, 1, 2] and [row["text"] for row, _ in walked] == TEXTS


# --- lists of other tools ------------------------------------------------------------------------


def test_each_bad_line_of_a_kaldi_folder_is_its_own_error(tmp_path: Path) -> None:
    wavs(tmp_path)
    scp = ["a 0.wav", "b flac -c -d -s 1.flac |", "c raw.ark:17", "d", "e\t1.wav"]
    write_lines(tmp_path / "wav.scp", scp)
    segments = ["a1 a 0.05 0.2", "a2 a 0.1 -1", "a3 a 0.2 0.1", "a4 z 0 1", "a5 a 0.1", "a6 a x 1"]
    segments += ["b1 b 0 1", "c1 c 0 1", "d1 d 0 1", "e1 e 0.0 0.1"]
    input = Input(path=str(tmp_path), format="kaldi")
    whole = walk(input)
    assert [s.kind if isinstance(s, ClipError) else "ok" for _, s in whole] == [
        *("ok", "unsupported", "unsupported", "damaged", "ok")
    ]
    assert "flac -c -d -s 1.flac" in whole[1][1].message
    write_lines(tmp_path / "segments", segments)
    write_lines(tmp_path / "text", ["a1 some words  here", "a2"])
    write_lines(tmp_path / "utt2spk", ["a1 ada", "a2\tbob"])
    walked = walk(input, ["utterance", "recording", "text", "speaker"])
    kinds = [s.kind if isinstance(s, ClipError) else "ok" for _, s in walked]
    assert kinds == ["ok", "ok", *["damaged"] * 4, "unsupported", "unsupported", "damaged", "ok"]
    places = [(row["offset_s"], row.get("duration_s")) for row, _ in walked]
    assert places[:2] == [(0.05, 0.15), (0.1, float("inf"))]
    first = walked[0][0]
    assert (first["utterance"], first["recording"], first["text"]) == (
        "a1",
        "a",
        "some words  here",
    )
    assert [row["speaker"] for row, _ in walked][:3] == ["ada", "bob", None]


def test_segments_of_one_of_several_channels_are_errors_in_a_kaldi_folder(tmp_path: Path) -> None:
    """`extract-segments` takes that channel, and their mean would be labelled."""
    wavs(tmp_path)
    write_lines(tmp_path / "wav.scp", ["call 0.wav", "mono 1.wav"])
    segments = ["c1 call 0 0.1 0", "c2 call 0.1 0.2 1", "m1 mono 0 0.1 0", "m2 mono 0.1 0.2 -1"]
    write_lines(tmp_path / "segments", segments)
    found = [sound for _, sound in walk(Input(path=str(tmp_path), format="kaldi"))]
    assert [s.kind if isinstance(s, ClipError) else "ok" for s in found] == [
        *("unsupported", "unsupported", "ok", "ok")
    ]


def test_cuts_that_are_no_part_of_one_file_are_errors(tmp_path: Path) -> None:
    """Cuts of a stereo file, changed, mixed and padded, as Lhotse writes them."""
    from lhotse import CutSet, MonoCut, MultiCut, Recording

    [path] = wavs(tmp_path, "mono.wav")
    soundfile.write(tmp_path / "stereo.wav", np.stack([SAMPLES[0], SAMPLES[1]], 1), RATE)
    mono, stereo = Recording.from_file(path), Recording.from_file(tmp_path / "stereo.wav")
    own = MonoCut("own", 0, mono.duration, 0, recording=mono)
    cuts = [
        own,
        own.truncate(offset=0.1, duration=0.15),
        MultiCut("both", 0, stereo.duration, [0, 1], recording=stereo),
        own.resample(8000),
        MonoCut("left", 0, stereo.duration, 0, recording=stereo),
        own.perturb_speed(1.1),
        own.append(own),
        own.pad(1.0),
    ]
    CutSet.from_cuts(cut.with_id(str(n)) for n, cut in enumerate(cuts)).to_file(
        tmp_path / "x.jsonl.gz"
    )
    input = Input(path=str(tmp_path / "x.jsonl.gz"), format="lhotse")
    walked = walk(input, ["id"])
    assert [row["id"] for row, _ in walked] == ["0", "1", "2", *map(str, range(4, 8))]  # 3 is 0
    kinds = [s.kind if isinstance(s, ClipError) else "ok" for _, s in walked]
    assert kinds == ["ok"] * 3 + ["unsupported"] * 4
    assert "is a MixedCut, which is no part of one recording" in walked[-1][1].message
    assert [(row["offset_s"], row.get("duration_s")) for row, _ in walked[:3]] == [
        *((0.0, None), (0.1, 0.15), (0.0, None))
    ]


@pytest.mark.parametrize("name", ["recordings.jsonl", "recordings.jsonl.gz", "recordings.json"])
def test_recordings_of_lhotse_are_clips(tmp_path: Path, classifier: Path, name: str) -> None:
    """A set of supervisions alone names no files."""
    recordings(str(tmp_path / "corpus")).to_file(tmp_path / name)
    config, _, _ = settled(tmp_path, classifier, input={"path": str(tmp_path / name)})
    assert config.input.format == "lhotse"
    walked = walk(
        config.input.model_copy(update={"audio_allow": (str(tmp_path / "corpus"),)}), ["id"]
    )
    assert samples(walked) == [0, 1, 2] and [row["id"] for row, _ in walked] == ["0", "1", "2"]
    supervisions().to_file(tmp_path / "x.jsonl.gz")
    with pytest.raises(BadInput, match=r"neither a cut nor a recording"):
        walk(Input(path=str(tmp_path / "x.jsonl.gz"), format="lhotse"))


def test_cuts_of_a_shar_alone_name_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_shar()
    with pytest.raises(BadInput, match=r"input\.path: .*Shar"):
        walk(Input(path="shar/cuts.000000.jsonl.gz", format="lhotse"))


def test_files_that_metadata_do_not_name_are_clips_too(tmp_path: Path) -> None:
    """And the clips are those of `files`, so that a table of these goes on."""
    from test_sources import ids

    wavs(tmp_path, "a.wav", "b.wav", "c.wav")
    table = pa.table(
        {"file_name": ["b.wav", "gone.wav", "../out.wav"], "text": ["B", "G", "O"], "n": [1, 2, 3]}
    )
    write_parquet(tmp_path / "metadata.parquet", table)
    walked = walk(Input(path=str(tmp_path), format="audiofolder"), ["text", "n", "file_name"])
    assert [row["text"] for row, _ in walked] == [None, "B", None, "G", "O"]
    assert [row["n"] for row, _ in walked] == [None, "1", None, "2", "3"]
    kinds = [s.kind if isinstance(s, ClipError) else "ok" for _, s in walked]
    assert kinds == ["ok", "ok", "ok", "unreadable", "unreadable"]
    plain = walk(Input(path=str(tmp_path), format="files"))
    assert ids(plain) == ids(walked)[:3]
