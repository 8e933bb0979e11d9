"""Plans a run: the clips that were found minus those that are committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.schemas import Channels
from jobs.clips import ALL, Ids, as_clip_ids, numbers, numbers_of_places
from jobs.planning.committed import COMMITTED, Committed
from jobs.sources import NO_VERSION, PLACE, Listing

# A row of the table in the plan: which tasks are due on it, and its position (see `COMMITTED`).
ROW = [("due", pa.int64()), ("file", pa.int32()), ("row", pa.int32())]
# The rows whose labels by tasks that are not due the new rows of a clip take over.
KEPT = pa.list_(pa.struct([("clip_id", pa.string()), *ROW]))
_CHANNELS = pa.schema([COMMITTED.field(name) for name in ("channel", "channels")])
END = 1 << 62  # after all rows of the table


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    todo: a row per clip, with `clip_id`, the source's columns, `channel`, `supersedes` (the `clip_id`s
        of the committed rows that the clip's new row replaces, or null), `replaces_labels` (whether
        they have labels), `_due` (the tasks to run) and `_kept` (see `KEPT`). If channels are labelled
        one by one, a row per recording, with a null `channel`. If the source has shards, a row per
        shard, with `_files` (see `jobs.planning.shards`) in place of the last four. Rows are in the
        order of the data files that hold their old rows, so that each of these files is rewritten
        within a short time (see `jobs.table.rewrite`).
    obsolete: `clip_id`s of committed rows whose files still exist but no longer hold the clips.
    due: the tasks that are due on any of the clips.
    keeps: whether some old row keeps labels.
    files: the names of the data files, whose positions in it are in `_kept` and `_files`.

    The counts are of clips, as far as these are known before shards are read: `found` and `done` are
    those of shards that need not be read, `known_to_read` and `done_to_read` count the table's rows of
    the others. `vanished` counts clips that are missing from the input; their rows stay.
    """

    todo: pa.Table
    obsolete: Sequence[str]
    found: int
    done: int
    failed_before: int
    vanished: int
    due: int = ALL
    keeps: bool = False
    files: Sequence[str] = ()
    known_to_read: int = 0
    done_to_read: int = 0

    @property
    def is_empty(self) -> bool:
        """True if no clip is to label and no row to remove."""
        return not len(self.todo) and not self.obsolete


def plan(listing: Listing, committed: Committed, *, channels: Channels = "mean") -> Plan:
    """Compare the clips that a source found with the table's rows.

    A clip is done if a row has its id and no task is due on it; a recording, if that is so of all its
    channels. Its id depends on the file's version, so a changed file is another clip at the same
    place, whose new row replaces the old ones. A missing file has no version: rows that were made
    while the file existed stay.
    """
    number = channels if isinstance(channels, int) else None
    channel = pa.repeat(pa.scalar(number, pa.int32()), len(listing.clips))
    found = listing.clips.append_column("channel", channel)
    ids = numbers_of_places(found)
    is_done, finished, rest = _compared(Ids(ids), committed, channels == "each")
    pending = found.filter(pa.array(~is_done)).add_column(0, "clip_id", as_clip_ids(ids[~is_done]))
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
    todo = _with_kept(todo, rest, is_each=channels == "each")
    listed = pc.sum(is_listed).as_py() or 0
    return Plan(
        in_order(todo, _whole(rows["at_min"]).take(rows_at)),
        obsolete,
        found=finished.total() + len(todo),
        done=finished.total(),
        failed_before=finished.total() - finished["ok"],
        vanished=len(rest) - listed - len(obsolete) + (pc.sum(unavailable).as_py() or 0),
        due=_union(todo["_due"]),
        keeps=todo["_kept"].null_count < len(todo),
        files=committed.files,
    )


def _compared(
    clips: Ids, committed: Committed, is_each: bool
) -> tuple[np.ndarray, Counter[str], pa.Table]:
    """Whether each of the clips that were found is done, the statuses of their rows, and all other
    rows, which in most runs are few."""
    count = len(clips.order)
    is_whole = _whole_clips(clips, committed) if is_each else np.ones(count, bool)
    is_done, statuses = np.zeros(count, bool), Counter[str]()
    rest = [COMMITTED.empty_table()]
    for rows in committed.scan(COMMITTED.names):
        at = clips.at(_numbers_of_recordings(rows) if is_each else numbers(_whole(rows["clip_id"])))
        is_finished = (at >= 0) & (rows["due"].to_numpy() == 0)
        is_finished[is_finished] = is_whole[at[is_finished]]
        is_done[at[is_finished]] = True
        for status in pc.value_counts(rows["status"].filter(pa.array(is_finished))).to_pylist():
            statuses[status["values"]] += status["counts"]
        rest.append(rows.filter(pa.array(~is_finished)))
    return is_done, statuses, pa.concat_tables(rest)


