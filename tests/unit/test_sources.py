"""Every packaging keeps the sources' contract, and damage becomes rows that say what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import Job
from sounds import encode, tone

from audio_ops.decode.open import decode
from audio_ops.errors import ClipError
from audio_ops.prepare import prepare_clip
from jobs.clips import clip_id, clip_ids
from jobs.config import Audio, Config, ConfigError
from jobs.config_file import load_config
from jobs.input import Input
from jobs.pipeline import blocks
from jobs.planning.committed import NOTHING_COMMITTED
from jobs.planning.plan import plan
from jobs.preflight import find_source
from jobs.sources import PLACE, Listing, NoSuchColumn, load_source, source_names
from jobs.sources._paths import resolve
from jobs.workers.read import ReadSettings, SandboxWork, shards

RATE = 16_000
SOUNDS = [encode(tone(0.3, hz=200 + 60 * n), RATE, "wav") for n in range(5)]
GARBAGE = b"\xff" * len(SOUNDS[0])
SPEAKERS = [f"speaker{n}" for n in range(5)]


class Packed(NamedTuple):
    """A data set: what a config says of it, the files with the sounds, its column of speakers."""

    input: dict[str, Any]
    files: list[Path]
    speaker: str | None


def as_files(folder: Path, sounds: Sequence[bytes]) -> Packed:
    for n, sound in enumerate(sounds):
        (folder / f"{n}.wav").write_bytes(sound)
    return Packed({"path": str(folder)}, sorted(folder.glob("*.wav")), None)


def as_webdataset(folder: Path, sounds: Sequence[bytes]) -> Packed:
    half = len(sounds) // 2
    for part in (0, 1):
        members: list[tuple[str, bytes]] = []
        for n in range(half) if part == 0 else range(half, len(sounds)):
            sidecar = (f"deep/{n}.json", json.dumps({"speaker": SPEAKERS[n]}).encode())
            pair = [(f"deep/{n}.wav", sounds[n]), sidecar]
            members += pair if n % 2 else reversed(pair)
        write_tar(folder / f"{part}.tar", members)
    return Packed({"path": str(folder)}, sorted(folder.glob("*.tar")), "json.speaker")


def as_parquet(folder: Path, sounds: Sequence[bytes]) -> Packed:
    audio = [{"bytes": sound, "path": f"{n}.wav"} for n, sound in enumerate(sounds)]
    table = pa.table({"speaker": SPEAKERS[: len(sounds)], "audio": audio})
    (folder / "split=train").mkdir()
    write_parquet(folder / "split=train" / "0.parquet", table, rows=2)
    return Packed({"path": str(folder)}, [folder / "split=train" / "0.parquet"], "speaker")


def as_manifest(folder: Path, sounds: Sequence[bytes]) -> Packed:
    (folder / "audio").mkdir()
    packed = as_files(folder / "audio", sounds)
    entries = [
        {"audio_filepath": f"audio/{path.name}", "duration": 0.3, "speaker": speaker}
        for path, speaker in zip(packed.files, SPEAKERS, strict=False)
    ]
    write_lines(folder / "all.jsonl", [json.dumps(entry) for entry in entries])
    return Packed({"path": str(folder / "all.jsonl")}, packed.files, "speaker")


def as_audiofolder(folder: Path, sounds: Sequence[bytes]) -> Packed:
    (folder / "train").mkdir()
    packed = as_files(folder / "train", sounds)
    rows = zip(packed.files, SPEAKERS, strict=False)
    lines = [f"{path.name},{speaker}" for path, speaker in rows]
    write_lines(folder / "train" / "metadata.csv", ["file_name,speaker", *lines])
    return Packed({"path": str(folder)}, packed.files, "speaker")


def as_ljspeech(folder: Path, sounds: Sequence[bytes]) -> Packed:
    (folder / "wavs").mkdir()
    packed = as_files(folder / "wavs", sounds)
    rows = zip(packed.files, SPEAKERS, strict=False)
    write_lines(folder / "metadata.csv", [f"{path.stem}|{name}|x" for path, name in rows])
    return Packed({"path": str(folder / "metadata.csv")}, packed.files, "text")


def as_kaldi(folder: Path, sounds: Sequence[bytes]) -> Packed:
    packed = as_files(folder, sounds)
    write_lines(folder / "wav.scp", [f"u{path.stem} {path.name}" for path in packed.files])
    names = zip(packed.files, SPEAKERS, strict=False)
    write_lines(folder / "utt2spk", [f"u{path.stem} {name}" for path, name in names])
    return Packed({"path": str(folder / "wav.scp")}, packed.files, "speaker")


def as_lhotse(folder: Path, sounds: Sequence[bytes]) -> Packed:
    (folder / "audio").mkdir()
    packed = as_files(folder / "audio", sounds)
    lines = []
    for path, speaker in zip(packed.files, SPEAKERS, strict=False):
        source = {"type": "file", "channels": [0], "source": f"audio/{path.name}"}
        recording = {"id": path.stem, "sources": [source], "sampling_rate": RATE, "duration": 0.3}
        cut = {"id": path.stem, "start": 0, "duration": 0.3, "channel": 0, "type": "MonoCut"}
        supervisions = [{"id": "s", "start": 0, "duration": 0.3, "speaker": speaker}]
        lines.append(cut | {"recording": recording, "supervisions": supervisions})
    write_lines(folder / "cuts.jsonl", map(json.dumps, lines))
    return Packed({"path": str(folder / "cuts.jsonl")}, packed.files, "speaker")


PACK: dict[str, Callable[[Path, Sequence[bytes]], Packed]] = {
    "audiofolder": as_audiofolder,
    "files": as_files,
    "kaldi": as_kaldi,
    "lhotse": as_lhotse,
    "ljspeech": as_ljspeech,
    "manifest": as_manifest,
    "parquet": as_parquet,
    "webdataset": as_webdataset,
}
every_packaging = pytest.mark.parametrize("name", source_names())


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def write_parquet(path: Path, table: pa.Table, rows: int = 100) -> Path:
    """Uncompressed and plain, so that sounds can be found in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        path,
        row_group_size=rows,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return path


