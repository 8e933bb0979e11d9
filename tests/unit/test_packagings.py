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
    "CSV and its kin": build_csv,
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
