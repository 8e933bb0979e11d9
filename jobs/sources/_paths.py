"""Single files by name, on local disks or on any fsspec store: opened, looked up, referred to."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from audio_ops.errors import ClipError
from jobs.sources import MISSING, NOT_A_FILE, BadInput
from jobs.stores import store_of

_CREDENTIALS = re.compile(
    r"(?i)://[^/@]*:[^/@]+@|[?&](sig|signature|x-[a-z]+-(signature|credential|security-token)|"
    r"[a-z_]*token|googleaccessid|awsaccesskeyid)="
)
_SNAPSHOT = re.compile(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots/[^/]+/")
MAX_PATH = 4096  # characters
# Errors of `stat` for a path at which no file can exist.
NO_SUCH_PATH = (errno.ELOOP, errno.ENAMETOOLONG)
# Where fsspec's file systems say which content a file has: S3, Azure and Google, the hub.
VERSIONS = ("ETag", "etag", "xet_hash", "blob_id", "md5Hash")


class Found(NamedTuple):
    """A file. `tag` is its ETag or one of `NO_VERSION`, or None if its version is its size and mtime."""

    source: str
    tag: str | None
    size_bytes: int | None
    mtime_ns: int | None

    @property
    def version(self) -> str:
        return f"{self.size_bytes}-{self.mtime_ns}" if self.tag is None else self.tag


def open_file(source: str, version: str | None, options: dict[str, Any], **how: Any) -> BinaryIO:
    """Open a file in the version that was planned or, if `version` is None, in any.

    `how` is passed to fsspec's `open`, e.g. `cache_type`. Raises ClipError `unreadable`.
    """
    if version == NOT_A_FILE:  # opening a pipe would wait for a writer
        raise ClipError("unreadable", NOT_A_FILE)
    try:
        if is_local(source):
            file: BinaryIO = open(local_path(source), "rb", opener=_open_nonblocking)  # noqa: SIM115
            status = os.fstat(file.fileno())
            now = f"{status.st_size}-{status.st_mtime_ns}"
        else:
            file = file_system(source, options).open(source, "rb", **how)
            # On stores other than S3, a listing and a file's own info may differ in the version.
            is_s3 = urlsplit(source).scheme in ("s3", "s3a")
            now = stored_file(source, file.details).version if is_s3 else version or ""  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise ClipError(
            "unreadable",
            f"there is no such file{spelt_otherwise(source)}"
            if version in (None, MISSING)
            else "the file existed when the run was planned and is gone",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        number = getattr(error, "errno", None) or 0
        name = errno.errorcode.get(number, type(error).__name__)
        reason = getattr(error, "strerror", None) or error
        raise ClipError("unreadable", f"the file can't be opened: {reason} ({name})") from None
    if version not in (None, now):
        file.close()
        raise ClipError("unreadable", "the file has changed since the run was planned")
    return file


def spelt_otherwise(source: str) -> str:
    """What to say of a missing file if there is one whose name only looks the same: macOS takes names
    apart into letters and accents (NFD), and most texts are in composed letters (NFC)."""
    names = {unicodedata.normalize(form, source) for form in ("NFC", "NFD")} - {source}
    if not is_local(source) or not any(os.path.exists(name) for name in names):
        return ""
    return ", but one of the same letters in another Unicode form (NFC, NFD)"


def _open_nonblocking(path: str, flags: int) -> int:
    """Open without blocking, even if the file has become a pipe, which would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def file_system(source: str, options: dict[str, Any]) -> Any:
    """The fsspec file system of a URL, without cached listings. Raises BadInput, see `store_of`.

    Unlike `fsspec.open`, it does not take `::` in a name for a chain of protocols.
    """
    import fsspec

    options = {"use_listings_cache": False, **options}
    if "::" in source:
        return fsspec.filesystem(urlsplit(source).scheme, **options)
    try:
        return store_of(source, options)[0]  # a URL may name a host or an account
    except ValueError as error:
        raise BadInput(f"input.path: {error}") from None


def exists(path: str, options: dict[str, Any]) -> bool:
    """Whether there is a file or folder. Raises OSError if a store does not answer."""
    if is_local(path):
        return os.path.lexists(local_path(path))
    try:  # not `exists`, which is False for any failure of a store
        file_system(path, options).info(path)
    except FileNotFoundError:
        return False
    return True


def is_local(path: str) -> bool:
    """Whether a path or URL is on a local disk."""
    return "://" not in path or path.startswith("file://")


def local_path(source: str) -> str:
    """The local path of `source` (paths that are not UTF-8 are kept as `file://` URIs)."""
    return (
        unquote(urlsplit(source).path, errors="surrogateescape")
        if source.startswith("file://")
        else source
    )


