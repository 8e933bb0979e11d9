"""Tables in folders of Parquet files: which of the files, and which of their rows, are the table's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jobs.input import Input
from jobs.sources import MISSING, BadInput
from jobs.sources._paths import Found, absolute, exists, file_system, folder_of, is_local
from jobs.table.storage import Storage

LOOKUPS_AT_ONCE = 16
OTHERS = {"an Apache Hudi": ".hoodie", "an Apache Iceberg": "metadata/version-hint.text"}


class LiveFiles(NamedTuple):
    """The files of an input, and of those with deleted rows which rows are left, by source."""

    files: Sequence[Found]
    rows: Mapping[str, np.ndarray]


def live_files(files: Sequence[Found], input: Input) -> LiveFiles:
    """The files without those that Delta tables no longer, or not yet, consist of.

    Raises BadInput for a Delta table that can't be read, and for tables of other kinds.
    """
    roots = sorted({_root(folder_of(file.source)) for file in files})
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
        is_delta = list(threads.map(lambda root: _is_delta(root, input), roots))
    rows: dict[str, np.ndarray] = {}
    kept = {file.source: file for file in files}
    for root in [root for root, yes in zip(roots, is_delta, strict=True) if yes]:
        live, deleted = _newest(root, input)
        rows |= deleted
        named = {source for source in kept if _root(folder_of(source)) == root}
        for source in named - live:
            del kept[source]
        if any(f"{root}/".startswith(f"{folder}/") for folder in map(absolute, input.paths)):
            kept |= {source: Found(source, MISSING, None, None) for source in live - kept.keys()}
    return LiveFiles([kept[source] for source in sorted(kept)], rows)


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
    above = root.rpartition("/")[0] if root.endswith("/data") else root
    for kind, mark in OTHERS.items():
        if exists(f"{above}/{mark}", input.storage_options) or (
            kind == "an Apache Iceberg" and root.endswith("/data") and _is_iceberg(above, input)
        ):
            raise BadInput(
                f"input.path: expected Parquet files or a Delta table, found {kind} table in {above}, "
                f"whose files hold rows that are no longer in it: write its rows to Parquet files"
            )
    return False


def _is_iceberg(folder: str, input: Input) -> bool:
    pattern = f"{folder}/metadata/*.metadata.json"
    if is_local(folder):
        import glob

        return bool(glob.glob(glob.escape(folder) + "/metadata/*.metadata.json"))
    return bool(file_system(folder, input.storage_options).glob(pattern))


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