def write_lines(path: Path, lines: Iterable[str], end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def rewrite(files: Sequence[Path], *pairs: tuple[bytes, bytes]) -> None:
    """Replace bytes inside of files in a way that their size and mtime do not tell."""
    for path in files:
        before, content = path.stat(), path.read_bytes()
        for n, (old, _) in enumerate(pairs):
            content = content.replace(old, bytes([0xA0 + n]) * len(old))
        for n, (old, new) in enumerate(pairs):
            content = content.replace(bytes([0xA0 + n]) * len(old), new)
        path.write_bytes(content)
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def found(input: Input, keep: Sequence[str] = ()) -> pa.Table:
    source = load_source(input.format)
    return source.find(input, print, source.columns(input, list(keep))).clips


def walk(input: Input, keep: Sequence[str] = ()) -> list[tuple[dict[str, Any], Any]]:
    """Every clip's row, and its bytes or what is wrong with it."""
    source = load_source(input.format)
    kept = source.columns(input, list(keep))
    return [
        (row, file if isinstance(file, ClipError) else file.read())
        for row, file in source.clips(source.find(input, print, kept).clips, input, kept)
    ]


def sounds(walked: list[tuple[dict[str, Any], Any]]) -> list[Any]:
    """The sounds' numbers, or the kind of each error."""
    return [s.kind if isinstance(s, ClipError) else SOUNDS.index(s) for _, s in walked]


def ids(walked: list[tuple[dict[str, Any], Any]]) -> list[str]:
    return [clip_id(*(row[name] for name in PLACE.names)) for row, _ in walked]


# --- the contract --------------------------------------------------------------------------------


def test_every_packaging_is_tested() -> None:
    assert sorted(PACK) == source_names()


@every_packaging
def test_all_clips_come_in_order_with_lasting_identities(tmp_path: Path, name: str) -> None:
    input = Input(format=name, **PACK[name](tmp_path, SOUNDS).input)
    first = walk(input)
    assert sounds(first) == [0, 1, 2, 3, 4]
    assert len(set(ids(first))) == 5
    assert ids(first) == ids(walk(input))
    assert found(input).equals(found(input))


@every_packaging
def test_a_plan_may_be_read_in_pieces(tmp_path: Path, name: str) -> None:
    input = Input(format=name, **PACK[name](tmp_path, SOUNDS).input)
    source, todo = load_source(name), found(input)
    pieces = [
        clip
        for n in reversed(range(len(todo)))
        for clip in source.clips(todo.slice(n, 1), input, pa.schema([]))
    ]
    assert sorted(ids([(row, None) for row, _ in pieces])) == sorted(ids(walk(input)))


@every_packaging
def test_a_changed_file_is_other_clips(tmp_path: Path, name: str) -> None:
    packed = PACK[name](tmp_path, SOUNDS)
    input = Input(format=name, **packed.input)
    before = ids(walk(input))
    for path in packed.files:
        os.utime(path, ns=(1, 1))
    after = ids(walk(input))
    if load_source(name).SHARDED:  # its clips have versions of their own
        assert after == before
    else:
        assert not set(before) & set(after)


@every_packaging
def test_a_file_that_changes_after_the_plan_is_an_error(tmp_path: Path, name: str) -> None:
    packed = PACK[name](tmp_path, SOUNDS)
    input = Input(format=name, **packed.input)
    todo = found(input)
    os.utime(packed.files[0], ns=(1, 1))
    packed.files[-1].unlink()
    errors = [
        file.message
        for _, file in load_source(name).clips(todo, input, pa.schema([]))
        if isinstance(file, ClipError)
    ]
    assert any("is gone" in message for message in errors)
    assert len(packed.files) == 1 or any("has changed" in message for message in errors)


@every_packaging
def test_only_columns_that_are_asked_for_come_along(tmp_path: Path, name: str) -> None:
    packed = PACK[name](tmp_path, SOUNDS)
    input = Input(format=name, **packed.input)
    column = packed.speaker or "file_name"
    expected = SPEAKERS if packed.speaker else [path.name for path in packed.files]
    assert [row[column] for row, _ in walk(input, [column])] == expected
    assert all(column not in row for row, _ in walk(input))
    with pytest.raises(NoSuchColumn, match=rf"{column.partition('.')[0]}.*found 'spaeker'"):
        walk(input, ["spaeker"])


# --- tars ----------------------------------------------------------------------------------------


def tars(path: Path, **options: Any) -> Input:
    return Input(path=str(path), format="webdataset", **options)


def test_members_of_a_sample_may_stand_in_any_order(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("./x/1.txt", "zw\u00f6lf\n".encode()),
            ("./x/1.wav", SOUNDS[0]),
            ("./x/1.cls", b"3"),
            ("./x/1.json", b'{"who": {"name": "Ada"}, "n": 3, "who.age": null}'),
            ("x/1.wav", SOUNDS[1]),
        ],
    )
    keep = ["key", "txt", "cls", "json.who.name", "json.n", "json.who", "json.who.age"]
    (first, _), (second, _) = walk(tars(path), keep)
    assert [first[name] for name in keep] == [
        *("./x/1", "zw\u00f6lf", "3", "Ada", "3", '{"name": "Ada"}', None)
    ]
    assert [second[name] for name in keep] == ["x/1", *[None] * 6]