def resolve(reference: str, base: str, roots: Sequence[str]) -> str:
    """The path or URL that a reference in metadata points to, relative to `base`.

    The author of the metadata must not be able to choose any file. Raises ClipError for a reference
    that points outside of the folders `roots`, by its name or through a link, and for a URL with
    credentials, which its row would keep.
    """
    if len(reference) > MAX_PATH:
        what = (
            f"a path may have {MAX_PATH:,} characters, found {len(reference):,}: {reference[:40]!r}"
        )
        raise ClipError("unreadable", f"{what}...")
    target = reference if "://" in reference or reference.startswith("/") else f"{base}/{reference}"
    if holds_credentials(target):
        raise ClipError("unreadable", "the reference is a URL with credentials in it")
    if "\0" in target:
        raise ClipError("unreadable", f"{reference!r} has a NUL in it, which no path may have")
    if is_local(target):
        target = os.path.abspath(local_path(target))
        real = _real(target)
        is_inside = any(_is_below(real, at) for root in roots for at in _real_roots(root))
    elif ".." in unquote(target).split("/"):
        raise ClipError("unreadable", f"{reference!r} leads upwards, which a URL may not")
    else:
        is_inside = True
    if not is_inside or not any(_is_below(target, root) for root in roots):
        raise ClipError(
            "unreadable",
            f"{reference!r} is not in {' or '.join(dict.fromkeys(roots))}: to read it, name a folder "
            "that contains it in input.audio_allow",
        )
    return target


@lru_cache(maxsize=4096)
def _real_roots(root: str) -> Sequence[str]:
    """Where the files below a root may lie: there and, in a cache of the Hugging Face hub, in the
    folder of its repository that the files of a snapshot are links into."""
    if not is_local(root):
        return ()
    real = os.path.realpath(root)
    snapshot = _SNAPSHOT.match(f"{real}/")
    return [real, f"{snapshot[1]}/blobs"] if snapshot else [real]


def holds_credentials(url: str) -> bool:
    """Whether a URL has a password, or a signature or a token in its query."""
    return "://" in url and bool(_CREDENTIALS.search(url))


def _is_below(path: str, root: str) -> bool:
    return f"{path}/".startswith(f"{root.rstrip('/')}/")


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _real(path: str) -> str:
    """The path with its links resolved."""
    folder, name = os.path.split(path)
    path = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


def parse_json(text: str) -> Any:
    """Like `json.loads`, but raises ValueError for half a surrogate pair, too: no column can hold it."""
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def as_text(value: Any) -> str | None:
    """A JSON value for a text column: text and null unchanged, anything else as JSON."""
    return (
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def folder_of(source: str) -> str:
    """The path or URL of the folder that holds a file, without a slash at its end."""
    return source.rsplit("/", 1)[0]


def absolute(folder: str) -> str:
    """A folder's absolute path, or its URL without a trailing slash."""
    if is_local(folder):
        return os.path.abspath(os.path.expanduser(local_path(folder)))
    return folder.rstrip("/")


def local_file(path: str, name: str | None = None, folder: int | None = None) -> Found:
    """A local file and its version. With its `name` in an open `folder`, a descriptor, the kernel need
    not find the folder again. Raises OSError if the file system does not answer whether it exists."""
    try:
        path.encode()
        source = path
    except UnicodeEncodeError:
        source = Path(path).as_uri()
    try:
        status = os.stat(name or path, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # e.g. a broken link, a NUL
        return Found(source, MISSING, None, None)
    except OSError as error:
        if error.errno in NO_SUCH_PATH:
            return Found(source, MISSING, None, None)
        raise OSError(error.errno, f"the file can't be looked at: {error.strerror}", path) from None
    if not stat.S_ISREG(status.st_mode):
        return Found(source, NOT_A_FILE, None, None)
    return Found(source, None, status.st_size, status.st_mtime_ns)


def info_of(fs: Any, name: str) -> dict[str, Any]:
    """fsspec's `info` of a file or folder, with the keys from which `stored_file` takes a file's version.
    Raises FileNotFoundError."""
    info: dict[str, Any] = fs.info(name)
    if info["type"] == "file" and "hf" in fs.protocol:  # whose `info` leaves the hash out
        info = next(iter(fs.ls(name, detail=True)), info)
    return info


def stored_file(source: str, info: dict[str, Any]) -> Found:
    """A file on a store and its version, from fsspec's `info`."""
    modified = (
        info.get("LastModified")
        or info.get("last_modified")
        or info.get("mtime")
        or info.get("created")
    )
    mtime = modified.timestamp() if isinstance(modified, datetime) else modified
    tag = next((info[name] for name in VERSIONS if info.get(name)), "")
    etag = str(tag).strip('"')
    mtime_ns = round(mtime * 1e9) if isinstance(mtime, int | float) else None
    return Found(source, etag or f"{info['size']}-{mtime}", info["size"], mtime_ns)
