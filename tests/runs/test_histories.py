"""Random histories of an input, with runs and kills between; the table is what docs/table.md promises.

A run has the real sources, plan, reader, data files and commits, without Ray and a model: what a
clip sounds like, its level, stands for its label. Tasks come, change and go: `kind`, and `mood`, which
reads the label of `kind`. What has to be in the table is kept track of by
place (`source`, `member`): the sound that is there now, or the last one that a run can have seen.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from tables import existing, held

from audio_ops.label import is_due, put
from audio_ops.schemas import TASK_FAILURE, failure_column
from audio_ops.tasks.audio_classification import Options
from jobs.config import Audio
from jobs.input import Input
from jobs.planning.committed import RowSettings, committed
from jobs.planning.due import Wanted
from jobs.planning.plan import Plan, plan
from jobs.planning.shards import plan_shards, with_known
from jobs.reports.verify import verify
from jobs.sources import NO_COLUMNS, load_source
from jobs.table.log import Transactions
from jobs.table.schema import label_columns, labels_left, table_schema
from jobs.table.storage import Storage
from jobs.table.table import Table
from jobs.table.write import WriteSettings, write_rows
from jobs.workers.kept import KeptRows, kept_settings, without_kept
from jobs.workers.read import ReadSettings, SandboxWork, prepared
from jobs.workers.sandbox import SharedMemory

TASK = "audio-classification"
CLIPS_PER_FILE = 2
FAILS = (
    5  # the second task fails on sounds whose level is a multiple of it, until it is tried again
)
ERROR = "error"
CHANGES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=2, max_size=6)


class Killed(BaseException):
    """Takes the place of SIGKILL: nothing that a run does at its end is done."""


def sound(level_db: int) -> bytes:
    """A WAV of 20 ms whose peak is that far below full scale."""
    file = io.BytesIO()
    samples = np.full(320, 10 ** (-level_db / 20), np.float32)
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


class World:
    """An input that changes; `expected` has the sound of each place, or ERROR."""

    format = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "input"
        self.folder.mkdir()
        self.clock = itertools.count(1)
        self.levels = itertools.count(1)
        self.seen: dict[tuple[str, str | None], Any] = {}

    @property
    def input(self) -> Input:
        return Input(path=str(self.folder), format=self.format)

    def put(self, name: str, content: bytes) -> Path:
        """A file that is another one than before, also where both are of one size."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(0, next(self.clock) * 10**9))
        return path

    def level(self) -> int:
        return next(self.levels)

    def change(self, box: int, clip: int) -> None:
        """Something happens to one clip of one file."""
        raise NotImplementedError

    def now(self) -> dict[tuple[str, str | None], Any]:
        """The places of the input and what is there."""
        raise NotImplementedError

    def is_gone(self, place: tuple[str, str | None]) -> bool:
        """Whether a place that the input lacks lies in a file that is there."""
        return (self.folder / place[0]).exists()

    def labelled(self) -> dict[tuple[str, str | None], Any]:
        """The rows that have to be in the table once a run has ended."""
        now = self.now()
        stay = {at: was for at, was in self.seen.items() if at not in now and not self.is_gone(at)}
        self.seen = {**stay, **now}
        return self.seen


class Files(World):
    format = "files"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.clips: dict[str, int] = {}

    def change(self, box: int, clip: int) -> None:
        name = f"{box}{clip}.wav"
        if name in self.clips and clip % 2:
            del self.clips[name]
            (self.folder / name).unlink()
        else:
            self.clips[name] = self.level()
            self.put(name, sound(self.clips[name]))

    def now(self) -> dict[tuple[str, str | None], Any]:
        return {(name, None): level for name, level in self.clips.items()}


