"""What is left to do: found minus committed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.checkpoint import Checkpoint
from jobs.config import Config
from jobs.sources import PLACE

# Raise it when the code would give another label for the same sound, model and settings.
LABEL_VERSION = 1
COMMITTED = ["clip_id", *PLACE.names, "status", "fingerprint"]
# What a shard's row tells its reader of the rows that the table holds from it.
KNOWN = pa.list_(
    pa.struct(
        [
            ("clip_id", pa.string()),
            ("member", pa.string()),
            ("offset_s", pa.float64()),
            ("done", pa.bool_()),
        ]
    )
)


@dataclass(frozen=True)
class Plan:
    """`todo` holds `clip_id`, the source's columns and `supersedes`: the `clip_id` of the
    committed row that the clip's new row takes the place of, or null. Of a source of shards it
    holds shards, and `known` in place of both. The counts are of clips, as far as they are known.
    """

    todo: pa.Table
    found: int
    done: int
    failed_before: int


def plan(found: pa.Table, committed: pa.Table, fingerprint: str, *, retry_errors: bool) -> Plan:
    """Compare the clips that a source found with the table's rows (`COMMITTED`).

    A clip is done if a row has its id and the run's fingerprint, and, with `retry_errors`, if
    nothing failed in it. Its id holds the file's version, so a changed file is another clip at
    the same place, whose new row takes the place of the old one.
    """
    found = found.add_column(0, "clip_id", clip_ids(found))
    done = _done(committed, fingerprint, retry_errors)
    is_done = pc.is_in(found["clip_id"], value_set=done["clip_id"].combine_chunks())
    todo = found.filter(pc.invert(is_done))
    finished = done.filter(pc.is_in(done["clip_id"], value_set=found["clip_id"].combine_chunks()))
    failed = finished.filter(pc.not_equal(finished["status"], "ok"))
    return Plan(
        todo.append_column("supersedes", _superseded(todo, committed)),
        found=len(found),
        done=len(found) - len(todo),
        failed_before=len(failed),
    )


def plan_shards(
    found: pa.Table,
    committed: pa.Table,
    sizes: Mapping[tuple[str, str], int],
    fingerprint: str,
    *,
    retry_errors: bool,
) -> Plan:
    """The same for a source whose shards have to be read to know what is in them.

    `sizes` says of (source, version) how many clips it holds, where an earlier run has seen that.
    A shard is done if that many of its clips are; otherwise its row takes along the rows that the
    table holds from it, so that its reader skips what is done.
    """
    done = _done(committed, fingerprint, retry_errors)
    of_shard = Counter(_shards(done))
    is_done = [sizes.get(shard) == of_shard[shard] for shard in _shards(found)]
    todo = found.filter(pc.invert(pa.array(is_done, pa.bool_())))
    finished = set(_shards(found)) - set(_shards(todo))
    known: dict[str, list[dict[str, Any]]] = {source: [] for source in todo["source"].to_pylist()}
    from_todo = committed.filter(pc.is_in(committed["source"], todo["source"].combine_chunks()))
    done_ids = set(done["clip_id"].to_pylist())
    for row in from_todo.select(["source", "clip_id", "member", "offset_s"]).to_pylist():
        known[row.pop("source")].append({**row, "done": row["clip_id"] in done_ids})
    count = sum(sizes[shard] for shard in finished)
    not_ok = _shards(done.filter(pc.not_equal(done["status"], "ok")))
    return Plan(
        todo.append_column(
            "known", pa.array([known[s] for s in todo["source"].to_pylist()], KNOWN)
        ),
        found=count,
        done=count,
        failed_before=sum(shard in finished for shard in not_ok),
    )


def _shards(rows: pa.Table) -> list[tuple[str, str]]:
    columns = (rows[name].to_pylist() for name in ("source", "source_version"))
    return list(zip(*columns, strict=True))


def _done(committed: pa.Table, fingerprint: str, retry_errors: bool) -> pa.Table:
    done = committed.filter(pc.equal(committed["fingerprint"], fingerprint))
    return done.filter(pc.equal(done["status"], "ok")) if retry_errors else done


def clip_ids(found: pa.Table) -> pa.Array:
    """The `clip_id` of each row's place."""
    columns = (found[name].to_pylist() for name in PLACE.names)
    return pa.array([clip_id(*place) for place in zip(*columns, strict=True)], pa.string())


def clip_id(source: str, member: str | None, source_version: str, offset_s: float) -> str:
    """128-bit BLAKE2b of a clip's place, as 32 hex digits."""
    place = f"{source}\0{member or ''}\0{source_version}\0{offset_s!r}"
    return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()


def _superseded(todo: pa.Table, committed: pa.Table) -> pa.Array:
    if not len(todo) or not len(committed):
        return pa.nulls(len(todo), pa.string())
    index = pc.index_in(_places(todo), value_set=_places(committed))
    return committed["clip_id"].take(index).combine_chunks()


def _places(clips: pa.Table) -> pa.Array:
    parts = [
        clips["source"],
        pc.fill_null(clips["member"], ""),
        pc.cast(clips["offset_s"], pa.string()),
    ]
    joined = pc.binary_join_element_wise(*parts, "\0")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def settings(config: Config, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """All that could change a label, as plain JSON. Batch sizes, pools and paths are not in it."""
    return {
        "label_version": LABEL_VERSION,
        "audio": config.audio.model_dump(mode="json", include={"max_clip_s"}),
        "keep": sorted(config.output.keep),
        "tasks": {
            name: options.model_dump(mode="json", exclude={"model", "revision"})
            | {"model": checkpoints[name].digest()}
            for name, options in config.tasks.items()
        },
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits that stand for the settings in every row."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def difference(table: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """`key: ... in the table, ... in this run` for each setting that differs."""
    left, right = dict(_flat(table)), dict(_flat(run))
    return [
        f"{key}: {left.get(key, 'absent')} in the table, {right.get(key, 'absent')} in this run"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [
            pair
            for name, inner in value.items()
            for pair in _flat(inner, f"{key}.{name}" if key else name)
        ]
    return [(key, json.dumps(value))]
