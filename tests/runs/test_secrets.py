"""Credentials show up nowhere: neither on the screen nor in a log, a row, a file or a commit."""

from __future__ import annotations

import http.server
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import HOME
from deltalake import DeltaTable
from runs import Job, Result
from s3 import S3, s3  # noqa: F401  # the fixture
from test_sources import SOUNDS, write_lines

from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.input import Input
from jobs.table.storage import delta_options

NAMES = ("KEY", "SECRET", "TOKEN")


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Credentials in the environment: EARMARK_CANARY_KEY, ..."""
    values = {name: f"canary{secrets.token_hex(12)}" for name in NAMES}
    for name, value in values.items():
        monkeypatch.setenv(f"EARMARK_CANARY_{name}", value)
    return values


def options(endpoint: str) -> dict[str, Any]:
    return {
        "endpoint_url": endpoint,
        **{name.lower(): f"${{EARMARK_CANARY_{name}}}" for name in NAMES},
        "client_kwargs": {"region_name": "us-east-1"},
    }


def leaks(canaries: dict[str, str], *texts: str | bytes) -> list[str]:
    """Where one of the canaries is: in a text, or in what runs and Ray leave on this machine."""
    wanted = [value.encode() for value in canaries.values()]
    places = {f"text {n}": t.encode() if isinstance(t, str) else t for n, t in enumerate(texts)}
    for folder in (HOME / "state", *HOME.glob("session_*/logs"), *HOME.glob("ray/session_*/logs")):
        for path in folder.rglob("*"):
            if path.is_file():
                places[str(path)] = path.read_bytes()
    assert any("session_" in place for place in places) or len(places) > len(texts)
    return [place for place, data in places.items() if any(value in data for value in wanted)]


def test_a_run_leaves_no_credentials_behind(
    tmp_path: Path,
    s3: S3,
    canaries: dict[str, str],
    classifier: Path,
    local_ray: None,
) -> None:
    """On S3, with a good clip, one that is no sound, one that is not there and one that is signed."""
    s3.bucket("secrets")
    fs = s3.files()
    fs.pipe_file("secrets/audio/0.wav", SOUNDS[0])
    fs.pipe_file("secrets/audio/1.wav", b"no sound")
    names = [
        "0.wav",
        "1.wav",
        "2.wav",
        f"s3://secrets/audio/0.wav?X-Amz-Signature={canaries['KEY']}",
    ]
    lines = write_lines(tmp_path / "x.jsonl", [json.dumps({"audio_filepath": n}) for n in names])
    fs.pipe_file("secrets/audio/x.jsonl", lines.read_bytes())
    job = Job(tmp_path, classifier, max_error_fraction=1)
    job.write(
        input={"path": "s3://secrets/audio/x.jsonl", "storage_options": options(s3.endpoint)},
        output={"path": "s3://secrets/table"},
    )
    result = job.run()
    assert result.code == 0 and "1 labelled + 3 failed" in result.text, result.text
    stored = [fs.cat_file(name) for name in fs.find("secrets/table")]
    assert not leaks(canaries, result.text, *stored)
    rows = [pq.read_table(f"secrets/table/{name.rsplit('/', 1)[-1]}", filesystem=fs).to_pylist()
            for name in fs.glob("secrets/table/*.parquet")]  # fmt: skip
    assert not leaks(canaries, repr(rows))  # a Parquet file is packed
    delta = DeltaTable("s3://secrets/table", storage_options=delta_options(s3.resolved))
    assert not leaks(canaries, repr(delta.history()), repr(delta.metadata()))
    assert {r.access_key for r in s3.asked("secrets/audio/0.wav")} == {canaries["KEY"]}  # was used


class Denies(http.server.BaseHTTPRequestHandler):
    """A store that says no to all, and repeats what it was told, as S3 does for unknown keys."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = f"{self.headers.get('Authorization')} {self.headers.get('X-Amz-Security-Token')}"
        key = told.partition("Credential=")[2].partition("/")[0]
        body = (
            f"<Error><Code>InvalidAccessKeyId</Code><Message>The key you provided is not known"
            f"</Message><AWSAccessKeyId>{key}</AWSAccessKeyId><Told>{told}</Told></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def denying() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def failed(job: Job, section: str, path: str, endpoint: str) -> Result:
    job.write(**{section: {"path": path, "storage_options": options(endpoint)}})
    result = job.run()
    assert result.code in (1, 2), result.text
    return result


@pytest.mark.parametrize("section", ["input", "output"])
def test_a_store_that_denies_all_is_told_without_the_credentials(
    tmp_path: Path, canaries: dict[str, str], classifier: Path, denying: str, section: str
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(1)
    result = failed(job, section, "s3://denied/x", denying)
    assert not leaks(canaries, result.text)


def test_a_bucket_that_is_missing_is_told_without_the_credentials(
    tmp_path: Path,
    s3: S3,
    canaries: dict[str, str],
    classifier: Path,
) -> None:
    result = failed(Job(tmp_path, classifier), "input", "s3://no-such-bucket/x", s3.endpoint)
    assert not leaks(canaries, result.text)


def test_a_wrong_endpoint_is_told_without_the_credentials(
    tmp_path: Path, canaries: dict[str, str], classifier: Path
) -> None:
    result = failed(Job(tmp_path, classifier), "input", "s3://bucket/x", "http://127.0.0.1:9")
    assert not leaks(canaries, result.text)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:{}@127.0.0.1/x",
        "https://127.0.0.1/x?X-Amz-Signature={}",
        "https://127.0.0.1/x?sv=1&sig={}",
        "https://127.0.0.1/x?a=b&X-Goog-Signature={}",
        "https://127.0.0.1/x?access_token={}",
    ],
)
@pytest.mark.parametrize(
    "key", ["input.path", "input.audio_root", "output.path", "tasks.kind.model"]
)
def test_a_url_with_credentials_is_refused_even_from_the_environment(
    tmp_path: Path,
    classifier: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    url: str,
) -> None:
    """Paths stand in rows, logs and messages."""
    job = Job(tmp_path, classifier)
    monkeypatch.setenv("EARMARK_CANARY_URL", url.format("canary4711"))
    with pytest.raises(ConfigError, match=f"{key}: expected a URL without credentials") as caught:
        load_config(job.config, [f"{key}=${{EARMARK_CANARY_URL}}"])
    assert "canary4711" not in str(caught.value)


def test_options_are_not_part_of_how_a_config_looks() -> None:
    assert "canary" not in repr(Input(path="x", storage_options={"secret": "canary"}))
