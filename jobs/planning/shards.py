"""Plans a run over shards: those that were found minus those whose clips are all committed.

The driver sums up the table's rows of a shard while it reads them, and keeps none: its memory does not grow
with their number. A shard's reader reads them again, to skip what is done (`with_known`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.clips import ALL, Shard, numbers
from jobs.planning.committed import Committed, RowSettings, rows_of_shard
from jobs.planning.plan import END, ROW, Plan, at_row, in_order
from jobs.sources import NO_VERSION, Listing

# The table's rows of a shard, in the plan's row of the shard: its reader skips those that are done.
KNOWN = pa.list_(
    pa.struct(
        [
            ("clip_id", pa.string()),
            ("member", pa.string()),
            ("offset_s", pa.float64()),
            ("channel", pa.int32()),
            ("channels", pa.int32()),
            *ROW,
        ]
    )
)
FILES = "_files"  # the plan's column with the numbers of the data files that hold a shard's rows
READ = ("clip_id", "source", "channel", "status", "due", "file", "row")


@dataclass
class _Rows:
    """Sums over the table's rows of a shard. `kept` rows (see `Shard`) count in `rows`, but not in `own`
    and the digests."""

    rows: int = 0
    own: int = 0  # those that are not `kept`
    digest: int = 0  # of them
    done: int = 0  # of them those on which nothing is due
    digest_of_done: int = 0
    failed: int = 0  # rows on which nothing is due, and not ok
    due: int = 0  # on any of them
    keeps: bool = False  # whether new rows take over labels
    first: int = END  # position of the first one, see `at_row`
    files: set[int] = field(default_factory=set)

    def add(self, other: _Rows) -> None:
        """Add rows of the same shard."""
        self.rows += other.rows
        self.own += other.own
        self.digest ^= other.digest
        self.done += other.done
        self.digest_of_done ^= other.digest_of_done
        self.failed += other.failed
        self.due |= other.due
        self.keeps |= other.keeps
        self.first = min(self.first, other.first)
        self.files |= other.files


def plan_shards(listing: Listing, committed: Committed, shards: Mapping[str, Shard]) -> Plan:
    """Like `plan`, for a source whose shards have to be read to list their clips.

    `shards` are those that earlier runs have read to the end. A shard is done if it has not changed
    since and the table has a finished row for each of its clips. Otherwise its row in the plan names
    the data files with rows of it, so that its reader skips what is done.
    """
    known: dict[str, _Rows] = {}
    kept = pa.array([id for shard in shards.values() for id in shard.kept], pa.string())
    for rows in committed.scan(READ):
        for source, part in _added_up(rows, kept):
            known.setdefault(source, _Rows()).add(part)
    found = listing.clips
    places = list(zip(*(found[n].to_pylist() for n in ("source", "source_version")), strict=True))
    # A missing tar has vanished, unless the table has no row of it: then it becomes an error row.
    vanished = {source for source, version in places if version in NO_VERSION and source in known}
    none = _Rows()

    def is_done(source: str, version: str, *, whatever_is_due: bool = False) -> bool:
        rows = known.get(source, none)
        of = (rows.own, rows.digest) if whatever_is_due else (rows.done, rows.digest_of_done)
        return source in shards and shards[source].is_done(version, of[0], f"{of[1]:032x}")

    finished = {place[0] for place in places if is_done(*place)} - vanished
    left = [place for place in places if place[0] not in vanished and place[0] not in finished]
    is_left = [source not in vanished and source not in finished for source, _ in places]
    todo = found.filter(pa.array(is_left, pa.bool_()))
    of_todo = [known.get(source, none) for source, _ in left]
    files = pa.array([sorted(rows.files) for rows in of_todo], pa.list_(pa.int32()))
    count = sum(shards[source].clips for source in finished)
    available = {source for source, _ in places} - vanished
    # Of shards that are known whole only what is due on their rows; others may hold new clips.
    are_known = all(is_done(*place, whatever_is_due=True) for place in left)
    return Plan(
        in_order(
            todo.append_column(FILES, files), pa.array([r.first for r in of_todo], pa.int64())
        ),
        obsolete=(),
        found=count,
        done=count,
        failed_before=sum(known[source].failed for source in finished if source in known),
        vanished=sum(rows.rows for source, rows in known.items() if source not in available),
        due=reduce(operator.or_, (rows.due for rows in of_todo), 0) if are_known else ALL,
        keeps=any(rows.keeps for rows in of_todo),
        files=committed.files,
        known_to_read=sum(rows.own for rows in of_todo),
        done_to_read=sum(rows.done for rows in of_todo),
    )


def _added_up(rows: pa.Table, kept: pa.Array) -> Iterator[tuple[str, _Rows]]:
    """The rows (`READ`) by source."""
    if not len(rows):
        return
    sources = rows["source"].combine_chunks().dictionary_encode()
    order = np.argsort(sources.indices.to_numpy(), kind="stable")
    starts = np.flatnonzero(np.diff(sources.indices.to_numpy()[order], prepend=-1))
    due = rows["due"].to_numpy()[order]
    is_ok = pc.equal(rows["status"], "ok").to_numpy()[order]
    is_own = ~pc.is_in(rows["clip_id"], value_set=kept).to_numpy()[order]
    has_channel = rows["channel"].is_valid().to_numpy()[order]
    ids = numbers(rows["clip_id"].combine_chunks())[order]
    is_done = due == 0

    def count(mask: np.ndarray) -> list[int]:
        return np.add.reduceat(mask.astype(np.int64), starts).tolist()  # type: ignore[no-any-return]

    def digests(mask: np.ndarray) -> list[int]:
        both = np.bitwise_xor.reduceat(np.where(mask[:, None], ids, 0), starts)
        return [high << 64 | low for high, low in both.tolist()]

    keeps = ~is_done & ((due != ALL) | has_channel)
    columns = (
        np.diff(starts, append=len(rows)).tolist(),
        count(is_own),
        digests(is_own),
        count(is_own & is_done),
        digests(is_own & is_done),
        count(~is_ok & is_done),
        np.bitwise_or.reduceat(due, starts).tolist(),
        [bool(any_) for any_ in count(keeps)],
        np.minimum.reduceat(at_row(rows)[order], starts).tolist(),
        [{rows["file"][0].as_py()}] * len(starts),  # all rows that come together are of one
    )
    for source, *values in zip(sources.dictionary.to_pylist(), *columns, strict=True):
        yield source, _Rows(*values)


def with_known(plan: pa.Table, settings: RowSettings | None) -> pa.Table:
    """A stretch of the plan with `known`, the table's rows of each shard (`KNOWN`), in place of `FILES`."""
    if FILES not in plan.column_names:
        return plan
    places = zip(plan["source"].to_pylist(), plan[FILES].to_pylist(), strict=True)
    names = [field.name for field in KNOWN.value_type]
    known = [
        rows_of_shard(settings, source, files).select(names).to_pylist()
        if settings and files
        else []
        for source, files in places
    ]
    return plan.drop_columns([FILES]).append_column("known", pa.array(known, KNOWN))
