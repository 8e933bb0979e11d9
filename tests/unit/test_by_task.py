"""Tasks come, change, go and are dropped; tables of the layout before; what all that costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from faults import TASK, Work, assert_exact, assert_unchanged, run
from plans import in_memory
from tables import as_before, existing, held

from audio_ops.label import put
from audio_ops.prepare import prepare
from audio_ops.signal.waveforms import waveforms_of
from jobs.clips import ALL, Shard
from jobs.fingerprints import changes, fingerprints, reads, table_settings
from jobs.planning.committed import WHY, committed
from jobs.planning.due import Costs, Wanted
from jobs.planning.plan import plan
from jobs.planning.shards import plan_shards
from jobs.reports.drift import statistics
from jobs.reports.evaluate import evaluate
from jobs.reports.kept_totals import run_totals
from jobs.reports.verify import verify
from jobs.sources import PLACE, Listing
from jobs.table.rewrite import MIN_PIECE_ROWS
from jobs.workers.kept import due_of


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A finished table with one task."""
    work = Work(str(tmp_path / "table"), clips=40)
    assert run(work) == 0
    return work


def due(work: Work, **options: bool) -> dict[int, int]:
    """The number of rows by the set of tasks that is due on them."""
    rows = committed(work.table(), Wanted.of(work.settings, **options)).rows()
    counts = pc.value_counts(rows["due"]).to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def same_but(before: pa.Table, after: pa.Table, *names: str) -> None:
    """All columns of `before` are equal in `after`, but these."""
    columns = [name for name in before.column_names if name not in names]
    assert before.select(columns).equals(after.select(columns))


def test_a_new_task_changes_no_byte_of_a_row_but_its_own(work: Work) -> None:
    before = work.rows()
    work = replace(work, mood=1)
    assert due(work) == {0b10: 40}
    assert run(work) == 0
    assert_exact(work)
    same_but(before, work.rows(), "run_id", "labelled_at")
    assert set(work.rows()["kind_run_id"].to_pylist()) == set(before["run_id"].to_pylist())
    assert set(work.rows()["mood_run_id"].to_pylist()) == set(work.rows()["run_id"].to_pylist())
    files = list(Path(work.path).glob("*.parquet"))
    assert run(work) == 0 and files == list(Path(work.path).glob("*.parquet"))


def test_a_changed_task_takes_along_those_that_read_it(work: Work) -> None:
    work = replace(work, mood=1)
    assert run(work) == 0
    assert due(replace(work, mood=2)) == {0b10: 40}
    assert due(replace(work, setting=2)) == {ALL: 40}
    assert due(replace(work, mood=0)) == {0: 40}
    assert due(replace(work, mood=2), together=True) == {ALL: 40}  # a sample


def test_a_task_that_left_keeps_its_labels_and_is_done_when_it_comes_back(work: Work) -> None:
    work = replace(work, mood=1)
    assert run(work) == 0
    before = work.rows()
    without = replace(work, mood=0, clips=50)
    assert run(without) == 0
    assert_exact(without)
    assert_unchanged(before, without.rows())
    back = replace(work, clips=50)
    assert due(back) == {0: 40, 0b10: 10}
    changed = replace(without, setting=2)  # rows are written anew, and it is not among the tasks
    assert run(changed) == 0
    assert changed.rows()["mood_label"].slice(0, 40).equals(before["mood_label"])
    report = verify(existing(work.path))
    assert report.is_intact and not report.notes


def test_a_table_of_the_layout_before_is_taken_over_without_labelling(work: Work) -> None:
    as_before(work.path, work.settings)
    before = work.rows()
    assert "kind_fingerprint" not in before.column_names
    assert due(work) == {0: 40}
    assert verify(existing(work.path)).is_intact
    version = existing(work.path).version
    assert run(work) == 0 and existing(work.path).version == version  # nothing to do

    work = replace(work, mood=1, clips=50)
    assert due(work) == {0b10: 40}
    assert run(work) == 0
    assert_exact(work)  # with the fingerprint that its old rows have by now
    assert_unchanged(before, work.rows().slice(0, 40))
    of_old = work.rows().slice(0, 40)
    assert of_old["kind_run_id"].equals(before["run_id"])
    same_but(before, of_old, "run_id", "labelled_at", "fingerprint")