@pytest.mark.parametrize("kind", ["gz", "zstd"])
def test_a_compressed_tar_is_a_tar(tmp_path: Path, kind: str) -> None:
    plain = write_tar(tmp_path / "a.tar", [("1.wav", SOUNDS[0]), ("2.wav", SOUNDS[1])]).read_bytes()
    half = len(plain) // 2
    # Two members of gzip one after the other are what parallel compressors write.
    packed = (
        gzip.compress(plain[:half]) + gzip.compress(plain[half:])
        if kind == "gz"
        else pa.compress(plain, "zstd", asbytes=True)
    )
    (tmp_path / f"b.tar.{kind}").write_bytes(packed)
    assert sounds(walk(tars(tmp_path / f"b.tar.{kind}"))) == [0, 1]
    (tmp_path / f"b.tar.{kind}").write_bytes(packed[: len(packed) // 2])
    assert sounds(walk(tars(tmp_path / f"b.tar.{kind}")))[-1] in ("truncated", "unreadable")


def test_repeated_names_are_told_apart_by_position(tmp_path: Path) -> None:
    clip = [("a.wav", SOUNDS[0]), ("a.txt", b"one")]
    other = [("a.wav", SOUNDS[1]), ("a.txt", b"two")]
    path = write_tar(tmp_path / "a.tar", [*clip, *other, ("b.wav", SOUNDS[2]), *clip])
    walked = walk(tars(path), ["txt"])
    assert [row["member"] for row, _ in walked] == ["a.wav", "a.wav#2", "b.wav", "a.wav#3"]
    assert [row["txt"] for row, _ in walked] == ["one", "two", None, "one"]
    assert sounds(walked) == [0, 1, 2, 0]


def test_names_with_dots_have_their_own_sidecars(tmp_path: Path) -> None:
    members = [("0.5.wav", SOUNDS[0]), ("0.5.txt", b"five")]
    members += [("0.7.wav", SOUNDS[1]), ("0.7.txt", b"seven")]
    walked = walk(tars(write_tar(tmp_path / "a.tar", members)), ["txt"])
    assert [row["txt"] for row, _ in walked] == ["five", "seven"]


def test_a_cut_tar_keeps_the_clips_before_the_cut(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.wav", SOUNDS[n]) for n in range(3)])
    whole = path.read_bytes()
    second = 2 * (512 + -(-len(SOUNDS[0]) // 512) * 512)  # where the third header begins
    for cut in (second, second + 100, second + 512, second + 2000):
        path.write_bytes(whole[:cut])
        walked = walk(tars(path))
        assert sounds(walked) == [0, 1, "truncated"]
        assert walked[-1][0]["member"] is None
    path.write_bytes(whole[:second] + b"\xff" * 512 + whole[second + 512 :])
    assert sounds(walk(tars(path))) == [0, 1, "damaged"]
    path.write_bytes(whole + whole)  # joined by `cat`
    assert sounds(walk(tars(path))) == [0, 1, 2] * 2


@pytest.mark.parametrize(("content", "kind"), [(b"", "empty"), (b"no tar\n" * 999, "damaged")])
def test_a_file_that_is_no_tar_is_one_error(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    [(row, error)] = walk(tars(tmp_path))
    assert error.kind == kind and row["member"] is None


def test_members_without_sound_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [("1.json", b"{}"), ("2.wav", SOUNDS[2]), ("2.json", b"{broken")])
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.SYMTYPE, "3.wav"), (tarfile.CHRTYPE, "4.wav")):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            tar.addfile(header)
        for name in ("caf\udce9.wav", "../../up.wav", "/etc/abs.wav", "._5.wav", "README.md"):
            header = tarfile.TarInfo(name)
            header.size = len(SOUNDS[0])
            tar.addfile(header, io.BytesIO(SOUNDS[0]))
    walked = walk(tars(path), ["json.x"])
    assert [(row["member"], s) for (row, _), s in zip(walked, sounds(walked), strict=True)] == [
        ("1", "no_audio"),
        ("2.wav", 2),
        ("3.wav", "unreadable"),
        ("4.wav", "unreadable"),
        ("caf\\xe9.wav", 0),
        ("../../up.wav", 0),
        ("/etc/abs.wav", 0),
    ]
    assert walked[1][0]["json.x"] is None


def test_a_tar_is_not_held_in_memory(tmp_path: Path) -> None:
    """200 samples of 1 MB, of which at most a few exist at a time."""
    import tracemalloc

    path = write_tar(tmp_path / "a.tar", ((f"{n}.wav", bytes(1 << 20)) for n in range(200)))
    tracemalloc.start()
    count = sum(
        1 for _ in load_source("webdataset").clips(found(tars(path)), tars(path), pa.schema([]))
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200 and peak < 16 << 20


def test_what_is_done_in_a_shard_is_not_handed_on(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.wav", SOUNDS[n]) for n in range(4)])
    done = ids(walk(tars(path)))[:3]
    known = [[{"clip_id": c, "member": "x", "offset_s": 0.0, "due": 0} for c in done]]
    todo = found(tars(path)).append_column("known", pa.array(known))
    settings = ReadSettings(tars(path), Audio(), (16_000,), "never")
    clip, end = shards(SandboxWork(todo, settings))
    assert clip[0]["member"] == "3.wav"
    shard = end[0]["shard_end"]
    assert (shard["clips"], shard["skipped"], shard["obsolete"], shard["kept"]) == (4, 3, [], [])


# --- Parquet -------------------------------------------------------------------------------------


def parquet(path: Path, **options: Any) -> Input:
    return Input(path=str(path), format="parquet", **options)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "path", "struct of paths"])
def test_the_column_with_the_sound_is_guessed(tmp_path: Path, kind: str) -> None:
    for n, sound in enumerate(SOUNDS):
        (tmp_path / f"{n}.wav").write_bytes(sound)
    paths = [f"{n}.wav" for n in range(5)]
    column = {
        "binary": pa.array(SOUNDS, pa.binary()),
        "large_binary": pa.array(SOUNDS, pa.large_binary()),
        "struct": pa.array([{"bytes": sound, "path": "gone.wav"} for sound in SOUNDS]),
        "struct of paths": pa.array(
            [{"bytes": None, "path": path} for path in paths],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "path": pa.array(paths),
    }[kind]
    write_parquet(tmp_path / "a.parquet", pa.table({"audio": column, "text": paths}))
    walked = walk(parquet(tmp_path), ["text"])
    assert sounds(walked) == [0, 1, 2, 3, 4]
    assert [(row["member"], row["text"]) for row, _ in walked] == [
        (str(n), f"{n}.wav") for n in range(5)
    ]


def test_a_column_that_cannot_be_guessed_is_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"left": SOUNDS, "right": SOUNDS, "n": [0] * 5}))
    with pytest.raises(ValueError, match=r"input\.columns\.audio: expected.*left, right, n"):
        walk(parquet(tmp_path))
    assert sounds(walk(parquet(tmp_path, columns={"audio": "right"}))) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"found 'n': int64"):
        walk(parquet(tmp_path, columns={"audio": "n"}))


