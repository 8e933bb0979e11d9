"""Earmark or a peer as a separate process, and medians of alternating runs."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from jobs.bench import testbed
from jobs.bench.checkpoints import checkpoint
from jobs.bench.measure import Took, measured
from jobs.bench.report import say, show, shown
from jobs.bench.testbed import Sample


@dataclass(frozen=True)
class Outcome:
    """A run over `audio_s` seconds of audio. Figures that are unknown or do not apply are None."""

    audio_s: float
    took: Took
    ready_s: float | None = None  # until the models were loaded
    steady: float | None = None  # seconds of audio per second from then on
    first_row_s: float | None = None
    padding: float | None = None
    labels: Mapping[str, Any] | None = None

    @property
    def speed(self) -> float:
        return self.audio_s / self.took.wall_s


Way = Callable[[Path], Outcome]
FIGURES = ("× real time", "steady", "ready s", "first row s", "CPU-s per h", "GiB", "padding")


def peer(
    name: str, sample: Sample, model: Path, task: str, max_new_tokens: int | None = None
) -> Way:
    """A way that runs one of `jobs.bench.peers` on the sample's files, under unique names."""

    def way(folder: Path) -> Outcome:
        names = testbed.copied(sample.files, folder / "audio")
        labels = list(testbed.CANDIDATE_LABELS) if task.startswith("zero-shot") else []
        work: dict[str, Any] = {
            "files": list(names),
            "model": str(model),
            "task": task,
            "out": str(folder / "out"),
        }
        work |= {"candidate_labels": labels, "max_new_tokens": max_new_tokens}
        (folder / "work.json").write_text(json.dumps(work))
        took = measured(
            [sys.executable, "-m", "jobs.bench.peers", name, str(folder / "work.json")],
            env=_environment(),
        )
        done = json.loads((folder / "work.done").read_text())
        rows = sorted(path.stat().st_mtime for path in (folder / "out").rglob("*.parquet"))
        ready_s = done["ready"] - took.began
        return Outcome(
            sample.audio_s,
            took,
            ready_s,
            sample.audio_s / (took.wall_s - ready_s),
            first_row_s=rows[0] - took.began if rows else None,
            padding=1 - sample.audio_s / done["padded_s"] if done["padded_s"] else None,
            labels={names[name]: label for name, label in done["labels"].items()},
        )

    return way


def earmark(sample: Sample, kind: str = "files", **task: Any) -> Way:
    """A way that runs `earmark run` with one task on the sample, as files, tars or Parquet."""

    def way(folder: Path) -> Outcome:
        audio = {"path": str(folder / "audio"), "format": kind}
        if kind != "files":
            testbed.packed(sample.files, folder / "audio", kind)
            return job(folder, audio, task)
        names = testbed.copied(sample.files, folder / "audio")
        outcome = job(folder, audio, task)
        rows = pq.read_table(folder / "table").to_pylist()
        return replace(outcome, labels={names[row["source"]]: row for row in rows})

    return way


def job(folder: Path, audio: Mapping[str, Any], task: Mapping[str, Any]) -> Outcome:
    """Label the input `audio` with one task `it` into `folder/table`."""
    config = {
        "input": dict(audio),
        "tasks": {"it": dict(task)},
        "output": {"path": str(folder / "table")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    summary = folder / "summary.json"
    took = run_job(folder / "job.yaml", "--summary", str(summary))
    found = json.loads(summary.read_text())
    model = (found["models"] or {}).get("it", {})
    return Outcome(
        found["audio_hours"] * 3600,
        took,
        model.get("ready_after_s"),
        model.get("times_real_time"),
        first_row_s(folder / "table", took),
        padding=model.get("padding"),
    )


def run_job(config: Path, *arguments: str) -> Took:
    """`earmark run` with a config."""
    command = [sys.executable, "-m", "jobs.label", str(config), *arguments]
    return measured(command, env=_environment())


def first_row_s(table: Path, took: Took) -> float | None:
    """The seconds until a run first committed labels; None if it did not."""
    commits = sorted((table / "_delta_log").glob("*.json"))
    times = (path.stat().st_mtime for path in commits if '"add"' in path.read_text())
    return next((time - took.began for time in times if time > took.began), None)


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def nothing() -> dict[str, Any]:
    """The config of a task whose model costs almost nothing."""
    return {"task": "audio-classification", "model": str(checkpoint("nothing"))}


def by_turns(
    title: str, ways: Mapping[str, Way], rounds: int, references: Mapping[str, str] | None = None
) -> dict[str, Outcome]:
    """Run the ways in alternation, and show a table; returns each way's medians over the rounds."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                outcomes[name].append(way(Path(folder)))
            last = outcomes[name][-1]
            say(f"  {title}, round {number + 1}: {name}: {last.took.wall_s:.1f} s")
    medians = {name: median(several) for name, several in outcomes.items()}
    header = ["way", *FIGURES]
    rows = [[name, *_figures(one)] for name, one in medians.items()]
    if references:
        header.append("WER")
        for row, one in zip(rows, medians.values(), strict=True):
            row.append(shown(word_error_rate(one.labels or {}, references), ".1%"))
    audio_s = next(iter(medians.values())).audio_s
    show(f"{title}: {audio_s:.0f} s of sound, rounds: {rounds}", header, rows)
    return medians


def _figures(outcome: Outcome) -> list[str]:
    """A row of cells under FIGURES."""
    return [
        f"{outcome.speed:.1f}",
        shown(outcome.steady, ".1f"),
        shown(outcome.ready_s, ".1f"),
        shown(outcome.first_row_s, ".1f"),
        f"{outcome.took.cpu_s / outcome.audio_s * 3600:.0f}",
        f"{outcome.took.peak_bytes / 2**30:.2f}",
        shown(outcome.padding, ".0%"),
    ]


def median(outcomes: Sequence[Outcome]) -> Outcome:
    """The medians of the figures over the outcomes that have them, and the labels of the first."""

    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    took = Took(
        **{  # type: ignore[arg-type]
            name: middle(getattr(one.took, name) for one in outcomes)
            for name in ("began", "wall_s", "cpu_s", "peak_bytes", "own_peak_bytes", "own_cpu_s")
        }
    )
    names = ("ready_s", "steady", "first_row_s", "padding")
    middles: dict[str, Any] = {
        name: middle(getattr(one, name) for one in outcomes) for name in names
    }
    return replace(outcomes[0], took=took, **middles)


def word_error_rate(labels: Mapping[str, Any], references: Mapping[str, str]) -> float | None:
    """The WER over all clips with a reference. A label is a text, or a dict with `it_text` or `text`."""
    from audio_ops.speech.wer import WordErrors

    compare = WordErrors()
    edits = words = 0
    for name, label in labels.items():
        reference = references.get(name)
        if reference is not None:
            text = label.get("it_text", label.get("text")) if isinstance(label, dict) else label
            counts = compare(reference, text or "", "en")["edits"]
            edits, words = edits + counts["word_edits"], words + counts["words"]
    return edits / words if words else None
