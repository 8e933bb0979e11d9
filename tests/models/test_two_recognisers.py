"""A recogniser is compared with an earlier one, a third is asked where they disagree, and a column of the
source says what to listen for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from checkpoints import tiny_ctc, tiny_moonshine
from hearing import RATE, labeller, sound
from runs import ROOT, Job

from audio_ops.speech.wer import WordErrors
from audio_ops.tasks import Clip
from audio_ops.when import When
from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.preflight import check_columns, columns_before, find_source


def test_a_text_of_an_earlier_task_is_a_reference(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = labeller(tiny_ctc(tmp_path / "a", "wav2vec2", seed=2))
    second = labeller(tiny_moonshine(tmp_path / "b"), reference="a_text", reference_language="en")
    waves = [sound(1.0, 200), sound(1.7, 900)]
    clips = [Clip(wave, len(wave) / RATE) for wave in waves]
    rows: list[Any] = [{"a_text": one["text"]} for one in first.label(clips)]  # type: ignore[index]
    rows.append({"a_text": None})  # of a task that failed
    compared: list[Any] = second.label(
        [
            Clip(clip.waveform, clip.duration_s, row=row)
            for clip, row in zip([*clips, clips[0]], rows, strict=True)
        ]
    )
    compare = WordErrors()
    for found, row in zip(compared[:2], rows, strict=False):
        expected = compare(row["a_text"], found["text"], "en")
        assert found["wer"] == expected["wer"] > 0
        assert found["edits"] == expected["edits"]
    assert "wer" not in compared[2]
    same = compare(rows[0]["a_text"], rows[0]["a_text"], "en")
    wer = pa.array([compared[0]["wer"], same["wer"], None], pa.float32())
    assert When("b_wer > 0.2")(pa.table({"b_wer": wer})) == [True, False, False]


def test_the_config_for_it_asks_the_third_where_the_two_disagree() -> None:
    config = load_config(str(ROOT / "configs" / "two_recognisers.yaml"))
    check_columns(config, pa.schema([]))
    before = columns_before(config, pa.schema([]))
    assert {"a_text"} <= set(before["b"].names)
    assert {"b_wer", "b_text"} <= set(before["c"].names)


def test_a_prompt_column_is_read_from_the_source_and_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text(
        json.dumps({"audio_filepath": "audio/a.wav", "names": "Ray", "count": 2})
    )
    job = Job(tmp_path, tmp_path)
    task = {"task": "automatic-speech-recognition", "model": str(tmp_path)}
    for column, kept in (("names", ["names"]), ("absent", [])):
        job.write(
            tasks={"words": {**task, "prompt_column": column}},
            input={"path": str(tmp_path / "clips.jsonl")},
        )
        config = load_config(job.config)
        if kept:
            assert find_source(config, job.config, print)[1].names == kept
        else:
            with pytest.raises(ConfigError, match=r"tasks\.words\.prompt_column: .*'absent'"):
                find_source(config, job.config, print)
    with pytest.raises(
        ValueError, match="prompt_column: expected a column of text, found 'absent'"
    ):
        check_columns(config, pa.schema([("absent", pa.int64())]))
