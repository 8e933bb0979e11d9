"""The folder of a table, on this machine or on a store that fsspec knows."""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

RENEWED_BY_DELTA = ("iam-role", "container-role", "assume-role-with-web-identity")
# Where a store fails, beyond what its client does by itself (delta-rs does not ask again when an
# answer's body breaks off, nor for a commit whose connection did).
TRY_AGAIN_AFTER_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


class Storage:
    """A folder by its path or URL; `name` is a path below it. `options` are fsspec's."""

    def __init__(self, path: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self.fs, self.root = fsspec.url_to_fs(path, **self.options)
        self.is_local = "file" in self.fs.protocol
        self.path = self.root if self.is_local else path

    @cached_property
    def delta_options(self) -> dict[str, str] | None:
        """How delta-rs reaches the folder."""
        return delta_options(self.options) if "s3" in self.fs.protocol else None

    @property
    def try_again_after_s(self) -> tuple[float, ...]:
        return () if self.is_local else TRY_AGAIN_AFTER_S

    def retrying(self, read: Callable[[], T]) -> T:
        """What `read` returns, tried again where a store does not answer as it should."""
        for wait_s in self.try_again_after_s:
            try:
                return read()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                time.sleep(wait_s)
        return read()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The files in the folder, or in one below it, by name, and their sizes in bytes."""
        try:
            entries = self.fs.ls(self._path(folder), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {posixpath.basename(e["name"]): e["size"] for e in entries if e["type"] == "file"}

    def names(self) -> set[str]:
        """The names of files and folders in the folder."""
        try:
            names = self.fs.ls(self.root, detail=False, refresh=True)
        except FileNotFoundError:
            return set()
        return {posixpath.basename(name) for name in names}

    def size(self, name: str) -> int | None:
        """A file's size in bytes, or None if there is none."""
        try:
            info = self.retrying(lambda: self.fs.info(self._path(name), refresh=True))
        except FileNotFoundError:
            return None
        size: int = info["size"]
        return size

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self._path(name)))

    def open(self, name: str) -> Any:
        """A binary file to read from."""
        return self.fs.open(self._path(name), "rb")

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        content: bytes = self.fs.cat_file(self._path(name))
        return content

    def write(self, name: str, content: Any) -> None:
        """Write a file that readers see whole or not at all. Raises OSError with its path."""
        if not self.is_local:
            self.fs.pipe_file(self._path(name), bytes(content))
            return
        path = self._path(name)
        folder, base = os.path.split(path)
        if folder != self.root:  # which is there, or is not the table's folder on this node
            os.makedirs(folder, exist_ok=True)
        unfinished = f"{folder}/.{base}.{uuid.uuid4().hex}"
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
            os.replace(unfinished, path)
        except OSError as error:  # of a full disk Python does not say which file it was
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise OSError(error.errno, error.strerror, path) from None

    def create(self, name: str, content: bytes) -> None:
        """Write a file that does not exist yet. Raises FileExistsError: the store decides."""
        path = self._path(name)
        if not self.is_local:
            self.fs.pipe_file(path, content, mode="create")
            return
        unfinished = f"{name}.{uuid.uuid4().hex}"
        self.write(unfinished, content)
        try:
            os.link(self._path(unfinished), path)
        finally:
            os.unlink(self._path(unfinished))

    def remove(self, name: str) -> None:
        """Raises FileNotFoundError."""
        self.fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def delta_options(options: Mapping[str, Any]) -> dict[str, str]:
    """fsspec's S3 options as delta-rs calls them, so that one set serves both.

    delta-rs knows the environment and a machine's own role, and renews the latter, but it reads no
    profile, credentials file or config file: what s3fs would find there is looked up here. What
    expires (SSO, an assumed role) has to last for the run.
    """
    import botocore.session

    client = options.get("client_kwargs", {})
    session = botocore.session.Session(profile=options.get("profile"))
    endpoint = (
        options.get("endpoint_url")
        or client.get("endpoint_url")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or session.get_scoped_config().get("endpoint_url")
    )
    key, secret, token = (options.get(name) for name in ("key", "secret", "token"))
    if not key and not options.get("anon"):
        found = session.get_credentials()
        if found and found.method not in RENEWED_BY_DELTA:
            key, secret, token, *_ = found.get_frozen_credentials()
    named = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": token,
        "AWS_REGION": client.get("region_name") or session.get_config_variable("region"),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if str(endpoint).startswith("http://") else None,
        "AWS_SKIP_SIGNATURE": "true" if options.get("anon") else None,
    }
    return {name: str(value) for name, value in named.items() if value}