class Boxes(World):
    """Files that hold several clips each: they grow, shrink, change, vanish and come back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.boxes: dict[str, dict[str, int]] = {}

    def name(self, box: int) -> str:
        raise NotImplementedError

    def pack(self, clips: dict[str, int]) -> bytes:
        raise NotImplementedError

    def change(self, box: int, clip: int) -> None:
        name = self.name(box)
        clips = self.boxes.setdefault(name, {})
        if clip == 4 and clips:
            del self.boxes[name]
            (self.folder / name).unlink(missing_ok=True)
            return
        if clip == 3 and clips:
            clips.pop(next(iter(clips)))
        else:
            clips[f"{clip}.wav"] = self.level()
        self.put(name, self.pack(clips))


class Tars(Boxes):
    format = "webdataset"

    def name(self, box: int) -> str:
        return f"{box}.tar"

    def pack(self, clips: dict[str, int]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, level in clips.items():
                member = tarfile.TarInfo(name)
                member.size = len(sound(level))
                tar.addfile(member, io.BytesIO(sound(level)))
        return file.getvalue()

    def now(self) -> dict[tuple[str, str | None], Any]:
        return {
            (name, member): level
            for name, clips in self.boxes.items()
            for member, level in clips.items()
        }


class TarsThatBreak(Tars):
    """Now and then a tar ends in the middle: its rest is an error, beside rows from before."""

    broken: frozenset[str] = frozenset()

    def change(self, box: int, clip: int) -> None:
        super().change(box, clip)
        name = self.name(box)
        self.broken -= {name}
        if clip == 2 and len(self.boxes[name]) > 1:
            self.broken |= {name}
            whole = self.pack(self.boxes[name])
            last = list(self.boxes[name])[-1].encode()
            self.put(name, whole[: whole.rindex(last) + 612])

    def now(self) -> dict[tuple[str, str | None], Any]:
        now = super().now()
        for name in self.broken:
            del now[name, list(self.boxes[name])[-1]]
            now[name, None] = ERROR
        return now

    def is_gone(self, place: tuple[str, str | None]) -> bool:
        return super().is_gone(place) and place[0] not in self.broken


class Parquet(Boxes):
    format = "parquet"

    def name(self, box: int) -> str:
        return f"{box}.parquet"

    def pack(self, clips: dict[str, int]) -> bytes:
        file = io.BytesIO()
        rows = pa.table(
            {"audio": pa.array([sound(level) for level in clips.values()], pa.binary())}
        )
        pq.write_table(rows, file, row_group_size=2)
        return file.getvalue()

    def now(self) -> dict[tuple[str, str | None], Any]:
        return {
            (name, str(row)): level
            for name, clips in self.boxes.items()
            for row, level in enumerate(clips.values())
        }


LAST = 9  # the number of a file in the last line of its manifest


class Manifests(World):
    """Lines come, go, break and are mended; files change, and their folder is away for a while.

    The last line of each manifest stays: one without a single path is refused."""

    format = "manifest"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lines: dict[str, dict[int, bool]] = {}  # by manifest: number of a file, is it broken
        self.files: dict[int, int] = {}
        self.is_away = False

    @property
    def input(self) -> Input:
        return Input(path=f"{self.folder}/*.jsonl", format=self.format)

    def change(self, box: int, clip: int) -> None:
        name, audio = f"{box}.jsonl", self.folder / "audio"
        if self.is_away:
            (self.folder / "away").rename(audio)
            self.is_away = False
            return
        lines = self.lines.setdefault(name, {})
        number, last = 10 * box + clip, 10 * box + LAST
        if last not in self.files:
            self.files[last] = self.level()
            self.put(f"audio/{last}.wav", sound(self.files[last]))
        if number not in self.files or clip == 0:
            self.files[number] = self.level()
            self.put(f"audio/{number}.wav", sound(self.files[number]))
        if clip == 4 and audio.exists():
            audio.rename(self.folder / "away")
            self.is_away = True
        if clip == 3 and lines:
            lines.pop(next(iter(lines)))
        else:
            lines[number] = not lines.get(number, clip == 1)
        texts = [
            "{" if is_broken else json.dumps({"audio_filepath": f"audio/{number}.wav"})
            for number, is_broken in [*lines.items(), (last, False)]
        ]
        self.put(name, "\n".join(texts).encode())

    def now(self) -> dict[tuple[str, str | None], Any]:
        now: dict[tuple[str, str | None], Any] = {}
        for name, lines in self.lines.items():
            last = 10 * int(name.partition(".")[0]) + LAST
            for line, (number, is_broken) in enumerate([*lines.items(), (last, False)], 1):
                place = f"audio/{number}.wav", None
                if is_broken:
                    now[name, f"line {line}"] = ERROR
                elif not self.is_away:
                    now[place] = self.files[number]
                else:
                    now[place] = self.seen.get(place, ERROR)
        return now

    def is_gone(self, place: tuple[str, str | None]) -> bool:
        return place[0].endswith(".jsonl")


@dataclass(frozen=True)
class Tasks:
    """The settings of the tasks of a run; `mood` is 0 if it has no such task."""

    kind: int = 1
    mood: int = 0

    @property
    def options(self) -> dict[str, Options]:
        names = ("kind", "mood") if self.mood else ("kind",)
        return {name: Options(task=TASK, model="x") for name in names}

    @property
    def settings(self) -> dict[str, Any]:
        mood = {"task": TASK, "setting": self.mood, "when": "kind_label <> ''"}
        tasks = {"kind": {"task": TASK, "setting": self.kind}, "mood": mood}
        return {"tasks": {name: tasks[name] for name in self.options}}

    @property
    def schema(self) -> pa.Schema:
        return table_schema(self.options, NO_COLUMNS)

    def labels(self, level: int) -> tuple[str, str | None]:
        kind = f"{level} by {self.kind}"
        return kind, f"{kind}, {self.mood}" if self.mood else None


class Histories(RuleBasedStateMachine):
    """`world` is set by a subclass."""

    world: type[World]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=os.environ["XDG_CACHE_HOME"]))
        self.input = self.world(self.home)
        self.path = self.home / "table"
        self.tasks = Tasks()
        self.drops = False
        self.runs = 0
        self.is_new = True

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    @rule(changes=CHANGES)
    def the_input_changes(self, changes: list[tuple[int, int]]) -> None:
        for box, clip in changes:
            self.input.change(box, clip)
        self.is_new = False

    @precondition(lambda self: self.runs)
    @rule(kind=st.integers(1, 2), mood=st.integers(0, 2), drops=st.booleans())
    def the_tasks_change(self, kind: int, mood: int, drops: bool) -> None:
        self.tasks, self.drops = Tasks(kind, mood), drops

    @precondition(lambda self: not self.is_new)
    @rule(retry_errors=st.booleans())
    def a_run_comes_to_its_end(self, retry_errors: bool) -> None:
        before = self.labels()
        self.run(retry_errors)
        assert self.rows() == self.input.labelled()
        if not self.path.exists():
            return  # there has never been a clip
        report = verify(existing(self.path))
        assert report.is_intact, (report.faults, report.leftovers)
        left = self.left(existing(self.path), retry_errors=False)
        assert left.is_empty, "a run finds nothing to do after one that has come to its end"
        self.assert_labelled(before, retry_errors)

    @precondition(lambda self: not self.is_new)
    @rule(nth=st.integers(1, 4), after=st.booleans(), retry_errors=st.booleans())
    def a_run_is_killed(self, nth: int, after: bool, retry_errors: bool) -> None:
        before = self.labels()
        self.run(retry_errors, kill=(nth, after))
        rows, now = self.rows(), self.input.now()
        if self.path.exists():
            assert not verify(existing(self.path)).faults
        for place, found in rows.items():  # it has come to some of what is there now
            assert found in (now.get(place), self.input.seen.get(place))
        self.input.seen = rows
        self.assert_kept(before, self.labels())

    def assert_labelled(self, before: dict[str, Any], retry_errors: bool) -> None:
        """All clips that are there have the labels of the current tasks, and others those that they had;
        nothing was labelled again that had its labels."""
        after, now = self.labels(), self.input.now()
        self.assert_kept(before, after)
        for id, row in after.items():
            level = now.get(row["place"])
            if level is None or self.is_away(row):
                was = before.get(id, row)
                if was["status"] == "error":  # it may have been tried again
                    continue
                assert {name: row[name] for name in row.keys() & was.keys()} == {
                    name: was[name] for name in row.keys() & was.keys()
                }
            elif level != ERROR:
                kind, mood = self.tasks.labels(level)
                assert row["kind_label"] == kind
                if self.tasks.mood and level % FAILS == 0 and not retry_errors:
                    assert row["mood_label"] == mood or row["mood_error"]
                elif self.tasks.mood:
                    assert row["mood_label"] == mood and not row["mood_error"]
                assert self.tasks.mood or not self.drops or "mood_label" not in row

    def is_away(self, row: dict[str, Any]) -> bool:
        """Whether the file of a row is missing for now."""
        return not (self.input.folder / row["place"][0]).exists()

    def assert_kept(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Labels by the same settings are the same, of the same run; unless they had failed, or a task
        was run whose labels they depend on."""
        for id in before.keys() & after.keys():
            is_same = before[id]["kind_fingerprint"] == after[id]["kind_fingerprint"]
            for task in ("kind", "mood") if is_same else ():
                old, new = (
                    {key: value for key, value in row.items() if key.startswith(f"{task}_")}
                    for row in (before[id], after[id])
                )
                made = f"{task}_fingerprint"
                if old.get(made) and new.get(made) == old[made] and not old[f"{task}_error"]:
                    assert new == old or before[id]["status"] == "error"

    def labels(self) -> dict[str, dict[str, Any]]:
        """The rows by clip_id, with their `place`."""
        if not list(self.path.glob("*.parquet")):
            return {}
        table = existing(self.path)
        names = [name for name in table.schema().names if name.startswith(("kind_", "mood_"))]
        rows = table.rows(["clip_id", "source", "member", "run_id", "status", *names]).to_pylist()
        for row in rows:
            row["place"] = row["source"].removeprefix(f"{self.input.folder}/"), row["member"]
        return {row["clip_id"]: row for row in rows}

    def rows(self) -> dict[tuple[str, str | None], Any]:
        """The rows of the table, each place once."""
        rows: dict[tuple[str, str | None], Any] = {}
        if not list(self.path.glob("*.parquet")):
            return rows
        names = ["source", "member", "peak_dbfs", "error_stage", "clip_id"]
        committed = existing(self.path).rows(names)
        for row in committed.to_pylist():
            place = row["source"].removeprefix(f"{self.input.folder}/"), row["member"]
            assert place not in rows, f"{place} has two rows"
            is_error = row["error_stage"] in ("read", "decode")
            rows[place] = ERROR if is_error else -round(row["peak_dbfs"])
        assert len(set(committed["clip_id"].to_pylist())) == len(committed)
        return rows

    def left(self, table: Table | None, retry_errors: bool) -> Plan:
        source = load_source(self.input.format)
        listing = source.find(self.input.input, lambda _: None)
        rows = committed(table, Wanted.of(self.tasks.settings, retry_errors=retry_errors))
        if source.SHARDED:
            return plan_shards(listing, rows, table.shards() if table else {})
        return plan(listing, rows)

    def run(self, retry_errors: bool, kill: tuple[int, bool] | None = None) -> None:
        """Like `jobs.label`, up to the `kill`: before or after the nth change of the log."""
        self.runs += 1
        write, count = Transactions._write, itertools.count(1)

        def counted(*arguments: Any, **options: Any) -> None:
            is_now = kill is not None and kill[0] == next(count)
            if is_now and not kill[1]:
                raise Killed
            write(*arguments, **options)
            if is_now:
                raise Killed

        with (
            patch.object(Transactions, "_write", counted),
            patch("jobs.table.lease.HEARTBEAT_S", 3600.0),  # the dead write no notes
            suppress(Killed),
        ):
            self.label(retry_errors)
        # Of one that was killed nobody hears for a minute.
        (self.path / "_earmark" / "holder.json").unlink(missing_ok=True)

    def label(self, retry_errors: bool) -> None:
        before, tasks = Table.open(Storage(str(self.path))), self.tasks
        goes = before is not None and self.drops and not tasks.mood
        drop = [task for task in ("mood",) if goes and "mood_error" in before.schema().names]
        left = self.left(before, retry_errors)
        if left.is_empty and (before is None or before.is_tidy()) and not drop:
            return
        run_id = f"run{self.runs}"
        table = held(self.path, run_id, tasks.schema, tasks.settings)
        if drop:
            table.drop(drop, ())
        left = self.left(table, retry_errors)
        if left.obsolete:
            table.commit([], left.obsolete)
        prints = Wanted.of(tasks.settings).fingerprints
        names = Wanted.of(tasks.settings).names(left.due)
        gone = labels_left(table.schema().names, table.settings(), tasks.options, ())
        write = WriteSettings(
            schema=table.schema(),
            tasks={**label_columns(tasks.schema, tasks.options), **gone},
            path=table.path,
            storage_options={},
            run_id=run_id,
            fingerprints={name: prints[name] for name in names},
            bits={name: bit for bit, name in enumerate(prints)},
        )
        for clips in self.prepared(left, table, retry_errors):
            for start in range(0, len(clips), CLIPS_PER_FILE):
                some = with_labels(clips.slice(start, CLIPS_PER_FILE), names, tasks, retry_errors)
                table.commit(write_rows(some, write).to_pylist())
        table.tidy()
        table.release()

    def prepared(self, left: Plan, table: Table, retry_errors: bool) -> Iterator[pa.Table]:
        todo = left.todo
        todo = todo.drop_columns([name for name in todo.column_names if name == "_unit"])
        settings = ReadSettings(self.input.input, Audio(max_clip_s=60.0), (16_000,), "never")
        wanted = Wanted.of(self.tasks.settings, retry_errors=retry_errors)
        stored = RowSettings.of(table, left.files, wanted)
        of_tasks = kept_settings(stored, self.tasks.options, ())
        todo = with_known(todo, stored)
        rows = KeptRows(todo, of_tasks) if left.keeps else None
        for clips in prepared(SharedMemory(), SandboxWork(without_kept(todo), settings)):
            yield rows.beside(clips) if rows else clips


