"""Plans a run: the clips that were found minus those that are committed."""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.schemas import Channels
from audio_ops.speech.whisper.prompt import left_to_checkpoint
from audio_ops.tasks import TaskOptions
from jobs.config import Config
from jobs.sources import NO_VERSION, PLACE, Listing

# To be raised when the code gives other labels for the same sound, model and settings.
LABEL_VERSION = 1
# Model types whose labels in half precision were wrong: a misread language or rounded positions.
CHANGED_IN_HALF_PRECISION = {"moonshine", "parakeet_ctc", "wav2vec2-conformer", "whisper"}
# Model types whose texts of long windows were cut off at a limit that was too low.
CUT_OFF = {"qwen3_asr"}
# Options that came after the first tables with a task, by task.
LATER_OPTIONS = {
    "automatic-speech-recognition": ("target_language", "punctuation", "prompt", "prompt_column"),
}
# To be raised when the code compares labels with their references in another way.
REFERENCE_VERSION = 2
# Conditions on levels, which are those of the mean of a sound's channels since version 2.
_BY_LEVEL = re.compile(r"\b(peak|rms)_dbfs\b")
# By task: what is new in its labels since tables were made that do not name it.
CHANGED_LABELS = {"automatic-speech-recognition": "suspects are found by segment, 3"}
COMMITTED = pa.schema(
    [
        ("clip_id", pa.string()),
        *PLACE,
        ("channel", pa.int32()),
        ("channels", pa.int32()),
        ("status", pa.string()),
        ("fingerprint", pa.string()),
    ]
)
# The table's rows of a shard, in the plan's row of the shard: its reader skips those that are done.
KNOWN = pa.list_(
    pa.struct(
        [
            ("clip_id", pa.string()),
            ("member", pa.string()),
            ("offset_s", pa.float64()),
            ("channel", pa.int32()),
            ("channels", pa.int32()),
            ("done", pa.bool_()),
        ]
    )
)


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    `todo` has a row per clip: `clip_id`, the source's columns, `channel`, `supersedes` (the `clip_id`s
    of the committed rows that the clip's new row replaces, or null) and `replaces_labels` (whether
    they have labels). If channels are labelled one by one, its rows are recordings, whose channels
    are not known yet: null. If the source has shards, it has a row per shard, with `known` (see
    `KNOWN`) in place of the latter two. `obsolete` are `clip_id`s of committed rows whose files still exist but
    no longer hold the clips.

    The counts are of clips, as far as these are known before shards are read. `vanished` counts
    clips with a row in the table, which stays, that are missing from the input.
    """

    todo: pa.Table
    obsolete: Sequence[str]
    found: int
    done: int
    failed_before: int
    vanished: int

    @property
    def is_empty(self) -> bool:
        """True if no clip is to label and no row to remove."""
        return not len(self.todo) and not self.obsolete


def plan(
    listing: Listing,
    committed: pa.Table,
    fingerprint: str,
    *,
    retry_errors: bool,
    channels: Channels = "mean",
) -> Plan:
    """Compare the clips that a source found with the table's rows (`COMMITTED`).

    A clip is done if a row has its id and the run's fingerprint and, with `retry_errors`, no error; a
    recording, if all its channels are. Its id depends on the file's version, so a changed file is
    another clip at the same place, whose new row replaces the old ones. A missing file has no
    version: rows that were made while the file existed stay.
    """
    number = channels if isinstance(channels, int) else None
    channel = pa.repeat(pa.scalar(number, pa.int32()), len(listing.clips))
    found = listing.clips.append_column("channel", channel)
    found = found.add_column(0, "clip_id", clip_ids(found))
    done = _done(committed, fingerprint, retry_errors and channels != "each")
    ids = done["clip_id"]
    if channels == "each":
        ids, is_whole = _whole_recordings(done, retry_errors)
        done, ids = done.filter(is_whole), ids.filter(is_whole)
    is_done = pc.is_in(found["clip_id"], value_set=_whole(ids))
    finished = done.filter(pc.is_in(ids, value_set=_whole(found["clip_id"])))
    # Only the remaining rows are compared by place: in most runs they are few.
    rest = committed.filter(
        pc.invert(pc.is_in(committed["clip_id"], value_set=_whole(finished["clip_id"])))
    )
    pending = found.filter(pc.invert(is_done))
    places, places_of_rest = _places(pending), _places(rest)
    rows = _by_place(rest, places_of_rest)
    rows_at = pc.index_in(places, value_set=_whole(rows["place"]))  # null where there are none
    is_listed = pc.is_in(places_of_rest, value_set=places)
    obsolete = _obsolete(listing, rest.filter(pc.invert(is_listed)))
    is_unavailable = pc.and_(
        _has_no_version(pending["source_version"]),
        pc.fill_null(_whole(rows["has_version_any"]).take(rows_at), False),
    )
    unavailable = _whole(rows["clip_id_count"]).take(rows_at.filter(_whole(is_unavailable)))
    is_to_do = pc.invert(is_unavailable)
    todo, rows_at = pending.filter(is_to_do), rows_at.filter(_whole(is_to_do))
    todo = todo.append_column("supersedes", _whole(rows["clip_id_list"]).take(rows_at))
    todo = todo.append_column("replaces_labels", _whole(rows["has_labels_any"]).take(rows_at))
    listed = pc.sum(is_listed).as_py() or 0
    return Plan(
        todo,
        obsolete,
        found=len(finished) + len(todo),
        done=len(finished),
        failed_before=len(finished.filter(pc.not_equal(finished["status"], "ok"))),
        vanished=len(rest) - listed - len(obsolete) + (pc.sum(unavailable).as_py() or 0),
    )


def _whole_recordings(done: pa.Table, retry_errors: bool) -> tuple[pa.Array, pa.Array]:
    """For each row its recording's id, and whether all channels of that are there; with
    `retry_errors`, without an error. A recording that could not be decoded has one row."""
    recordings = clip_ids(done.drop_columns(["channel"]))
    columns = [done[name] for name in ("channel", "channels", "status")]
    rows = pa.table([recordings, *columns], ["recording", "channel", "channels", "status"])
    rows = rows.append_column("is_ok", pc.equal(rows["status"], "ok"))
    by_id = rows.group_by("recording").aggregate(
        [("channel", "count_distinct"), ("channels", "max"), ("is_ok", "all")]
    )
    is_all = pc.equal(by_id["channel_count_distinct"], by_id["channels_max"])
    is_all = pc.or_(pc.fill_null(is_all, False), pc.equal(by_id["channel_count_distinct"], 0))
    if retry_errors:
        is_all = pc.and_(is_all, by_id["is_ok_all"])
    return recordings, pc.is_in(recordings, value_set=_whole(by_id["recording"].filter(is_all)))


def _by_place(rows: pa.Table, places: pa.Array) -> pa.Table:
    """The rows of each place: `clip_id_list`, `clip_id_count`, `has_labels_any`, `has_version_any`."""
    columns = {
        "place": places,
        "clip_id": rows["clip_id"],
        "has_labels": pc.is_in(rows["status"], value_set=pa.array(["ok", "partial"])),
        "has_version": pc.invert(_has_no_version(rows["source_version"])),
    }
    return (
        pa.table(columns)
        .group_by("place")
        .aggregate(
            [
                ("clip_id", "list"),
                ("clip_id", "count"),
                ("has_labels", "any"),
                ("has_version", "any"),
            ]
        )
    )


def _has_no_version(versions: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.is_in(versions, value_set=pa.array(NO_VERSION))


def _obsolete(listing: Listing, unlisted: pa.Table) -> list[str]:
    """The ids of those unlisted rows that the listing makes obsolete (see `Listing`)."""
    rows = unlisted.select(["clip_id", "source", "source_version"]).to_pydict().values()
    return [
        id
        for id, source, version in zip(*rows, strict=True)
        if source in listing.complete or listing.versions.get(source, version) != version
    ]


def plan_shards(
    listing: Listing,
    committed: pa.Table,
    shards: Mapping[str, Shard],
    fingerprint: str,
    *,
    retry_errors: bool,
) -> Plan:
    """Like `plan`, for a source whose shards have to be read to list their clips.

    `shards` are those that earlier runs have read to the end. A shard is done if it has not changed
    since and the table has a finished row for each of its clips. Otherwise its row in the plan holds
    the table's rows of it, so that its reader skips what is done.
    """
    found = listing.clips
    done = _done(committed, fingerprint, retry_errors)
    kept = pa.array([id for shard in shards.values() for id in shard.kept], pa.string())
    is_kept = pc.is_in(done["clip_id"], value_set=kept)
    own = _digests(done.filter(pc.invert(is_kept)))
    rows_of = Counter(committed["source"].to_pylist())

    places = list(zip(*(found[n].to_pylist() for n in ("source", "source_version")), strict=True))
    # A missing tar has vanished, unless the table has no row of it: then it becomes an error row.
    vanished = {s for s, version in places if version in NO_VERSION and rows_of[s]}
    finished = {
        source
        for source, version in places
        if source in shards and shards[source].is_done(version, *own.get(source, NOTHING_DONE))
    } - vanished
    is_to_do = [s not in vanished and s not in finished for s, _ in places]
    todo = found.filter(pa.array(is_to_do, pa.bool_()))
    count = sum(shards[source].clips for source in finished)
    not_ok = done.filter(pc.not_equal(done["status"], "ok"))["source"].to_pylist()
    available = {source for source, _ in places} - vanished
    return Plan(
        todo.append_column("known", _known(todo["source"], committed, done)),
        obsolete=(),
        found=count,
        done=count,
        failed_before=sum(source in finished for source in not_ok),
        vanished=sum(rows for source, rows in rows_of.items() if source not in available),
    )


def _known(sources: pa.ChunkedArray, committed: pa.Table, done: pa.Table) -> pa.Array:
    """The committed rows of each source (`KNOWN`), marked if they are among those `done`."""
    names = sources.combine_chunks()
    done_ids = set(done.filter(pc.is_in(done["source"], names))["clip_id"].to_pylist())
    rows = committed.filter(pc.is_in(committed["source"], names))
    known: dict[str, list[dict[str, Any]]] = {source: [] for source in names.to_pylist()}
    columns = ["source", *(field.name for field in KNOWN.value_type if field.name != "done")]
    for row in rows.select(columns).to_pylist():
        known[row.pop("source")].append({**row, "done": row["clip_id"] in done_ids})
    return pa.array([known[source] for source in names.to_pylist()], KNOWN)


class Shard(NamedTuple):
    """The contents of a shard, as a run found them that read it to the end: they save reading it
    again. Which clips are done follows from the table's rows alone."""

    version: str
    clips: int
    kept: Collection[str]  # clip_ids of its rows whose clips were not found, as reading failed
    digest: str  # of the clip_ids of its clips; "" if an earlier version wrote it

    def is_done(self, version: str, clips: int, digest: str) -> bool:
        """Whether the shard has this version, and finished rows for exactly its clips: `clips` and
        `digest` are those of its finished rows without the `kept` ones."""
        is_same = digest == self.digest if self.digest else True
        return version == self.version and clips == self.clips and is_same


