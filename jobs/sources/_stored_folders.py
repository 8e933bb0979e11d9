"""The files below a folder of a store: several parts of it are listed at once.

A store answers a page of some 1,000 names in a tenth of a second, and says where the next page begins
only then: one listing from end to end takes two minutes for a million names.
"""

from __future__ import annotations

import heapq
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from typing import Any

LISTINGS_AT_ONCE = 16
ENOUGH_PARTS = 32  # of a folder, that are listed to their ends
MAX_LEVELS = 8  # of folders that are looked into for parts
FSSPEC_WALKS = ("fsspec.spec", "fsspec.asyn")  # whose `find` lists folder by folder

Info = dict[str, Any]  # of a file, as fsspec has it


def stored_files(
    fs: Any, root: str, warn: Callable[[str], None], *, in_order: bool = False
) -> Iterator[Info]:
    """All files below a folder, each as soon as it is found, in the same order each time if `in_order`.

    Raises whatever a listing of a part raises, except for a folder that has gone meanwhile.
    """
    if hasattr(fs, "call_s3"):
        yield from _on_s3(fs, root, in_order)
    elif inspect.unwrap(fs.find).__module__ in FSSPEC_WALKS:
        yield from _folder_by_folder(fs, root, warn)
    else:  # Google's and Azure's stores and the hub list without regard to folders
        yield from (info for info in fs.find(root, detail=True).values() if info["type"] == "file")


def _folder_by_folder(fs: Any, root: str, warn: Callable[[str], None]) -> Iterator[Info]:
    """The files of a store whose every folder is a request. Unlike fsspec's own `find`, it takes a
    folder that cannot be listed for an error instead of an empty one."""

    def listed(folder: str) -> Sequence[Info]:
        try:
            return fs.ls(folder, detail=True)  # type: ignore[no-any-return]
        except FileNotFoundError:
            if folder == root:
                raise
            warn(f"can't list {folder}: it is gone")
            return ()

    folders = [root]
    # A client that waits by blocking may have one connection, for one request at a time.
    with ThreadPoolExecutor(LISTINGS_AT_ONCE if fs.async_impl else 1) as threads:
        while folders:
            below = []
            for folder, infos in zip(folders, threads.map(listed, folders), strict=True):
                for info in infos:
                    if info["type"] == "file":
                        yield info
                    elif info["type"] == "directory" and info["name"].rstrip("/") != folder:
                        below.append(info["name"].rstrip("/"))
            folders = below


def _on_s3(fs: Any, root: str, in_order: bool) -> Iterator[Info]:
    """The objects of a bucket below a folder.

    A folder of one page costs one request, a flat one costs one more than its pages. A larger one is
    divided: by its folders, level by level, as long as these are few, else by common prefixes of their
    names.
    """
    bucket, key, _ = fs.split_path(root)
    fs.connect()
    parsers = fs.session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=time_of)
    top = f"{key}/" if key else ""
    with ThreadPoolExecutor(LISTINGS_AT_ONCE) as threads:
        lister = _Lister(fs, bucket, threads)
        try:
            if in_order or bucket.endswith("--x-s3"):  # directory buckets know whole folders only
                for _, page in lister.pages([top]):
                    yield from lister.files(page)
            else:
                yield from _in_parts(lister, top)
        finally:
            threads.shutdown(cancel_futures=True)


def time_of(value: Any) -> datetime:
    """A time in an answer of S3. With botocore's own parser, dateutil's, a name takes 92 µs of CPU,
    and 36 µs with this one."""
    if isinstance(value, str) and "T" in value and value.endswith("Z"):
        with suppress(ValueError):
            return datetime.fromisoformat(f"{value[:-1]}+00:00")
    from botocore.utils import parse_timestamp

    return parse_timestamp(value)  # type: ignore[no-any-return]


def _in_parts(lister: _Lister, top: str) -> Iterator[Info]:
    folders, divided = [top], set[str]()
    for _ in range(MAX_LEVELS):
        large = []
        for folder, page in lister.pages(folders, most=1):
            if page.get("IsTruncated"):
                large.append(folder)
            else:
                yield from lister.files(page)
        divided.update(large)
        folders = []
        for _, page in lister.pages(large, "/"):
            yield from lister.files(page)
            folders += [part["Prefix"] for part in page.get("CommonPrefixes", ())]
        folders.sort()
        if not folders or len(folders) >= ENOUGH_PARTS:
            break
    parts = list[str]()
    for _, some in groupby(folders, key=lambda folder: folder[: folder[:-1].rfind("/") + 1]):
        beside = list(some)
        parts += common_prefixes(beside, -(-ENOUGH_PARTS * len(beside) // len(folders)))
    for _, page in lister.pages(parts):
        # Files beside the folders may have the same prefix: they have been yielded.
        for info in lister.files(page):
            if info["Key"][: info["Key"].rfind("/") + 1] not in divided:
                yield info


class _Lister:
    """Lists the objects of a bucket, in threads."""

    def __init__(self, fs: Any, bucket: str, threads: ThreadPoolExecutor) -> None:
        self._fs, self._bucket, self._threads = fs, bucket, threads

    def pages(
        self, prefixes: Sequence[str], delimiter: str = "", most: int | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The pages of the objects whose keys have a prefix, or the first `most` of each prefix."""

        def ask(prefix: str, number: int, **where: str) -> tuple[str, int, dict[str, Any]]:
            page = self._fs.call_s3(
                "list_objects_v2", Bucket=self._bucket, Prefix=prefix, Delimiter=delimiter, **where
            )
            return prefix, number, page

        running: set[Future[tuple[str, int, dict[str, Any]]]] = {
            self._threads.submit(ask, prefix, 1) for prefix in prefixes
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                prefix, number, page = future.result()
                if page.get("IsTruncated") and number != most:
                    token = page["NextContinuationToken"]
                    running.add(
                        self._threads.submit(ask, prefix, number + 1, ContinuationToken=token)
                    )
                yield prefix, page

    def files(self, page: dict[str, Any]) -> Iterator[Info]:
        """The objects of a page."""
        for item in page.get("Contents", ()):
            name = f"{self._bucket}/{item['Key']}"
            yield {**item, "name": name, "size": item["Size"], "type": "file"}


def common_prefixes(names: Sequence[str], enough: int) -> list[str]:
    """About `enough` prefixes, of which each name has exactly one, or the names themselves if they are
    fewer. No name may be a prefix of another."""
    ordered = sorted(names)
    if not ordered:
        return []
    largest_first = [(-len(ordered), 0)]  # parts of `ordered`: length, start
    parts = list[str]()
    while largest_first:
        length, start = heapq.heappop(largest_first)
        part = ordered[start : start - length]
        stem = os.path.commonprefix([part[0], part[-1]])  # noqa: RUF071  # by letters
        if len(part) == 1 or len(parts) + len(largest_first) + 1 >= enough:
            parts.append(stem)
            continue
        for _, same in groupby(part, key=lambda name: name[len(stem)]):
            count = len(list(same))
            heapq.heappush(largest_first, (-count, start))
            start += count
    return parts
