"""Tables in folders of Parquet files: which of the files, and which of their rows, are the table's."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jobs.input import Input
from jobs.sources import MISSING, BadInput
from jobs.sources._paths import Found, absolute, exists, file_system, folder_of, is_local
from jobs.sources._walk import LOOKUPS_AT_ONCE
from jobs.table.storage import Storage


class LiveFiles(NamedTuple):
    """The files of an input, and of those with deleted rows which rows are left, by source."""

    files: Sequence[Found]
    rows: Mapping[str, np.ndarray]


def live_files(files: Sequence[Found], input: Input) -> LiveFiles:
    """The files without those that Delta tables no longer, or not yet, consist of.

    Raises BadInput for a Delta table that can't be read, and for tables of other kinds.
    """
    root_of = _roots({folder_of(file.source) for file in files}, input)
    rows: dict[str, np.ndarray] = {}
    kept = {file.source: file for file in files}
    for root in sorted({root for root in root_of.values() if root}):
        live, left = _newest(root, input)
        rows |= left
        named = {source for source in kept if root_of[folder_of(source)] == root}
        for source in named - live:
            del kept[source]
        if _is_below_input(root, input):
            kept |= {source: Found(source, MISSING, None, None) for source in live - kept.keys()}
    return LiveFiles([kept[source] for source in sorted(kept)], rows)


def _roots(folders: set[str], input: Input) -> dict[str, str | None]:
    """The folder of the Delta table that each folder belongs to, if any.

    Between a table and its files are partitions, and perhaps a folder with a random name.
    """
    candidates: dict[str, list[str]] = {}
    for folder in folders:
        root = _root(folder)
        above = _root(root.rpartition("/")[0])
        candidates[folder] = [root, above] if _is_below_input(above, input) else [root]
    every = sorted({root for roots in candidates.values() for root in roots})
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
        found = threads.map(lambda root: _is_delta(root, input), every)
        is_delta = dict(zip(every, found, strict=True))
    return {
        folder: next((root for root in roots if is_delta[root]), None)
        for folder, roots in candidates.items()
    }


def _is_below_input(folder: str, input: Input) -> bool:
    return any(f"{folder}/".startswith(f"{path}/") for path in map(absolute, input.paths))


def _root(folder: str) -> str:
    """A folder without the parts at its end that are values of partitions."""
    while "=" in folder.rpartition("/")[2]:
        folder = folder.rpartition("/")[0]
    return folder


def _is_delta(root: str, input: Input) -> bool:
    """Whether the folder is a Delta table's. Raises BadInput if it is another table's."""
    if exists(f"{root}/_delta_log", input.storage_options):
        from deltalake import DeltaTable

        return DeltaTable.is_deltatable(root, Storage(root, input.storage_options).delta_options)
    above = root.rpartition("/")[0]
    for kind, folder, mark in (
        ("Hudi", root, ".hoodie/*"),
        ("Iceberg", above, "metadata/*.metadata.json"),
        ("Iceberg", above, "metadata/version-hint.text"),
    ):
        if (kind == "Hudi" or root.endswith("/data")) and _matches(folder, mark, input):
            raise BadInput(
                f"input.path: expected Parquet files or a Delta table, found an Apache {kind} table in {folder}, "
                f"whose files hold rows that are no longer in it: write its rows to Parquet files"
            )
    return False


def _matches(folder: str, pattern: str, input: Input) -> bool:
    """Whether a pattern matches something in a folder."""
    if is_local(folder):
        return bool(glob.glob(f"{glob.escape(folder)}/{pattern}"))
    matched = file_system(folder, input.storage_options).glob(f"{glob.escape(folder)}/{pattern}")
    return bool(matched)


def _newest(root: str, input: Input) -> tuple[set[str], dict[str, Any]]:
    """The files of a Delta table's newest version, and which rows of those with deletions are left."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        options = Storage(root, input.storage_options).delta_options
        table = DeltaTable(root, storage_options=options)
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            raise BadInput(
                f"input.path: expected a Delta table whose files have its columns' names, found a "
                f"column mapping in {root}: write its rows to Parquet files"
            )
        deleted: dict[str, Any] = {}
        if "deletionVectors" in (table.protocol().reader_features or ()):
            for batch in table.deletion_vectors():
                names, masks = (batch[n].to_pylist() for n in ("filepath", "selection_vector"))
                deleted |= {
                    name.removeprefix("file://"): np.array(mask, bool)
                    for name, mask in zip(names, masks, strict=True)
                }
        return {uri.removeprefix("file://") for uri in table.file_uris()}, deleted
    except (DeltaError, OSError) as error:
        raise BadInput(f"input.path: expected a Delta table in {root}: {error}") from None