def test_a_table_of_the_layout_before_is_continued_where_only_clips_are_new(work: Work) -> None:
    """Its old rows stay as they are, and stay known for what they are."""
    as_before(work.path, work.settings)
    before = work.rows()
    more = replace(work, clips=50)
    assert run(more) == 0
    same_but(before, more.rows().slice(0, 40))
    assert due(more) == {0: 50} and due(replace(more, setting=2)) == {ALL: 50}
    table = existing(work.path)
    report = verify(table)
    assert report.is_intact, report.faults
    [note] = report.notes  # on how the test has made it
    assert "(WRITE) has no counts" in note
    [run_id] = set(more.rows()["kind_run_id"].slice(40).to_pylist())
    figures = statistics(run_totals(table, run_id))["kind"]
    assert (figures["now"]["clips"], figures["before"]["clips"]) == (10, 40)
    assert evaluate(table)["rows_of_other_settings"] == 0


def test_rows_of_settings_that_a_table_before_no_longer_had_are_labelled_again(work: Work) -> None:
    as_before(work.path, work.settings)
    other = replace(work, setting=2)
    DeltaTable(work.path).alter.set_table_description(json.dumps(other.settings))
    assert due(other) == {ALL: 40}  # a relabelling of an earlier version that is not finished
    assert run(other) == 0
    assert_exact(other)


def test_a_dropped_tasks_failures_go_with_its_columns(work: Work) -> None:
    """Of a row on which it alone had failed, and of one on which another task had failed as well."""
    work = replace(work, mood=1)
    assert run(work) == 0
    rows = work.rows()
    errors = {"mood_error": ["model: it broke"] * 3, "kind_error": [None, None, "model: no"]}
    errors["status"] = ["partial", "error", "error"]
    errors |= {"error_stage": ["mood", "mood", "kind"], "error_kind": ["model"] * 3}
    errors["error_message"] = ["it broke", "it broke", "no"]
    labels = {"kind_label": ["x", None, None]}
    for name, values in (errors | labels).items():
        whole = [*values, *rows[name].to_pylist()[3:]]
        place = rows.column_names.index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array(whole, pa.string()))
    write_deltalake(work.path, rows, mode="overwrite")
    without = replace(work, mood=0, drop=("mood",))
    assert run(without) == 0
    found = without.rows().slice(0, 4).to_pylist()
    assert [row["status"] for row in found] == ["ok", "ok", "error", "ok"]
    assert [row["error_stage"] for row in found] == [None, None, "kind", None]
    assert (found[2]["error_kind"], found[2]["error_message"]) == ("model", "no")
    plain = pq.read_table(Path(work.path)).schema.names
    assert plain == without.rows().column_names and "mood_error" not in plain


def test_only_the_tasks_that_failed_are_tried_again(work: Work) -> None:
    """And those that read them; of a clip that could not be decoded all."""
    work = replace(work, mood=1)
    assert run(work) == 0
    rows = work.rows()
    for name, values in {
        "mood_error": ["model: it broke", None, None],
        "kind_error": [None, "model: it broke", None],
        "status": ["partial", "error", "error"],
        "error_stage": ["mood", "kind", "decode"],
        "error_kind": ["model", "model", "timeout"],
    }.items():
        place = rows.column_names.index(name)
        whole = pa.array([*values, *rows[name].to_pylist()[3:]], pa.string())
        rows = rows.set_column(place, rows.schema.field(name), whole)
    write_deltalake(work.path, rows, mode="overwrite")
    assert due(work) == {0: 40}
    assert due(work, retry_errors=True) == {0: 37, 0b10: 1, ALL: 2}
    changed = replace(work, mood=2)  # is no reason to try others again
    assert due(changed) == {0b10: 40}
    costs = Costs(changed.wanted.fingerprints)
    costs.add(committed(existing(work.path), changed.wanted).rows(["due", *WHY.names]))
    assert costs.whole.clips == 40 and costs.whole.audio_s == pytest.approx(20)
    why = costs.of_tasks["mood"]
    assert {reason: cost.clips for reason, cost in why.items() if cost.clips} == {"changed": 40}


