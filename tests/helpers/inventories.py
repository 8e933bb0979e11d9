"""S3 Inventories of a bucket on the loopback server, as S3 writes them.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
from s3 import S3

FIELDS = ["VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag"]
PARQUET = {
    "Bucket": ("bucket", pa.string(), "required binary bucket (UTF8)"),
    "Key": ("key", pa.string(), "required binary key (UTF8)"),
    "VersionId": ("version_id", pa.string(), "optional binary version_id (UTF8)"),
    "IsLatest": ("is_latest", pa.bool_(), "optional boolean is_latest"),
    "IsDeleteMarker": ("is_delete_marker", pa.bool_(), "optional boolean is_delete_marker"),
    "Size": ("size", pa.int64(), "optional int64 size"),
    "LastModifiedDate": (
        "last_modified_date",
        pa.timestamp("ms", "UTC"),
        "optional int64 last_modified_date (TIMESTAMP_MILLIS)",
    ),
    "ETag": ("e_tag", pa.string(), "optional binary e_tag (UTF8)"),
    "StorageClass": ("storage_class", pa.string(), "optional binary storage_class (UTF8)"),
}


def versions(s3: S3, bucket: str) -> list[dict[str, Any]]:
    """All versions and delete markers of a bucket, by the names of an inventory's fields."""
    answer = s3.files().call_s3("list_object_versions", Bucket=bucket)
    assert not answer["IsTruncated"]
    rows = [
        (it, kind == "DeleteMarkers")
        for kind in ("Versions", "DeleteMarkers")
        for it in answer.get(kind, ())
    ]
    return [
        {
            "Bucket": bucket,
            "Key": it["Key"],
            "VersionId": None if it["VersionId"] == "null" else it["VersionId"],
            "IsLatest": it["IsLatest"],
            "IsDeleteMarker": is_marker,
            "Size": None if is_marker else it["Size"],
            "LastModifiedDate": it["LastModified"],
            "ETag": None if is_marker else it["ETag"].strip('"'),
            "StorageClass": None if is_marker else "STANDARD",
        }
        for it, is_marker in rows
    ]


def as_csv(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> bytes:
    """Every field in quotes, the keys URL-encoded, without a header."""

    def text(name: str, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if name == "Key":
            return quote_plus(value, safe="/")
        if name == "LastModifiedDate":
            return str(value.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
        return str(value)

    lines = io.StringIO()
    writer = csv.writer(lines, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([text(name, row[name]) for name in fields] for row in rows)
    return gzip.compress(lines.getvalue().encode())


def as_parquet(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> bytes:
    columns = {
        PARQUET[name][0]: pa.array([row[name] for row in rows], PARQUET[name][1]) for name in fields
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="snappy")
    return file.getvalue()


def write_inventory(
    s3: S3,
    bucket: str,
    format: str,
    fields: Sequence[str] = (*FIELDS, "StorageClass"),
    *,
    day: str = "2026-11-30T01-00Z",
    target: str = "inventories",
) -> str:
    """Write an inventory of a bucket in two data files; returns the URL of its manifest."""
    fs, fields = s3.files(), ["Bucket", "Key", *fields]
    rows = versions(s3, bucket)
    if "IsLatest" not in fields:  # a list of current versions alone
        rows = [row for row in rows if row["IsLatest"] and not row["IsDeleteMarker"]]
    folder, files = f"lists/{bucket}/{format.lower()}", []
    for number, part in enumerate((rows[::2], rows[1::2])):
        write, ending = (as_csv, "csv.gz") if format == "CSV" else (as_parquet, format.lower())
        key = f"{folder}/data/{day}-{number}.{ending}"
        content = write(part, fields)
        fs.pipe_file(f"{target}/{key}", content)
        files.append({"key": key, "size": len(content), "MD5checksum": "0" * 32})
    schema = ", ".join(fields)
    if format != "CSV":
        schema = f"message s3.inventory {{  {'; '.join(PARQUET[it][2] for it in fields)}; }}"
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{target}",
        "version": "2016-11-30",
        "creationTimestamp": "1796000400000",
        "fileFormat": format,
        "fileSchema": schema,
        "files": files,
    }
    name = f"{target}/{folder}/{day}/manifest.json"
    fs.pipe_file(name, json.dumps(manifest, indent=4).encode())
    return f"s3://{name}"
