"""S3 Inventory: lists of a bucket's objects, which S3 writes once a day or a week.

A manifest.json names the data files of a list, gzipped CSV without a header or Parquet, and their
columns. Keys are URL-encoded in CSV. A list may have all versions of each object, and delete markers.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from jobs.sources import BadInput
from jobs.sources._paths import Found, absolute, file_system, folder_of, is_local, stored_file

# The columns that are read, by their names in Parquet, and their names in CSV.
COLUMNS = {
    "bucket": "Bucket",
    "key": "Key",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
    "size": "Size",
    "last_modified_date": "LastModifiedDate",
    "e_tag": "ETag",
}
# Without an ETag a file's version, and with that the identity of its clips, would be another one than
# by a listing.
NEEDED = ("bucket", "key", "e_tag")
FORMATS = ("CSV", "Parquet")
MANIFESTS = ("manifest.json", "*/manifest.json")  # of a day, and in the folder of a configuration
DATED = re.compile(r"(^|/)\d{4}-\d\d-\d\dT\d\d-\d\dZ/manifest\.json$")
CHOOSE = "choose CSV or Apache Parquet in the inventory's configuration"
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Inventory:
    """A list of the objects of a bucket, whose files have the columns `columns`."""

    name: str  # of its manifest, or of its one file
    bucket: str | None  # None: not known before its file is read
    format: str
    columns: Sequence[str]
    files: Sequence[str]


def read_inventory(
    where: str, options: Mapping[str, Any], needed: Collection[str] = ()
) -> Inventory:
    """The inventory with this manifest, in this folder (the newest one) or of this Parquet file.

    Raises BadInput if there is none, or if it lacks one of the columns `NEEDED` and `needed`.
    """
    name = absolute(where)
    if name.lower().endswith(".parquet"):
        with _opened(name, options) as file:
            columns = pq.ParquetFile(file).schema_arrow.names
        found = Inventory(name, None, "Parquet", columns, [name])
    elif name.lower().endswith((".csv", ".csv.gz", ".orc", ".txt")):
        raise _bad(f"a manifest.json, as the columns of other files are not known, found {name}")
    else:
        name = name if name.endswith(".json") else _newest(name, options)
        found = _of_manifest(name, options)
    absent = [COLUMNS[it] for it in (*NEEDED, *needed) if it not in found.columns]
    if absent:
        raise _bad(
            f"a list with {', '.join(absent)}, found none in {name}: choose this metadata in the "
            "inventory's configuration"
        )
    return found


def _newest(folder: str, options: Mapping[str, Any]) -> str:
    """The newest manifest in the folder of a configuration, or the one of a single day."""
    if is_local(folder):
        names = [name for end in MANIFESTS for name in glob.glob(f"{glob.escape(folder)}/{end}")]
    else:
        fs = file_system(folder, dict(options))
        found = [name for end in MANIFESTS for name in fs.glob(f"{glob.escape(folder)}/{end}")]
        names = [fs.unstrip_protocol(name) for name in found]
    names = [name for name in names if DATED.search(name)]
    if not names:
        raise _bad(f"a manifest.json, or a folder with some in its folders of days, found {folder}")
    return max(names, key=lambda name: name.rsplit("/", 2)[-2])


def _of_manifest(name: str, options: Mapping[str, Any]) -> Inventory:
    with _opened(name, options) as file:
        content = file.read()
    try:
        manifest = json.loads(content)
        format, schema = manifest["fileFormat"], manifest["fileSchema"]
        bucket, target = manifest["sourceBucket"], manifest["destinationBucket"].split(":")[-1]
        keys = [file["key"] for file in manifest["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(f"the manifest.json of an S3 Inventory, found {name} ({error!r})") from None
    if format not in FORMATS:
        raise _bad(f"files of {' or '.join(FORMATS)}, found {format} in {name}: {CHOOSE}")
    if format == "CSV":
        of_csv = {csv: parquet for parquet, csv in COLUMNS.items()}
        names = [column.strip() for column in schema.split(",")]
        columns = [of_csv.get(column, column) for column in names]
    else:
        fields = [field.partition("(")[0].split() for field in schema.split(";")]
        columns = [words[-1] for words in fields if words]
    return Inventory(name, bucket, format, columns, [_data_file(name, target, k) for k in keys])


def _data_file(manifest: str, bucket: str, key: str) -> str:
    """Where a data file is: in its bucket or, if the manifest has been copied to a disk, near that."""
    if is_local(manifest):
        folder, name = folder_of(manifest), key.rpartition("/")[2]
        for near in (f"{folder_of(folder)}/data", folder, f"{folder}/data"):
            if os.path.exists(f"{near}/{name}"):
                return f"{near}/{name}"
    return f"s3://{bucket}/{key}"


def files_of(
    inventory: Inventory, paths: Sequence[str], options: Mapping[str, Any]
) -> Iterator[tuple[str, Found]]:
    """The files at and below paths, each with the URL of that path (without a slash at its end).

    Raises FileNotFoundError for a path with no file at or below it, and BadInput for a path in another
    bucket, or data files that cannot be read.
    """
    wanted = [_bucket_and_key(path, inventory) for path in paths]
    seen = set[int]()
    for name in inventory.files:
        for batch in _batches(name, inventory, options):
            for number, (bucket, key) in enumerate(wanted):
                here = batch.filter(_is_at(batch, bucket, key))
                if len(here):
                    seen.add(number)
                for found in _found(here, bucket):
                    yield f"s3://{bucket}/{key}".rstrip("/"), found
    if missing := [path for number, path in enumerate(paths) if number not in seen]:
        raise FileNotFoundError(
            f"expected a file or a folder, as input.inventory is given, found nothing at {missing[0]} "
            f"in {inventory.name}"
        )


def _bucket_and_key(path: str, inventory: Inventory) -> tuple[str, str]:
    url = re.fullmatch(r"s3a?://([^/]+)/?(.*)", path, re.DOTALL)
    if url is None or inventory.bucket not in (None, url[1]):
        bucket = inventory.bucket or "BUCKET"
        raise BadInput(
            f"input.path: expected s3://{bucket}/..., whose objects are listed in "
            f"input.inventory, found {path}"
        )
    return url[1], url[2].rstrip("/")


def _batches(name: str, inventory: Inventory, options: Mapping[str, Any]) -> Iterator[pa.Table]:
    """The current objects of a data file: `bucket`, `key`, `e_tag`, `size` (or null) and
    `last_modified_date` (milliseconds, or null)."""
    columns = [column for column in inventory.columns if column in COLUMNS]
    try:
        with _opened(name, options) as file:
            batches: Any
            if inventory.format == "Parquet":
                batches = pq.ParquetFile(file).iter_batches(columns=columns)
            else:
                batches = pv.open_csv(
                    pa.CompressedInputStream(file, "gzip"),
                    pv.ReadOptions(column_names=inventory.columns, block_size=BLOCK_BYTES),
                    convert_options=pv.ConvertOptions(
                        include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                    ),
                )
            for batch in batches:
                yield _current(pa.Table.from_batches([batch]), is_csv=inventory.format == "CSV")
    except (pa.ArrowException, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise _bad(
            f"a file of {inventory.format} as {inventory.name} says, found {name}: {reason}"
        ) from None


def _current(rows: pa.Table, *, is_csv: bool) -> pa.Table:
    """The rows of a batch that are no older versions and no delete markers, typed alike."""
    for column, keep in (("is_latest", "true"), ("is_delete_marker", "false")):
        if column in rows.column_names:
            value = pc.utf8_lower(rows[column].cast(pa.string()))
            rows = rows.filter(pc.is_in(value, pa.array([keep, "", None])))
    columns = {name: rows[name] for name in NEEDED}
    if is_csv:
        keys = [
            unquote_plus(key) if "%" in key or "+" in key else key
            for key in rows["key"].to_pylist()
        ]
        columns["key"] = pa.array(keys, pa.string())
    size, modified = (
        rows[name] if name in rows.column_names else pa.nulls(len(rows), pa.string())
        for name in ("size", "last_modified_date")
    )
    if is_csv:  # which has nothing where Parquet has null
        size, modified = (pc.if_else(pc.equal(it, ""), None, it) for it in (size, modified))
    columns["size"] = size.cast(pa.int64())
    times = modified.cast(pa.timestamp("ms", "UTC"), safe=False)
    columns["last_modified_date"] = times.cast(pa.int64())
    return pa.table(columns)


def _is_at(rows: pa.Table, bucket: str, key: str) -> pa.ChunkedArray:
    """Whether each object is in the bucket, and at or below the key."""
    is_in_bucket = pc.equal(rows["bucket"], bucket)
    if not key:
        return is_in_bucket
    is_below = pc.or_(pc.equal(rows["key"], key), pc.starts_with(rows["key"], f"{key}/"))
    return pc.and_(is_in_bucket, is_below)


def _found(rows: pa.Table, bucket: str) -> Iterator[Found]:
    columns = (rows[name].to_pylist() for name in ("key", "e_tag", "size", "last_modified_date"))
    for key, tag, size, modified in zip(*columns, strict=True):
        mtime_s = None if modified is None else modified / 1000
        yield stored_file(f"s3://{bucket}/{key}", {"ETag": tag, "size": size, "mtime": mtime_s})


@contextmanager
def _opened(name: str, options: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """A file of an inventory. Raises BadInput if it is not there or may not be read."""
    try:
        if is_local(name):
            with open(name, "rb") as local:
                yield local
        else:
            with file_system(name, dict(options)).open(name, "rb") as stored:
                yield stored
    except FileNotFoundError:
        raise _bad(f"a file, found nothing at {name}") from None
    except PermissionError as error:
        raise _bad(
            f"a file that may be read, found {name} ({error}): it needs s3:GetObject and, if the "
            "inventory is encrypted with a key of KMS, kms:Decrypt for that key"
        ) from None


def _bad(what: str) -> BadInput:
    return BadInput(f"input.inventory: expected {what}")
