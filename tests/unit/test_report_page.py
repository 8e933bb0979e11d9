"""`earmark report`: its sums counted by hand, its lists, its texts as texts, its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from sounds import encode, tone
from tables import TableOf
from test_evaluate import KEPT, SETTINGS, TASKS, clip, kinds, make, speech

from jobs.cli import run
from jobs.reports.page import lists, sums
from jobs.reports.page.database import Database, opened, reported_tasks
from jobs.reports.page.edits import Edit, edits
from jobs.reports.page.render import clock, span
from jobs.table.table import Table

# Texts that are harmless as texts alone.
HOSTILE = [
    "<img src=x onerror=\"window.hacked='img'\">",
    "</script><script>window.hacked='script'</script>",
    "\"' onmouseover='window.hacked=1' x=\"",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "&lt;b&gt;&amp;",
]


@pytest.fixture
def words(tmp_path: Path) -> Iterator[tuple[Table, Database]]:
    """The rows of `speech` with scores, suspects and segments."""
    rows = speech()
    scores = (0.4, 0.97, 0.2, 0.1, None, 0.6, None)
    reasons = (["loop"], [], ["loop", "phrase"], ["no_speech"], None, [], None)
    for row, score, reason in zip(rows, scores, reasons, strict=True):
        row |= {"words_score": score, "words_suspect": reason, "duration_s": 2.0}
    rows[4] |= {"error_kind": "model", "error_message": "it broke", "error_stage": "words"}
    table = make(tmp_path, rows)
    with opened(table) as database:
        yield table, database


def task_of(table: Table, name: str) -> Any:
    return next(task for task in reported_tasks(table) if task.name == name)


def test_the_sums_are_those_of_the_rows(words: tuple[Table, Database]) -> None:
    table, database = words
    whole = sums.overall(database)
    assert (whole["clips"], whole["hours"]) == (7, pytest.approx(14 / 3600))
    assert sums.summed_up(database, reported_tasks(table))["overall"]["runs"] == 1
    assert whole["ok"] + whole["partial"] + whole["failed"] == 7
    [error] = sums.errors(database)
    assert (error["kind"], error["clips"]) == ("model", 1)
    assert error["example"]["source"].endswith("0004.wav") and error["meaning"]
    found = sums.of_task(database, task_of(table, "words"))
    assert (found["labelled"], found["failed"]) == (5, 1)
    assert found["mean_score"] == pytest.approx((0.4 + 0.97 + 0.2 + 0.1 + 0.6) / 5)
    assert found["suspects"] == [
        {"reason": "loop", "clips": 2},
        {"reason": "no_speech", "clips": 1},
        {"reason": "phrase", "clips": 1},
    ]
    assert (found["suspect_clips"], found["words"]) == (3, 5 + 2 + 3 + 1 + 2)
    assert sum(found["words_per_s"]["counts"]) == 5
    scores = found["scores"]
    filled = {round(scores["edges"][n], 3) for n, count in enumerate(scores["counts"]) if count}
    assert filled == {0.1, 0.2, 0.4, 0.6, 0.95}


def test_calibration_is_of_the_words_that_are_right(words: tuple[Table, Database]) -> None:
    table, database = words
    bins = {row["bin"]: row for row in sums.calibration(database, task_of(table, "words"))}
    assert bins.keys() == {1, 2, 4, 9}  # of the compared rows
    assert bins[4]["right"] == pytest.approx(1 - 2 / 6) and bins[9]["right"] == 1
    assert bins[2]["right"] == 0 and bins[1]["right"] is None  # no word in its reference
    expected = (abs(0.4 - 4 / 6) + abs(0.97 - 1) + 0.2) / 3
    assert sums.calibration_error([*bins.values()]) == pytest.approx(expected)
    assert sums.calibration_error([]) is None


def test_labels_and_confusions_of_a_classification(tmp_path: Path) -> None:
    table = make(tmp_path, kinds())
    with opened(table) as database:
        found = sums.of_task(database, task_of(table, "kind"))
    assert [(row["label"], row["clips"]) for row in found["labels"]] == [("dog", 5), ("cat", 1)]
    assert [row["hours"] for row in found["labels"]] == pytest.approx([5 / 3600, 1 / 3600])
    assert found["label_count"] == 2 and found["scores"] is None
    assert found["matrix"]["names"] == ["dog", "cat", "bird"]
    assert found["matrix"]["rows"] == [[2, 0, 0], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("values", "highest", "is_open"),
    [([0.5], 0.5, False), ([1.0] * 300 + [900.0], 1.0, True), ([0.0], 1.0, False)],
)
def test_a_histogram_has_every_value_in_bins_that_show_most(
    tmp_path: Path, values: list[float], highest: float, is_open: bool
) -> None:
    table = make(tmp_path, [{**clip(n), "duration_s": value} for n, value in enumerate(values)])
    with opened(table) as database:
        found = sums.histogram(database, "duration_s")
        assert sums.histogram(database, "kind_score") is None
    assert found and sum(found["counts"]) == len(values)
    assert found["edges"][-1] == pytest.approx(highest) and found["open"] == is_open


def test_runs_are_compared_with_the_run_before(words: tuple[Table, Database]) -> None:
    table, _ = words
    rows = DeltaTable(table.path).to_pyarrow_table().sort_by("clip_id")
    later = rows["labelled_at"].to_pylist()[0].replace(year=2099)
    runs = [name for name in rows.column_names if name.endswith("run_id")]
    values = {"labelled_at": later, **dict.fromkeys(runs, "later")}
    other = pa.Table.from_pylist([row | values for row in rows.to_pylist()], schema=rows.schema)
    write_deltalake(table.path, other.slice(0, 2), mode="append")
    table.refresh()
    with opened(table) as database:
        first, second = sums.runs(database, reported_tasks(table))
    assert (first["run_id"], first["clips"], second["run_id"], second["clips"]) == (
        *("run", 7),
        *("later", 2),
    )
    drift = second["tasks"]["words"]["drift"]
    assert drift["error_rate"] == pytest.approx(-1 / 7)
    assert drift["score"] == pytest.approx((0.4 + 0.97) / 2 - (0.4 + 0.97 + 0.2 + 0.1 + 0.6) / 5)


def listed(table: Table, database: Database, clips: int = 50) -> dict[tuple[str, str], Any]:
    found = lists.clip_lists(database, reported_tasks(table), clips, seed=1)
    return {(one.group, one.title): one for one in found}


def numbers(one: lists.ClipList) -> list[int]:
    return [int(clip_id) for clip_id in one.clip_ids]


def test_lists_have_the_rows_to_listen_to_first(words: tuple[Table, Database]) -> None:
    table, database = words
    found = listed(table, database)
    assert numbers(found["words", "most word errors"]) == [2, 3, 0]  # 200 %, 100 %, 33 %
    assert numbers(found["words", "suspect: loop"]) == [2, 0]
    assert numbers(found["words", "lowest scores"]) == [3, 2, 0, 5, 1]
    assert numbers(found["errors", "model"]) == [4]
    assert sorted(numbers(found["sample", "random sample"])) == [*range(7)]
    short = listed(table, database, clips=2)
    assert numbers(short["words", "lowest scores"]) == [3, 2]
    assert short["words", "lowest scores"].total == 5
    assert (
        numbers(short["sample", "random sample"]) == numbers(found["sample", "random sample"])[:2]
    )


def test_each_list_has_its_turn_until_there_are_enough_clips() -> None:
    def of(*ids: str) -> lists.ClipList:
        return lists.ClipList("g", "t", "", len(ids), ids)

    assert list(lists.chosen([of("a", "b", "c"), of("b", "d")], 3)) == ["a", "b", "d"]
    assert list(lists.chosen([of("a"), of("a", "e")], 9)) == ["a", "e"]
    assert list(lists.chosen([], 9)) == []


def test_tasks_disagree_where_labels_that_they_share_differ(tmp_path: Path) -> None:
    rows = [
        {
            **clip(n),
            "kind_label": one,
            "kind_score": 0.9,
            "kind_too_label": two,
            "kind_too_score": s,
        }
        for n, (one, two, s) in enumerate(
            [("cat", "cat", 0.9), ("cat", "dog", 0.5), ("dog", "cat", 0.8), ("dog", None, None)]
        )
    ]
    table = make(tmp_path, rows)
    with opened(table) as database:
        found = listed(table, database)
    assert numbers(found["disagreement", "kind against kind_too"]) == [2, 1]
    rows = [{**row, "kind_too_label": f"x{row['kind_too_label']}"} for row in rows]
    table = make(tmp_path / "other", rows)  # of other things: that is no disagreement
    with opened(table) as database:
        assert not [key for key in listed(table, database) if key[0] == "disagreement"]


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        (
            "it was the best",
            "It was, the best.",
            [Edit("same", "it was the best", "It was, the best.")],
        ),
        ("a b c", "a x c", [("same", "a", "a"), ("other", "b", "x"), ("same", "c", "c")]),
        ("a b", "a", [("same", "a", "a"), ("missing", "b", "")]),
        ("a", "a b - !", [("same", "a", "a"), ("added", "", "b - !")]),
        ("", "you", [("added", "", "you")]),
        ("you go", "", [("missing", "you go", "")]),
        ("", "", []),
        ("- a", "a", [("same", "- a", "a")]),
        ("我愛你", "我爱你", [("same", "我", "我"), ("other", "愛", "爱"), ("same", "你", "你")]),
        ("<b>x</b> y", "<b>x</b> z", [("same", "<b>x</b>", "<b>x</b>"), ("other", "y", "z")]),
    ],
)
def test_edits_are_marked_in_words_or_letters(
    reference: str, text: str, expected: list[tuple[str, str, str]]
) -> None:
    assert edits(reference, text) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.96, "1:00"), (3723, "1:02:03")]
)
def test_times_are_written_as_clocks_show_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text
    assert (span(0.5 / 60), span(0.5), span(12345)) == ("30.0 s", "30.0 min", "12,345 h")


class Texts(HTMLParser):
    """The texts, elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def hostile(tmp_path: Path) -> Table:
    """A table with hostile texts in every column that a page shows, of sounds that are there."""
    rows = []
    piece = {"start_s": 0.0, "end_s": 0.2, "score": 0.5}
    for number, text in enumerate(HOSTILE):
        path = tmp_path / f"{text.replace('/', '⁄')}.wav"
        path.write_bytes(encode(tone(0.3), 16_000, "wav"))
        segment = {**piece, "text": text, "speaker": text, "suspect": [text]}
        rows.append(
            clip(number, text=text, folder=text)
            | {"source": str(path), "source_version": None, "duration_s": 0.3, "format": text}
            | {"words_text": f"so {text}", "words_score": 0.5, "words_language": text}
            | {"words_wer": 0.5, "words_segments": [segment], "words_suspect": [text]}
            | {"kind_label": text, "kind_labels": [text, "x"], "kind_scores": [0.5, 0.2]}
            | {"kind_reference_error": text, "kind_too_error": f"model: {text}"}
            | {"error_stage": "kind_too", "error_kind": "model", "error_message": text}
        )
    return make(tmp_path, rows)


