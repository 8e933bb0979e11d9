"""Kaldi's data folder: `wav.scp`, `text`, `utt2spk`, `spk2utt`, `utt2dur` and, of parts of files that
stay where they are, `segments`; sorted as Kaldi wants it, by bytes.

Kaldi's own programs read WAV alone, so that is what sound is written as. A name that Kaldi would take
for a command or an archive is not written.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.export.folder import Folder
from jobs.export.formats import Export, Item
from jobs.export.formats._fields import one_line, seconds, span
from jobs.export.formats._files import absolute_path_of, prepared, shard
from jobs.export.formats._files import problem as problem_of_link
from jobs.export.options import Audio
from jobs.spilling import spilling

__all__ = ["AUDIO", "finish", "prepared", "problem", "shard"]

AUDIO: tuple[Audio, ...] = ("link", "wav")
MEMORY = "512MB"  # of DuckDB, which sorts on the disk beyond it
ROWS_AT_ONCE = 8192
UTTERANCES = pa.schema(
    [
        *((name, pa.string()) for name in ("utterance", "speaker", "recording", "path")),
        *((name, pa.string()) for name in ("text", "language")),
        *((name, pa.float64()) for name in ("start_s", "end_s", "duration_s")),
        ("is_part", pa.bool_()),
    ]
)
LISTS = {
    "text": "SELECT utterance || ' ' || text FROM rows ORDER BY utterance",
    "utt2spk": "SELECT utterance || ' ' || speaker FROM rows ORDER BY utterance",
    "spk2utt": "SELECT speaker || ' ' || string_agg(utterance, ' ' ORDER BY utterance) FROM rows "
    "GROUP BY speaker ORDER BY speaker",
    "utt2dur": "SELECT utterance || ' ' || format('{:.6f}', duration_s) FROM rows ORDER BY utterance",
    "utt2lang": "SELECT utterance || ' ' || language FROM rows WHERE language IS NOT NULL "
    "ORDER BY utterance",
    "segments": "SELECT utterance || ' ' || recording || format(' {:.6f} {:.6f}', start_s, end_s) "
    "FROM rows WHERE (SELECT bool_or(is_part) FROM rows) ORDER BY utterance",
    "wav.scp": "SELECT DISTINCT CASE WHEN (SELECT bool_or(is_part) FROM rows) THEN recording "
    "ELSE utterance END AS key, path FROM rows ORDER BY key",
}


def problem(item: Item, export: Export) -> str | None:
    """Why Kaldi cannot read a file by its name."""
    if reason := problem_of_link(item, export):
        return reason
    path = absolute_path_of(item | {"path": ""}, export)
    is_plain = path == path.strip() and "\n" not in path and "\r" not in path
    if not is_plain or path.endswith("|") or re.search(r":\d+(\[.*\])?$", path):
        return (
            "Kaldi would take the file's name for something else (a command, an archive, two lines)"
        )
    return None


def finish(part: str, items: Iterator[Item], export: Export, folder: Folder) -> None:
    """Write the lists of a part."""
    with tempfile.TemporaryDirectory() as scratch, spilling(MEMORY) as database:
        path = Path(scratch) / "rows.parquet"
        with pq.ParquetWriter(path, UTTERANCES) as writer:
            rows: list[dict[str, Any]] = []
            for item in items:
                rows.append(_utterance(item, export))
                if len(rows) == ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(rows, schema=UTTERANCES))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema=UTTERANCES))
        database.execute(f"CREATE VIEW rows AS SELECT * FROM read_parquet('{path}')")
        for name, query in LISTS.items():
            _write(database, query, f"{export.prefix(part)}{name}", folder)


def _write(database: Any, query: str, name: str, folder: Folder) -> None:
    """Write the lines that a query returns; no file if there are none."""
    answer = database.execute(query)
    rows = answer.fetchmany(ROWS_AT_ONCE)
    if not rows:
        return
    with folder.create_text(name) as file:
        while rows:
            file.writelines(f"{' '.join(row)}\n" for row in rows)
            rows = answer.fetchmany(ROWS_AT_ONCE)


def _utterance(item: Item, export: Export) -> dict[str, Any]:
    """A row of `UTTERANCES`. An utterance's id begins with its speaker, by which Kaldi sorts."""
    id: str = item["id"]
    speaker, utterance = id, id
    if export.has_speaker:
        speaker = _key(item["speaker"]) if item["speaker"] else id.replace("-", "_")
        utterance = f"{speaker}-{id}"
    is_link = export.audio == "link"
    start_s, length_s = span(item) if is_link else (0.0, None)
    duration_s = seconds(item["duration_s"])
    path = absolute_path_of(item, export)
    return {
        "utterance": utterance,
        "speaker": speaker,
        "recording": f"recording-{hashlib.md5(path.encode()).hexdigest()[:16]}",
        "path": path,
        "text": one_line(item["value"]),
        "language": one_line(item["language"]).replace(" ", "_") or None,
        "start_s": start_s,
        "end_s": seconds(start_s + duration_s),
        "duration_s": duration_s,
        "is_part": (start_s, length_s) != (0.0, None),
    }


def _key(name: str) -> str:
    """A speaker's name without white space, and without `-`, which ends it in an utterance's id; with
    a hash where others could become the same."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60]
    return plain if plain == name else f"{plain}_{hashlib.md5(name.encode()).hexdigest()[:8]}"
