"""A real S3 server on loopback (moto's), which tells what it was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

KEY, SECRET = "earmark-tests", "not-a-secret"
MANY = "ten-thousand-keys"  # a bucket that is there from the start


class Request(NamedTuple):
    method: str
    path: str
    access_key: str | None  # None: not signed


class S3(NamedTuple):
    """A server; `options` are for a config, which gets the credentials from the environment."""

    endpoint: str
    log: Path

    @property
    def options(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.endpoint,
            "key": "${EARMARK_TESTS_KEY}",
            "secret": "${EARMARK_TESTS_SECRET}",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    @property
    def resolved(self) -> dict[str, Any]:
        """`options` with environment variables filled in, as a config's reader does it."""
        return {**self.options, "key": KEY, "secret": SECRET}

    def bucket(self, name: str) -> None:
        """Create a bucket."""
        # mkdir would name the region us-east-1, which S3 refuses
        self.files().call_s3("create_bucket", Bucket=name)

    def files(self) -> Any:
        """The buckets as a file system that remembers nothing."""
        import s3fs

        return s3fs.S3FileSystem(**self.resolved, use_listings_cache=False)

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests for paths with this part in them."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        requests = [Request(*json.loads(line)) for line in lines]
        return [r for r in requests if r.method == method and part in r.path]


def serve(log: Path) -> None:
    """Say the port, and serve for ever. In a process of its own: delta-rs keeps Python's lock."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(MANY, "us-east-1")
    for n in range(10_000):  # over HTTP that takes minutes
        backend.put_object(MANY, f"clips/{n // 1000}/{n:05}.wav", b"x")
    moto = DomainDispatcherApplication(create_backend_app)
    lines = log.open("a", buffering=1, encoding="utf-8")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        signed = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        path = unquote(environ.get("RAW_URI") or environ["PATH_INFO"])
        method = environ["REQUEST_METHOD"]
        lines.write(json.dumps(Request(method, path, signed and signed[1])) + "\n")
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    os.environ.update(EARMARK_TESTS_KEY=KEY, EARMARK_TESTS_SECRET=SECRET)
    log = tmp_path_factory.mktemp("s3") / "requests"
    with subprocess.Popen(
        [sys.executable, __file__, log], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        yield S3(f"http://127.0.0.1:{int(server.stdout.readline())}", log)
        server.kill()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
