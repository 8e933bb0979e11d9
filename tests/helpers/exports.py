"""A table of clips out of files, a tar, a Parquet file and a list of stretches, with made-up labels."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from sounds import encode, tone
from tables import TableOf
from test_sources import write_lines, write_parquet, write_tar

from audio_ops.tasks import load_task
from jobs.config import Audio
from jobs.input import Input
from jobs.planning.committed import NOTHING_COMMITTED
from jobs.planning.plan import plan
from jobs.planning.shards import plan_shards
from jobs.sources import NO_COLUMNS, load_source
from jobs.table.table import Table
from jobs.workers.read import ReadSettings, read

ASR, AC = "automatic-speech-recognition", "audio-classification"
RATE = 16_000
TASKS = {
    "t": load_task(ASR).Options(task=ASR, model="x", timestamps="segment"),
    "kind": load_task(AC).Options(task=AC, model="x"),
}
KEPT = pa.schema([("speaker", pa.string()), ("set", pa.string()), ("text", pa.string())])
SETTINGS = {
    "audio": {"max_clip_s": 3600.0},
    "keep": [],
    "tasks": {name: options.model_dump(mode="json") for name, options in TASKS.items()},
}
# Texts that mean something in one format or another, one for each clip and more.
TEXTS = [
    "plain words",
    'she said "hi", and left',
    "a\ttab and\na line end  and two spaces",
    "ünïcödé 中文 \U0001f600",
    "<b>5 --> 6</b> & so",
    "",
    " leading, trailing ",
    "=1+1;\r'quoted' \\n",
]
HOSTILE = ('a "b", c.wav', "tab\there.wav", "line\nend.wav", "ünï 中.wav", "pipe.wav|", "x.ark:12")


def sounding(seconds: float, hz: float, format: str = "wav", channels: int = 1) -> bytes:
    """A file of two halves of different pitch, so that a cut shows where it was made."""
    halves = [tone(seconds / 2, RATE, channels, one) for one in (hz, 2 * hz)]
    return encode(np.concatenate(halves, axis=1), RATE, format)


def pack(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the input; returns the `input` of each packaging, by name."""
    for name in ("files", "tar", "parquet", "list"):
        (folder / name).mkdir(parents=True)
    for n, name in enumerate(("plain.wav", "flat.flac", *HOSTILE)):
        format = "flac" if name.endswith("flac") else "wav"
        (folder / "files" / name).write_bytes(sounding(1.0, 200 + 40 * n, format))
    (folder / "files" / "stereo.wav").write_bytes(sounding(1.0, 900, channels=2))
    members = [(f"deep/m {n}.flac", sounding(0.6, 300 + 50 * n, "flac")) for n in range(3)]
    write_tar(folder / "tar" / "0.tar", [members[2], members[0], members[1]])
    audio = [{"bytes": sounding(0.5, 400 + 50 * n), "path": f"{n}.wav"} for n in range(3)]
    write_parquet(folder / "parquet" / "0.parquet", pa.table({"audio": audio}), rows=2)
    (folder / "list" / "long.wav").write_bytes(sounding(3.0, 250))
    entries = [
        {"audio_filepath": "long.wav", "offset": at, "duration": 0.8} for at in (0.0, 1.0, 1.8)
    ]
    write_lines(folder / "list" / "all.jsonl", map(json.dumps, entries))
    return {
        "files": {"path": str(folder / "files" / "*"), "format": "files"},
        "webdataset": {"path": str(folder / "tar"), "format": "webdataset"},
        "parquet": {"path": str(folder / "parquet"), "format": "parquet"},
        "manifest": {"path": str(folder / "list" / "all.jsonl"), "format": "manifest"},
    }


def found_clips(
    given: Mapping[str, Any], channels: Any = "mean", keep: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of an input's clips as a run reads them, without labels."""
    input = Input(**given)
    source = load_source(input.format)
    kept = source.columns(input, list(keep)) if keep else NO_COLUMNS
    listing = source.find(input, print, kept)
    if source.SHARDED:
        todo = plan_shards(listing, NOTHING_COMMITTED, {}).todo
    else:
        todo = plan(listing, NOTHING_COMMITTED, channels=channels).todo
    if "_unit" in todo.column_names:
        todo = todo.drop_columns(["_unit"])
    settings = ReadSettings(input, Audio(channels=channels), (RATE,), "never", kept)
    rows = [row for table in read(todo, settings) for row in table.to_pylist()]
    return [
        {n: v for n, v in row.items() if not n.startswith(("sound_1", "speech"))}
        for row in rows
        if row["shard_end"] is None
    ]


def text_of(n: int) -> str:
    """The text of the n-th clip, which no other has."""
    text = TEXTS[n % len(TEXTS)]
    return f"{text} {n}" if n >= len(TEXTS) else text


def samples_of(row: Mapping[str, Any]) -> np.ndarray:
    """The sound that a row's labels are of, float32 (samples,), read without any code under test."""
    content, member = row["source"], row["member"]
    if row["source"].endswith(".tar"):
        with tarfile.open(row["source"]) as archive:
            content = io.BytesIO(archive.extractfile(member).read())  # type: ignore[union-attr]
    elif row["source"].endswith(".parquet"):
        cell = pq.read_table(row["source"])["audio"][int(member)]["bytes"].as_py()
        content = io.BytesIO(cell)
    sound, rate = soundfile.read(content, dtype="float32", always_2d=True)
    own = sound.mean(axis=1) if row["channel"] is None else sound[:, row["channel"] - 1]
    start = round(row["offset_s"] * rate)
    return np.asarray(own[start : start + round(row["duration_s"] * rate)])


def labelled(row: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The row with made-up labels: two segments, of which the second has a gap before it."""
    text, middle = text_of(n), row["duration_s"] / 2
    times = [(0.0, middle - 0.1), (middle, row["duration_s"])]
    segments = [
        {"start_s": start, "end_s": end, "text": f"{text} {at}".strip(), "score": 0.5 + 0.4 * at}
        for at, (start, end) in enumerate(times)
    ]
    return dict(row) | {
        "t_text": text,
        "t_score": round(0.3 + 0.05 * n, 2),
        "t_language": "en" if n % 2 else None,
        "t_segments": segments,
        "t_suspect": ["repeats"] if n == 1 else [],
        "kind_label": ("cat", "dog", None)[n % 3],
        "kind_score": 0.5,
        "speaker": f"spk {n % 3}" if n % 4 else None,
        "set": ("train set", "train/set", "dev")[n % 3],
        "text": f"reference {n}",
    }


def make(
    folder: Path | str,
    inputs: Mapping[str, Mapping[str, Any]],
    storage: Mapping[str, Any] | None = None,
) -> Table:
    """A table of all clips of the inputs, the channels of `stereo.wav` by themselves as well."""
    rows = [row for given in inputs.values() for row in found_clips(given)]
    if "files" in inputs:
        stereo = inputs["files"]["path"].replace("*", "stereo.wav")
        rows += found_clips({"path": stereo, "format": "files"}, "each")
        rows = [
            row for row in rows if not row["source"].endswith("stereo.wav") or row["channel"] != 1
        ]
    return write_table(folder, [labelled(row, n) for n, row in enumerate(rows)], storage)


def write_table(
    folder: Path | str,
    rows: list[dict[str, Any]],
    storage: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> Table:
    """A table with these rows."""
    return TableOf(TASKS, SETTINGS, KEPT, without).write(folder, rows, options=storage)
