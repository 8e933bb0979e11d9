"""The folder of a table, on this machine or on a store that fsspec supports."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

from jobs.console import one_line
from jobs.stores import GCS_METHODS, store_of

T = TypeVar("T")

# How a storage says that it cannot make a file only if there is none: a disk without hard links, a store.
NOT_SUPPORTED = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
RENEWED_BY_DELTA = ("iam-role", "container-role", "assume-role-with-web-identity")
# Retries beyond those of the store's client: delta-rs does not repeat a request whose answer breaks
# off in its body, nor a commit whose connection breaks.
RETRY_AFTER_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
# What delta-rs takes for something else in a table's path, or refuses; on a store, an empty folder as well.
NOT_IN_TABLES = re.compile(r"[#?\\\x00-\x1f\x7f\ud800-\udfff]|%[0-9A-Fa-f]{2}|(?<!:)//")


class Storage:
    """A folder by its path or URL. `name` is a path below it, `options` are fsspec's.

    Raises ValueError for a path that is a file or leads through one, and for a URL of no store.
    """

    def __init__(self, path: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self.fs, self.root = store_of(path, self.options)
        self.is_local = "file" in self.protocols
        self.path = self.root if self.is_local else path
        if self.is_local and (file := _file_in(self.root)):
            raise ValueError(f"expected a folder, found a file at {file}")

    @property
    def delta_path(self) -> str:
        """The folder as delta-rs names it. Raises ValueError for a path in which it finds no table."""
        if found := NOT_IN_TABLES.search(self.path):
            raise ValueError(
                f"expected a path for a Delta table, which may have neither #, ?, \\, %20 or the like nor "
                f"// in it, found {found[0]!r} in {self.path!r}"
            )
        return re.sub("^gcs://", "gs://", self.path)

    @cached_property
    def delta_options(self) -> dict[str, str] | None:
        """The options with which delta-rs opens the folder."""
        return next(
            (DELTA_OPTIONS[p](self.options) for p in self.protocols if p in DELTA_OPTIONS), None
        )

    @property
    def protocols(self) -> tuple[str, ...]:
        """The names that fsspec has for the store."""
        names = self.fs.protocol
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def retry_after_s(self) -> tuple[float, ...]:
        """The waiting times before each retry, in seconds; none on a local disk."""
        return () if self.is_local else RETRY_AFTER_S

    def retrying(self, read: Callable[[], T]) -> T:
        """The result of `read`, which is retried if a store fails."""
        for wait_s in self.retry_after_s:
            try:
                return read()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                time.sleep(wait_s)
        return read()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The sizes in bytes of the files in the folder, or in a folder below it, by name."""
        try:
            with self.naming(folder):
                entries = self.fs.ls(self._listed_anew(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {posixpath.basename(e["name"]): e["size"] for e in entries if e["type"] == "file"}

    def names(self) -> set[str]:
        """The names of files and folders in the folder."""
        try:
            with self.naming(""):
                names = self.fs.ls(self._listed_anew(""), detail=False)
        except FileNotFoundError:
            return set()
        return {posixpath.basename(name) for name in names}

    def size(self, name: str) -> int | None:
        """A file's size in bytes, or None if there is no such file."""
        try:
            with self.naming(name):
                info = self.retrying(lambda: self.fs.info(self._listed_anew(name)))
        except FileNotFoundError:
            return None
        size: int = info["size"]
        return size

    def exists(self, name: str) -> bool:
        with self.naming(name):
            return bool(self.fs.exists(self._listed_anew(name)))

    def open(self, name: str) -> Any:
        """Open a file for reading bytes."""
        return self.fs.open(self._path(name), "rb")

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self.naming(name):
            content: bytes = self.fs.cat_file(self._path(name))
        return content

    def write(self, name: str, content: Any) -> None:
        """Write a file atomically. Raises OSError with its path."""
        if not self.is_local:
            with self.naming(name):
                self.fs.pipe_file(self._path(name), bytes(content))
            return
        path = self._path(name)
        folder, base = os.path.split(path)
        if folder != self.root:  # the root exists, or this node does not share the table's disk
            os.makedirs(folder, exist_ok=True)
        unfinished = f"{folder}/.{base}.{uuid.uuid4().hex}"
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
            os.replace(unfinished, path)
        except OSError as error:  # for a full disk Python does not name the file
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise OSError(error.errno, error.strerror, path) from None

    def create(self, name: str, content: bytes) -> None:
        """Write a new file. Of several writers one succeeds, the others get FileExistsError. Raises
        ValueError for a storage that cannot do so."""
        path = self._path(name)
        if not self.is_local:
            with self.naming(name), self._supporting():
                self.fs.pipe_file(path, content, mode="create")
            return
        unfinished = f"{name}.{uuid.uuid4().hex}"
        self.write(unfinished, content)
        try:
            with self._supporting():
                os.link(self._path(unfinished), path)
        finally:
            os.unlink(self._path(unfinished))

    def remove(self, name: str) -> None:
        """Remove a file. Raises FileNotFoundError."""
        with self.naming(name):
            self.fs.rm_file(self._path(name))

    @contextlib.contextmanager
    def _supporting(self) -> Iterator[None]:
        """Raise ValueError where a file cannot be made only if there is none."""
        try:
            yield
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            raise ValueError(
                "expected a storage that makes a file only if there is none (S3 by If-None-Match, a disk by "
                f"hard links), as Delta tables need it, found at {self.path}: {error.strerror}"
            ) from None

    @contextlib.contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Let an error of a store name the file, as one of a disk does."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, FileExistsError):
            raise
        except OSError as error:
            if self.is_local:
                raise
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            raise kind(f"{one_line(error)}: {self.path}/{name}") from None

    def _listed_anew(self, name: str) -> str:
        """A path, after forgetting earlier listings: not every store's client has `refresh`."""
        self.fs.invalidate_cache()
        return self._path(name)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def delta_options(options: Mapping[str, Any]) -> dict[str, str]:
    """fsspec's S3 options in delta-rs's names, so that one set of options serves both.

    delta-rs reads the environment and uses a machine's own role, which it renews, but it reads no
    profile, credentials file or config file. Credentials that s3fs would find there are looked up
    here. Those that expire (SSO, an assumed role) have to outlast the run.
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


def gcs_options(options: Mapping[str, Any]) -> dict[str, str]:
    """gcsfs's options in delta-rs's names. Without any, both find the machine's own credentials."""
    token = options.get("token")
    endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
    is_file = isinstance(token, str) and token not in GCS_METHODS
    named = {
        "google_application_credentials": token if is_file else None,
        "google_service_account_key": json.dumps(token) if isinstance(token, dict) else None,
        "google_skip_signature": "true" if token == "anon" else None,
        "google_base_url": endpoint,
        "allow_http": "true" if str(endpoint).startswith("http://") else None,
    }
    return {name: str(value) for name, value in named.items() if value}


def azure_options(options: Mapping[str, Any]) -> dict[str, str]:
    """adlfs's options in delta-rs's names; those that are left out, both read from the environment."""
    text = options.get("connection_string") or os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.partition("=")[::2] for part in text.split(";") if "=" in part)
    host = options.get("account_host")
    endpoint = parts.get("BlobEndpoint") or (host and f"https://{host}")
    named = {
        "azure_storage_account_name": options.get("account_name") or parts.get("AccountName"),
        "azure_storage_account_key": options.get("account_key") or parts.get("AccountKey"),
        "azure_storage_sas_token": options.get("sas_token") or parts.get("SharedAccessSignature"),
        "azure_storage_client_id": options.get("client_id"),
        "azure_storage_client_secret": options.get("client_secret"),
        "azure_storage_tenant_id": options.get("tenant_id"),
        "azure_skip_signature": "true" if options.get("anon") else None,
        "azure_endpoint": endpoint,
        "allow_http": "true" if str(endpoint).startswith("http://") else None,
    }
    return {name: str(value) for name, value in named.items() if value}


DELTA_OPTIONS = {
    "s3": delta_options,
    "gs": gcs_options,
    "abfs": azure_options,
}


def _file_in(path: str) -> str | None:
    """The file that stands where a path needs a folder, if there is one."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return None if os.path.isdir(path) else path
