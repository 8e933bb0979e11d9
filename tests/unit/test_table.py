"""The table by itself: commits, rows that take the place of others, tidiness."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from tables import existing, held, with_failures

from audio_ops.errors import KINDS
from audio_ops.tasks.audio_classification import Options
from jobs.clips import Shard
from jobs.fingerprints import LAYOUT
from jobs.planning.committed import committed
from jobs.planning.due import Wanted
from jobs.table.log import FILE_BYTES, SMALL_FILE_BYTES, size_to_merge
from jobs.table.schema import (
    ADDED_LATER,
    CHANGE,
    RUN,
    SHARD_END,
    TableMismatch,
    label_columns,
    table_schema,
)
from jobs.table.table import HeldTable, Table
from jobs.table.write import WriteSettings, write_rows

TASKS = {
    "kind": Options(task="audio-classification", model="x", segments=True),
    "mood": Options(task="audio-classification", model="x"),
}
KEPT = pa.schema([("Speaker Name", pa.string()), ("50% off; it's \N{MICROPHONE}", pa.int64())])
SETTINGS = {"label_version": 1, "tasks": {}}


def opened(folder: Path, schema: pa.Schema | None = None, settings: Any = SETTINGS) -> HeldTable:
    """The table, held."""
    schema = table_schema(TASKS, KEPT) if schema is None else schema
    return held(folder / "table", "run", schema, settings)


def labelled(
    ids: dict[str, str | None], errors: dict[str, dict[str, str]] | None = None
) -> pa.Table:
    """Clips as the last model returns them: `ids` is clip_id -> the clip_id it takes the place of."""
    schema = table_schema(TASKS, KEPT)
    segments = [{"start_s": 0.0, "end_s": 1.5, "label": "dog", "score": 0.5}]
    rows = []
    for n, (clip_id, old) in enumerate(ids.items()):
        row: dict[str, Any] = {
            "clip_id": clip_id,
            "source": f"/{clip_id}.wav",
            "source_version": "1-1",
            "offset_s": 0.0,
            "duration_s": 1.5,
            "kind_label": "dog",
            "kind_labels": ["dog", "cat"],
            "kind_scores": [0.5, 0.25],
            "kind_segments": segments,
            "Speaker Name": 'O\'Hara "the voice"',
            "50% off; it's \N{MICROPHONE}": n,
            "supersedes": old and [old],
            "replaces_labels": old is not None,
        }
        rows.append(row | (errors or {}).get(clip_id, {}))
    fields = [field for field in schema if field.name not in ("status", *RUN.names)]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([*fields, *CHANGE, ("shard_end", SHARD_END)])
    )


def written(table: Table, rows: pa.Table, fingerprint: str = "f") -> list[dict[str, Any]]:
    return write_rows(
        with_failures(rows, TASKS),
        WriteSettings(
            schema=table.schema(),
            tasks=label_columns(table_schema(TASKS, KEPT), TASKS),
            path=table.path,
            storage_options={},
            run_id="run",
            fingerprints=dict.fromkeys(TASKS, fingerprint),
        ),
    ).to_pylist()


def by_id(table: Table) -> dict[str, dict[str, Any]]:
    delta = DeltaTable(table.path).to_pyarrow_table().to_pylist()
    assert len({row["clip_id"] for row in delta}) == len(delta)
    return {row["clip_id"]: row for row in delta}


def test_what_is_written_is_seen_once_it_is_committed(tmp_path: Path) -> None:
    table = opened(tmp_path)
    file = written(table, labelled({"a": None, "b": None}))
    assert by_id(table) == {} and not table.is_tidy()
    table.commit(file)
    assert set(by_id(table)) == {"a", "b"} and table.is_tidy()
    assert table.rows(["clip_id"]).num_rows == 2
    table.release()


def test_a_new_row_takes_the_place_of_an_old_one_with_all_its_columns(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None, "b": None})))
    version = DeltaTable(table.path).version()
    table.commit(written(table, labelled({"a2": "a", "new": None}), "other"))
    assert DeltaTable(table.path).version() == version + 1  # never both rows, never neither
    rows = by_id(table)
    assert set(rows) == {"a2", "b", "new"}
    row = rows["a2"]
    assert (row["kind_fingerprint"], row["status"]) == ("other", "ok")
    assert row["kind_segments"] == [{"start_s": 0.0, "end_s": 1.5, "label": "dog", "score": 0.5}]
    assert row["kind_labels"] == ["dog", "cat"]
    assert row["Speaker Name"] == 'O\'Hara "the voice"'
    assert (row["50% off; it's \N{MICROPHONE}"], rows["new"]["50% off; it's \N{MICROPHONE}"]) == (
        0,
        1,
    )
    table.tidy()
    table.release()
    assert len(pq.read_table(table.path)) == 3


def test_a_row_may_take_the_place_of_its_own_id(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None})))
    for other in ("other", "third"):
        table.commit(written(table, labelled({"a": "a"}), other))
        assert by_id(table)["a"]["kind_fingerprint"] == other
    table.release()


def test_several_files_are_committed_at_once_replacing_or_not(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None, "b": None})))
    files = [
        *written(table, labelled({"c": None})),
        *written(table, labelled({"a": "a"}), "new"),
        *written(table, labelled({"b": "b"}), "new"),
        *written(table, labelled({"d": None})),
    ]
    table.commit(files)
    table.tidy()
    assert {name: row["kind_fingerprint"] for name, row in by_id(table).items()} == {
        "a": "new",
        "b": "new",
        "c": "f",
        "d": "f",
    }
    table.release()


def test_a_reader_of_a_large_file_need_not_hold_all_its_rows(tmp_path: Path) -> None:
    table = opened(tmp_path)
    for part in range(2):
        ids: dict[str, str | None] = {f"{part}-{n}": None for n in range(20_000)}
        table.commit(written(table, labelled(ids)))
    table.tidy()
    table.release()
    [file] = Path(table.path).glob("*.parquet")
    rows = pq.read_metadata(file)
    groups = [rows.row_group(n).num_rows for n in range(rows.num_row_groups)]
    assert sum(groups) == 40_000 and max(groups) <= 32_768


def test_tidy_leaves_committed_rows_and_the_users_own_files(tmp_path: Path) -> None:
    table = opened(tmp_path)
    for name in "abc":
        table.commit(written(table, labelled({name: None})))
    written(table, labelled({"never committed": None}))
    folder = Path(table.path)
    (folder / ".part-half.parquet").write_bytes(b"PAR1")
    (folder / "README.md").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "mine" / "take.wav").write_text("mine")
    assert not table.is_tidy()
    table.tidy()
    assert table.is_tidy()
    assert set(by_id(table)) == {"a", "b", "c"}
    table.release()
    assert {p.name for p in folder.iterdir()} - {"_delta_log", "_earmark"} == {
        "README.md",
        "mine",
        ".huggingface.yaml",
        *(p.name for p in folder.glob("part-*.parquet")),
    }
    assert len(list(folder.glob("*.parquet"))) == 1
    assert (folder / "mine" / "take.wav").exists()


def test_data_files_of_earlier_versions_stay_as_long_as_the_config_says(tmp_path: Path) -> None:
    """For Delta readers, also those in the middle of a scan; files that no version had do not."""
    table = opened(tmp_path)
    for name in ("a", "b"):
        table.commit(written(table, labelled({name: None})))
    written(table, labelled({"never committed": None}))
    before = DeltaTable(table.path)
    scan = before.to_pyarrow_dataset()
    assert not table.is_tidy(1.0)
    table.tidy(1.0)
    assert table.is_tidy(1.0) and not table.is_tidy()
    assert sorted(scan.to_table()["clip_id"].to_pylist()) == ["a", "b"]
    for version in range(2, table.version + 1):
        DeltaTable(table.path, version=version).to_pyarrow_table()
    assert set(by_id(table)) == {"a", "b"}
    assert len(list(Path(table.path).glob("*.parquet"))) == 3
    table.tidy()
    assert table.is_tidy() and len(list(Path(table.path).glob("*.parquet"))) == 1
    table.release()


def test_a_released_table_says_nobody_holds_it(tmp_path: Path) -> None:
    table = opened(tmp_path)
    assert table.holder() and table.holder().run_id == "run"
    table.release()
    assert table.holder() is None
    table.release()


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "take.wav").write_text("mine")
    with pytest.raises(TableMismatch, match=r"expected a table, an empty folder.*take\.wav"):
        opened(tmp_path)
    assert [p.name for p in (tmp_path / "table").iterdir()] == ["take.wav"]


@pytest.mark.parametrize(
    "column", [("Speaker Name", pa.int64()), ("speaker name", pa.string())], ids=str
)
def test_a_column_of_another_type_or_case_is_refused_and_the_table_let_go(
    tmp_path: Path, column: tuple[str, pa.DataType]
) -> None:
    opened(tmp_path).release()
    schema = table_schema(TASKS, pa.schema([column]))
    with pytest.raises(TableMismatch, match=column[0]):
        opened(tmp_path, schema, {"label_version": 2, "tasks": {}})
    assert existing(tmp_path / "table").holder() is None


def test_new_columns_are_added_and_null_in_old_rows(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None})))
    table.release()
    schema = table_schema(TASKS, pa.schema([*KEPT, ("age", pa.int64())]))
    table = opened(tmp_path, schema, {"label_version": 2, "tasks": {}})
    assert by_id(table)["a"]["age"] is None
    assert table.settings() == {"label_version": 2, "tasks": {}, "layout": LAYOUT}
    table.commit(written(table, labelled({"a": "a", "b": None})))
    assert set(by_id(table)) == {"a", "b"}
    table.release()


def test_a_table_without_columns_of_later_versions_is_continued(tmp_path: Path) -> None:
    """They are added, null in old rows, and are no difference that needs new labels."""
    schema = table_schema(TASKS, KEPT)
    old = schema
    for name in ADDED_LATER:
        old = old.remove(old.get_field_index(name))
    table = opened(tmp_path, old)
    table.commit(written(table, labelled({"a": None}).drop_columns(list(ADDED_LATER))))
    before = by_id(table)["a"]
    rows = committed(table, Wanted({"kind": "f"}, {"kind": ()})).rows()  # for the plan
    assert rows.select(["channel", "due"]).to_pylist() == [{"channel": None, "due": 0}]
    table.release()
    assert table.columns_that_differ(schema, but=ADDED_LATER) == []
    assert len(table.columns_that_differ(schema)) == len(ADDED_LATER)
    table = opened(tmp_path, schema)
    rows = labelled({"b": None})
    flags = pa.array([["gap", "clipped"]])
    at = rows.schema.get_field_index("sound_flags")
    table.commit(written(table, rows.set_column(at, "sound_flags", flags)))
    table.tidy()
    table.release()
    found = by_id(table)
    assert [found["a"].pop(name) for name in ADDED_LATER] == [None] * len(ADDED_LATER)
    assert found["a"] == before
    assert found["b"]["sound_flags"] == ["gap", "clipped"]
    plain = pq.read_table(tmp_path / "table", columns=["clip_id", "sound_flags"])
    assert len(plain) == 2


def test_columns_that_differ_are_named_with_both_types(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.release()
    assert table.columns_that_differ(table_schema(TASKS, KEPT)) == []
    schema = pa.schema([("Speaker Name", pa.int64()), ("age", pa.int32())])
    wrong, lacking = table.columns_that_differ(schema)
    assert "Speaker Name" in wrong and "long" in wrong and "string" in wrong
    assert "age" in lacking and "no such column" in lacking


def test_a_clip_that_cannot_be_read_leaves_the_labels_that_it_has(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None, "b": None, "c": None})))
    unread = {"error_stage": "read", "error_kind": "unreadable", "error_message": "EIO"}
    damaged = unread | {"error_stage": "decode", "error_kind": "damaged"}
    [file] = written(
        table,
        labelled({"a2": "a", "b2": "b", "new": None}, {"a2": unread, "b2": damaged, "new": unread}),
    )
    assert file["clip_ids"] == ["a2", "b2", "new"] and file["statuses"] == ["error"] * 3
    table.commit([file])
    assert {name: row["status"] for name, row in by_id(table).items()} == {
        "a": "ok",
        "b2": "error",
        "c": "ok",
        "new": "error",
    }
    [nothing] = written(table, labelled({"c2": "c"}, {"c2": unread}))
    assert nothing["path"] is None and nothing["statuses"] == ["error"]
    table.commit([nothing])
    assert "c" in by_id(table)
    table.release()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_no_data_file_is_committed_that_readers_will_not_find(tmp_path: Path, damage: str) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None})))
    [file] = written(table, labelled({"b": None}))
    path = Path(table.path, file["path"])
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"output\.path has to be the same storage on every node"):
        table.commit([file])
    assert set(by_id(table)) == {"a"}
    table.release()


def test_rows_whose_clips_are_gone_are_taken_out_in_the_same_transaction(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None, "b": None})))
    table.commit(written(table, labelled({"c": None})))
    version = DeltaTable(table.path).version()
    table.commit(written(table, labelled({"a2": "a", "d": None})), obsolete=["b", "c", "unknown"])
    assert DeltaTable(table.path).version() == version + 1
    assert set(by_id(table)) == {"a2", "d"}
    table.commit([], obsolete=["d"])
    assert set(by_id(table)) == {"a2"}
    table.tidy()
    assert len(pq.read_table(table.path)) == 1
    table.release()


def test_settings_outlive_the_run(tmp_path: Path) -> None:
    settings = {"tasks": {"kind": {"top_k": 5, "label": "ünï"}}}
    opened(tmp_path, settings=settings).release()
    assert existing(tmp_path / "table").settings() == settings | {"layout": LAYOUT}


def test_one_failed_task_is_partial_all_are_an_error_and_the_first_is_named(tmp_path: Path) -> None:
    table = opened(tmp_path)
    errors = {
        "one": {"mood_error": "model: it broke"},
        "both": {"kind_error": "out_of_memory: too big", "mood_error": "model: it broke"},
        "read": {
            "error_stage": "read",
            "error_kind": "unreadable",
            "error_message": "gone: away",
        },
    }
    [file] = written(
        table, labelled({"fine": None, "one": None, "both": None, "read": None}, errors)
    )
    table.commit([file])
    rows = by_id(table)
    outcome = {
        name: tuple(row[key] for key in ("status", "error_stage", "error_kind", "error_message"))
        for name, row in rows.items()
    }
    assert outcome == {
        "fine": ("ok", None, None, None),
        "one": ("partial", "mood", "model", "it broke"),
        "both": ("error", "kind", "out_of_memory", "too big"),
        "read": ("error", "read", "unreadable", "gone: away"),
    }
    assert file["statuses"] == ["ok", "partial", "error", "error"]
    assert {error["kind"] for error in file["errors"]} <= set(KINDS)
    table.release()


def test_every_commit_says_which_run_made_it_and_what_for(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit(written(table, labelled({"a": None})))
    table.release()
    notes = [
        json.loads(entry["earmark"])
        for entry in DeltaTable(table.path).history()
        if "earmark" in entry
    ]
    assert [note["what"] for note in reversed(notes)] == ["hold", "label"]
    assert {note["run_id"] for note in notes} == {"run"}


@pytest.mark.parametrize("damage", ["empty", "cut", "spoilt", "other columns"])
def test_what_is_known_of_shards_may_be_damaged(tmp_path: Path, damage: str) -> None:
    table = opened(tmp_path)
    table.added_shards.add({"a.tar": Shard("1", 5, ("kept",), "d")})
    table.added_shards.merge()
    path = tmp_path / "table" / "_earmark" / "shards.parquet"
    content = path.read_bytes()
    if damage == "other columns":
        pq.write_table(pa.table({"source": ["a.tar"], "else": [1]}), path)
    else:
        spoilt = content[:20] + bytes(40) + content[60:]
        path.write_bytes({"empty": b"", "cut": content[:-9], "spoilt": spoilt}[damage])
    assert table.shards() == {}
    other = {"b.tar": Shard("1", 6, (), "e")}
    table.added_shards.add(other)
    assert table.shards() == other
    table.release()


def test_commits_write_few_shards_and_the_end_of_the_run_one_file(tmp_path: Path) -> None:
    """Whatever the number of shards: a file of all of them would be written again at each commit."""
    folder = tmp_path / "table" / "_earmark"
    shards = {f"{n:04}.tar": Shard("1", n, (), f"{n:032x}") for n in range(2500)}
    table = opened(tmp_path)
    names = list(shards)
    for start in range(0, len(names), 400):
        table.added_shards.add({name: shards[name] for name in names[start : start + 400]})
    sizes = [len(pq.read_table(file)) for file in sorted(folder.glob("shards-*"))]
    assert sizes == [1200, 1200, 100] and table.shards() == shards
    newer = {names[0]: Shard("2", 9, (), "f")}  # by a run that comes after this one was killed
    table.release()
    later = held(folder.parent, "run-2", table_schema(TASKS, KEPT), SETTINGS)
    later.added_shards.add(newer)
    assert later.shards() == shards | newer
    later.tidy()
    later.release()
    assert [file.name for file in folder.glob("shards*")] == ["shards.parquet"]
    assert later.shards() == shards | newer


def narrowed(type_: pa.DataType, without: str) -> pa.DataType:
    return pa.list_(pa.struct([field for field in type_.value_type if field.name != without]))


def test_a_column_of_structs_gains_fields_which_old_rows_have_empty(tmp_path: Path) -> None:
    """What a run that relabels does with a table of an earlier version."""
    new = table_schema(TASKS, KEPT)
    place = new.get_field_index("kind_segments")
    old = new.set(
        place, pa.field("kind_segments", narrowed(new.field(place).type, without="score"))
    )
    table = opened(tmp_path, old)
    table.commit(written(table, labelled({"aa": None, "bb": None})))
    table.release()
    assert table.columns_that_differ(new)
    wider = opened(tmp_path, new, settings={"label_version": 2, "tasks": {}})
    assert not wider.columns_that_differ(new)
    wider.commit(written(wider, labelled({"cc": "aa"})))
    wider.tidy()
    wider.release()
    rows = wider.rows(["clip_id", "kind_segments"]).to_pylist()
    assert {row["clip_id"]: row["kind_segments"][0]["score"] for row in rows} == {
        "bb": None,
        "cc": 0.5,
    }
    for file in (tmp_path / "table").glob("*.parquet"):  # a plain reader expects equal schemas
        assert pq.read_schema(file).field("kind_segments").type == new.field(place).type


@pytest.mark.parametrize("lost", ["score", "label"])
def test_a_column_of_structs_loses_no_fields(tmp_path: Path, lost: str) -> None:
    new = table_schema(TASKS, KEPT)
    opened(tmp_path).release()
    place = new.get_field_index("kind_segments")
    fewer = new.set(place, pa.field("kind_segments", narrowed(new.field(place).type, without=lost)))
    with pytest.raises(TableMismatch, match=r"has other types, .* in kind_segments"):
        opened(tmp_path, fewer, settings={"label_version": 2, "tasks": {}})


@pytest.mark.parametrize("added_mb", [0.01, 1, 30, 300])
def test_each_row_is_written_few_times_however_many_runs_come(added_mb: float) -> None:
    """By the sizes of a table's files alone, of which neighbours are merged that fit into one."""
    files: list[int] = []
    written, added = 0, int(added_mb * 2**20)
    for _ in range(400):
        size = size_to_merge([*files, added])
        groups: list[list[int]] = [[]]
        for file in sorted([*files, added]):
            if file > size or sum(groups[-1]) + file > size:
                groups.append([])
            groups[-1].append(file)
        files = [sum(group) for group in groups if group]
        written += sum(sum(group) for group in groups if len(group) > 1)
    assert sum(files) == 400 * added
    assert written <= 6 * sum(files) + 400 * SMALL_FILE_BYTES
    assert len(files) <= 4 * sum(files) / FILE_BYTES + 6


def test_a_run_that_adds_little_leaves_a_large_file_alone(tmp_path: Path) -> None:
    table = opened(tmp_path)
    noise = pa.array([random.Random(n).randbytes(600_000).hex() for n in range(30)])
    big = labelled({f"big {n}": None for n in range(30)})
    at = big.schema.get_field_index("member")
    table.commit(written(table, big.set_column(at, "member", noise)))
    table.tidy()
    [large] = table.log.names()
    assert (tmp_path / "table" / large).stat().st_size > SMALL_FILE_BYTES
    for n in range(3):
        table.commit(written(table, labelled({f"{n}": None})))
    table.tidy(compact=False)
    assert len(table.log.names()) == 4
    table.tidy()
    assert large in table.log.names() and len(table.log.names()) == 2
    assert len(by_id(table)) == 33
    table.release()
