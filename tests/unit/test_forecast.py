"""`earmark plan`: what a run would do, said by its config, its input and its table alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from checkpoints import tiny_classifier
from runs import ROOT, Job, earmark
from tables import as_before, held, with_failures

from audio_ops.label import put
from audio_ops.schemas import ERROR, SOUND
from jobs.config_file import load_config
from jobs.fingerprints import settings
from jobs.planning.find import find_clips, left_to_do
from jobs.preflight import find_models, preflight
from jobs.prices import machines
from jobs.reports.forecast import forecast, lines
from jobs.table.schema import CHANGE, SHARD_END, label_columns
from jobs.table.write import WriteSettings, write_rows
from jobs.workers.kept import without_kept

SECONDS = 1.5
HOURS = SECONDS / 3600


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A finished table of four clips, one of which failed, and of the speed of its run."""
    model = tiny_classifier(tmp_path / "wav2vec2", "wav2vec2")
    job = Job(tmp_path, model)
    job.sounds(4)
    label_all(job, failed="clip002.wav")
    return job


def label_all(job: Job, failed: str = "") -> None:
    """Write rows for what is due, in place of a run's models."""
    config = load_config(job.config)
    run = preflight("made", str(job.config), config, print)
    table = held(job.table, "made", run.schema, run.settings)
    todo = left_to_do(run, find_clips(run, print), table)
    clips = without_kept(todo.todo)
    for field in (*SOUND, *ERROR, *CHANGE, pa.field("shard_end", SHARD_END)):
        if field.name not in clips.column_names:
            clips = clips.append_column(field, pa.nulls(len(clips), field.type))
    everywhere = pa.repeat(True, len(clips))
    clips = put(clips, "duration_s", pa.repeat(SECONDS, len(clips)), everywhere)
    fails = [failed and source.endswith(failed) for source in clips["source"].to_pylist()]
    for task in config.tasks:
        labels = pa.array([None if failed else "x" for failed in fails], pa.string())
        errors = pa.array(["model: it broke" if failed else None for failed in fails], pa.string())
        clips = put(
            put(clips, f"{task}_label", labels, everywhere), f"{task}_error", errors, everywhere
        )
    write = WriteSettings(
        schema=table.schema(),
        tasks=label_columns(run.schema, config.tasks),
        path=table.path,
        storage_options={},
        run_id="made",
        fingerprints=run.wanted.fingerprints,
    )
    table.commit(write_rows(with_failures(clips, config.tasks), write).to_pylist())
    kinds = {"CPU": 4.0, "accelerator_type:L4": 2.0}
    models = {"kind": {"times_real_time": 3.0}}
    table.keep_report({"run_id": "made", "models": models, "machines": kinds})
    table.tidy()
    table.release()


def of(job: Job, *overrides: str, **options: Any) -> dict[str, Any]:
    return forecast(str(job.config), list(overrides), **options)


def test_a_finished_table_has_nothing_due(job: Job) -> None:
    found = of(job)
    assert (found["found"], found["done"], found["due"], found["failed_before"]) == (4, 4, 0, 1)
    assert (found["tasks"], found["refused"], found["exit_code"]) == ({}, [], 0)


def test_a_table_of_the_layout_before_is_not_refused(job: Job) -> None:
    """But for what has changed since, which is said by task."""
    config = load_config(job.config)
    made_with = settings(config, find_models(config, job.config))
    as_before(job.table, made_with)
    found = of(job)
    assert (found["done"], found["due"], found["refused"]) == (4, 0, [])
    text = "\n".join(of(job, "audio.max_clip_s=99")["refused"])
    assert "audio.max_clip_s: 14400.0 in the table, 99.0 in this run" in text
    assert "so 4 clips, 0.00 h of audio" in text
    kind = job.sections["tasks"]["kind"]
    job.write(tasks={"kind": kind, "mood": dict(kind)})
    found = of(job)
    assert found["refused"] == [] and found["tasks"]["mood"]["why"] == {"new": 4}
    assert list(found["tasks"]) == ["mood"]


def test_what_tars_hold_is_not_known_before_they_are_read(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_classifier(tmp_path / "wav2vec2", "wav2vec2"))
    sound = job.sound("a.wav", 300)
    with tarfile.open(job.audio / "a.tar", "w") as tar:
        tar.add(sound, "a.wav")
    job.write(input={"path": str(job.audio), "format": "webdataset"})
    found = of(job)
    assert (found["found"], found["shards_to_read"], found["exit_code"]) == (0, 1, 0)
    assert found["tasks"]["kind"]["clips"] == 0 and found["table"] is None


def test_each_task_is_due_for_its_reasons(job: Job) -> None:
    kind = job.sections["tasks"]["kind"]
    job.write(tasks={"kind": kind, "mood": kind | {"when": "kind_score > 0.5"}})
    job.sound("new.wav", 300)
    job.sound("clip000.wav", 999, seconds=0.5)  # another sound
    found = of(job)
    assert (found["found"], found["done"], found["due"]) == (5, 0, 5)
    assert found["clips_of_unknown_length"] == 2
    assert found["tasks"]["kind"] == {
        "clips": 2,
        "why": {"new_clips": 1, "changed_clips": 1},
        "audio_hours": 0.0,
        "seconds": pytest.approx(2 * SECONDS / 3.0),
    }
    assert found["tasks"]["mood"] == {
        "clips": 5,
        "why": {"new_clips": 1, "changed_clips": 1, "new": 3},
        "audio_hours": pytest.approx(3 * HOURS),
        "seconds": None,  # it has never run
    }
    assert found["seconds"] is None and not found["refused"]
    assert "mood: 5 clips (1 new clips, 1 clips that have changed" in "\n".join(lines(found))

    again = of(job, retry_errors=True)["tasks"]
    assert again["kind"]["why"] == {"new_clips": 1, "changed_clips": 1, "failed": 1}
    assert again["kind"]["audio_hours"] == pytest.approx(HOURS)