def test_columns_that_are_not_kept_are_never_read(tmp_path: Path) -> None:
    """The unwanted column is spoilt: whoever read it would notice."""
    secret = [f"unwanted {n}" * 20 for n in range(5)]
    table = pa.table(
        {
            "text": secret,
            "audio": [{"bytes": sound, "path": "x", "note": "unwanted"} for sound in SOUNDS],
            "speaker": SPEAKERS,
        }
    )
    path = write_parquet(tmp_path / "a.parquet", table)
    file = pq.ParquetFile(path)
    group = file.metadata.row_group(0)
    content = bytearray(path.read_bytes())
    for n in range(group.num_columns):
        column = group.column(n)
        if column.path_in_schema in ("text", "audio.note"):
            start = column.data_page_offset
            content[start : start + column.total_compressed_size] = b"\xff" * (
                column.total_compressed_size
            )
    path.write_bytes(content)
    assert sounds(walk(parquet(path), ["speaker"])) == [0, 1, 2, 3, 4]
    walked = walk(parquet(path), ["text"])
    assert sounds(walked) == ["damaged"] * 5


def test_columns_keep_their_types_and_partitions_are_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "audio": SOUNDS[:1],
            "age": pa.array([33], pa.uint8()),
            "who": pa.array(["x"]).dictionary_encode(),
            "tags": [["a", "b"]],
            "big": pa.array(["y"], pa.large_string()),
        }
    )
    write_parquet(tmp_path / "split=dev" / "lang=de%20DE" / "a.parquet", table)
    keep = ["split", "lang", "age", "who", "tags", "big"]
    schema = load_source("parquet").columns(parquet(tmp_path), keep)
    assert [str(t) for t in schema.types] == [
        *("string", "string", "int64", "string", "list<item: string>", "string")
    ]
    [(row, _)] = walk(parquet(tmp_path), keep)
    assert [row[name] for name in keep] == ["dev", "de DE", 33, "x", ["a", "b"], "y"]