def _whole_clips(clips: Ids, committed: Committed) -> np.ndarray:
    """For each recording whether the table has rows of all its channels, on which nothing is due."""
    done = pa.schema([("recording", pa.int64()), *_CHANNELS]).empty_table()
    parts = [done]
    for rows in committed.scan([*PLACE.names, *_CHANNELS.names, "due"]):
        rows = rows.filter(pc.equal(rows["due"], 0))
        at = pa.array(clips.at(_numbers_of_recordings(rows)))
        found = rows.select(_CHANNELS.names).add_column(0, "recording", at)
        parts.append(found.filter(pc.greater_equal(at, 0)))
    done = pa.concat_tables(parts)
    whole = np.zeros(len(clips.order), bool)
    whole[done["recording"].filter(_is_whole(done)).to_numpy()] = True
    return whole


def _numbers_of_recordings(rows: pa.Table) -> np.ndarray:
    """The ids of the rows' recordings, as numbers."""
    return numbers_of_places(rows.select(PLACE.names))


def _is_whole(rows: pa.Table) -> pa.Array:
    """For each row of channels whether all channels of its `recording` are there. A recording that could
    not be decoded has one row, without a channel."""
    by_id = rows.group_by("recording").aggregate(
        [("channel", "count_distinct"), ("channels", "max")]
    )
    is_all = pc.equal(by_id["channel_count_distinct"], by_id["channels_max"])
    is_all = pc.or_(pc.fill_null(is_all, False), pc.equal(by_id["channel_count_distinct"], 0))
    return pc.is_in(rows["recording"], value_set=_whole(by_id["recording"].filter(is_all)))


def _with_kept(todo: pa.Table, rows: pa.Table, *, is_each: bool) -> pa.Table:
    """The clips with `_due` and `_kept`, which depend on the rows that the table has of the same version
    of each clip."""
    due, kept = np.full(len(todo), ALL, np.int64), pa.nulls(len(todo), KEPT)
    of, is_whole = _whole(rows["clip_id"]), None
    if is_each:
        of = as_clip_ids(_numbers_of_recordings(rows))
        is_whole = _whole(_is_whole(rows.select(_CHANNELS.names).add_column(0, "recording", of)))
    is_own = pc.is_in(of, value_set=_whole(todo["clip_id"]))
    if not is_each:
        is_own = pc.and_(is_own, _whole(pc.not_equal(rows["due"], ALL)))
    own = rows.filter(is_own).select([field.name for field in KEPT.value_type])
    if len(own):
        own = own.append_column("of", of.filter(is_own))
        own = own.append_column(
            "whole", is_whole.filter(is_own) if is_whole is not None else pa.repeat(True, len(own))
        )
        lists = [(name, "list") for name in own.column_names if name != "of"]
        by_id = own.group_by("of", use_threads=False).aggregate(lists).combine_chunks()
        found = {name: by_id[f"{name}_list"].chunk(0) for name, _ in lists}
        starts = found["due"].offsets.to_numpy()[:-1]
        union = np.bitwise_or.reduceat(found["due"].flatten().to_numpy(), starts)
        whole = found["whole"].flatten().to_numpy(zero_copy_only=False)
        union[~np.logical_and.reduceat(whole, starts)] = ALL
        fields = list(KEPT.value_type)
        structs = pa.StructArray.from_arrays(
            [found[f.name].flatten() for f in fields], fields=fields
        )
        at = pc.index_in(_whole(todo["clip_id"]), value_set=_whole(by_id["of"]))
        kept = pa.ListArray.from_arrays(found["due"].offsets, structs).cast(KEPT).take(at)
        has_own = at.is_valid().to_numpy(zero_copy_only=False)
        due[has_own] = union[at.drop_null().to_numpy()]
    return todo.append_column("_due", pa.array(due)).append_column("_kept", kept)


def in_order(todo: pa.Table, at: pa.Array) -> pa.Table:
    """The clips in the order of their old rows, those without one last. Rows of one `_unit` stay
    together."""
    keys = pc.fill_null(at, END).to_numpy()
    if not (keys < END).any():
        return todo
    if "_unit" in todo.column_names:
        firsts = np.flatnonzero(np.diff(todo["_unit"].to_numpy(), prepend=-1))
        lengths = np.diff(firsts, append=len(todo))
        keys = np.repeat(np.minimum.reduceat(keys, firsts), lengths)
    return todo.take(pa.array(np.argsort(keys, kind="stable")))


def at_row(rows: pa.Table) -> np.ndarray:
    """Each row's position in the table, int64 to sort by."""
    at: np.ndarray = rows["file"].to_numpy().astype(np.int64) << 32 | rows["row"].to_numpy()
    return at


def _union(due: pa.ChunkedArray) -> int:
    return int(np.bitwise_or.reduce(due.to_numpy(), initial=0))


def _by_place(rows: pa.Table, places: pa.Array) -> pa.Table:
    """The rows of each place: `clip_id_list`, `clip_id_count`, `has_labels_any`, `has_version_any`,
    and `at_min`, the position of the first one."""
    columns = {
        "place": places,
        "at": at_row(rows),
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
                ("at", "min"),
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


def _places(clips: pa.Table) -> pa.Array:
    parts = [
        clips["source"],
        pc.fill_null(clips["member"], ""),
        pc.cast(clips["offset_s"], pa.string()),
    ]
    return _whole(pc.binary_join_element_wise(*parts, "\0"))


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
