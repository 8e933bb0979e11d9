"""The report on a table: figures counted by hand and by jiwer, out of the table alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jiwer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from runs import earmark
from s3 import KEY, S3, SECRET, s3  # noqa: F401  # the fixture
from tables import TableOf, existing

import jobs.reports.evaluate
from audio_ops.speech.wer import WordErrors
from audio_ops.tasks import load_task
from jobs.cli import run
from jobs.reports.columns import task_columns
from jobs.reports.evaluate import CHARACTERS_SHOWN, evaluate, lines, macro_f1
from jobs.table.table import Table

ASR, AC = "automatic-speech-recognition", "audio-classification"
TASKS = {
    "words": load_task(ASR).Options(task=ASR, model="x", reference="text"),
    "kind": load_task(AC).Options(task=AC, model="x", reference="folder"),
    "kind_too": load_task(AC).Options(task=AC, model="x"),  # no reference; a name like another's
}
KEPT = pa.schema(
    [
        ("text", pa.string()),
        ("folder", pa.string()),
        ("speaker", pa.string()),
        ('odd "name"; {x}', pa.int64()),
    ]
)
SETTINGS = {"tasks": {name: options.model_dump(mode="json") for name, options in TASKS.items()}}

SPEECH = [  # speaker, what was said, what was heard
    ("ann", "it was the best of times", "it was the blessed times"),  # 2 of 6
    ("ann", "fail better", "fail better"),  # 0 of 2
    ("bob", "you", "you go go"),  # 2 of 1
    ("bob", "", "thanks"),  # 1 of 0
    ("bob", "try again", None),  # failed
    (None, None, "no reference"),
    ("ann", "no matter", None),  # not run
]
KINDS = [  # folder, label, loss
    ("cat", "cat", 0.1),
    ("cat", "dog", 2.0),
    ("dog", "dog", 0.2),
    ("dog", "dog", 0.3),
    ("bird", "dog", 1.5),
    ("what", None, None),  # unknown to the model
    (None, "dog", None),  # no reference
]


def make(
    folder: Path | str,
    rows: Sequence[dict[str, Any]],
    used: str | None = None,
    options: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    kept: pa.Schema = KEPT,
    settings: Mapping[str, Any] = SETTINGS,
) -> Table:
    """A table with these rows, in two data files before they are compacted."""
    half = len(rows) // 2
    of = TableOf(TASKS, settings, kept, without, used)
    return of.write(folder, rows[:half], rows[half:], options=options)


def clip(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "clip_id": f"{number:04}",
        "source": f"/audio/{number:04}.wav",
        "source_version": "1-1",
        "offset_s": 0.0,
        "duration_s": 1.0,
        'odd "name"; {x}': number % 2,
        **columns,
    }


def speech() -> list[dict[str, Any]]:
    compare = WordErrors()
    rows = []
    for number, (speaker, said, heard) in enumerate(SPEECH):
        row = clip(number, speaker=speaker, text=said, words_text=heard)
        if heard is not None:
            judged = compare(said, heard, "en")
            row |= {f"words_{name}": value for name, value in judged.items()}
        elif said == "try again":
            row["words_error"] = "model: it broke"
        rows.append(row)
    return rows


def kinds() -> list[dict[str, Any]]:
    rows = []
    for number, (folder, label, loss) in enumerate(KINDS):
        row = clip(number, speaker="ann", folder=folder, kind_label=label, kind_loss=loss)
        if loss is not None:
            row |= {"kind_correct": folder == label, "kind_reference_label": folder}
        elif folder is not None:
            row["kind_reference_error"] = "folder: expected a label, found 'what'"
        rows.append(row)
    return rows


def test_wer_is_all_edits_by_all_words(tmp_path: Path) -> None:
    words = evaluate(make(tmp_path, speech()))["tasks"]["words"]
    assert (words["compared"], words["words"], words["word_edits"]) == (4, 9, 5)
    assert words["wer"] == pytest.approx(5 / 9)
    assert words["mean_wer"] == pytest.approx((2 / 6 + 0 + 2 + 1) / 4)
    said, heard = zip(*[(s, h) for _, s, h in SPEECH if s is not None and h], strict=True)
    assert words["wer"] == pytest.approx(jiwer.wer(list(said), list(heard)))
    assert words["cer"] == pytest.approx(jiwer.cer(list(said), list(heard)))
    assert words["kind"] == "recognition" and words["reference"] == "text"


UNSPACED = [("你好世界", "你好时界"), ("今天天气好", "今天天汽好")]  # 1 of 4, 1 of 5


def told(pairs: Sequence[tuple[str, str]], language: str | None) -> list[dict[str, Any]]:
    compare = WordErrors()
    return [
        clip(100 + n, text=said, words_text=heard)
        | {f"words_{name}": value for name, value in compare(said, heard, language).items()}
        for n, (said, heard) in enumerate(pairs)
    ]


@pytest.mark.parametrize("language", ["zh", None])
def test_cer_is_the_figure_where_words_are_not_spaced(tmp_path: Path, language: str | None) -> None:
    report = evaluate(make(tmp_path, told(UNSPACED, language)), ["speaker"])
    words = report["tasks"]["words"]
    assert words["cer"] == pytest.approx(2 / 9) and words["mean_cer"] == pytest.approx(0.225)
    assert words["without_spaces"] == words["compared"] == 2
    said = list(lines(report))
    figure = "CER 22.2 % (2 edits in 9 characters) · mean CER of a row 22.5 %"
    assert f"  {figure} · no WER, as words are not spaced" in said
    assert any(line.startswith("    None · 2 rows · CER 22.2 %") for line in said)
    assert "  highest CER:" in said and "    25.0 % · /audio/0100.wav" in said


def test_a_table_of_both_kinds_says_how_many_rows_have_no_spaces(tmp_path: Path) -> None:
    report = evaluate(make(tmp_path, [*speech(), *told(UNSPACED, "zh")]), ["text"])
    said = list(lines(report))
    assert "2 rows without spaces, where each letter counts as a word" in said[1]
    assert said[1].startswith("  WER 38.9 % (7 edits in 18 words) · CER ")
    assert "  highest WER or CER:" in said
    mostly = evaluate(make(tmp_path / "more", [*speech()[:2], *told(UNSPACED, "zh")]))
    assert "  CER " in list(lines(mostly))[1][:6]


def test_references_that_could_not_be_compared_are_counted(tmp_path: Path) -> None:
    row = clip(99, text="[...]", words_text="you", words_reference_error="text: no text")
    words = evaluate(make(tmp_path, [*speech(), row]))["tasks"]["words"]
    assert words["not_compared"]["bad_reference"] == 1


def test_a_table_of_an_earlier_version_is_evaluated(tmp_path: Path) -> None:
    """It has no column that says what counts, nor one for references that cannot be compared."""
    table = make(tmp_path, speech(), without=["words_compared_by", "words_reference_error"])
    words = evaluate(table)["tasks"]["words"]
    assert (words["words"], words["word_edits"], words["without_spaces"]) == (9, 5, 0)


def test_rows_that_were_not_compared_are_counted_with_the_reason(tmp_path: Path) -> None:
    unread = clip(99, text="said", error_stage="read", error_kind="unreadable", error_message="no")
    tasks = evaluate(make(tmp_path, [*speech(), unread]))["tasks"]
    assert tasks["words"]["not_compared"] == {"failed": 2, "no_reference": 1, "not_run": 1}
    assert "kind_too" not in tasks


def test_figures_by_a_column_add_up_to_those_over_all(tmp_path: Path) -> None:
    report = evaluate(make(tmp_path, speech()), ["speaker", 'odd "name"; {x}'])
    words = report["tasks"]["words"]
    ann, bob = words["by"]["speaker"]
    assert (ann["value"], ann["compared"], ann["words"], ann["word_edits"]) == ("ann", 2, 8, 2)
    assert (bob["value"], bob["compared"], bob["words"], bob["word_edits"]) == ("bob", 2, 1, 3)
    assert ann["wer"] == pytest.approx(0.25) and bob["wer"] == pytest.approx(3)
    for groups in words["by"].values():
        assert sum(group["word_edits"] for group in groups) == words["word_edits"]
        assert sum(group["compared"] for group in groups) == words["compared"]
    assert [group["value"] for group in words["by"]['odd "name"; {x}']] == [0, 1]


def test_of_very_many_values_the_most_frequent_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.reports.evaluate, "GROUPS", 2)
    monkeypatch.setattr(jobs.reports.evaluate, "GROUPS_SHOWN", 1)
    report = evaluate(make(tmp_path, kinds()), ["folder"])
    kind = report["tasks"]["kind"]
    assert [group["value"] for group in kind["by"]["folder"]] == ["cat", "dog"]
    assert [group["macro_f1"] for group in kind["by"]["folder"]] == pytest.approx([1 / 3, 1])
    assert kind["values"] == {"folder": 3} and "    and 2 more" in lines(report)


def test_a_time_is_a_value_like_any_other(tmp_path: Path) -> None:
    report = evaluate(make(tmp_path, speech()), ["labelled_at", "words_edits", "words_suspect"])
    by = report["tasks"]["words"]["by"]
    assert sum(group["compared"] for group in by["labelled_at"]) == 4
    assert all(isinstance(group["value"], datetime) for group in by["labelled_at"])
    assert sum(group["compared"] for group in by["words_edits"]) == 4
    assert "+00:00" in json.dumps(report, default=str)


def test_no_words_have_no_wer(tmp_path: Path) -> None:
    report = evaluate(make(tmp_path, [row for row in speech() if row["text"] == ""]))
    words = report["tasks"]["words"]
    assert words["wer"] is None and words["mean_wer"] == 1 and words["word_edits"] == 1
    assert any("WER – (1 edits in 0 words)" in line for line in lines(report))


def test_accuracy_loss_f1_and_confusions_are_those_counted_by_hand(tmp_path: Path) -> None:
    kind = evaluate(make(tmp_path, kinds()))["tasks"]["kind"]
    assert kind["compared"] == 5 and kind["accuracy"] == pytest.approx(3 / 5)
    assert kind["mean_loss"] == pytest.approx((0.1 + 2.0 + 0.2 + 0.3 + 1.5) / 5)
    # cat: one of two found, none wrong; dog: both found, two wrong; bird: not found
    assert kind["macro_f1"] == pytest.approx((2 / 3 + 4 / 6 + 0) / 3)
    assert kind["confusions"] == [
        {"reference": "bird", "label": "dog", "rows": 1},
        {"reference": "cat", "label": "dog", "rows": 1},
    ]
    assert kind["not_compared"] == {"no_reference": 1, "unknown_reference": 1}
    assert [row["loss"] for row in kind["worst"]] == pytest.approx([2.0, 1.5, 0.3, 0.2, 0.1])


def test_macro_f1_by_a_column_is_of_its_own_rows(tmp_path: Path) -> None:
    rows = kinds()
    for row in rows:
        row["speaker"] = None if row["folder"] == "cat" else "bob"
    report = evaluate(make(tmp_path, rows), ["speaker"])
    bob, nobody = report["tasks"]["kind"]["by"]["speaker"]
    assert (bob["value"], bob["compared"]) == ("bob", 3)
    assert bob["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)
    assert nobody["value"] is None and nobody["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert nobody["accuracy"] == pytest.approx(0.5)


def test_macro_f1_counts_labels_that_were_only_given() -> None:
    assert macro_f1({}) is None
    assert macro_f1({("a", "a"): 3}) == 1
    assert macro_f1({("a", "a"): 3, ("a", "b"): 1}) == pytest.approx((6 / 7 + 0) / 2)


def test_the_twenty_worst_rows_come_worst_first(tmp_path: Path) -> None:
    rows = [
        clip(n, folder="cat", kind_label="dog", kind_loss=float(n), kind_correct=False)
        for n in range(30)
    ]
    worst = evaluate(make(tmp_path, rows))["tasks"]["kind"]["worst"]
    assert [row["loss"] for row in worst] == [float(n) for n in range(29, 9, -1)]
    assert worst[0] == {
        "clip_id": "0029",
        "source": "/audio/0029.wav",
        "member": None,
        "offset_s": 0.0,
        "reference": "cat",
        "label": "dog",
        "loss": 29.0,
    }


def test_rows_of_other_settings_are_reported(tmp_path: Path) -> None:
    report = evaluate(make(tmp_path, kinds(), used="before"))
    assert report["rows"] == report["rows_of_other_settings"] == len(KINDS)
    assert list(lines(report))[-1] == "7 rows were labelled with other settings"


def test_options_of_other_versions_are_read() -> None:
    options = {"task": ASR, "reference": "text", "of_a_later_version": 1}
    columns = task_columns("words", options, ["words_text", "words_wer", "words_error", "kind_wer"])
    assert columns.kind == "recognition"
    assert columns.of == {"text": "words_text", "wer": "words_wer", "error": "words_error"}
    with pytest.raises(ValueError, match="words: expected a task that this version has, found 'x'"):
        task_columns("words", {"task": "x"}, [])


def test_a_text_cannot_control_the_terminal(tmp_path: Path) -> None:
    rows = speech()[:1]
    rows[0]["words_text"] = "a\x1b[2Jb\nc" + "x" * 1000
    said = "\n".join(lines(evaluate(make(tmp_path, rows))))
    assert "\x1b" not in said and "text: a [2Jb c" in said
    assert max(map(len, said.splitlines())) < CHARACTERS_SHOWN + 20


def test_a_report_is_stored_outside_of_what_readers_scan(tmp_path: Path) -> None:
    table = make(
        tmp_path, [*speech(), *(row | {"clip_id": f"k{row['clip_id']}"} for row in kinds())]
    )
    table.keep_report({"run_id": "run", **evaluate(table, ["speaker"])})
    stored = tmp_path / "table" / "_runs" / "run.json"
    report = json.loads(stored.read_text(encoding="utf-8"))
    assert report == {"run_id": "run", **evaluate(table, ["speaker"])}
    delta = DeltaTable(table.path)
    options = {"retention_hours": 0, "enforce_retention_duration": False}
    gone = delta.vacuum(dry_run=False, full=True, **options)
    assert not [name for name in gone if "_runs" in name] and stored.exists()
    assert len(pq.read_table(table.path)) == len(delta.to_pyarrow_table()) == 14
    assert existing(table.path).is_tidy()


def test_evaluate_prints_the_report_of_a_table(tmp_path: Path) -> None:
    rows = [
        {**one, **{k: v for k, v in other.items() if v is not None}}
        for one, other in zip(speech(), kinds(), strict=True)
    ]
    table = make(tmp_path, rows)
    done = earmark("evaluate", table.path, "--by", "speaker")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(lines(evaluate(table, ["speaker"])))
    for line in (
        "words against text: 4 of 7 rows compared (1 failed, 1 no reference, 1 not run)",
        "  WER 55.6 % (5 edits in 9 words) · CER 44.7 % · mean WER of a row 83.3 %",
        "    200.0 % · /audio/0002.wav",
        "      reference: you",
        "      text: you go go",
        "kind against folder: 5 of 7 rows compared (1 no reference, 1 unknown reference)",
        "  accuracy 60.0 % · macro-F1 0.444 · mean loss 0.820",
        "    1 × cat taken for dog",
        "    2.00 · /audio/0001.wav",
    ):
        assert line in done.stdout.splitlines()


def test_evaluate_refuses_a_missing_table_and_a_missing_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tmp_path / "nothing")]) == 2
    assert "expected a table that Earmark made, found none" in capsys.readouterr().err
    table = make(tmp_path, kinds())
    assert run(["evaluate", table.path, "--by", "spaeker"]) == 2
    assert "--by: expected a column of the table (clip_id, " in capsys.readouterr().err
    assert run(["evaluate", table.path, "--storage-option", "anon"]) == 2
    assert "--storage-option: expected a.b=value, found 'anon'" in capsys.readouterr().err
    options = ["--storage-option", "a=1", "--storage-option", "a.b=2"]
    assert run(["evaluate", table.path, *options]) == 2
    message = "--storage-option a.b: expected a section at a, found a plain value"
    assert message in capsys.readouterr().err


def test_a_table_without_rows_has_an_empty_report(tmp_path: Path) -> None:
    report = evaluate(make(tmp_path, []))
    assert report["rows"] == 0 and report["tasks"]["words"]["wer"] is None
    assert "  nothing to compare" in lines(report)


def test_a_table_on_s3_is_evaluated_and_keeps_its_report_there(
    tmp_path: Path,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.bucket("evaluated")
    table = make("s3://evaluated", speech(), options=s3.resolved)
    report = evaluate(table, ["speaker"])
    assert report["tasks"] == evaluate(make(tmp_path, speech()), ["speaker"])["tasks"]
    table.keep_report({"run_id": "run", **report})
    stored = json.loads(s3.files().cat_file("evaluated/table/_runs/run.json"))
    assert stored == {"run_id": "run", **report}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = [f"endpoint_url={s3.endpoint}", "client_kwargs.region_name=us-east-1"]
    done = earmark("evaluate", table.path, *(f"--storage-option={o}" for o in options))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(lines(evaluate(table)))