def digest(clip_ids: Collection[str]) -> str:
    """A digest of a set of ids in any order: their exclusive or, as 32 hex digits."""
    return f"{reduce(operator.xor, (int(id, 16) for id in clip_ids), 0):032x}"


NOTHING_DONE = 0, digest(())


def _digests(rows: pa.Table) -> dict[str, tuple[int, str]]:
    """The number of rows and the `digest` of their ids, by source."""
    if not len(rows):
        return {}
    sources = _whole(rows["source"]).dictionary_encode()
    codes = sources.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    letters = np.frombuffer("".join(rows["clip_id"].to_pylist()).encode(), np.uint8).reshape(-1, 32)
    nibbles = (letters & 15) + 9 * (letters >> 6)
    numbers = (nibbles[:, ::2] << 4 | nibbles[:, 1::2])[order]
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    digests = np.bitwise_xor.reduceat(numbers, starts)
    counts = np.diff(starts, append=len(order))
    return {
        source: (int(count), value.tobytes().hex())
        for source, count, value in zip(
            sources.dictionary.to_pylist(), counts, digests, strict=True
        )
    }


def _done(committed: pa.Table, fingerprint: str, retry_errors: bool) -> pa.Table:
    done = committed.filter(pc.equal(committed["fingerprint"], fingerprint))
    return done.filter(pc.equal(done["status"], "ok")) if retry_errors else done


