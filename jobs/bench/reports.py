"""Checks and reports of a table of ten million rows, with texts and labels that have references."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from audio_ops.speech.wer import WordErrors
from audio_ops.tasks import load_task
from jobs.bench.big_table import DAY, RUN_ID, fill
from jobs.bench.measure import measured
from jobs.bench.report import COST, show, target
from jobs.clips import clip_ids
from jobs.fingerprints import fingerprints
from jobs.reports.drift import statistics
from jobs.reports.evaluate import evaluation
from jobs.reports.kept_totals import run_totals
from jobs.table.log import ROWS_AT_ONCE
from jobs.table.schema import fingerprint_column, in_schema, run_column, table_schema
from jobs.table.storage import Storage
from jobs.table.table import Table, hold

CLIPS_OF_A_TAR = 1_000
SENTENCES, WORDS, WORDS_OF_A_SENTENCE = 5_000, 2_000, 12
KEPT = pa.schema([("text", pa.string()), ("sound", pa.string())])
ROWS = 10_000_000
MAX_GIB = 2.0
# The commands, and the end of a run whose table has no sums yet, or has them.
END = "from jobs.bench.reports import end_of_run; end_of_run({table!r})"
TASKS = {
    "words": ("automatic-speech-recognition", "text"),
    "kind": ("audio-classification", "sound"),
}
LABELS = [f"label {number}" for number in range(50)]


def reports(_: argparse.Namespace) -> None:
    """What reads all of a table of ten million rows, and the end of a run on it."""
    with tempfile.TemporaryDirectory() as name:
        table = labelled_table(Path(name, "table"), ROWS).path
        end = ["-c", END.format(table=table)]
        ways = {
            "verify": ["-m", "jobs.cli", "verify", table],
            "evaluate": ["-m", "jobs.cli", "evaluate", table],
            "report": ["-m", "jobs.cli", "report", table, "-o", f"{name}/page"],
            "the end of the first run that keeps sums": end,
            "the end of a later run": end,
        }
        rows = []
        for what, arguments in ways.items():
            took = measured([sys.executable, *arguments])
            gib = took.own_peak_bytes / 2**30
            rows.append([what, f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}", f"{gib:.2f}"])
            target(f"{what}, {ROWS:,} rows", gib, MAX_GIB, at_most=True, unit="GiB")
    show(f"A table of {ROWS:,} rows", ["what", *COST], rows)


def end_of_run(path: str) -> None:
    """Do what a run does with a table at its end."""
    table = Table.open(Storage(path))
    assert table is not None
    found = run_totals(table, "later", keep=True)
    statistics(found)
    evaluation(table, found)


def labelled_table(folder: Path, count: int) -> Table:
    """A table of `count` clips in tars, written without a run, by a recogniser and a classifier whose
    labels are compared with references."""
    tasks = {
        name: load_task(task).Options(task=task, model="none", reference=reference)
        for name, (task, reference) in TASKS.items()
    }
    settings = {"tasks": {name: options.model_dump(mode="json") for name, options in tasks.items()}}
    schema = table_schema(tasks, KEPT)
    table = hold(Storage(str(folder)), RUN_ID, schema, settings, {})
    sentences, prints = _sentences(), fingerprints(settings)
    starts = range(0, count, ROWS_AT_ONCE)
    groups = (_rows(at, min(ROWS_AT_ONCE, count - at), sentences, prints) for at in starts)
    fill(table, (in_schema(group, table.schema()) for group in groups))
    table.release()
    return table


def _sentences() -> pa.Table:
    """Texts of 12 words with their references, of which they miss every tenth word."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghij"), 6)) for _ in range(WORDS)]
    compare, rows = WordErrors(), []
    for chosen in random.integers(0, WORDS, (SENTENCES, WORDS_OF_A_SENTENCE)):
        reference = [words[number] for number in chosen]
        text = [word for word in reference if random.random() > 0.1]
        row = {"text": " ".join(reference), "words_text": " ".join(text)}
        judged = compare(row["text"], row["words_text"], "en")
        rows.append(row | {f"words_{name}": value for name, value in judged.items()})
    return pa.Table.from_pylist(rows)


def _rows(start: int, count: int, sentences: pa.Table, prints: Mapping[str, str]) -> pa.Table:
    random, numbers = np.random.default_rng(start), np.arange(start, start + count)
    found = sentences.take(pa.array(random.integers(0, SENTENCES, count)))
    tars = [f"s3://bucket/speech/{n // CLIPS_OF_A_TAR:06}.tar" for n in numbers.tolist()]
    labels = pa.array(LABELS).dictionary_encode()
    truth, label = (pa.array(random.integers(0, len(LABELS), count)) for _ in range(2))
    columns: dict[str, Any] = {
        "source": pa.array(tars),
        "member": pa.array([f"{n:09}.wav" for n in numbers.tolist()]),
        "source_version": pa.array([f"{n:016x}" for n in numbers.tolist()]),
        "offset_s": pa.array(np.zeros(count)),
        "duration_s": pa.array(random.uniform(1, 20, count)),
        "words_score": pa.array(random.random(count, np.float32)),
        "words_suspect": pa.array([["loop"] if n % 50 == 0 else [] for n in numbers.tolist()]),
        "kind_label": labels.dictionary.take(label),
        "kind_score": pa.array(random.random(count, np.float32)),
        "kind_loss": pa.array(random.exponential(1, count).astype(np.float32)),
        "kind_correct": pa.array(truth.to_numpy() == label.to_numpy()),
        "kind_reference_label": labels.dictionary.take(truth),
        "sound": labels.dictionary.take(truth),
    }
    same: dict[str, Any] = {"sample_rate": 16_000, "channels": 1, "format": "wav", "status": "ok"}
    same |= {fingerprint_column(task): print_ for task, print_ in prints.items()}
    same |= {run_column(task): RUN_ID for task in prints} | {"run_id": RUN_ID}
    for name, column in columns.items():
        found = found.append_column(name, column)
    for name, value in same.items():
        found = found.append_column(name, pa.repeat(value, count))
    found = found.append_column("labelled_at", pa.repeat(pa.scalar(DAY), count))
    return found.append_column("clip_id", clip_ids(found))
