"""The options of fsspec's clients for Google's and Azure's stores reach delta-rs's own client."""

from __future__ import annotations

import errno
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from s3 import S3, s3  # noqa: F401  # the fixture
from s3_proxy import flaky
from tables import held

from jobs.export.folder import Folder
from jobs.sources import NO_COLUMNS
from jobs.table.schema import TableMismatch, table_schema
from jobs.table.storage import DELTA_OPTIONS, Storage

PEM = rsa.generate_private_key(65537, 2048).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
)
KEY = {
    "type": "service_account",
    "private_key": PEM.decode(),
    "private_key_id": "1",
    "client_email": "me@project.example",
    "token_uri": "URL/token",
}


class Recorder(BaseHTTPRequestHandler):
    """A store that refuses every request, and keeps what it was asked."""

    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        self.send_error(403)

    def log_message(self, *_: Any) -> None:
        pass


AZURITE = "DefaultEndpointsProtocol=http;AccountName=me;AccountKey=aGlkZGVu;BlobEndpoint=URL/me"


@pytest.mark.parametrize(
    ("url", "options", "path", "header", "value"),
    [
        (
            "gs://bucket/t",
            {"token": "anon", "endpoint_url": "URL"},
            "/bucket",
            "authorization",
            None,
        ),
        (
            "gs://bucket/t",
            {"token": KEY, "endpoint_url": "URL"},
            "/bucket",
            "authorization",
            "Bearer",
        ),
        (
            "az://box/t",
            {"account_name": "me", "account_key": "aGlkZGVu"},
            "/box",
            "authorization",
            "SharedKey me:",
        ),
        (
            "abfs://box/t",
            {"connection_string": AZURITE},
            "/me/box",
            "authorization",
            "SharedKey me:",
        ),
        (
            "az://box/t",
            {"account_name": "me", "sas_token": "sv=1&sig=hidden"},
            "sig=hidden",
            "authorization",
            None,
        ),
        ("az://box/t", {"account_name": "me", "anon": True}, "/box", "authorization", None),
    ],
    ids=["gs anon", "gs key", "az key", "az connection string", "az sas", "az anon"],
)
def test_a_stores_options_reach_delta_rs(
    url: str, options: dict[str, Any], path: str, header: str, value: str | None
) -> None:
    """Its own client asks the server with the credentials that fsspec's client would."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_address[1]}"
    Recorder.asked.clear()
    text = json.dumps(options).replace("URL", here)
    delta = next(
        DELTA_OPTIONS[name](json.loads(text)) for name in ("gs", "abfs") if name[0] == url[0]
    )
    if "azure_storage_account_name" in delta and "azure_endpoint" not in delta:
        delta |= {"azure_endpoint": here, "allow_http": "true"}
    with pytest.raises((OSError, DeltaError)):
        DeltaTable(url, storage_options=delta)
    server.shutdown()
    asked, headers = Recorder.asked[0]
    assert path in asked
    assert headers.get(header, "").startswith(value or "") and (value or header not in headers)


def export(folder: Folder, name: str) -> None:
    with folder.create(name) as file:
        file.write(b"x")


def test_an_error_of_a_store_names_the_file(s3: S3, tmp_path: Path) -> None:
    s3.bucket("denied")
    with flaky(s3, tmp_path / "log", denies="403 table/") as proxy:
        storage = Storage("s3://denied/table", proxy.s3.resolved)
        for ask in (
            lambda: storage.write("a/b.json", b"x"),
            lambda: storage.create("a/b.json", b"x"),
            lambda: storage.read("a/b.json"),
            lambda: storage.size("a/b.json"),
            lambda: storage.remove("a/b.json"),
            lambda: storage.sizes("a/b.json"),
            lambda: export(Folder("s3://denied/table", proxy.s3.resolved), "a/b.json"),
        ):
            with pytest.raises(PermissionError, match=r": s3://denied/table/a/b\.json$"):
                ask()
        with pytest.raises(PermissionError, match=r": s3://denied/table/$"):
            storage.names()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links_is_refused_for_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As those of Windows, SMB shares and mounted stores."""

    def link(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(TableMismatch, match=r"output\.path: expected a storage that .* hard links"):
        held(tmp_path / "table", "run", table_schema({}, NO_COLUMNS), {"tasks": {}})
    assert not list((tmp_path / "table" / "_delta_log").iterdir())


def test_a_store_without_conditional_requests_is_refused_for_tables(s3: S3, tmp_path: Path) -> None:
    s3.bucket("old")
    with flaky(s3, tmp_path / "log", denies="501 _delta_log/0000") as proxy:
        storage = Storage("s3://old/table", proxy.s3.resolved)
        with pytest.raises(ValueError, match="makes a file only if there is none"):
            storage.create("_delta_log/0000.json", b"{}")
