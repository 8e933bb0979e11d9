"""One audio file, one clip: files, folders (recursive) and globs, local or on any fsspec store."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from audio_ops.decode import ClipError
from jobs.config import Input
from jobs.sources import PLACE

SHARDED = False
COLUMNS = pa.schema(
    [
        ("folder", pa.string()),  # name of the folder that holds the file
        ("file_name", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_at", pa.timestamp("us", "UTC")),
    ]
)

Found = tuple[str, str, int | None, float | None]  # source, version, size in bytes, mtime in s


def find(input: Input, warn: Callable[[str], None]) -> pa.Table:
    """Every file under the input's paths, sorted by name, each once; hidden ones are left out.

    In folders only files with one of the input's extensions count. Raises FileNotFoundError for
    a path that names nothing.
    """
    suffixes = tuple(f".{extension}" for extension in input.extensions)
    found: dict[str, Found] = {}
    for path in input.paths:
        for item in _look(path, suffixes, input.storage_options, warn):
            found[item[0]] = item
    rows = [found[source] for source in sorted(found)]
    return pa.table(
        {
            "source": [source for source, *_ in rows],
            "member": pa.nulls(len(rows), pa.string()),
            "source_version": [version for _, version, *_ in rows],
            "offset_s": [0.0] * len(rows),
            "folder": [source.rsplit("/", 2)[-2] if "/" in source else "" for source, *_ in rows],
            "file_name": [source.rsplit("/", 1)[-1] for source, *_ in rows],
            "size_bytes": [size for *_, size, _ in rows],
            "modified_at": [
                None if mtime is None else datetime.fromtimestamp(mtime, timezone.utc)
                for *_, mtime in rows
            ],
        },
        schema=pa.schema([*PLACE, *COLUMNS]),
    )


def clips(
    plan: pa.Table, storage_options: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], BinaryIO | ClipError]]:
    """Each row with its file, opened but not read."""
    for row in plan.to_pylist():
        yield row, _open(row["source"], storage_options)


def _open(source: str, storage_options: dict[str, Any]) -> BinaryIO | ClipError:
    try:
        if is_local(source):
            return _open_local(local_path(source))
        import fsspec

        return fsspec.open(source, "rb", **storage_options).open()
    except FileNotFoundError:
        return ClipError("unreadable", "the file was there when the run was planned and is gone")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return ClipError(
            "unreadable", f"the file can't be opened: {error.strerror or error} ({name})"
        )


def _open_local(path: str) -> BinaryIO | ClipError:
    # Opening a pipe would wait for somebody to write into it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    return ClipError("unreadable", "expected a file, found a folder, a pipe or a device")


def is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def local_path(source: str) -> str:
    """The path that `source` names (names that are not UTF-8 are kept as `file://` URIs)."""
    return (
        unquote(urlsplit(source).path, errors="surrogateescape")
        if source.startswith("file://")
        else source
    )


def _look(
    path: str, suffixes: tuple[str, ...], options: dict[str, Any], warn: Callable[[str], None]
) -> Iterator[Found]:
    if is_local(path):
        local = os.path.abspath(os.path.expanduser(local_path(path)))
        if os.path.isdir(local):
            yield from _local_folder(local, suffixes, warn)
        elif os.path.lexists(local):
            yield _local_file(local)
        elif any(letter in path for letter in "*?["):
            import glob

            for match in sorted(glob.glob(local, recursive=True)):
                if os.path.isdir(match):
                    yield from _local_folder(match, suffixes, warn)
                else:
                    yield _local_file(match)
        else:
            raise FileNotFoundError(f"expected a file, folder or glob, found nothing at {local}")
        return
    import fsspec

    fs, root = fsspec.url_to_fs(path, **options)
    if any(letter in path for letter in "*?["):
        entries = fs.glob(root, detail=True)
    elif fs.isfile(root):
        entries = {root: fs.info(root)}
    else:
        entries = {
            name: info
            for name, info in fs.find(root, detail=True).items()
            if name.lower().endswith(suffixes)
            and not any(part.startswith(".") for part in name[len(root) :].split("/"))
        }
        if not entries and not fs.exists(root):
            raise FileNotFoundError(f"expected a file, folder or glob, found nothing at {path}")
    for name, info in entries.items():
        if info["type"] == "file":
            modified = info.get("LastModified") or info.get("mtime") or info.get("created")
            mtime = modified.timestamp() if isinstance(modified, datetime) else modified
            etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
            yield fs.unstrip_protocol(name), etag or f"{info['size']}-{mtime}", info["size"], mtime


def _local_folder(
    root: str, suffixes: tuple[str, ...], warn: Callable[[str], None]
) -> Iterator[Found]:
    """Files below `root`, through links to folders as well, no folder twice."""

    def unreadable(error: OSError) -> None:
        warn(f"can't look into {error.filename}: {error.strerror}")

    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            names.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in files:
            if not file.startswith(".") and file.lower().endswith(suffixes):
                yield _local_file(f"{folder}/{file}")


def _local_file(path: str) -> Found:
    try:
        path.encode()
        source = path
    except UnicodeEncodeError:
        source = Path(path).as_uri()
    try:
        status = os.stat(path)
    except OSError:  # a broken link: its row will say so
        return source, "missing", None, None
    if not stat.S_ISREG(status.st_mode):
        return source, "not a regular file", None, None
    return source, f"{status.st_size}-{status.st_mtime_ns}", status.st_size, status.st_mtime
