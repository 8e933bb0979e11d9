"""Exports without sound: what is selected, how it is split, lists that name files, what is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import exports
import pyarrow as pa
import pytest
from exports import TEXTS, samples_of, text_of, write_table
from poison import wav
from runs import ROOT
from tables import TableOf, existing
from test_poison import site  # noqa: F401  # the fixture

from audio_ops.errors import ClipError
from jobs.cli import run
from jobs.config import Audio
from jobs.export.formats import format_names, load_format
from jobs.export.formats._fields import one_line
from jobs.export.options import Options, part_names
from jobs.export.select import Selection, select, shape_of
from jobs.export.sound import SoundSettings, SoundWork, encoded_items
from jobs.input import Input
from jobs.sources import load_source
from jobs.table.lease import Holder, Lease
from jobs.table.storage import Storage
from jobs.workers.reopen import Place, clips_of, place_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an input and of a table of its clips."""
    folder = tmp_path_factory.mktemp("world")
    exports.make(folder, exports.pack(folder / "in"))
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a table of 600 clips whose files are not there."""
    folder = tmp_path_factory.mktemp("wide")
    write_table(folder, [made_up(n) for n in range(600)])
    return folder


def made_up(n: int, **columns: Any) -> dict[str, Any]:
    """A row: three stretches of a file, or two channels of one, follow each other."""
    kind, file = n % 5, n // 5
    place = {"member": None, "offset_s": 0.0, "channel": kind - 2 if kind > 2 else None}
    if kind <= 2:
        place |= {"member": f"{2.5 - kind / 10} s", "offset_s": 2.5 * kind}
    name = "list" if kind <= 2 else "both"
    row = {
        "clip_id": f"{n:032x}",
        "source": f"/gone/{name}{file:04}.wav",
        "source_version": "1-1",
        "sample_rate": 16_000,
        "channels": 2 if kind > 2 else 1,
        "format": "wav/pcm_16",
        "duration_s": 2.5,
        **place,
    }
    return exports.labelled(row, n) | {"speaker": f"s{n % 40}"} | columns


def encoded(
    given: Sequence[dict[str, Any]], audio: str = "flac", **decoding: Any
) -> list[tuple[str, str]]:
    """The name and the outcome of each clip of some inputs, in the order in which they come."""
    rows = []
    for n, one in enumerate(given):
        for number, row in enumerate(clips_in(one)):
            rows.append(row | {"clip_id": f"{n}-{number}"})
    clips = clips_of(rows)
    settings = SoundSettings(
        Input(path="x"),
        Audio(**{"decode_timeout_s": 60.0, "decode_memory_mb": 512, **decoding}),
        pa.schema([]),
        audio,  # type: ignore[arg-type]
        "flac",
        None,
    )
    names = {at: clip.member or Path(clip.source).name for clip in clips for at in clip.items}
    return [
        (names[at], one.kind if isinstance(one, ClipError) else one.extension)
        for at, one in encoded_items(SoundWork(clips, {}, settings))
    ]


def clips_in(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The place of each clip of an input that is no tar; of a tar those of its members."""
    input = Input(**given)
    found = load_source(input.format).find(input, print).clips.to_pylist()
    common = {"channel": None, "sample_rate": 16_000, "format": "wav/pcm_16", "offset_s": 0.0}
    for row in found:
        if input.format == "webdataset":
            with tarfile.open(row["source"]) as archive:
                names = sorted(archive.getnames())
            yield from (
                {"source": row["source"], "member": n, "source_version": row["source_version"]}
                | common
                for n in names
            )
        else:
            yield row | common


def export(folder: Path, out: Path, format: str, *more: str) -> int:
    return run(["export", f"{folder}/table", str(out), "--as", format, "--task", "t", *more])


def selected(folder: Path, scratch: Path, **options: Any) -> Selection:
    table = existing(folder / "table")
    scratch.mkdir(exist_ok=True)
    return select(table, shape_of(table, "t"), Options("csv", **options), scratch)