def test_a_changed_task_is_refused_with_what_it_costs(job: Job) -> None:
    kind = job.sections["tasks"]["kind"]
    job.write(tasks={"kind": kind, "mood": kind | {"when": "kind_score > 0.5"}, "else": dict(kind)})
    label_all(job)
    changed = "tasks.kind.top_k=2"
    found = of(job, changed)
    text = "\n".join(found["refused"])
    assert found["exit_code"] == 2
    assert "tasks.kind.top_k: 5 in the table, 2 in this run" in text
    assert "so 4 clips, 0.00 h of audio would be labelled again" in text
    assert "by kind: 4 clips" in text and "by else" not in text
    assert "by mood: 4 clips, 0.00 h of audio, as it reads another task's columns" in text
    assert "--relabel kind" in text
    assert {name: task["why"] for name, task in found["tasks"].items()} == {
        "kind": {"changed": 4},
        "mood": {"follows": 4},
    }
    for relabel in (True, ["kind"], ["kind", "mood"]):
        assert of(job, changed, relabel=relabel)["refused"] == []
    assert of(job, changed, "tasks.else.top_k=3", relabel=["kind"])["exit_code"] == 2
    [line] = of(job, changed, relabel=["kin"])["refused"]
    assert line.startswith("--relabel: expected tasks of") and line.endswith("found kin")


def test_what_a_run_would_be_refused_for_is_told(job: Job) -> None:
    [line] = of(job, "tasks.kind.topk=2")["refused"]
    assert "tasks.kind.topk: unknown key (did you mean 'top_k'?)" in line
    job.sound("new.wav", 300)
    [line] = of(job, "resources.tasks.kind.num_cpus=4096")["refused"]
    assert "the models ask for 4,096 CPUs" in line or "4096 CPUs" in line
    assert of(job)["exit_code"] == 0


@pytest.mark.parametrize(
    ("prices", "hourly"),
    [
        ({"CPU": 0.05, "accelerator_type:L4": 1.0, "GPU": 9.0}, 2.2),
        ({"CPU": 0.05, "GPU": 9.0}, 18.2),
        ({"CPU": 0.0, "GPU": 0.0}, 0.0),
        ({"CPU": 0.05, "accelerator_type:H100": 9.0}, None),
        ({"GPU": 9.0}, None),
        ({}, None),
    ],
)
def test_a_plan_tells_what_it_costs(
    job: Job, prices: dict[str, float], hourly: float | None
) -> None:
    job.write(resources={"price_per_hour": prices})
    assert of(job)["cost"] is None  # of nothing
    job.sound("new.wav", 300)
    found = of(job)
    text = "\n".join(lines(found))
    if hourly is None:
        assert found["cost"] is None and found["seconds"] and "about 0:00, at the speed" in text
        assert ("no cost: the last run of kind had CPU, accelerator_type:L4" in text) == bool(
            prices
        )
    else:
        assert found["cost"] == pytest.approx(SECONDS / 3.0 / 3600 * hourly)
        assert f"about 0:00 and {found['cost']:.2f}, at the speed of earlier runs" in text
    kind = job.sections["tasks"]["kind"]
    job.write(tasks={"kind": kind, "mood": dict(kind)})
    assert of(job)["cost"] is None  # mood has never run
    assert "no cost" not in "\n".join(lines(of(job)))


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ({"GPU": -1}, "price_per_hour.GPU: expected greater than or equal to 0, found -1"),
        ({"GPU": float("inf")}, "price_per_hour.GPU: expected a finite number"),
        ({"g6.4xlarge": 1}, "price_per_hour: expected CPU, GPU or a type that Ray knows, such as"),
        ({"gpu": 1}, "price_per_hour: expected CPU, GPU or a type .*, found gpu"),
        ({"GPU": "much"}, "price_per_hour.GPU: expected a valid number"),
        (3, "price_per_hour: expected a valid dictionary, found 3"),
    ],
)
def test_prices_are_numbers_of_known_machines(job: Job, price: Any, message: str) -> None:
    job.write(resources={"price_per_hour": price})
    [line] = of(job)["refused"]
    assert re.search(message, line)


def test_machines_are_counted_by_kind() -> None:
    nodes = [
        {"CPU": 8.0, "memory": 1e9},
        {"CPU": 16.0, "GPU": 1.0, "accelerator_type:L4": 1.0},
        {"CPU": 48.0, "GPU": 4.0, "accelerator_type:L4": 1.0},
        {"CPU": 4.0, "GPU": 2.0},
        {"CPU": 0.0, "object_store_memory": 1e9},
    ]
    assert machines(nodes) == {"CPU": 8.0, "accelerator_type:L4": 5.0, "GPU": 2.0}


WITHOUT = """
import sys
from jobs import cli
code = cli.run(["plan", *sys.argv[1:]])
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
sys.exit(code)
"""


def test_the_command_starts_nothing_and_changes_nothing(job: Job) -> None:
    job.sound("new.wav", 300)
    before = sorted(path for path in job.folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(job.config), "--json", "--relabel"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tasks"]["kind"]["why"] == {"new_clips": 1}
    shown = earmark("plan", "--relabel", job.config)  # the config is not a task
    assert shown.returncode == 0 and "5 clips found, 4 already labelled, 1 due" in shown.stdout
    assert sorted(path for path in job.folder.rglob("*")) == before
    assert earmark("plan").returncode == 2
