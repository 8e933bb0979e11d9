"""A recogniser is compared with an earlier one, and a third is asked where they disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from checkpoints import tiny_ctc, tiny_moonshine
from hearing import RATE, labeller, sound
from runs import ROOT

from audio_ops.speech.wer import WordErrors
from audio_ops.tasks import Clip
from audio_ops.when import When
from jobs.config_file import load_config
from jobs.preflight import check_columns, columns_before


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