def test_damage_in_a_parquet_file_stays_in_it(tmp_path: Path) -> None:
    good = pa.table({"audio": SOUNDS, "speaker": SPEAKERS})
    write_parquet(tmp_path / "a.parquet", good)
    cut = write_parquet(tmp_path / "b.parquet", good)
    cut.write_bytes(cut.read_bytes()[:-100])
    write_parquet(tmp_path / "c.parquet", pa.table({"sound": [1, 2], "speaker": ["x", "y"]}))
    write_parquet(tmp_path / "d.parquet", pa.table({"audio": [SOUNDS[0], None, b""]}))
    write_parquet(tmp_path / "e.parquet", pa.table({"audio": [1.5], "speaker": ["z"]}))
    (tmp_path / "_delta_log").mkdir()
    write_parquet(tmp_path / "_delta_log" / "x.parquet", good)
    source, input, told = load_source("parquet"), parquet(tmp_path), list[str]()
    kept = source.columns(input, ["speaker"])
    walked = [
        (
            Path(row["source"]).stem,
            row["member"],
            row.get("speaker"),
            f.kind if isinstance(f, ClipError) else len(f.read()),
        )
        for row, f in source.clips(source.find(input, told.append, kept).clips, input, kept)
    ]
    assert walked == [
        *(("a", str(n), SPEAKERS[n], len(SOUNDS[n])) for n in range(5)),
        ("b", None, None, "damaged"),
        ("c", "0", None, "unreadable"),
        ("c", "1", None, "unreadable"),
        ("d", "0", None, len(SOUNDS[0])),
        ("d", "1", None, "unreadable"),
        ("d", "2", None, 0),
        ("e", "0", None, "unreadable"),
    ]
    assert told == [f"{tmp_path}/d.parquet has no column speaker: null there"]


def test_a_spoilt_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"audio": SOUNDS}), rows=2)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    assert sounds(walk(parquet(path))) == [0, 1, "damaged", "damaged", 4]


