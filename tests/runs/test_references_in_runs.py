"""References in whole runs: carried along, compared, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import tiny_classifier
from runs import Job
from sounds import encode, tone
from test_references import whisper  # noqa: F401  # the fixture


def recognising(folder: Path, whisper: Path, reference: str, **source: Any) -> Job:
    task = {
        "task": "automatic-speech-recognition",
        "model": str(whisper),
        "reference": reference,
    }
    return Job(folder, whisper, tasks={"words": task}, **source)


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("size_bytes", "expected a column of text, found 'size_bytes', which is int64"),
        ("said", "expected columns of the source"),
        ("words_text", "expected columns of the source"),
    ],
)
def test_a_reference_that_is_no_column_of_text_ends_the_run_before_it_starts(
    tmp_path: Path, whisper: Path, reference: str, found: str
) -> None:
    job = recognising(tmp_path, whisper, reference)
    job.sounds(1)
    code, text = job.run()
    assert code == 2 and f"tasks.words.reference: {found}" in text and not job.table.exists()


def test_a_manifests_text_is_the_reference_and_is_carried_along(
    tmp_path: Path, whisper: Path, local_ray: None
) -> None:
    job = recognising(tmp_path, whisper, "text", input={"path": str(tmp_path / "clips.jsonl")})
    job.sounds(5)
    texts = ["it was the best of times", "", None, ["a", "list"], {"an": "object"}]
    entries = [
        {"audio_filepath": f"audio/clip{n:03}.wav", "text": text} for n, text in enumerate(texts)
    ]
    (tmp_path / "clips.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    code, said = job.run()
    assert code == 0, said
    rows = [row for _, row in sorted(job.by_name().items())]
    assert [row["text"] for row in rows] == [*texts[:3], '["a", "list"]', '{"an": "object"}']
    best, empty, none, *wrong = rows
    assert best["words_edits"]["words"] == 6 and best["words_wer"] > 0
    assert empty["words_edits"]["words"] == 0
    assert empty["words_wer"] == empty["words_edits"]["word_edits"]
    assert none["words_wer"] is none["words_cer"] is none["words_edits"] is None
    assert none["words_text"] is not None and none["status"] == "ok"
    for row in wrong:
        assert row["status"] == "ok" and row["words_text"] is not None
        assert row["words_wer"] is None and row["words_reference_error"].startswith("text: ")
    assert best["words_compared_by"] == "words" and best["words_reference_error"] is None
    reasons = "2 bad reference, 1 no reference"
    assert f"words against text: 2 of 5 rows compared ({reasons})" in said


def test_one_reference_that_cannot_be_compared_costs_no_row_its_labels(
    tmp_path: Path, classifier: Path, local_ray: None
) -> None:
    """Of each type that a Parquet column may have, beside references that can be compared."""
    several = tiny_classifier(
        tmp_path / "several", "wav2vec2", problem_type="multi_label_classification"
    )
    columns = {
        "is_rain": [True, False, None],
        "text": ["2.0", "wolf", '["rain"]'],
        "id": [2, 99, None],
        "json": ['["dog", "bird"]', '["dog", true]', "[]"],
    }
    sounds = [encode(tone(0.3, hz=200 + 90 * n), 16_000, "wav") for n in range(3)]
    pq.write_table(pa.table({"audio": sounds, **columns}), tmp_path / "clips.parquet")
    tasks = {
        name: {
            "task": "audio-classification",
            "model": str(several if name == "json" else classifier),
            "reference": name,
        }
        for name in columns
    }
    job = Job(
        tmp_path,
        classifier,
        input={"path": str(tmp_path / "clips.parquet"), "columns": {"audio": "audio"}},
        tasks={f"t_{name}": task for name, task in tasks.items()},
    )
    code, said = job.run()
    assert code == 0, said
    rows = sorted(pq.read_table(job.table).to_pylist(), key=lambda row: int(row["member"]))
    assert [row["status"] for row in rows] == ["ok"] * 3
    for name, errors in {
        "is_rain": ["found True", "found False", None],
        "text": [None, "found 'wolf'", None],
        "id": [None, "found 99", None],
        "json": [None, "found True", None],
    }.items():
        for row, error in zip(rows, errors, strict=True):
            assert row[f"t_{name}_label"]
            assert (row[f"t_{name}_loss"] is None) == (error is not None or row[name] is None)
            assert (error or "") in (row[f"t_{name}_reference_error"] or "")
            assert (row[f"t_{name}_reference_error"] is None) == (error is None)
    assert "t_is_rain against is_rain: 0 of 3 rows compared" in said
