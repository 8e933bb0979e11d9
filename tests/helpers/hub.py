"""A hub of datasets on loopback, for the real client (`HF_ENDPOINT`): folders served as repositories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Hub(NamedTuple):
    endpoint: str
    downloads: list[str]  # the paths of files that were asked for


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve each folder `root/USER/NAME` as the dataset USER/NAME, whose revisions are all alike."""
    downloads: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            paths = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            repo = root / "/".join(urlsplit(self.path).path.split("/")[3:5])
            self._json([entry(repo, repo / path) for path in paths if (repo / path).exists()])

        def do_GET(self) -> None:
            _, first, *parts = unquote(urlsplit(self.path).path).split("/")
            if first == "api":
                parts = parts[1:]
            repo = root / "/".join(parts[:2])
            if not repo.is_dir():
                self._missing("RepoNotFound")
            elif parts[2:3] == ["tree"]:
                folder = repo / "/".join(parts[4:])
                is_deep = "recursive=true" in self.path.lower()
                if folder.is_dir():
                    found = sorted(folder.rglob("*") if is_deep else folder.iterdir())
                    self._json([entry(repo, path) for path in found])
                else:
                    self._missing("EntryNotFound")
            elif parts[2:3] == ["resolve"]:
                self._file(repo / "/".join(parts[4:]))
            else:
                self._json({"id": "/".join(parts[:2]), "sha": "0" * 40, "siblings": []})

        def _file(self, path: Path) -> None:
            if not path.is_file():
                self._missing("EntryNotFound")
                return
            downloads.append(str(path.relative_to(root)))
            data = path.read_bytes()
            span = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            start, stop = int(span[0]), int(span[1] or len(data) - 1) + 1
            part = data[start:stop]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
            self._end(part)

        def _json(self, value: Any) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self._end(json.dumps(value).encode())

        def _missing(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self._end(b"{}")

        def _end(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", downloads)
    finally:
        server.shutdown()


def entry(repo: Path, path: Path) -> dict[str, Any]:
    """A file or folder as the hub's `tree` has it."""
    name = str(path.relative_to(repo))
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}