def with_labels(clips: pa.Table, names: list[str], tasks: Tasks, retry_errors: bool) -> pa.Table:
    """Prepared clips as the last actor returns them; a task takes what it reads from their columns."""
    is_sound = [peak is not None for peak in clips["peak_dbfs"].to_pylist()]
    levels = [-round(peak) if peak is not None else None for peak in clips["peak_dbfs"].to_pylist()]
    for bit, task in enumerate(tasks.options):
        if task not in names:
            continue
        due = pc.and_(is_due(clips, bit), pa.array(is_sound))
        labels, failures = [], []
        for row, level in enumerate(levels):
            read = clips["kind_label"][row].as_py() if task == "mood" else level
            fails = task == "mood" and level and level % FAILS == 0 and not retry_errors
            made = f"{read} by {tasks.kind}" if task == "kind" else f"{read}, {tasks.mood}"
            labels.append(None if fails or level is None else made)
            failures.append({"kind": "model", "message": "it broke"} if fails else None)
        texts = ["model: it broke" if failure else None for failure in failures]
        clips = put(clips, f"{task}_label", pa.array(labels, pa.string()), due)
        clips = put(clips, f"{task}_error", pa.array(texts, pa.string()), due)
        clips = put(clips, failure_column(task), pa.array(failures, TASK_FAILURE), due)
    return clips


@pytest.mark.parametrize("count", [4, pytest.param(150, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("world", [Files, Tars, TarsThatBreak, Parquet, Manifests])
def test_a_table_is_what_its_input_has_become(world: type[World], count: int) -> None:
    machine = type("Machine", (Histories,), {"world": world})
    os.makedirs(os.environ["XDG_CACHE_HOME"], exist_ok=True)
    run_state_machine_as_test(
        machine,
        settings=settings(
            derandomize=True,
            deadline=None,
            database=None,
            max_examples=count,
            stateful_step_count=12,
            phases=[Phase.generate],  # add Phase.shrink to get a short one of those that fail
            suppress_health_check=list(HealthCheck),
        ),
    )