def test_texts_of_a_table_stay_texts_wherever_they_stand(tmp_path: Path) -> None:
    table = hostile(tmp_path)
    assert run(["report", table.path, "-o", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    page = Texts(text)
    names = {tag for tag, _ in page.elements}
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == 3 and not names & {"iframe", "object", "embed", "base", "form"}
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    sources = {a["src"].split("/")[0] for _, a in page.elements if a.get("src")}  # type: ignore[union-attr]
    assert sources == {"clips"}
    whole = "".join(page.texts)
    for hostile_text in HOSTILE:
        assert whole.count(hostile_text) >= 8, hostile_text


def test_a_report_replaces_a_report_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make(tmp_path, speech())
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert run(["report", table.path, "-o", str(folder)]) == 2
    assert "expected a new or empty folder, or an earlier report" in capsys.readouterr().err
    assert (folder / "thesis.txt").exists()
    (folder / "thesis.txt").unlink()
    for _ in range(2):
        assert run(["report", table.path, "-o", str(folder), "--clips", "3"]) == 0
        assert "7 rows summed up; 3 of them shown, 0 with sound" in capsys.readouterr().out
        assert {path.name for path in folder.iterdir()} == {"index.html", "clips"}
    inside = Path(table.path, "page")
    assert run(["report", table.path, "-o", str(inside)]) == 2 and not inside.exists()
    assert run(["report", str(tmp_path / "nothing")]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"table", "mine"}


def test_columns_of_the_source_may_have_any_names(tmp_path: Path) -> None:
    """Such as those that the queries give to what they select."""

    def of(folder: str, names: Sequence[str]) -> Any:
        rows = [
            row | dict.fromkeys(names, f"{n % 3}") for n, row in enumerate([*speech(), *kinds()])
        ]
        kept = pa.schema([*KEPT, *((name, pa.string()) for name in names)])
        table = TableOf(TASKS, SETTINGS, kept).write(tmp_path / folder, rows)
        tasks = reported_tasks(table)
        with opened(table) as database:
            found = sums.summed_up(database, tasks), lists.clip_lists(database, tasks, 9, 0)
        del found[0]["overall"]["first"], found[0]["overall"]["last"], found[0]["runs"]
        return found

    names = ["Label", "run", "bin", "kind", "clips", "reason", "words", "rows", "score", "flag"]
    assert of("odd", names) == of("plain", [])


def test_a_page_of_nothing_but_errors_and_of_no_rows_is_made(tmp_path: Path) -> None:
    failed = {"error_stage": "read", "error_kind": "unreadable", "error_message": "no such file"}
    rows = [{**clip(n), **failed, "duration_s": None} for n in range(2)]
    table = make(tmp_path, rows)
    assert run(["report", table.path]) == 0
    page = Texts(Path(f"{table.path}-report", "index.html").read_text(encoding="utf-8"))
    assert "".join(page.texts).count("unreadable: no such file") == 2
    assert run(["report", make(tmp_path / "none", []).path]) == 0


@pytest.mark.parametrize(
    "without",
    [
        ("sound_flags", "channel", "words_suspect", "words_segments"),
        ("words_score", "words_edits", "words_cer", "kind_correct", "kind_score"),
        ("words_text", "kind_label", "kind_labels"),
    ],
)
def test_a_table_of_another_version_has_a_page(tmp_path: Path, without: tuple[str, ...]) -> None:
    """Without columns that came later, and with not-a-numbers."""
    rows = [{**clip(0), "text": "x", "words_wer": 0.5, "kind_label": "x", "kind_score": np.nan}]
    rows[0] |= {"words_score": 7.5, "words_text": "y", "kind_loss": 0.3, "folder": "x"}
    rows = [{name: value for name, value in rows[0].items() if name not in without}]
    table = make(tmp_path, rows, without=without)
    with opened(table) as database:
        sums.summed_up(database, reported_tasks(table))
        assert lists.clip_lists(database, reported_tasks(table), 9, 0)


def test_a_table_of_a_task_that_this_version_lacks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"tasks": {"words": {"task": "palm-reading", "model": "x"}}}
    table = make(tmp_path, [clip(0)], used="by a later version", settings=settings)
    assert run(["report", table.path]) == 2
    assert "expected a task that this version has" in capsys.readouterr().err
