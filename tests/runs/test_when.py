"""`when`: which expressions are taken, what they say of a clip, and that other clips have no part
in it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from runs import ROOT, Job
from test_label import RATE, Loudest, labeller

from audio_ops.errors import KINDS, ClipError
from audio_ops.label import Label
from audio_ops.signal.waveforms import waveform_column
from audio_ops.when import When
from jobs.config_file import load_config
from jobs.fingerprints import fingerprints, settings
from jobs.preflight import columns_before

SCHEMA = pa.schema(
    [
        ("duration_s", pa.float64()),
        ("sound_label", pa.string()),
        ("sound_score", pa.float32()),
        ("sound_labels", pa.list_(pa.string())),
        ("sound_segments", pa.list_(pa.struct({"start_s": pa.float64(), "label": pa.string()}))),
        ("Speaker", pa.string()),
    ]
)
CLIPS = pa.Table.from_pylist(
    [
        {
            "duration_s": 3.0,
            "sound_label": "speech",
            "sound_score": 0.9,
            "sound_labels": ["speech", "music"],
            "sound_segments": [{"start_s": 1.5, "label": "speech"}],
            "Speaker": "7",
        },
        {
            "duration_s": 0.5,
            "sound_label": "speech",
            "sound_score": 0.5,
            "sound_labels": ["speech", "rain"],
            "sound_segments": [],
            "Speaker": "Ann",
        },
        {
            "duration_s": 8.0,
            "sound_label": "rain",
            "sound_score": 0.7,
            "sound_labels": ["rain", "music"],
            "sound_segments": None,
            "Speaker": "12",
        },
        {"duration_s": 9.0},  # its sound task failed
    ],
    schema=SCHEMA,
)


def qualifying(expression: str, clips: pa.Table = CLIPS) -> list[bool | ClipError]:
    when = When(expression)
    when.check(clips.schema)
    return when(clips)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("sound_label == 'speech' and sound_score > 0.6", [0]),
        ("sound_label <> 'speech' or duration_s < 1", [1, 2]),
        ("sound_label is distinct from 'speech'", [2, 3]),
        ("coalesce(sound_score, 1) > 0.6", [0, 2, 3]),
        ("'music' in sound_labels", [0, 2]),
        ("len(list_filter(sound_labels, lambda l: l like 'r%')) > 0", [1, 2]),
        ("sound_segments[1].start_s between 1 and 2", [0]),
        ("speaker = 'Ann'", [1]),
        ("clips.duration_s > 5 -- long ones", [2, 3]),
        ("try_cast(Speaker as int) > 10", [2]),
        ("true", [0, 1, 2, 3]),
        ("false", []),
    ],
)
def test_it_is_true_of_these_clips_and_null_is_not_true(expression: str, rows: list[int]) -> None:
    assert qualifying(expression) == [row in rows for row in range(4)]


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("", "Parser Error"),
        ("sound_label = 'speech", "unterminated"),
        ("true; DROP TABLE clips", "Parser Error"),
        ("true) FROM clips UNION ALL SELECT (false", "syntax error"),
        ("true, false", "2 expressions"),
        ("true AS x", "syntax error"),
        ("sound_score", "FLOAT"),
        ("null", "; the columns there are"),
        ("nobody = 1", "no column 'nobody'"),
        ("other.sound_score > 1", "no column 'other'"),
        ("sound_score.x > 1", "Binder Error"),
        ("current_date > '2020-01-01'", "no column 'current_date'"),
        ("sound_score > avg(sound_score)", "avg() in it"),
        ("row_number() over () < 3", "a window over other clips in it"),
        ("sound_score > (select max(sound_score) from clips)", "a subquery in it"),
        ("exists(from read_text('/etc/passwd'))", "a subquery in it"),
        ("random() < 0.5", "random() in it"),
        ("now() > '2020-01-01'", "now() in it"),
        ("age(timestamp '2020-01-01') > interval 1 year", "age() in it"),
        ("current_setting('threads') = '1'", "current_setting() in it"),
        ("getvariable('x') = 1", "getvariable() in it"),
        ("version() = 'v2'", "version() in it"),
        ("unnest(sound_labels) = 'rain'", "unnest() in it"),
        ("columns(*) is null", "a star for several columns in it"),
        ("#1 > 3", "a column by number in it"),
        ("duration_s > ?", "a parameter in it"),
        ("duration_s > '3 s'", "Could not convert string '3 s'"),
        ("modified_at > 'now'", "invalid timestamp"),
    ],
)
def test_what_is_no_condition_on_one_clip_is_refused(expression: str, found: str) -> None:
    with pytest.raises(ValueError, match="expected an SQL expression") as refusal:
        When(expression).check(SCHEMA.append(pa.field("modified_at", pa.timestamp("us"))))
    assert repr(expression) in str(refusal.value) and found in str(refusal.value)


def test_a_refusal_names_the_columns_there_are() -> None:
    with pytest.raises(ValueError, match=r"by then: duration_s, sound_label, .*, Speaker$"):
        When("nobody = 1").check(SCHEMA)


def test_where_it_has_no_value_that_clip_alone_fails() -> None:
    seven, ann, twelve, null = qualifying("cast(Speaker as int) > 10")
    assert (seven, twelve, null) == (False, True, False)
    assert isinstance(ann, ClipError) and ann.kind == "when" and ann.kind in KINDS
    assert "cast(Speaker as int)" in ann.message and "'Ann'" in ann.message


def test_a_clip_gets_the_same_answer_alone_and_among_others() -> None:
    when = When("sound_label = 'speech' and sound_score > 0.6")
    clips = pa.concat_tables([CLIPS] * 3000)
    assert when(clips) == [when(CLIPS.slice(row, 1))[0] for row in range(4)] * 3000
    assert when(CLIPS.slice(0, 0)) == []


def test_only_the_columns_that_it_names_are_looked_at() -> None:
    strange = pa.array([None] * 4, pa.decimal256(70, 2))  # which DuckDB cannot read
    clips = CLIPS.append_column("strange", strange).append_column("speaker", CLIPS["sound_label"])
    assert When("Speaker = 'Ann'")(clips) == [False, True, False, False]
    assert When("speaker = 'rain'")(clips) == [False, False, True, False]


def test_two_threads_may_ask_at_once() -> None:
    when = When("sound_label = 'speech'")
    clips = pa.concat_tables([CLIPS] * 500)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: when(clips), range(40)))
    assert all(answer == [True, True, False, False] * 500 for answer in answers)


@pytest.mark.parametrize(
    "query",
    [
        "FROM read_csv('/etc/passwd', header = false)",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "LOAD httpfs",
        "SET threads = 4",
        "SET TimeZone = 'Asia/Tokyo'",
    ],
)
def test_its_database_is_locked(query: str) -> None:
    with pytest.raises(duckdb.Error):
        When("true").database.execute(query).fetchall()


def test_times_are_utc_wherever_it_is_asked() -> None:
    script = """