def test_blocks_do_not_cut_row_groups(tmp_path: Path, classifier: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"audio": SOUNDS * 8}), rows=7)
    write_parquet(tmp_path / "b.parquet", pa.table({"audio": SOUNDS}), rows=2)
    todo = plan(Listing(found(parquet(tmp_path))), NOTHING_COMMITTED).todo
    job = Job(tmp_path / "job", classifier, input={"path": str(tmp_path), "format": "parquet"})
    job.write(resources={"clips_per_block": 10})
    sizes = [len(block) for block in blocks(todo, load_config(job.config))]
    assert sizes == [7, 7, 14, 12, 5]


def test_the_first_block_comes_in_quarters(tmp_path: Path, classifier: Path) -> None:
    job = Job(tmp_path, classifier, input={"path": str(tmp_path), "format": "files"})
    job.write()

    def sizes(clips: int) -> list[int]:
        todo = pa.table({"source": [f"{number}.wav" for number in range(clips)]})
        return [len(block) for block in blocks(todo, load_config(job.config))]

    assert sizes(40) == [4, 4, 4, 4, 16, 8]
    assert sizes(9) == [4, 4, 1]
    assert sizes(8) == [8]  # for one reader
    assert sizes(2000)[:5] == [7, 7, 7, 10, 31]


# --- manifests -----------------------------------------------------------------------------------


def manifest(path: Path, **options: Any) -> Input:
    return Input(path=str(path), format="manifest", **options)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for n, sound in enumerate(SOUNDS):
        (tmp_path / "clips" / f"{n}.wav").write_bytes(sound)
    return tmp_path


def test_common_voice_csv_and_own_names_are_understood(recordings: Path) -> None:
    write_lines(
        recordings / "cv.tsv",
        ["client_id\tpath\tsentence", 'me\t0.wav\tShe said "so', "me\t1.wav\tyes"],
        end="\r\n",
        encoding="utf-8-sig",
    )
    walked = walk(manifest(recordings / "cv.tsv"), ["sentence", "client_id"])
    assert sounds(walked) == [0, 1]
    assert [row["sentence"] for row, _ in walked] == ['She said "so', "yes"]
    (recordings / "cv.tsv.gz").write_bytes(gzip.compress((recordings / "cv.tsv").read_bytes()))
    assert sounds(walk(manifest(recordings / "cv.tsv.gz"))) == [0, 1]
    lines = ["Datei;", '"2.wav","two\nlines, ""quoted"""', "3.wav,plain"]
    lines[0] = "Datei,Text"
    write_lines(recordings / "clips" / "own.csv", lines, end="\r\n", encoding="utf-8-sig")
    own = manifest(recordings / "clips" / "own.csv", columns={"audio": "Datei"})
    walked = walk(own, ["Text"])
    assert sounds(walked) == [2, 3]
    assert [row["Text"] for row, _ in walked] == ['two\nlines, "quoted"', "plain"]


def test_offset_and_duration_may_have_other_names(recordings: Path) -> None:
    write_lines(recordings / "own.csv", ["file,from,for", "clips/0.wav,0.1,0.05"])
    columns = {"audio": "file", "offset": "from", "duration": "for"}
    [(row, _)] = walk(manifest(recordings / "own.csv", columns=columns))
    assert (row["offset_s"], row["duration_s"]) == (0.1, 0.05)


def test_each_bad_line_is_its_own_error(recordings: Path) -> None:
    entries = [{"audio_filepath": f"clips/{n}.wav", "text": "caf\xe9"} for n in range(2)]
    good = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    bad = [
        "{broken",
        "[1]",
        json.dumps({"text": "no path"}),
        json.dumps({"audio_filepath": "clips/gone.wav"}),
        json.dumps({"audio_filepath": "clips/0.wav", "offset": "soon"}),
        json.dumps({"audio_filepath": "clips/0.wav", "duration": -1}),
        json.dumps({"audio_filepath": "clips/a\0b.wav"}),
        json.dumps({"audio_filepath": 7}),
    ]
    path = write_lines(recordings / "a.jsonl", [good[0], *bad, "", good[1]], "\r\n", "utf-8-sig")
    path.write_bytes(path.read_bytes() + b'{"audio_filepath": "caf\xe9.wav"}\n')
    walked = walk(manifest(path), ["text"])
    assert sounds(walked) == [
        *(0, "damaged", "damaged", "unreadable", "unreadable", "damaged", "damaged"),
        *("unreadable", "unreadable", 1, "damaged"),
    ]
    assert walked[1][0]["member"] == "line 2" and walked[1][0]["source"] == str(path)
    assert len(set(ids(walked))) == len(walked)
    write_lines(recordings / "b.csv", ["path,text", "clips/0.wav", "clips/1.wav,x"])
    assert sounds(walk(manifest(recordings / "b.csv"))) == ["damaged", 1]


