"""A run's report for machines: the summary, its statistics, and drift."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Job, earmark
from test_evaluate import clip, make

from jobs.config import Drift
from jobs.label import main, seconds
from jobs.reports.drift import beyond, drift, statistics
from jobs.reports.kept_totals import run_totals
from jobs.reports.summary import Summary
from jobs.table.table import HeldTable
from jobs.workers.crash_ledger import ActorWork

COUNTS = ("found", "done", "labelled", "ok", "partial", "failed", "left", "vanished")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def kept(job: Job) -> list[dict[str, Any]]:
    """The table's own summaries, in the order of their runs."""
    return [read(path) for path in sorted((job.table / "_runs").glob("*.json"))]


@pytest.fixture
def job(tmp_path: Path, classifier: Path) -> Job:
    return Job(tmp_path, classifier, resources={"clips_per_block": 4})


def test_a_summary_tells_what_the_run_came_to(
    job: Job, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = []
    look_at = Summary.look_at

    def seen(summary: Summary, table: HeldTable, *rest: Any) -> None:
        holders.append(table.holder())
        look_at(summary, table, *rest)

    monkeypatch.setattr(Summary, "look_at", seen)
    job.sounds(6)
    (job.audio / "bad.wav").write_text("no sound")
    file = job.folder / "summary.json"
    result = job.run("max_error_fraction=0.5", summary_file=str(file))
    assert result.code == 0
    summary = read(file)
    assert kept(job) == [summary]
    assert holders == [None]  # other runs need not wait until the labels are read
    assert (job.table / "_earmark" / "totals.parquet").exists()
    assert summary["clips"] == dict(zip(COUNTS, (7, 0, 7, 6, 0, 1, 0, 0), strict=True))
    assert (summary["exit_code"], summary["stopped"], summary["error"]) == (0, None, None)
    assert summary["input"] == {"format": "files"}
    assert summary["audio_hours"] == pytest.approx(6 * 0.3 / 3600)
    assert summary["seconds"] > 0 and summary["times_real_time"] > 0
    [error] = summary["errors"]
    assert (error["kind"], error["count"]) == ("not_audio", 1) and "bad.wav" in error["example"]
    rows = list(job.rows().values())
    assert {row["kind_fingerprint"] for row in rows} == {summary["fingerprints"]["kind"]}
    assert {row["run_id"] for row in rows} == {summary["run_id"]}
    now = summary["tasks"]["kind"]["now"]
    good = [row for row in rows if row["kind_label"]]
    assert now["labels"] == {
        label: sum(row["kind_label"] == label for row in good)
        for label in {row["kind_label"] for row in good}
    }
    assert now["mean_score"] == pytest.approx(np.mean([row["kind_score"] for row in good]))
    assert now["error_rate"] == pytest.approx(1 / 7)
    models = summary["models"]["kind"]
    assert models["heard_s"] == pytest.approx(6 * 0.3)
    assert models["padding"] == pytest.approx(0)  # all are of one length
    assert 0 < models["ready_after_s"] < summary["seconds"] and 1 <= models["actors"] <= 2
    assert models["times_real_time"] > summary["times_real_time"]  # start-up is no part of it
    assert summary["versions"]["ray"] and summary["versions"]["python"]


def test_actors_that_heard_nothing_in_no_time_are_no_error(tmp_path: Path) -> None:
    summary = Summary("run", "job.yaml", tmp_path / "log")
    summary.worked({"kind": [ActorWork(5.0, 5.0, 0.0, 0.0), ActorWork(5.0, 7.0, 6.0, 8.0)]})
    models = summary.document["models"]["kind"]
    assert (models["actors"], models["padding"], models["times_real_time"]) == (2, 0.25, 3.0)
    summary.worked({"kind": [ActorWork(5.0, 5.0, 0.0, 0.0)]})
    models = summary.document["models"]["kind"]
    assert (models["padding"], models["times_real_time"]) == (0.0, 0.0)


def test_a_run_with_nothing_to_do_writes_its_summary_and_nothing_into_the_table(
    job: Job, local_ray: None
) -> None:
    job.sounds(2)
    assert job.run().code == 0
    before = sorted(path for path in job.table.rglob("*"))
    file = job.folder / "summary.json"
    assert job.run(summary_file=str(file)).code == 0
    assert read(file)["clips"] == dict(zip(COUNTS, (2, 2, 0, 0, 0, 0, 0, 0), strict=True))
    assert sorted(path for path in job.table.rglob("*")) == before


def test_a_run_that_is_refused_says_so_in_its_summary(job: Job) -> None:
    file = job.folder / "summary.json"
    assert job.run("tasks.kind.topk=2", summary_file=str(file)).code == 2
    summary = read(file)
    assert (summary["exit_code"], summary["stopped"]) == (2, "refused")
    assert "did you mean 'top_k'" in summary["error"]


def test_a_time_limit_ends_a_run_with_what_is_finished(job: Job, local_ray: None) -> None:
    import ray

    job.sounds(2)
    file = job.folder / "summary.json"
    joins = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = earmark("run", job.config, "--max-runtime", "0.1", "--summary", file, env=joins)
    assert done.returncode == 0, done.stdout
    assert "stopped (max_runtime)" in done.stdout  # while planning, or behind that
    summary = read(file)
    assert (summary["exit_code"], summary["stopped"]) == (0, "max_runtime")
    assert not summary["clips"]["labelled"]
    assert job.run(max_runtime_s=3600, summary_file=str(file)).code == 0
    assert len(job.rows()) == 2
    assert read(file)["stopped"] is None and read(file) in kept(job)


@pytest.mark.parametrize(
    ("text", "wanted"), [("6h", 21600), ("90m", 5400), ("3600", 3600), ("1h30m", 5400), ("5s", 5)]
)
def test_a_time_is_written_as_people_write_it(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["6 hours", "h", "", "0", "-5", "1.2.3m", "m6"])
def test_a_time_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["x.yaml", f"--max-runtime={text}"])
    assert ended.value.code == 2
    assert "expected 6h, 90m or 3600" in capsys.readouterr().err