import pyarrow as pa
from datetime import datetime, timezone
from audio_ops.when import When
new_year = datetime(2026, 1, 1, 2, tzinfo=timezone.utc)
clips = pa.table({"modified_at": pa.array([new_year], pa.timestamp("us", "UTC"))})
print(When("year(modified_at) = 2026 and modified_at > '2026-01-01 01:00'")(clips))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TZ": "America/New_York"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[True]"


class Counting(Loudest):
    """Counts the clips that it was given."""

    given = 0

    def windows(self, clip: Any) -> Any:
        self.given += 1
        return super().windows(clip)


def prepared(values: list[float | None], **columns: list[Any]) -> pa.Table:
    """Clips as a task gets them: a second of sound each, or none for a clip that failed before."""
    sounds = [None if v is None else np.full(RATE, v, "<f4") for v in values]
    return pa.table(
        {
            "clip_id": [str(n) for n in range(len(values))],
            "duration_s": [1.0] * len(values),
            "error_kind": [None if value is not None else "not_audio" for value in values],
            f"sound_{RATE}": waveform_column(sounds),
            "speech": pa.nulls(len(values), pa.binary()),
            **columns,
        }
    )


def conditional(expression: str) -> tuple[Label, Counting]:
    model = Counting()
    label = labeller(model)
    label.columns = {"loudest": pa.list_(pa.float64())}
    label.when = When(expression)
    return label, model


