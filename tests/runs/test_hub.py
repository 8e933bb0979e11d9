"""Datasets of the Hugging Face hub by name, with the real client, from a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import hub
from runs import PATHS, ROOT, Job, earmark
from test_sources import SOUNDS, write_lines, write_parquet

WALK = """
import json, sys
from test_sources import sounds, walk
from jobs.input import Input
from jobs.sources._auto import recognise
for path in sys.argv[1:]:
    try:
        input, _ = recognise(Input(path=path), "/nowhere")
        print(json.dumps([input.format, sounds(walk(input))]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that holds the dataset user/name: Parquet with sound, and audio with metadata."""
    folder = tmp_path / "hub" / "user" / "name"
    audio = [{"bytes": sound, "path": "x.wav"} for sound in SOUNDS[:3]]
    write_parquet(folder / "data" / "train-0.parquet", pa.table({"audio": audio}))
    (folder / "audio").mkdir()
    for n in range(2):
        (folder / "audio" / f"{n}.wav").write_bytes(SOUNDS[n])
    write_lines(folder / "audio" / "metadata.csv", ["file_name,text", "0.wav,zero", "1.wav,one"])
    return folder.parents[1]


def python(script: str, *arguments: str, **env: str) -> list[Any]:
    """The lines that a script prints, as JSON, with its own settings of the hub's client."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *PATHS])} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataset_is_read_by_its_name_from_the_hub_and_from_the_cache(
    tmp_path: Path, repository: Path
) -> None:
    name = "hf://datasets/user/name"
    paths = [
        f"{name}/data",
        f"{name}@v1/data/train-{{0..0}}.parquet",
        f"{name}/audio",
        f"{name}/audio/*",
    ]
    paths += [f"{name}/none", "hf://datasets/user/other"]
    with hub(repository) as served:
        online = {
            "HF_ENDPOINT": served.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
        }
        found = python(WALK, *paths, **online)
        fetch = "from huggingface_hub import snapshot_download as s; s('user/name', repo_type='dataset')"
        python(fetch, **online)
    both = ["audiofolder", [0, 1]]
    assert found[:4] == [["parquet", [0, 1, 2]], ["parquet", [0, 1, 2]], both, both]
    assert [kind for kind, _ in found[4:]] == ["FileNotFoundError"] * 2
    assert all("found nothing at hf://" in text for _, text in found[4:])
    paths = [f"{name}/data", f"{name}/audio", f"{name}/none", "hf://datasets/user/other"]
    found = python(WALK, *paths, **online | {"HF_HUB_OFFLINE": "1"})
    assert found[:2] == [["parquet", [0, 1, 2]], both]
    assert "found nothing at" in found[2][1] and "hf download" in found[3][1]


def test_a_run_labels_a_dataset_of_the_hub(
    tmp_path: Path, classifier: Path, repository: Path
) -> None:
    job = Job(tmp_path, classifier, input={"path": "hf://datasets/user/name/audio"})
    job.write(output={"path": str(job.table), "keep": ["text"]})
    with hub(repository) as served:
        env = os.environ | {"HF_ENDPOINT": served.endpoint, "HF_HUB_OFFLINE": "0"}
        done = earmark("run", job.config, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        before = len([name for name in served.downloads if name.endswith(".wav")])
        again = earmark("run", job.config, env=env)
        assert "nothing to do: 2 clips found" in again.stdout, again.stdout
        after = len([name for name in served.downloads if name.endswith(".wav")])
    rows = pq.read_table(job.table).to_pylist()
    assert sorted(row["text"] for row in rows) == ["one", "zero"]
    assert {row["status"] for row in rows} == {"ok"} and before == after
    assert rows[0]["source"].startswith("hf://datasets/user/name/audio/")