def test_labels_that_changed_end_the_run_with_4(job: Job, local_ray: None) -> None:
    for n in range(12):
        job.sound(f"before{n}.wav", 200)
    bounds = ("drift.min_clips=10", "drift.max_label_distance=0.3")
    first = job.run(*bounds)
    assert first.code == 0 and "drift" not in first.text  # nothing to compare with
    for n in range(12):
        (job.audio / f"after{n}.wav").write_text("no sound")
    drifted = job.run("drift.min_clips=10", "drift.max_error_rate=0.5", "max_error_fraction=1")
    assert drifted.code == 4
    assert "drift: kind: error_rate moved by 1.000, expected at most 0.5" in drifted.text
    assert kept(job)[-1]["drift"] and kept(job)[-1]["exit_code"] == 4


def figures(labels: dict[str, int], score: float = 0.8, errors: float = 0.0) -> dict[str, Any]:
    return {
        "clips": sum(labels.values()),
        "labels": labels,
        "mean_score": score,
        "error_rate": errors,
        "words_per_s": 2.0,
    }


def said(now: dict[str, Any], before: dict[str, Any], **bounds: float) -> list[str]:
    task = {"now": now, "before": before, "drift": drift(now, before)}
    return list(beyond({"kind": task}, Drift(**bounds)))


def test_labels_out_of_one_hat_are_no_drift_however_many_labels_there_are() -> None:
    """500 classes and 200 clips are far apart by chance alone."""
    random = np.random.default_rng(1)
    shares = random.dirichlet(np.ones(500))
    for clips in (200, 1000, 20_000):
        now, before = (
            {
                str(n): int(count)
                for n, count in enumerate(random.multinomial(size, shares))
                if count
            }
            for size in (clips, 5000)
        )
        assert not said(figures(now), figures(before), max_label_distance=0.05)


def test_labels_that_swapped_places_are_drift() -> None:
    line = said(
        figures({"a": 900, "b": 100}), figures({"a": 100, "b": 900}), max_label_distance=0.3
    )
    assert "label_distance moved by 0.7" in line[0] and "drift.max_label_distance" in line[0]


def test_few_clips_are_no_drift() -> None:
    now, before = figures({"a": 150}), figures({"b": 5000})
    assert not said(now, before, max_label_distance=0.3)
    assert said(now, before, max_label_distance=0.3, min_clips=150)


def test_drift_without_a_bound_is_not_spoken_of() -> None:
    assert not said(figures({"a": 1000}), figures({"b": 1000}, score=0.1, errors=0.9))


def test_fewer_errors_are_no_drift_and_scores_may_move_both_ways() -> None:
    low, high = figures({"a": 500}, 0.5, 0.1), figures({"a": 500}, 0.9, 0.6)
    assert not said(low, high, max_error_rate=0.2)
    assert said(high, low, max_error_rate=0.2)
    assert said(low, high, max_score=0.2) and said(high, low, max_score=0.2)


def test_recognition_is_counted_in_words_and_suspects(tmp_path: Path) -> None:
    texts = ["fail again", "  fail\n better ", "", None, "you"]
    suspects = [[], ["loop"], [], None, ["loop", "no_speech"]]
    table = make(
        tmp_path,
        [
            clip(n, words_text=text, words_suspect=why, words_score=n / 10, duration_s=2.0)
            for n, (text, why) in enumerate(zip(texts, suspects, strict=True))
        ],
    )
    found = statistics(run_totals(table, "run"))["words"]
    assert found["now"]["words_per_s"] == pytest.approx((2 + 2 + 0 + 1) / 8)
    assert found["now"]["suspects"] == {"loop": 2, "no_speech": 1}
    assert found["now"]["mean_score"] == pytest.approx(0.2)
    assert found["before"]["clips"] == 0 and found["drift"]["words_per_s"] is None
    as_another_run = statistics(run_totals(table, "later"))["words"]
    assert as_another_run["now"]["clips"] == 0
    assert as_another_run["before"] == found["now"]


def test_rows_of_other_settings_are_not_compared_with(tmp_path: Path) -> None:
    table = make(tmp_path, [clip(n, kind_label="cat") for n in range(4)], used="other")
    assert statistics(run_totals(table, "later"))["kind"]["before"]["clips"] == 0