def test_the_same_clip_twice_is_one_clip(recordings: Path) -> None:
    line = json.dumps({"audio_filepath": "clips/0.wav", "offset": 0.1})
    other = json.dumps({"audio_filepath": str(recordings / "clips/0.wav"), "offset": 0.2})
    path = write_lines(recordings / "a.jsonl", [line, line, other, line])
    told: list[str] = []
    table = load_source("manifest").find(manifest(path), told.append).clips
    assert table["offset_s"].to_pylist() == [0.1, 0.2]
    assert len(set(clip_ids(table).to_pylist())) == 2
    assert told == [f"2 clips are listed more than once, e.g. in {path}, line 2"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside.wav",
        "clips/../../outside.wav",
        "http://127.0.0.1:9/x.wav",
        "file:///etc/passwd",
        "s3://bucket/x.wav",
        "file:///../etc/passwd",
        "memory://x.wav",
        "simplecache::http://127.0.0.1:9/x.wav",
    ],
)
def test_a_manifest_leads_nowhere_else(recordings: Path, path: str) -> None:
    (recordings / "sub").mkdir()
    (recordings / "outside.wav").write_bytes(SOUNDS[0])
    lines = write_lines(recordings / "sub" / "a.jsonl", [json.dumps({"audio_filepath": path})])
    assert sounds(walk(manifest(lines))) == ["unreadable"]


def test_audio_root_is_where_paths_begin_and_may_lead(recordings: Path) -> None:
    (recordings / "lists").mkdir()
    entries = ["0.wav", str(recordings / "clips" / "1.wav"), str(recordings / "other.wav")]
    (recordings / "other.wav").write_bytes(SOUNDS[2])
    lines = [json.dumps({"audio_filepath": entry}) for entry in entries]
    path = write_lines(recordings / "lists" / "a.jsonl", lines)
    assert sounds(walk(manifest(path, audio_root=str(recordings / "clips")))) == [
        *(0, 1, "unreadable")
    ]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("x.wav", "s3://b/root/x.wav"),
        ("s3://b/root/x.wav", "s3://b/root/x.wav"),
        ("s3://b/lists/x.wav", "s3://b/lists/x.wav"),
        ("s3://b/roots/x.wav", None),
        ("s3://c/root/x.wav", None),
        ("../x.wav", None),
        ("%2e%2e/x.wav", None),
        ("/etc/passwd", None),
        ("http://b/root/x.wav", None),
    ],
)
def test_references_on_a_store_stay_below_their_roots(reference: str, expected: str | None) -> None:
    roots = ["s3://b/root", "s3://b/lists"]
    if expected:
        assert resolve(reference, "s3://b/root", roots) == expected
    else:
        with pytest.raises(ClipError, match="unreadable"):
            resolve(reference, "s3://b/root", roots)


@pytest.mark.parametrize(
    "format", ["wav", "wav_24", "aiff", "flac", "ogg", "mp3", "m4a", "wav_ima"]
)
def test_a_stretch_is_that_part_of_the_sound(format: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (2, 3 * RATE)).astype(np.float32)
    whole_file = encode(noise, RATE, format)
    whole, rate, _ = decode(io.BytesIO(whole_file))
    for start_s, length_s in ((0.0, 0.5), (1.25, 0.7), (2.5, 0.5), (0.0, 3.0), (2.0, float("inf"))):
        row = prepare_clip(io.BytesIO(whole_file), [rate], 10.0, (start_s, length_s))
        start = round(start_s * rate)
        stop = None if length_s == float("inf") else start + round(length_s * rate)
        expected = whole[:, start:stop].mean(axis=0)
        assert np.allclose(row[f"sound_{rate}"][:], expected, atol=1e-6)
        assert row["duration_s"] == pytest.approx(len(expected) / rate)
    for stretch in ((3.5, 1.0), (2.0, 5.0), (9.0, float("inf"))):
        with pytest.raises(ClipError, match="truncated"):
            prepare_clip(io.BytesIO(whole_file), [rate], 10.0, stretch)


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_long_stretch_is_cut_from_many_blocks(format: str) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (1, 60 * RATE)).astype(np.float32)
    file = encode(samples, RATE, format)
    row = prepare_clip(io.BytesIO(file), [RATE], 40.0, (20.0, 37.5))
    assert len(row[f"sound_{RATE}"]) == 37.5 * RATE
    assert np.allclose(
        row[f"sound_{RATE}"][:], samples[0, 20 * RATE :][: int(37.5 * RATE)], atol=1e-4
    )