def items(selection: Selection) -> list[dict[str, Any]]:
    return [row for batch in selection.batches() for row in batch.to_pylist()]


@pytest.mark.parametrize(
    ("member", "place"),
    [
        (None, Place("file", "", None)),
        ("2.5 s", Place("file", "", 2.5)),
        ("1e-05 s", Place("file", "", 1e-05)),
        ("17", Place("row", "17", None)),
        ("a/b c.wav", Place("member", "a/b c.wav", None)),
        ("a/b\nc.wav#2 0.5 s", Place("member", "a/b\nc.wav#2", 0.5)),
        ("12.wav", Place("member", "12.wav", None)),
    ],
)
def test_a_member_says_where_its_clip_lies(member: str | None, place: Place) -> None:
    assert place_of(member) == place


REFUSED = {
    "a column that is not there": (["--where", "t_scor > 1"], "t_scor", "t_score, t_language"),
    "no SQL": (["--where", "t_score >"], "--where: ", "the columns are: clip_id"),
    "a value that does not fit": (["--where", "t_text::INT > 1"], "--where: Conversion Error"),
    "two statements": (["--where", "true); SELECT (1"], "expected one condition"),
    "no clip": (["--where", "t_score > 9"], "expected a labelled clip that meets", "of 19 rows"),
    "an unknown task": (["--task", "x"], "--task: expected one of the table's (t, kind)", "'x'"),
    "shares": (["--split", "a=0.5,b=0.6"], "add up to 1"),
    "no number": (["--split", "a=x"], "expected shares as in train=0.98"),
    "a name": (["--split", "a b=0.5,c=0.5"], "letters, digits and _"),
    "a column to split by": (["--split", "nope"], "--split: expected a column of the table"),
    "a group of no split": (["--group-by", "speaker"], "--group-by: expected --split"),
    "a padding of no cut": (["--pad-s", "1"], "--pad-s: expected --cut segments"),
    "a way of sound": (["--as", "srt", "--audio", "flac"], "--audio: expected none for srt"),
    "a name in use": (["--columns", "text"], "expected a name that the format does not use"),
    "a speaker": (["--speaker", "who"], "--speaker: expected a column of the table"),
    "segments as subtitles": (["--as", "vtt", "--cut", "segments"], "expected whole clips"),
    "segments of a task without": (["--task", "kind", "--cut", "segments"], "a task with segments"),
    "a config that is not there": (["--config", "/nope.yaml"], "/nope.yaml"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    arguments, *answers = REFUSED[what]
    assert export(world, tmp_path / "out", "csv", *arguments) == 2
    printed = capfd.readouterr().out
    assert all(answer in printed for answer in answers), printed
    assert not list(tmp_path.iterdir())


def test_a_folder_of_others_and_the_tables_own_are_refused(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(world, world / "table" / "out", "csv") == 2
    assert "expected a folder outside of the table" in capfd.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert export(world, tmp_path / "out", "csv") == 2
    assert "found files of others" in capfd.readouterr().out
    (tmp_path / "new.unfinished").mkdir()
    (tmp_path / "new.unfinished" / "mine").touch()
    assert export(world, tmp_path / "new", "csv") == 2
    assert "found files of others" in capfd.readouterr().out
    assert (tmp_path / "new.unfinished" / "mine").exists()
    assert run(["export", str(tmp_path), str(tmp_path / "x"), "--as", "csv"]) == 2
    assert "expected a table that Earmark made" in capfd.readouterr().out


def test_an_export_is_made_once_and_another_one_is_not_made_over_it(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert export(world, out, "csv") == 0
    before = (out / "clips.csv").stat()
    assert export(world, out, "csv") == 0
    assert "nothing to do" in capfd.readouterr().out
    assert (out / "clips.csv").stat().st_mtime_ns == before.st_mtime_ns
    assert export(world, out, "csv", "--where", "t_score > 0.5") == 2
    assert "found another export" in capfd.readouterr().out


def test_an_unfinished_export_of_other_options_is_replaced_and_one_in_progress_is_not(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "out.unfinished"
    (unfinished / ".earmark").mkdir(parents=True)
    (unfinished / ".earmark" / "export.json").write_text('{"items": 1}')
    (unfinished / "stale.tar").touch()
    storage = Storage(str(unfinished))
    lease = Lease(storage, Holder.me("other"), lambda: True)
    lease.write()
    assert export(world, tmp_path / "out", "csv") == 75
    assert "is being written by another export" in capfd.readouterr().out
    lease.end()
    assert export(world, tmp_path / "out", "csv") == 0
    files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    about = ["out/.earmark/export.json", "out/.earmark/failed.jsonl"]
    assert sorted(files) == [*about, "out/clips.csv"]


def test_datasets_is_asked_for_if_it_is_missing(world: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['datasets'] = None\n"
        "from jobs.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    arguments = [f"{world}/table", tmp_path / "out", "--as", "datasets", "--task", "t"]
    done = subprocess.run(
        [sys.executable, "-c", script, "export", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "pip install 'earmark[export]'" in done.stdout


def test_the_table_decides_what_is_exported_and_not_the_cut_of_its_files(
    wide: Path, tmp_path: Path
) -> None:
    rows = [made_up(n) for n in range(600)]
    write_table(tmp_path, rows[::-1])
    one, other = (
        selected(folder, tmp_path / name, split={"a": 0.5, "b": 0.5}, shard_clips=70)
        for name, folder in (("s1", wide), ("s2", tmp_path))
    )
    assert (one.digest, one.cuts, one.parts) == (other.digest, other.cuts, other.parts)
    assert items(one) == items(other) and len(items(one)) == 600
    assert all(stop - start <= 70 for _, _, start, stop in one.cuts)
    shards = list(one.shards())
    assert [row for _, _, shard in shards for row in shard.to_pylist()] == items(one)
    assert {(part, number) for part, number, _ in shards} == {
        (part, number) for part, count in one.parts.items() for number in range(count)
    }


def test_shards_are_bounded_by_the_bytes_of_their_sound(wide: Path, tmp_path: Path) -> None:
    selection = selected(wide, tmp_path, shard_mb=1)
    clip = 2.5 * 16_000 * 2  # bytes
    sizes = [stop - start for *_, start, stop in selection.cuts]
    assert max(sizes) == int((1 << 20) // clip) and len(set(sizes[:-1])) == 1


def part_of(selection: Selection) -> dict[tuple[Any, ...], str]:
    names = ("source", "offset_s", "channel")
    return {tuple(row[n] for n in names): row["part"] for row in items(selection)}


def test_a_clip_is_always_in_the_same_part(wide: Path, tmp_path: Path) -> None:
    """However many others there are, which condition is asked for, whether its file was written
    again; and with the other stretches and channels of its recording."""
    split = {"train": 0.8, "dev": 0.1, "test": 0.1}
    before = part_of(selected(wide, tmp_path / "s1", split=split))
    sizes = Counter(before.values())
    assert 0.7 < sizes["train"] / sum(sizes.values()) < 0.9 and min(sizes.values()) > 20
    rows = [made_up(n, source_version="2-2", clip_id=f"{n + 9999:032x}") for n in range(900)]
    write_table(tmp_path, rows)
    after = part_of(selected(tmp_path, tmp_path / "s2", split=split, where="t_score > 1"))
    assert len(after) > 500 and all(before.get(k, part) == part for k, part in after.items())
    assert len(before.keys() & after.keys()) > 300
    by_source: dict[str, set[str]] = {}
    for (source, *_), part in before.items():
        by_source.setdefault(source, set()).add(part)
    assert all(len(parts) == 1 for parts in by_source.values())


def test_a_group_is_in_one_part_and_who_is_in_none_goes_alone(wide: Path, tmp_path: Path) -> None:
    split = {"train": 0.5, "dev": 0.5}
    rows = items(selected(wide, tmp_path, split=split, group_by="speaker", speaker="speaker"))
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(row["speaker"], set()).add(row["part"])
    assert len(parts) == 40 and all(len(of) == 1 for of in parts.values())
    assert len(set.union(*parts.values())) == 2


def test_parts_by_a_column_have_plain_names_of_their_own(world: Path, tmp_path: Path) -> None:
    selection = selected(world, tmp_path, split="set")
    assert list(selection.parts) == ["dev", "train_set", "train_set_2"]
    assert part_names([None, "none", "../x", "", "ä/ö"]) == {
        None: "none",
        "none": "none_2",
        "../x": "x",
        "": "none_3",
        "ä/ö": "part",
    }


def test_segments_are_padded_bounded_and_filtered(wide: Path, tmp_path: Path) -> None:
    """Each clip has two of them: from 0 to 1.15 s and from 1.25 to 2.5 s."""
    from jobs.export.options import Cut

    whole = selected(wide, tmp_path / "s1", cut=Cut(pad_s=0.1))
    first, second = items(whole)[:2]
    assert (first["start_s"], first["duration_s"]) == (0.0, pytest.approx(1.25))
    assert (second["start_s"], second["duration_s"]) == pytest.approx((1.15, 1.35))
    assert first["number"] == 1 and second["number"] == 2
    assert all(row["value"] for row in items(whole))
    short = selected(wide, tmp_path / "s2", cut=Cut(max_s=1.2))
    assert {row["number"] for row in items(short)} == {1}
    assert short.left_out["segments over --max-s"] == short.items
    good = selected(wide, tmp_path / "s3", cut=Cut(min_s=0.5), where="segment.score > 0.6")
    assert {round(row["score"], 5) for row in items(good)} == {0.9}


def test_speakers_and_languages_of_segments_are_theirs(tmp_path: Path) -> None:
    from jobs.export.options import Cut

    row = made_up(0)
    for segment, speaker in zip(row["t_segments"], ("A", "B b"), strict=True):
        segment |= {"speaker": speaker, "language": f"x{speaker[0]}"}
    write_table(tmp_path, [row, made_up(1)])
    rows = items(selected(tmp_path, tmp_path / "s", cut=Cut()))
    assert [row["speaker"] for row in rows] == ["A", "B b", None, None]
    assert [row["language"] for row in rows] == ["xA", "xB", "en", "en"]
    assert not selected(tmp_path, tmp_path / "t").has_speaker
    export(tmp_path, tmp_path / "out", "csv", "--cut", "segments")
    lines = (tmp_path / "out" / "clips.csv").read_text().splitlines()
    assert "xB,B b," in lines[2]


def test_columns_of_the_source_may_have_any_names(tmp_path: Path) -> None:
    names = ["x", "Segment", "segment_number", "number", "part", "value", "hash", "name"]
    kept = pa.schema([*exports.KEPT, *((name, pa.string()) for name in names)])
    of = TableOf(exports.TASKS, exports.SETTINGS, kept)
    of.write(tmp_path, [made_up(n, **dict.fromkeys(names, "odd")) for n in range(5)])
    assert export(tmp_path, tmp_path / "whole", "tsv", "--columns", "x=y") == 0
    cut = ["--cut", "segments", "--where", "segment.score > 0.6"]
    assert export(tmp_path, tmp_path / "cut", "tsv", *cut) == 0
    for name in ("whole", "cut"):
        assert len((tmp_path / name / "clips.tsv").read_text("utf-8").splitlines()) == 6


def test_conditions_see_all_columns_of_a_table(wide: Path, tmp_path: Path) -> None:
    where = "t_score > 0.6 and len(t_suspect) = 0 -- and this is a comment"
    rows = items(selected(wide, tmp_path, where=where, columns={"text": "reference"}))
    assert rows and all(row["score"] > 0.6 for row in rows)
    assert {row["column:reference"] for row in rows} <= {f"reference {n}" for n in range(600)}


def test_a_table_without_channels_is_exported(tmp_path: Path) -> None:
    """As tables were before there were any."""
    rows = [made_up(n) for n in (0, 1, 2)]
    write_table(tmp_path, rows, without=("channel",))
    assert [row["channel"] for row in items(selected(tmp_path, tmp_path / "s"))] == [None] * 3


def test_texts_of_any_kind_are_read_back_from_a_csv_and_a_tsv(world: Path, tmp_path: Path) -> None:
    wanted = sorted(text_of(n) for n in range(19))
    assert export(world, tmp_path / "c", "csv", "--columns", "text=reference,t_suspect") == 0
    with (tmp_path / "c" / "clips.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["text"] for row in rows) == wanted
    assert {row["reference"] for row in rows} == {f"reference {n}" for n in range(19)}
    assert Counter(row["t_suspect"] for row in rows) == {"[]": 18, '["repeats"]': 1}
    assert export(world, tmp_path / "t", "tsv") == 0
    first, *lines = (tmp_path / "t" / "clips.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    fields = [dict(zip(first.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert sorted(row["text"] for row in fields) == sorted(map(one_line, wanted))
    assert {row["member"] for row in fields} >= {"deep/m 0.flac", "2", "0.8 s", ""}


def test_subtitles_show_each_segment_and_a_text_is_never_markup(
    world: Path, tmp_path: Path
) -> None:
    assert export(world, tmp_path / "s", "srt") == 0 and export(world, tmp_path / "v", "vtt") == 0
    rows = {
        row["source"]: row for row in existing(world / "table").dataset().to_table().to_pylist()
    }
    n = next(n for n in range(19) if text_of(n) == TEXTS[4])
    [row] = [row for row in rows.values() if row["t_text"] == TEXTS[n]]
    assert len(list((tmp_path / "s").glob("*.srt"))) == len(list((tmp_path / "v").iterdir())) - 1
    [srt] = [
        p.read_text("utf-8")
        for p in (tmp_path / "s").glob("*.srt")
        if "& so 0" in p.read_text("utf-8")
    ]
    middle = row["duration_s"] / 2
    assert srt == (
        f"1\n00:00:00,000 --> {clock(middle - 0.1)}\n<b>5 -> 6</b> & so 0\n\n"
        f"2\n{clock(middle)} --> {clock(row['duration_s'])}\n<b>5 -> 6</b> & so 1\n\n"
    )
    vtts = [p.read_text("utf-8") for p in (tmp_path / "v").glob("*.vtt")]
    assert all(text.startswith("WEBVTT\n\n") and text.count("-->") == 2 for text in vtts)
    assert any("&lt;b&gt;5 --&gt; 6&lt;/b&gt; &amp; so 0\n" in text for text in vtts)
    assert any("a tab and a line end and two spaces 0\n" in text for text in vtts)


def clock(seconds: float) -> str:
    return f"00:00:{seconds:06.3f}".replace(".", ",")


LISTS = {
    "csv": ("clips.csv", "manifest"),
    "kaldi": ("wav.scp", "kaldi"),
    "lhotse": ("cuts.jsonl.gz", "lhotse"),
    "nemo": ("manifest.json", "manifest"),
    "tsv": ("clips.tsv", "manifest"),
}
# Files whose names a format cannot hold, by a part of the name.
NAMELESS = {"kaldi": ("line", "pipe", "x.ark"), "tsv": ("tab", "line"), "lhotse": ("long",)}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("format", LISTS)
def test_lists_name_files_where_they_are_and_the_sources_find_them(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], format: str, cut: bool
) -> None:
    more = ["--cut", "segments"] if cut else []
    assert (
        export(world, tmp_path / "out", format, "--audio", "link", *more) == 3
    )  # some lie in tars
    printed = capfd.readouterr().out
    assert "where no list can name it (--audio wav or flac takes it out)" in printed
    name, source = LISTS[format]
    given = {"path": str(tmp_path / "out" / name), "format": source}
    given["audio_allow"] = [str(world / "in")]
    column = "text"
    found = exports.found_clips(given, keep=[column])
    errors = [row["error_message"] for row in found if row["error_kind"]]
    if format == "lhotse":  # a channel of a file, which only a cut can name, and the source refuses
        assert all("of a file with 2 channels" in error for error in errors)
        assert len(errors) == (2 if cut else 1)
        errors.clear()
    assert not errors
    wanted = {}
    for row in existing(world / "table").dataset().to_table().to_pylist():
        nameless = any(part in row["source"] for part in NAMELESS.get(format, ()))
        is_channel = row["channel"] is not None  # which only Lhotse's lists have
        if row["source"].endswith((".tar", ".parquet")) or nameless or is_channel:
            continue
        parts = [(row["t_text"], 0.0, row["duration_s"])]
        if cut:
            parts = [(s["text"], s["start_s"], s["end_s"]) for s in row["t_segments"]]
        for text, start_s, end_s in parts:
            key = one_line(text) if format in ("kaldi", "tsv") else text
            wanted[key] = (row["source"], row["offset_s"] + start_s, end_s - start_s)
    texts = {row[column] or "": row for row in found}
    if format == "lhotse":
        texts = {text: row for text, row in texts.items() if not row["error_kind"]}
    assert sorted(texts) == sorted(wanted)
    for text, (path, start_s, length_s) in wanted.items():
        row = texts[text]
        assert (row["source"], row["duration_s"]) == (path, pytest.approx(length_s, abs=2e-4))
        assert row["offset_s"] == pytest.approx(start_s, abs=1e-5)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "segments"])
def test_lhotse_reads_cuts_of_files_where_they_are(world: Path, tmp_path: Path, cut: bool) -> None:
    import numpy as np
    from lhotse import CutSet, validate

    more = ["--cut", "segments"] if cut else []
    export(world, tmp_path / "out", "lhotse", *more)
    cuts = CutSet.from_file(tmp_path / "out" / "cuts.jsonl.gz")
    validate(cuts)
    rows = existing(world / "table").dataset().to_table().to_pylist()
    parts = {row["t_text"]: (row, 0.0, row["duration_s"]) for row in rows}
    if cut:
        segments = [(row, segment) for row in rows for segment in row["t_segments"]]
        parts = {s["text"]: (row, s["start_s"], s["end_s"]) for row, s in segments}
    assert len(cuts) == (20 if cut else 10)
    for one in cuts:
        row, start_s, end_s = parts[one.supervisions[0].text]
        sound = one.load_audio().mean(axis=0)
        wanted = samples_of(row)[round(start_s * 16_000) : round(end_s * 16_000)]
        assert len(sound) == len(wanted) and np.abs(sound - wanted).max() < 1e-4


def test_files_that_are_gone_or_changed_are_not_named_in_a_list(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = exports.pack(tmp_path / "in")
    exports.make(tmp_path, {"files": inputs["files"]})
    (tmp_path / "in" / "files" / "plain.wav").unlink()
    (tmp_path / "in" / "files" / "flat.flac").write_bytes(b"other")
    assert export(tmp_path, tmp_path / "out", "nemo", "--where", "channel IS NULL") == 3
    assert "9 selected = 7 exported + 2 failed" in capfd.readouterr().out
    failed = (tmp_path / "out" / ".earmark" / "failed.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["message"].split()[-1] for line in failed) == [
        "gone",
        "labelled",
    ]


def test_an_export_of_nothing_but_unreadable_clips_is_none(
    wide: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(wide, tmp_path / "out", "nemo") == 2
    printed = capfd.readouterr().out
    assert "expected clips that can be exported, found none among 600" in printed
    assert "× unreadable, e.g. /gone/" in printed and not list(tmp_path.iterdir())


def test_each_format_says_how_it_takes_sound() -> None:
    assert len(format_names()) == 12
    for name in format_names():
        assert load_format(name).AUDIO


def test_a_clip_that_kills_or_stops_its_decoder_costs_itself_alone(
    tmp_path: Path,
    site: Path,
) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    harms = {1: "segfault", 3: "loop"}
    for n in range(5):
        (audio / f"{n}.wav").write_bytes(wav(harm=harms.get(n, "")))
    found = encoded([{"path": str(audio), "format": "files"}], decode_timeout_s=3.0)
    kinds = {1: "crashed", 3: "timeout"}
    assert sorted(found) == [(f"{n}.wav", kinds.get(n, "flac")) for n in range(5)]
    good = [name for name, outcome in found if outcome == "flac"]
    assert good == sorted(good)


def test_a_tar_that_kills_its_reader_costs_its_own_clips(tmp_path: Path, site: Path) -> None:
    """Those behind the member that does it: others of the shard are there, whatever was read before."""
    audio = tmp_path / "audio"
    audio.mkdir()
    for n in range(3):
        (audio / f"{n}.wav").write_bytes(wav())
    names = ["a.wav", "segfault@b.wav", "c.wav"]
    for name in ("bad.tar", "good.tar"):
        members = [
            (member.removeprefix("segfault@") if name[0] == "g" else member) for member in names
        ]
        exports.write_tar(tmp_path / name, [(member, wav()) for member in members])
    files = {"path": str(audio), "format": "files"}
    tars = [{"path": str(tmp_path / n), "format": "webdataset"} for n in ("bad.tar", "good.tar")]
    found = encoded([files, *tars, files | {"path": str(audio / "0.wav")}])
    outcomes = Counter(found)
    assert outcomes["0.wav", "flac"] == 2 and outcomes["1.wav", "flac"] == 1
    assert outcomes["a.wav", "flac"] == 2  # what can be read of the bad one
    assert outcomes["b.wav", "flac"] == 1 and outcomes["segfault@b.wav", "crashed"] == 1
    assert outcomes["c.wav", "crashed"] == outcomes["c.wav", "flac"] == 1


def test_sound_without_a_header_is_decoded_as_for_the_labels(tmp_path: Path) -> None:
    (tmp_path / "a.ulaw").write_bytes(bytes(8000))
    given = [{"path": str(tmp_path / "a.ulaw"), "format": "files"}]
    raw = ({"extensions": ["ulaw"], "encoding": "mulaw", "sample_rate": 8000},)
    assert encoded(given) == [("a.ulaw", "not_audio")]
    assert encoded(given, raw=raw) == [("a.ulaw", "flac")]
    assert encoded(given, "copy") == [("a.ulaw", "ulaw")]


def test_labels_of_a_classification_are_exported(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--as", "nemo", "--task", "kind", "--audio", "link"]
    assert run(["export", f"{world}/table", str(out), *arguments]) == 3
    entries = [json.loads(line) for line in (out / "manifest.json").read_text().splitlines()]
    assert {entry["label"] for entry in entries} == {"cat", "dog"}
    assert all("text" not in entry for entry in entries)


def test_a_column_of_a_type_that_datasets_lacks_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = pa.schema([*exports.KEPT, ("tags", pa.map_(pa.string(), pa.string()))])
    of = TableOf(exports.TASKS, exports.SETTINGS, kept)
    of.write(tmp_path, [made_up(0, tags=[("a", "b")])])
    assert export(tmp_path, tmp_path / "out", "datasets", "--columns", "tags") == 2
    assert "--columns: expected types that datasets has, found: " in capfd.readouterr().out