def test_a_clip_that_cannot_be_decoded_any_more_keeps_its_row(work: Work) -> None:
    """A new task would find it worse than it was: the next run tries again."""
    before = work.rows()
    work = replace(work, mood=1)
    table = held(work.path, "fails", work.schema, work.settings)
    todo = plan(work.found(), committed(table, work.wanted))
    clips = faults._label(todo, todo.todo, work, table)
    sources = clips["source"].to_pylist()
    fails = pa.array([source.endswith("000003.wav") for source in sources])
    error = {"error_stage": "decode", "error_kind": "timeout", "error_message": "slow"}
    for name, value in error.items():
        clips = put(clips, name, pa.repeat(value, len(clips)), fails)
    written = faults._write(clips, table, work, "fails", todo).to_pylist()
    assert (written[0]["statuses"].count("error"), written[0]["rows"]) == (1, 39)
    table.commit(written)
    table.tidy()
    table.release()
    rows = work.rows()
    assert rows.select(before.column_names).slice(3, 1).equals(before.slice(3, 1))
    assert rows["mood_label"].null_count == 1 and due(work) == {0: 39, 0b10: 1}
    assert run(work) == 0
    assert_exact(work)


def test_a_clip_that_can_be_decoded_now_is_due_for_the_tasks_that_could_not_run(work: Work) -> None:
    """A new task is run on it; the others have no labels to keep, and follow in the next run."""
    rows = work.rows()
    error = {"status": "error", "error_stage": "decode", "error_kind": "timeout"}
    for name, value in (error | {"error_message": "slow", "kind_label": None}).items():
        whole = pa.array([value, *rows[name].to_pylist()[1:]], pa.string())
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), whole)
    write_deltalake(work.path, rows, mode="overwrite")
    work = replace(work, mood=1)
    assert due(work) == {0b10: 40}
    assert run(work) == 0
    [row] = work.rows().slice(0, 1).to_pylist()
    assert row["status"] == "ok" and row["mood_label"] and row["mood_fingerprint"]
    assert row["kind_label"] is row["kind_fingerprint"] is row["kind_run_id"] is None
    assert due(work) == {0: 39, ALL: 1}
    assert run(work) == 0
    assert_exact(work)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"when": "kind_label = 'a'"}, ["kind"]),
        ({"when": "KIND_Label = 'a'"}, ["kind"]),
        ({"when": "kind_labelled = 1 and akind_label = 2"}, []),
        ({"reference": "kind_label"}, ["kind"]),
        ({"prompt_column": "kind_label", "when": "kind_too_score > 1"}, ["kind", "kind_too"]),
        ({"when": '"kind_error" is null'}, ["kind"]),
        ({"when": "duration_s > 1"}, []),
    ],
)
def test_a_task_reads_those_whose_columns_it_names(
    options: dict[str, Any], expected: list[str]
) -> None:
    tasks = {"kind": {"task": TASK}, "kind_too": {"task": TASK}, "it": {"task": TASK, **options}}
    assert reads(tasks)["it"] == expected
    assert reads({"it": tasks["it"], "kind": tasks["kind"]})["it"] == []  # a column of the source


def test_a_fingerprint_is_of_what_its_task_depends_on_alone() -> None:
    base: dict[str, Any] = {
        "label_version": 1,
        "audio": {"max_clip_s": 1},
        "keep": [],
        "tasks": {
            "a": {"task": TASK, "top_k": 1},
            "b": {"task": TASK, "when": "a_score > 0"},
            "c": {"task": TASK},
        },
    }
    before = fingerprints(base)

    def changed(**more: Any) -> set[str]:
        now = fingerprints(base | more)
        return {name for name in before if now[name] != before[name]}

    other = {**base["tasks"], "a": {"task": TASK, "top_k": 2}}
    assert changed(tasks=other) == {"a", "b"}
    assert changed(tasks={**other, "d": {"task": TASK}}) == {"a", "b"}
    assert changed(tasks=dict(reversed(base["tasks"].items())) | {}) == {"b"}  # a is not earlier
    assert changed(audio={}) == changed(label_version=2) == {"a", "b", "c"}
    assert changed(half_precision_version={"c": 2}) == {"c"}
    assert changed(task_version={"a": "new"}) == {"a", "b"}
    assert changes(base, base | {"tasks": other}) == {
        "a": ["tasks.a.top_k: 1 in the table, 2 in this run"],
        "b": [],
    }
    document = table_settings(base, base | {"tasks": {"c": base["tasks"]["c"]}})
    assert set(document["left"]) == {"a", "b"}
    assert changes(document, base) == {} and fingerprints(document) == {"c": before["c"]}


