"""Input, output, manifests and models on S3, against a real server on loopback."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from runs import Job
from s3 import MANY, S3, s3  # noqa: F401  # the fixture
from s3_proxy import flaky
from tables import held
from test_sources import PACK, SOUNDS, ids, sounds, walk, write_lines, write_tar

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import find_checkpoint
from jobs.input import Input
from jobs.models import StoredCheckpoint, fetch, find_model, on_this_node
from jobs.sources import load_source, source_names
from jobs.table.storage import delta_options

ODD = "a b+c&d=%41[1] \N{HEADPHONE}#x?y::z.wav"
counter = itertools.count()


@pytest.fixture
def bucket(s3: S3) -> str:
    name = f"bucket-{next(counter)}"
    s3.bucket(name)
    return name


def upload(s3: S3, folder: Path, target: str) -> None:
    fs = s3.files()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{target}/{path.relative_to(folder)}", path.read_bytes())


def stored(s3: S3, url: str, **options: Any) -> Input:
    return Input(path=url, storage_options=s3.resolved, **options)


def test_ten_thousand_keys_are_found_by_listing_alone(s3: S3) -> None:
    found = load_source("files").find(stored(s3, f"s3://{MANY}/clips"), print).clips
    assert len(found) == 10_000 == len(set(found["source"].to_pylist()))
    assert found["source_version"].null_count == 0
    assert len(s3.asked(MANY)) <= 15
    assert len(s3.asked(f"{MANY}/clips/", "HEAD")) <= 1


@pytest.mark.parametrize("denies", ["403 clips/", "503 clips/"])
def test_a_store_that_does_not_say_what_exists_ends_the_run_and_spares_the_labels(
    tmp_path: Path,
    local_ray: None,
    classifier: Path,
    s3: S3,
    bucket: str,
    denies: str,
) -> None:
    fs = s3.files()
    lines = [{"audio_filepath": f"clips/{n}.wav"} for n in range(2)]
    for n in range(2):
        fs.pipe_file(f"{bucket}/clips/{n}.wav", SOUNDS[n])
    fs.pipe_file(f"{bucket}/all.jsonl", "\n".join(map(json.dumps, lines)).encode())
    job = Job(tmp_path, classifier)
    where = {"path": f"s3://{bucket}/all.jsonl", "storage_options": s3.options}
    job.write(input=where, output={"path": str(job.table), "storage_options": {}})
    assert job.run().code == 0
    before = job.rows()
    with flaky(s3, tmp_path / "log", denies=denies) as proxy:
        job.write(input=where | {"storage_options": proxy.s3.options})
        result = job.run()
    assert result.code == 1, result.text
    assert "clips/0.wav" in result.text and "exists" in result.text
    job.write(input=where)
    assert job.rows() == before
    assert "nothing to do: 2 clips found" in job.run().text


@pytest.mark.parametrize("name", source_names())
def test_every_packaging_is_read_from_s3(
    tmp_path: Path,
    s3: S3,
    bucket: str,
    name: str,
) -> None:
    packed = PACK[name](tmp_path, SOUNDS)
    upload(s3, tmp_path, f"{bucket}/data")
    url = packed.input["path"].replace(str(tmp_path), f"s3://{bucket}/data")
    input = stored(s3, url, format=name)
    keep = [packed.speaker] if packed.speaker else ["file_name"]
    walked = walk(input, keep)
    assert sounds(walked) == [0, 1, 2, 3, 4]
    assert ids(walked) == ids(walk(input, keep))
    source = load_source(name)
    todo = source.find(input, print).clips
    changed, gone = packed.files[0], packed.files[-1]
    fs = s3.files()
    fs.pipe_file(f"{bucket}/data/{changed.relative_to(tmp_path)}", changed.read_bytes() + b"x")
    fs.rm_file(f"{bucket}/data/{gone.relative_to(tmp_path)}")
    errors = [f.message for _, f in source.clips(todo, input) if isinstance(f, ClipError)]
    assert any("is gone" in error for error in errors)
    assert changed == gone or any("has changed" in error for error in errors)


def test_a_listed_file_that_is_not_there_is_an_error(tmp_path: Path, s3: S3, bucket: str) -> None:
    fs = s3.files()
    fs.pipe_file(f"{bucket}/audio/0.wav", SOUNDS[0])
    entries = [
        "0.wav",
        "1.wav",
        f"s3://{bucket}/audio/0.wav",
        "s3://elsewhere/0.wav",
        "/etc/passwd",
    ]
    lines = [json.dumps({"audio_filepath": entry, "offset": n}) for n, entry in enumerate(entries)]
    write_lines(tmp_path / "a.jsonl", lines)
    fs.pipe_file(f"{bucket}/lists/a.jsonl", (tmp_path / "a.jsonl").read_bytes())
    input = stored(
        s3, f"s3://{bucket}/lists", format="manifest", audio_root=f"s3://{bucket}/audio/"
    )
    assert sounds(walk(input)) == [0, "unreadable", 0, "unreadable", "unreadable"]
    assert not s3.asked("elsewhere")


def test_public_data_is_read_without_credentials(
    s3: S3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = s3.files()
    fs.call_s3("put_bucket_acl", Bucket=bucket, ACL="public-read")
    fs.call_s3("put_object", Bucket=bucket, Key="x/0.wav", Body=SOUNDS[0], ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    options = {"endpoint_url": s3.endpoint, "anon": True}
    input = Input(path=f"s3://{bucket}/x", format="files", storage_options=options)
    assert sounds(walk(input)) == [0]
    assert {request.access_key for request in s3.asked(f"{bucket}/x/0.wav")} == {None}


@pytest.mark.parametrize("way", ["environment", "profile", "default profile"])
def test_delta_and_s3fs_use_the_same_credentials(
    tmp_path: Path,
    s3: S3,
    bucket: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    options: dict[str, Any] = {}
    if way == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", way)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    else:
        name = "default" if way == "default profile" else "profile mine"
        options = {} if way == "default profile" else {"profile": "mine"}
        config = [f"[{name}]", "region = eu-west-1", f"endpoint_url = {s3.endpoint}"]
        config += [f"aws_access_key_id = {way.replace(' ', '-')}", "aws_secret_access_key = x"]
        monkeypatch.setenv("AWS_CONFIG_FILE", str(write_lines(tmp_path / "config", config)))
    fsspec.filesystem("s3").clear_instance_cache()
    schema = pa.schema([("clip_id", pa.string())])
    held(f"s3://{bucket}/table", "run", schema, {"x": 1}, options).release()
    fsspec.filesystem("s3").clear_instance_cache()
    key = way.replace(" ", "-")
    for part in ("_delta_log", "_earmark"):
        assert {r.access_key for r in s3.asked(f"{bucket}/table/{part}", "PUT")} == {key}


def test_options_in_the_config_go_to_delta_as_they_are() -> None:
    options = {"key": "k", "secret": "s", "token": "t", "endpoint_url": "http://x"}
    assert delta_options({**options, "client_kwargs": {"region_name": "r"}}) == {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "AWS_REGION": "r",
        "AWS_ENDPOINT_URL": "http://x",
        "AWS_ALLOW_HTTP": "true",
    }
    anonymous = delta_options({"anon": True})
    assert anonymous["AWS_SKIP_SIGNATURE"] == "true" and "AWS_ACCESS_KEY_ID" not in anonymous


def test_a_model_is_fetched_once_and_again_when_it_changes(
    tmp_path: Path,
    s3: S3,
    bucket: str,
    classifier: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    upload(s3, classifier, f"{bucket}/model")
    s3.files().pipe_file(f"{bucket}/model/pytorch_model.bin", b"never fetched")
    url = f"s3://{bucket}/model/"
    first = find_model(url, None, s3.resolved)
    assert isinstance(first, StoredCheckpoint) and "not-a-secret" not in repr(first)
    assert first.digest() == find_checkpoint(str(classifier)).digest()
    assert on_this_node(first) == first
    assert len(s3.asked(f"{bucket}/model/model.safetensors")) == 1
    assert not s3.asked(f"{bucket}/model/pytorch_model.bin")
    config = (classifier / "config.json").read_bytes()
    s3.files().pipe_file(f"{bucket}/model/config.json", config + b"\n")
    with pytest.raises(RuntimeError, match="has changed since the run began"):
        on_this_node(first)
    assert fetch(url, s3.resolved).digest() != first.digest()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        find_model(f"s3://{bucket}", None, s3.resolved)
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        find_model(f"s3://{bucket}/nothing", None, s3.resolved)


def test_a_model_goes_on_while_what_it_labelled_is_written(
    tmp_path: Path,
    s3: S3,
    bucket: str,
    classifier: Path,
    local_ray: None,
) -> None:
    """The store takes the first data file when the second one comes, from the same actor."""
    with flaky(s3, tmp_path / "log", pairs="/part-") as proxy:
        job = Job(
            tmp_path,
            classifier,
            output={"path": f"s3://{bucket}/table", "storage_options": proxy.s3.options},
            resources={"clips_per_block": 1, "tasks": {"kind": {"actors": 1}}},
        )
        job.sounds(4)
        assert job.run().code == 0
        said = proxy.log.read_text().split()
        assert "paired" in said and "alone" not in said


def test_a_whole_run_on_s3(
    tmp_path: Path,
    s3: S3,
    bucket: str,
    classifier: Path,
    local_ray: None,
) -> None:
    """Clips, model and table; nothing to do; a changed object, a vanished one, a new one."""
    upload(s3, classifier, f"{bucket}/model")
    fs = s3.files()
    for name, sound in zip([ODD, "b.wav", "sub/c.wav"], SOUNDS, strict=False):
        fs.pipe_file(f"{bucket}/audio/{name}", sound)
    job = Job(tmp_path, classifier)
    job.write(
        input={"path": f"s3://{bucket}/audio", "storage_options": s3.options},
        tasks={"kind": {"task": "audio-classification", "model": f"s3://{bucket}/model"}},
        output={"path": f"s3://{bucket}/table", "keep": ["file_name"]},
        resources={"clips_per_block": 1, "commit_every_s": 0, "tasks": {"kind": {"actors": 1}}},
    )
    result = job.run()
    assert result.code == 0, result.text
    assert "3 found = 0 already done + 3 labelled + 0 failed" in result.text
    rows = table_rows(s3, bucket)
    assert {row["file_name"] for row in rows.values()} == {ODD, "b.wav", "c.wav"}
    assert all(row["status"] == "ok" for row in rows.values())
    assert len(s3.asked(f"{bucket}/model/model.safetensors")) == 1

    reads, writes = len(s3.asked(f"{bucket}/audio/")), len(s3.asked(f"{bucket}/", "PUT"))
    again = job.run()
    assert again.code == 0 and "nothing to do" in again.text
    assert len(s3.asked(f"{bucket}/audio/")) == reads
    assert len(s3.asked(f"{bucket}/", "PUT")) == writes

    fs.pipe_file(f"{bucket}/audio/b.wav", SOUNDS[4])
    fs.rm_file(f"{bucket}/audio/sub/c.wav")
    fs.pipe_file(f"{bucket}/audio/new.wav", SOUNDS[3])
    changed = job.run()
    assert changed.code == 0
    assert "3 found = 1 already done + 2 labelled + 0 failed" in changed.text
    after = table_rows(s3, bucket)
    b = f"s3://{bucket}/audio/b.wav"
    assert set(after) == {*rows, f"s3://{bucket}/audio/new.wav"}
    assert after[b]["source_version"] != rows[b]["source_version"]
    assert all(after[source] == row for source, row in rows.items() if source != b)


def test_finished_tars_on_s3_are_not_opened_again(
    tmp_path: Path,
    s3: S3,
    bucket: str,
    classifier: Path,
    local_ray: None,
) -> None:
    fs = s3.files()
    first = write_tar(tmp_path / "1.tar", [("a.wav", SOUNDS[0]), ("a.txt", b"one")])
    fs.pipe_file(f"{bucket}/tars/1.tar", first.read_bytes())
    job = Job(tmp_path, classifier)
    job.write(
        input={"path": f"s3://{bucket}/tars", "storage_options": s3.options},
        output={"path": f"s3://{bucket}/table", "keep": ["txt"]},
        max_error_fraction=1,
    )
    assert "1 labelled + 0 failed" in job.run().text
    cut = write_tar(tmp_path / "2.tar", [(f"{n}.wav", SOUNDS[n]) for n in (1, 2)]).read_bytes()
    fs.pipe_file(f"{bucket}/tars/2.tar", cut[: len(cut) // 2])
    opened = len(s3.asked("tars/1.tar"))
    result = job.run()
    assert "3 found = 1 already done + 1 labelled + 1 failed" in result.text
    assert len(s3.asked("tars/1.tar")) == opened and s3.asked("tars/2.tar")
    rows = pq.read_table(f"{bucket}/table", filesystem=fs).to_pylist()
    assert sorted((row["member"] or "", row["txt"], row["status"]) for row in rows) == [
        ("", None, "error"),
        ("1.wav", None, "ok"),
        ("a.wav", "one", "ok"),
    ]


def table_rows(s3: S3, bucket: str) -> dict[str, dict[str, Any]]:
    """The rows by source, the same ones to a plain and to a Delta reader, in one tidy file."""
    fs = s3.files()
    names = [name for name in fs.find(f"{bucket}/table") if name.endswith(".parquet")]
    [file] = [name for name in names if "/_" not in name]
    with fs.open(file, "rb") as opened:
        plain = pq.read_table(opened)
    delta = DeltaTable(f"s3://{bucket}/table", storage_options=delta_options(s3.resolved))
    table = delta.to_pyarrow_table().select(plain.column_names)
    rows = plain.to_pylist()
    key = [("clip_id", "ascending")]
    assert table.sort_by(key).to_pylist() == plain.sort_by(key).to_pylist()
    return {row["source"]: row for row in rows}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("calls/*", ["calls/2024-01/a.wav", "calls/2024-02/b.wav"]),
        ("calls/2024-*", ["calls/2024-01/a.wav", "calls/2024-02/b.wav"]),
        ("calls/", ["calls/2024-01/a.wav", "calls/2024-02/b.wav"]),
        ("calls [old]", ["calls [old]/c.wav"]),
        ("calls [old]/*.wav", ["calls [old]/c.wav"]),
        ("*/c?x=1#y%41.wav", ["odd/c?x=1#y%41.wav"]),
        ("odd/c?x=1#y%41.wav", ["odd/c?x=1#y%41.wav"]),
        ("odd/*", ["odd/a::b.wav", "odd/c?x=1#y%41.wav", "odd/{d,e}.wav"]),
        ("odd/{d,e}.wav", ["odd/{d,e}.wav"]),
        ("calls/2024-{01..02}/{a,b}.wav", "nothing at .*2024-01/b.wav nor at 1 more"),
        ("calls/2024-{01..02}/*.wav", ["calls/2024-01/a.wav", "calls/2024-02/b.wav"]),
        ("calls/none*.wav", r"nothing at .*none\*\.wav"),
        ("nowhere", "nothing at .*nowhere"),
        ("calls [new]/*.wav", r"nothing at .*calls \[new\]"),
    ],
)
def test_a_path_on_s3_names_what_it_would_name_on_a_disk(
    s3: S3, globs: str, tmp_path: Path, path: str, expected: list[str] | str
) -> None:
    for url in (f"s3://{globs}/{path}", f"{tmp_path}/{path}"):
        root = f"s3://{globs}/" if "://" in url else f"{tmp_path}/"
        for key in KEYS if "://" not in url else ():
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(SOUNDS[0])
        input = stored(s3, url, format="files")
        if isinstance(expected, str):
            with pytest.raises(FileNotFoundError, match=expected):
                load_source("files").find(input, print)
        else:
            listed = load_source("files").find(input, print).clips["source"].to_pylist()
            assert [source.removeprefix(root) for source in listed] == expected


KEYS = (
    *("calls/2024-01/a.wav", "calls/2024-02/b.wav", "calls/2024-02/notes.txt", "calls/.hidden.wav"),
    *("calls [old]/c.wav", "calls o/decoy.wav"),
    *("odd/c?x=1#y%41.wav", "odd/a::b.wav", "odd/{d,e}.wav"),
)


@pytest.fixture(scope="module")
def globs(s3: S3) -> str:
    s3.bucket("globs")
    for key in KEYS:
        s3.files().pipe_file(f"globs/{key}", SOUNDS[0])
    return "globs"


def test_a_delta_table_on_s3_is_read_through_its_log(s3: S3, bucket: str) -> None:
    url, options = f"s3://{bucket}/lake", delta_options(s3.resolved)
    rows = pa.table({"audio": SOUNDS[:3], "n": [0, 1, 2]})
    write_deltalake(url, rows, storage_options=options)
    DeltaTable(url, storage_options=options).delete("n = 1")
    for path in (url, f"s3://{bucket}", f"{url}/*.parquet"):
        walked = walk(stored(s3, path, format="parquet"), ["n"])
        assert sorted(row["n"] for row, _ in walked) == [0, 2] and sorted(sounds(walked)) == [0, 2]
