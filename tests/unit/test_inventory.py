"""An S3 Inventory finds what a listing finds, in the same versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inventories import FIELDS, write_inventory
from runs import Job
from s3 import S3, s3  # noqa: F401  # the fixture
from s3_proxy import flaky
from test_sources import SOUNDS, sounds

from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.input import Input
from jobs.preflight import find_source
from jobs.sources import BadInput, Listing, load_source

KEYS = [
    *(f"calls/{n % 3}/{n}.wav" for n in range(12)),
    *(f'calls/a b+c&d=%41[1] \N{HEADPHONE}#x?y::z{n},".wav' for n in range(2)),
    *("calls/notes.txt", "calls/.hidden/1.wav", "calls/", "calls-2/1.wav", "top.wav"),
    *(f"tars/{n:02}.tar" for n in range(4)),
]
COLUMNS = ["folder", "file_name", "size_bytes", "modified_at"]
PATHS: dict[str, tuple[str, ...]] = {
    "the bucket": ("",),
    "a folder": ("/calls/",),
    "two folders, one in the other": ("/calls", "/calls/1"),
    "a file and a folder": ("/top.wav", "/calls-2"),
    "a hidden folder": ("/calls/.hidden",),
}


@pytest.fixture(scope="module")
def bucket(s3: S3) -> str:
    """A bucket with older versions and deleted objects, and one for inventories."""
    for name in ("speech", "inventories", "elsewhere"):
        s3.bucket(name)
    fs = s3.files()
    fs.call_s3(
        "put_bucket_versioning", Bucket="speech", VersioningConfiguration={"Status": "Enabled"}
    )
    for n, key in enumerate(KEYS):
        fs.pipe_file(f"speech/{key}", SOUNDS[n % 5])
    for n in (0, 1, 13):
        fs.pipe_file(f"speech/{KEYS[n]}", SOUNDS[n % 4] + b"changed")
    fs.pipe_file("speech/calls/deleted.wav", b"x")
    fs.call_s3("delete_object", Bucket="speech", Key="calls/deleted.wav")
    return "speech"


def found(s3: S3, paths: tuple[str, ...], format: str = "files", **options: Any) -> Listing:
    urls = tuple(f"s3://speech{path}" for path in paths)
    input = Input(path=urls, format=format, storage_options=s3.resolved, **options)
    source = load_source(format)
    keep = source.columns(input, COLUMNS if format == "files" else ["txt"])
    return source.find(input, print, keep)


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("format", ["CSV", "Parquet"])
def test_an_inventory_finds_what_a_listing_finds(
    s3: S3, bucket: str, format: str, paths: str
) -> None:
    manifest = write_inventory(s3, bucket, format)
    before = len(s3.asked("speech"))
    from_inventory = found(s3, PATHS[paths], inventory=manifest)
    assert not [it for it in s3.asked("speech")[before:] if it.path.startswith("/speech")]
    listed = found(s3, PATHS[paths])
    assert from_inventory.clips.equals(listed.clips) and len(listed.clips)
    assert from_inventory.passed_over == listed.passed_over


def test_tars_are_found_in_an_inventory(s3: S3, bucket: str) -> None:
    manifest = write_inventory(s3, bucket, "Parquet", ["ETag"])
    for paths in (("/tars",), ("",)):
        from_inventory = found(s3, paths, "webdataset", inventory=manifest)
        assert from_inventory.clips.equals(found(s3, paths, "webdataset").clips)
        assert len(from_inventory.clips) == 4


def test_a_packaging_is_recognised_by_an_inventory(s3: S3, bucket: str, tmp_path: Path) -> None:
    manifest = write_inventory(s3, bucket, "CSV")
    for folder, format in (("calls", "files"), ("tars", "webdataset")):
        job = Job(tmp_path, tmp_path)
        where = {"path": f"s3://speech/{folder}", "inventory": manifest}
        job.write(input=where | {"storage_options": s3.options})
        config = load_config(job.config)
        assert find_source(config, "c.yaml", print)[0].input.format == format


def test_the_newest_list_of_a_folder_counts_and_copies_on_a_disk_are_read(
    s3: S3, bucket: str, tmp_path: Path
) -> None:
    fs, options = s3.files(), {"target": "elsewhere"}
    for day in ("2026-11-29T01-00Z", "2026-11-30T01-00Z", "2025-12-31T01-00Z"):
        manifest = write_inventory(s3, bucket, "CSV", day=day, **options)
    folder = manifest.rsplit("/", 2)[0]
    for old in ("2026-11-29T01-00Z", "2025-12-31T01-00Z"):
        fs.pipe_file(f"{folder}/{old}/manifest.json", b"broken")
    listed = found(s3, ("/calls",)).clips
    assert found(s3, ("/calls",), inventory=folder).clips.equals(listed)
    fs.get(folder, str(tmp_path / "copy"), recursive=True)
    for name in fs.glob(f"{folder}/data/*"):
        fs.rm_file(name)
    copy = tmp_path / "copy"
    for name in (copy, copy / "2026-11-30T01-00Z", copy / "2026-11-30T01-00Z/manifest.json"):
        assert found(s3, ("/calls",), inventory=str(name)).clips.equals(listed)
    with pytest.raises(BadInput, match=r"a file, found nothing at s3://elsewhere/.*\.csv\.gz"):
        found(s3, ("/calls",), inventory=folder)
    manifest = write_inventory(s3, bucket, "Parquet", **options)
    [first, _] = sorted(fs.glob("elsewhere/lists/speech/parquet/data/*"))
    half = found(s3, ("",), inventory=f"s3://{first}").clips["source"].to_pylist()
    assert half and set(half) < set(found(s3, ("",)).clips["source"].to_pylist())


def test_what_has_gone_since_is_an_error_of_its_clip(s3: S3, bucket: str) -> None:
    fs = s3.files()
    fs.pipe({f"speech/later/{n}.wav": SOUNDS[n] for n in range(3)})
    manifest = write_inventory(s3, bucket, "CSV")
    fs.call_s3("delete_object", Bucket="speech", Key="later/0.wav")
    fs.pipe_file("speech/later/1.wav", SOUNDS[1] + b"x")
    url = "s3://speech/later"
    input = Input(path=url, format="files", storage_options=s3.resolved, inventory=manifest)
    source = load_source("files")
    clips = list(source.clips(source.find(input, print).clips, input))
    walked = [(row, s if isinstance(s, Exception) else s.read()) for row, s in clips]
    assert sounds(walked) == ["unreadable", "unreadable", 2]
    assert "is gone" in str(walked[0][1]) and "has changed" in str(walked[1][1])
    fs.rm("speech/later", recursive=True)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no ETag": ({"fields": FIELDS[:-1]}, r"a list with ETag, found none in .*choose this metadata"),
    "no size": ({"fields": ["ETag", "LastModifiedDate"]}, "a list with Size, found none"),
    "no time": ({"fields": ["ETag", "Size"]}, "a list with LastModifiedDate, found none"),
    "ORC": ({"format": "ORC"}, "files of CSV or Parquet, found ORC in .*choose CSV"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_lists_without_what_is_needed_are_refused(s3: S3, bucket: str, what: str) -> None:
    options, message = REFUSED[what]
    manifest = write_inventory(
        s3, bucket, **{"format": "Parquet", **options}, target="elsewhere", day="2026-12-01T01-00Z"
    )
    with pytest.raises(BadInput, match=f"input.inventory: expected {message}"):
        found(s3, ("/calls",), inventory=manifest)
    if what in ("no size", "no time"):
        input = {"path": "s3://speech/calls", "format": "files", "inventory": manifest}
        own = load_source("files").find(Input(**input, storage_options=s3.resolved), print).clips
        assert own.equals(found(s3, ("/calls",)).clips.select(own.column_names))


def test_mistakes_are_told_before_anything_starts(s3: S3, bucket: str, tmp_path: Path) -> None:
    manifest = write_inventory(s3, bucket, "CSV")
    fs = s3.files()
    broken = json.loads(fs.cat_file(manifest))
    broken["fileSchema"] = "Bucket, Key, ETag"
    fs.pipe_file("elsewhere/broken/manifest.json", json.dumps(broken).encode())
    (tmp_path / "no.json").write_text("[]")
    for inventory, path, message in (
        (manifest, "s3://other/calls", "input.path: expected s3://speech/..., whose objects"),
        (manifest, "/calls", "input.path: expected s3://speech/..., whose objects"),
        (manifest, "s3://speech/calls/*.wav", r"found nothing at s3://speech/calls/\*.wav in s3"),
        (f"{manifest}.json", "s3://speech", "a file, found nothing at s3://inventories/"),
        (str(tmp_path / "no.json"), "s3://speech", "the manifest.json of an S3 Inventory, found"),
        ("s3://elsewhere/nothing", "s3://speech", "a manifest.json, or a folder with some"),
        ("s3://x/data/1.csv.gz", "s3://speech", "a manifest.json, as the columns of other files"),
        ("s3://elsewhere/broken/manifest.json", "s3://speech", "a file of CSV as .* says, found"),
    ):
        input = Input(path=path, format="files", storage_options=s3.resolved, inventory=inventory)
        with pytest.raises((BadInput, FileNotFoundError), match=message):
            load_source("files").find(input, print)
    with (
        flaky(s3, tmp_path / "log", denies="403 data/") as proxy,
        pytest.raises(BadInput, match="kms:Decrypt"),
    ):
        found(proxy.s3, ("/calls",), inventory=manifest)


def test_a_run_with_a_wrong_inventory_is_refused(
    s3: S3, bucket: str, tmp_path: Path, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    where = {"path": "s3://speech/calls", "storage_options": s3.options}
    job.write(input=where | {"inventory": "s3://elsewhere/none"})
    result = job.run()
    assert result.code == 2 and "input.inventory: expected a manifest.json" in result.text
    job.write(input=where | {"inventory": "s3://elsewhere/none", "format": "parquet"})
    with pytest.raises(
        ConfigError, match=r"input\.inventory: expected nothing, for format parquet"
    ):
        load_config(job.config)