def clip_ids(found: pa.Table) -> pa.Array:
    """The `clip_id` of each row's place and, if there is such a column, `channel`."""
    has_channels = "channel" in found.column_names and found["channel"].null_count < len(found)
    names = [*PLACE.names, *(["channel"] if has_channels else [])]
    columns = (found[name].to_pylist() for name in names)
    return pa.array([clip_id(*place) for place in zip(*columns, strict=True)], pa.string())


def clip_id(
    source: str,
    member: str | None,
    source_version: str,
    offset_s: float,
    channel: int | None = None,
) -> str:
    """128-bit BLAKE2b of a clip's place and channel, as 32 hex digits."""
    place = f"{source}\0{member or ''}\0{source_version}\0{offset_s!r}"
    place += "" if channel is None else f"\0{channel}"
    return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()


def _places(clips: pa.Table) -> pa.Array:
    parts = [
        clips["source"],
        pc.fill_null(clips["member"], ""),
        pc.cast(clips["offset_s"], pa.string()),
    ]
    return _whole(pc.binary_join_element_wise(*parts, "\0"))


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def settings(config: Config, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Everything that can change a label, as JSON values, without batch sizes, pools and paths."""
    return {
        "label_version": LABEL_VERSION,
        "audio": _audio_settings(config),
        "keep": sorted(config.output.keep),
        "tasks": {
            name: _options(options) | {"model": checkpoints[name].digest()}
            for name, options in config.tasks.items()
        },
        **_versions(config, checkpoints),
    }


def _options(options: TaskOptions) -> dict[str, Any]:
    """A task's options. Tables from before `LATER_OPTIONS` have none of these, and their defaults
    continue them."""
    chosen = options.model_dump(mode="json", exclude={"model", "revision"})
    fields = type(options).model_fields
    return {
        name: value
        for name, value in chosen.items()
        if name not in LATER_OPTIONS.get(options.task, ()) or value != fields[name].default
    }


def _versions(config: Config, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """By kind of change, the tasks whose labels are not those of earlier versions of the code, or
    not those that their options alone say."""
    tasks = config.tasks.items()
    corrected = [
        name
        for name, options in tasks
        if options.dtype != "float32"
        and checkpoints[name].json("config.json").get("model_type") in CHANGED_IN_HALF_PRECISION
    ]
    cut_off = [
        name
        for name, options in tasks
        if checkpoints[name].json("config.json").get("model_type") in CUT_OFF
        and getattr(options, "max_new_tokens", None) is None
    ]
    by_level = [name for name, options in tasks if _BY_LEVEL.search(options.when or "")]
    compared = [name for name, options in tasks if getattr(options, "reference", None)]
    versions = {
        "half_precision_version": dict.fromkeys(corrected, 2),
        "limit_version": dict.fromkeys(cut_off, 2),
        "level_version": dict.fromkeys(by_level, 2),
        "reference_version": dict.fromkeys(compared, REFERENCE_VERSION),
        "task_version": {
            name: CHANGED_LABELS[options.task]
            for name, options in tasks
            if options.task in CHANGED_LABELS
        },
        "left_to_checkpoint": {
            name: left
            for name, options in tasks
            if (left := left_to_checkpoint(options, checkpoints[name]))
        },
    }
    return {kind: names for kind, names in versions.items() if names}


def _audio_settings(config: Config) -> dict[str, Any]:
    """The keys of `audio` that change labels.

    Tables from before `on_damage` and `max_damage` have neither. Their labels are those of sounds
    without damage, which the defaults label alike, so that the defaults continue them.
    """
    kept = config.audio.model_dump(mode="json", include={"max_clip_s"})
    rules = config.audio.model_dump(mode="json", include={"on_damage", "max_damage"})
    defaults = {name: type(config.audio).model_fields[name].default for name in rules}
    if config.audio.on_damage == "error":
        rules.pop("max_damage")
    if config.audio.channels != "mean":
        kept["channels"] = config.audio.channels
    kept |= {name: value for name, value in rules.items() if value != defaults[name]}
    raw = [one.model_dump(mode="json") for one in config.audio.raw]
    return kept | ({"raw": raw} if raw else {})


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of the settings for every row, as 16 hex digits."""
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