def test_a_clip_that_does_not_qualify_never_reaches_the_model() -> None:
    label, model = conditional("sound_label = 'speech'")
    of = ["speech", "rain", None, "speech", "speech"]
    done = label(prepared([1, 2, 3, None, 5], sound_label=of))
    assert done["t_loudest"].to_pylist() == [[1], None, None, None, [5]]
    assert done["t_error"].null_count == 5
    assert model.given == 2 and model.batches == [2]


def test_a_block_in_which_no_clip_qualifies_costs_no_batch() -> None:
    label, model = conditional("duration_s > 100")
    done = label(prepared([1, 2]))
    assert done["t_loudest"].null_count == done["t_error"].null_count == 2
    assert model.given == 0 and model.batches == []


def test_a_clip_whose_condition_has_no_value_gets_an_error_of_the_task() -> None:
    label, _ = conditional("cast(speaker as int) > 1")
    done = label(prepared([1, 2, 3], speaker=["2", "Ann", "0"]))
    assert done["t_loudest"].to_pylist() == [[1], None, None]
    [error] = [error for error in done["t_error"].to_pylist() if error]
    assert done["t_error"][1].is_valid and error.startswith("when: ")


TWO = {
    "sound": {"task": "audio-classification", "reference": "folder"},
    "words": {"task": "audio-classification"},
}


def two_tasks(folder: Path, model: Path, when: Any, first: str | None = None) -> Job:
    tasks = {name: {**task, "model": str(model)} for name, task in TWO.items()}
    tasks["words"]["when"] = when
    if first:
        tasks["sound"]["when"] = first
    job = Job(folder, model, tasks=tasks)
    job.sound("speech/a.wav", 300)
    return job


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("sound_lable = 'speech'", "no column 'sound_lable'"),
        ("words_label = 'speech'", "no column 'words_label'"),
        ("file_name like 'a%'", "no column 'file_name'"),  # not kept
        ("sound_16000 is null", "no column 'sound_16000'"),
        ("error_kind is null", "no column 'error_kind'"),
        ("sound_score", "FLOAT"),
    ],
)
def test_a_wrong_condition_ends_the_run_before_it_starts(
    tmp_path: Path, classifier: Path, expression: str, found: str
) -> None:
    job = two_tasks(tmp_path, classifier, expression)
    code, text = job.run()
    assert code == 2 and not job.table.exists()
    assert "job.yaml: tasks.words.when: expected an SQL expression" in text
    assert repr(expression) in text and found in text
    assert (
        "duration_s, sample_rate, channels, format, peak_dbfs, rms_dbfs, sound_flags, folder, sound_label"
        in text
    )


def test_the_first_task_sees_the_sound_and_what_is_kept_but_no_later_task(
    tmp_path: Path, classifier: Path
) -> None:
    job = two_tasks(
        tmp_path, classifier, "sound_correct", first="words_label = 'x' or duration_s > 1"
    )
    code, text = job.run()
    assert code == 2 and "tasks.sound.when" in text and "tasks.words.when" not in text
    config = load_config(job.config)
    before = columns_before(config, pa.schema([("folder", pa.string())]))
    assert before["sound"].names[-1] == "folder" and before["sound"].names[0] == "clip_id"
    assert {"sound_label", "sound_error", "sound_loss"} <= set(before["words"].names)


def test_a_condition_that_is_no_text_is_an_error_of_the_config(
    tmp_path: Path, classifier: Path
) -> None:
    code, text = two_tasks(tmp_path, classifier, True).run()
    assert code == 2 and "tasks.words.when: expected a text, found true, which YAML reads" in text


def test_another_condition_is_another_fingerprint(tmp_path: Path, classifier: Path) -> None:
    from audio_ops.inference.checkpoint import find_checkpoint

    found = {name: find_checkpoint(str(classifier)) for name in TWO}
    prints = set()
    for when in ("sound_score > 0.5", "sound_score > 0.6", None):
        config = load_config(two_tasks(tmp_path, classifier, when).config)
        prints.add(fingerprints(settings(config, found))["words"])
    assert len(prints) == 3