def test_replacing_all_rows_of_a_large_file_writes_each_a_few_times(tmp_path: Path) -> None:
    """In the order of the rows, as plans have them. With the whole file at each commit it would be 40
    times on average."""
    count, at_once = 40_000, 500
    work = Work(str(tmp_path / "table"), clips=count, per_file=count)
    assert run(work) == 0
    table = held(work.path, "other", work.schema, work.settings)
    ids = [id for batch in _ids(work) for id in batch]
    written = 0
    for start in range(0, count, at_once):
        old = ids[start : start + at_once]
        actions, taken = table.rewriter.without(old)
        assert sum(taken.values()) == at_once
        added = [json.loads(a.stats)["numRecords"] for a in actions if hasattr(a, "stats")]
        written += sum(added)
        table.transactions.append(actions, "relabel", {"rows": 0})
        assert start == 0 or max(added, default=0) <= 2 * MIN_PIECE_ROWS
    assert written <= 8 * count
    assert table.rows(["clip_id"]).num_rows == 0
    table.release()


def _ids(work: Work) -> list[list[str]]:
    [file] = Path(work.path).glob("*.parquet")
    return [batch["clip_id"].to_pylist() for batch in pq.ParquetFile(file).iter_batches()]


def test_clips_come_in_the_order_of_their_rows(work: Work) -> None:
    """Whatever the order of the input, which compaction does not keep; new ones at the end."""
    work = replace(work, clips=45, mood=1)
    found = committed(work.table(), work.wanted)
    clips = work.found().clips
    todo = plan(Listing(clips.take(pa.array(np.arange(44, -1, -1)))), found).todo
    order = dict(zip(found.rows()["source"].to_pylist(), range(40), strict=True))
    places = [order.get(source, 99) for source in todo["source"].to_pylist()]
    assert places == sorted(places) and places[-5:] == [99] * 5
    # Rows that are read together stay together.
    units = clips.append_column("_unit", pa.array(np.arange(45) // 5))
    numbers = plan(Listing(units), found).todo["_unit"].to_numpy()
    assert np.count_nonzero(np.diff(numbers)) == 8


def test_of_a_known_shard_only_the_models_of_due_tasks_are_needed() -> None:
    """Of one that may hold other clips as well, all."""
    listed = pa.table(
        {"source": ["a.tar"], "member": [None], "source_version": ["1"], "offset_s": [0.0]}
    ).cast(PLACE)
    from jobs.clips import digest
    from jobs.planning.committed import COMMITTED

    ids = [f"{n:032x}" for n in (7, 8)]
    rows = pa.Table.from_pylist(
        [
            {"clip_id": id, "source": "a.tar", "member": str(n), "status": "ok", "due": 2}
            | {"offset_s": 0.0, "source_version": "x", "file": 0, "row": n}
            for n, id in enumerate(ids)
        ],
        schema=COMMITTED,
    )
    shard = Shard("1", 2, (), digest(ids))
    found = plan_shards(Listing(listed), in_memory(rows, ("f",)), {"a.tar": shard})
    assert (found.due, found.keeps, len(found.todo)) == (2, True, 1)
    assert (found.known_to_read, found.done_to_read) == (2, 0)
    for other in (shard._replace(version="0"), shard._replace(clips=3)):
        assert plan_shards(Listing(listed), in_memory(rows), {"a.tar": other}).due == ALL
    assert plan_shards(Listing(listed), in_memory(rows), {}).due == ALL


def test_channels_of_a_recording_have_sets_of_their_own() -> None:
    own = [
        {"clip_id": "l", "channel": 1, "channels": 2, "due": 2},
        {"clip_id": "r", "channel": 2, "channels": 2, "due": 0},
    ]
    assert due_of(None, own) == (2, "l")
    assert due_of(None, own[:1]) == (ALL, "l")  # the other channel has no row
    assert due_of(2, own[1:]) == (0, "r")
    assert due_of(None, []) == (ALL, None)


def test_a_clip_is_resampled_to_the_rates_that_it_needs(tmp_path: Path) -> None:
    import io

    from sounds import encode, tone

    data = encode(tone(0.2), 16_000, "wav")
    clips = [({"clip_id": str(rate), "rate": rate}, io.BytesIO(data)) for rate in (8_000, 16_000)]
    [table] = prepare(
        clips,
        schema=pa.schema([("clip_id", pa.string())]),
        rates=[8_000, 16_000],
        max_clip_s=60,
        want_speech="always",
        needs=lambda clip: ((clip["rate"],), "never" if clip["rate"] == 8_000 else "always"),
    )
    for column, expected in (("sound_8000", [True, False]), ("sound_16000", [False, True])):
        assert [sound is not None for sound in waveforms_of(table[column])] == expected
    assert table["speech"].is_valid().to_pylist() == [False, True]