def test_a_stretch_of_a_recording_that_is_too_long_is_not_too_long() -> None:
    sound = encode(tone(3.0), RATE, "flac")
    assert prepare_clip(io.BytesIO(sound), [RATE], 1.0, (2.0, 0.5))["duration_s"] == 0.5
    with pytest.raises(ClipError, match="too_long"):
        prepare_clip(io.BytesIO(sound), [RATE], 1.0, (1.0, 1.5))


# --- auto ----------------------------------------------------------------------------------------


def settled(folder: Path, classifier: Path, **sections: Any) -> tuple[Config, pa.Schema, list[str]]:
    job = Job(folder / "job", classifier, **sections)
    told: list[str] = []
    config, kept = find_source(load_config(job.config), job.config, told.append)
    return config, kept, told


@every_packaging
def test_auto_knows_every_packaging(tmp_path: Path, classifier: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    packed = PACK[name](tmp_path / "data", SOUNDS)
    config, _, told = settled(tmp_path, classifier, input=packed.input)
    assert config.input.format == name
    assert len(told) == 1 and told[0].startswith(f"input.format: {name} (")


def test_auto_asks_where_there_are_several_kinds(tmp_path: Path, classifier: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    as_files(data, SOUNDS)
    write_lines(data / "list.csv", ["path"])
    output = {"path": str(data / "labels")}
    write_parquet(data / "labels" / "part.parquet", pa.table({"x": [1]}))
    config, _, told = settled(tmp_path, classifier, input={"path": str(data)}, output=output)
    assert config.input.format == "files"  # a list beside the sounds, and an old output
    assert told == [f"input.format: files (5 audio files, 1 manifest in {data})"]
    keep = {**output, "keep": ["text"]}
    with pytest.raises(ConfigError, match=r"output\.keep: .*name it in input\.path"):
        settled(tmp_path, classifier, input={"path": str(data)}, output=keep)
    write_tar(data / "a.tar", [])
    with pytest.raises(ConfigError, match=r"one of files, webdataset.*5 audio files.*1 tar"):
        settled(tmp_path, classifier, input={"path": str(data)}, output=output)


def test_what_a_packaging_does_not_take_or_have_is_a_mistake(
    tmp_path: Path, classifier: Path
) -> None:
    (tmp_path / "data").mkdir()
    packed = as_webdataset(tmp_path / "data", SOUNDS)
    with pytest.raises(ConfigError, match=r"input\.audio_root: .* format webdataset"):
        settled(tmp_path, classifier, input={**packed.input, "audio_root": "/x"})
    with pytest.raises(ConfigError, match=r"input\.columns\.offset: .* format parquet"):
        settled(
            tmp_path,
            classifier,
            input={**packed.input, "format": "parquet", "columns": {"offset": "x"}},
        )
    output = {"path": str(tmp_path / "table")}
    with pytest.raises(ConfigError, match=r"output\.keep: .*json\.FIELD.*found 'jsn\.x'"):
        settled(tmp_path, classifier, input=packed.input, output={**output, "keep": ["jsn.x"]})
    with pytest.raises(ConfigError, match=r"output\.keep: .*found 'speech'"):
        settled(tmp_path, classifier, input=packed.input, output={**output, "keep": ["speech"]})


def test_labels_do_not_go_where_parquet_files_are_read(tmp_path: Path, classifier: Path) -> None:
    packed = as_parquet(tmp_path, SOUNDS)
    output = {"path": str(tmp_path / "labels")}
    with pytest.raises(ConfigError, match=r"output\.path: expected a folder outside of"):
        settled(tmp_path, classifier, input=packed.input, output=output)


def test_what_a_task_compares_with_is_carried_along(tmp_path: Path, classifier: Path) -> None:
    (tmp_path / "data").mkdir()
    packed = as_webdataset(tmp_path / "data", SOUNDS)
    task = {"task": "audio-classification", "model": str(classifier), "reference": "cls"}
    _, kept, _ = settled(tmp_path, classifier, input=packed.input, tasks={"kind": task})
    assert kept.names == ["cls"]
    task["reference"] = "klass"
    with pytest.raises(ConfigError, match=r"tasks\.kind\.reference: .*found 'klass'"):
        settled(tmp_path, classifier, input=packed.input, tasks={"kind": task})
