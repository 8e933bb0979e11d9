"""A stretch of the plan -> prepared clips: the source opens them, `audio_ops` decodes them.

Both happen in a process of its own, which a clip may kill, hang or bloat: see `jobs.child`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import END_OF_SHARD, NONE_LOST, ClipError
from audio_ops.prepare import prepare
from audio_ops.tasks import WantsSpeech
from jobs.child import Died, Shared, child
from jobs.config import Audio, Input
from jobs.plan import clip_id, digest
from jobs.sources import NO_COLUMNS, PLACE, Source, load_source
from jobs.table.schema import CHANGE, IDENTITY, SHARD_END

DEATHS_OF_A_FILE = 3  # between its clips, until what is left of it is given up
GATHERED_BYTES = 8 << 20

Clips = Iterator[tuple[dict[str, Any], BinaryIO | ClipError]]


def read(plan: pa.Table, **settings: Any) -> Iterator[pa.Table]:
    """Tables of prepared clips (see `audio_ops.prepare`), each clip of the plan once, in order;
    `settings` are those of `_handed_over`.

    A child hands few clips over at a time, so that little is lost when it dies. Here they become
    tables of GATHERED_BYTES: Ray's work for a table grows with its chunks, times its columns.
    """
    tables: list[pa.Table] = []
    size = 0
    for table in _handed_over(plan, **settings):
        tables.append(table)
        size += table.nbytes
        if size >= GATHERED_BYTES:
            yield _one(tables)
            tables, size = [], 0
    if tables:
        yield _one(tables)


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def _handed_over(
    plan: pa.Table,
    *,
    input: Input,
    audio: Audio,
    rates: Sequence[int],
    want_speech: WantsSpeech,
    kept: pa.Schema = NO_COLUMNS,
) -> Iterator[pa.Table]:
    """Tables as a child hands them over, which decodes what `plan` says.

    A clip that ends the process that decodes it, or takes too long, becomes an error row, and a
    new process goes on with what had not come out by then. Where none gets from one clip of a file
    to the next, all that is left of the file does.
    """
    is_sharded = load_source(input.format).SHARDED
    deaths: Counter[str] = Counter()  # by clip_id or source
    lost: dict[str, ClipError] = {}
    given: set[str] = set()  # clip_ids
    ended = 0  # shards of the plan
    while len(plan):
        work = {
            "plan": plan,
            "given": given,
            "lost": lost,
            "input": input,
            "max_clip_s": audio.max_clip_s,
            "rates": rates,
            "want_speech": want_speech,
            "kept": kept,
        }
        limits = audio.decode_timeout_s, audio.decode_memory_mb << 20
        try:
            with child() as process:
                for table in process.tables(prepared, work, *limits):
                    given.update(table["clip_id"].drop_null().to_pylist())  # an end has none
                    ended += len(table) - table["shard_end"].null_count
                    yield table
            return
        except Died as death:
            at = death.clip_id or plan["source"][min(death.row, len(plan) - 1)].as_py()
            deaths[at] += 1
            # What was killed from outside, for want of memory, say, gets a second chance.
            if deaths[at] >= (1 + death.by_chance if death.clip_id else DEATHS_OF_A_FILE):
                lost[at] = ClipError(death.kind, death.message)
        if is_sharded:
            plan, ended = plan.slice(ended), 0
        else:
            is_given = pc.is_in(plan["clip_id"], pa.array(list(given), pa.string()))
            plan = plan.filter(pc.invert(is_given))


def prepared(
    shared: Shared,
    *,
    plan: pa.Table,
    given: AbstractSet[str],
    lost: Mapping[str, ClipError],
    input: Input,
    max_clip_s: float,
    rates: Sequence[int],
    want_speech: WantsSpeech,
    kept: pa.Schema,
) -> Iterator[pa.Table]:
    """What `read` does, as far as it does it in the child.

    Clips in `given` are left out, which does not change a shard's counts; what is `lost`, by
    `clip_id` or source, is not touched.
    """
    source = load_source(input.format)

    def noted() -> Clips:
        row = 0
        shared.at("", row)
        clips = (
            shards(source, plan, input, kept, given, lost, lambda: shared.at("", row))
            if source.SHARDED
            else _alive(source, plan, input, kept, lost)
        )
        for clip, file in clips:
            is_end = "shard_end" in clip
            shared.at(clip.get("clip_id", ""), row)
            yield clip, file  # and it is prepared
            row += is_end or not source.SHARDED
            shared.at("", row)

    return prepare(
        noted(),
        schema=pa.schema([*IDENTITY, *kept, *CHANGE, ("shard_end", SHARD_END)]),
        rates=rates,
        max_clip_s=max_clip_s,
        want_speech=want_speech,
        lost=lost,
        decoded=shared.decoded,
    )


def shards(
    source: Source,
    plan: pa.Table,
    input: Input,
    kept: pa.Schema,
    given: AbstractSet[str] = frozenset(),
    lost: Mapping[str, ClipError] = NONE_LOST,
    passed: Callable[[], None] = lambda: None,
) -> Clips:
    """The clips of each shard that are not done yet, and after them the shard's last row.

    `passed` is called for each clip that is left out. What is `given` counts, but does not come
    again.
    """
    for number, shard in enumerate(plan.to_pylist()):
        part = _Shard(shard)
        for clip, file in _alive(source, plan.slice(number, 1), input, kept, lost):
            clip["clip_id"], clip["supersedes"] = part.meet(clip)
            if clip["clip_id"] in part.done or clip["clip_id"] in given:
                passed()
                continue
            yield clip, file
        if shard["source"] in lost:  # what came out of it before that counts all the same
            part.met |= part.done | given
            part.left -= part.met
        end = {name: shard[name] for name in ("source", "source_version", "offset_s")}
        yield end | {"shard_end": part.end()}, ClipError(END_OF_SHARD, "")


class _Shard:
    """A shard while it is read, beside the rows that the table holds of it."""

    def __init__(self, shard: Mapping[str, Any]) -> None:
        known = shard["known"]
        self.version = shard["source_version"]
        self.done = {row["clip_id"] for row in known if row["done"]}
        self.places = {(row["member"], row["offset_s"]): row["clip_id"] for row in known}
        self.left = {row["clip_id"] for row in known}  # rows that nothing was met of
        self.met: set[str] = set()  # clip_ids
        self.is_whole = True

    def meet(self, clip: Mapping[str, Any]) -> tuple[str, str | None]:
        """The clip's id, and that of the row whose place it takes."""
        ids = [clip_id(*(clip[name] for name in PLACE.names))]
        # Rows from before clips of shards had versions of their own.
        ids.append(clip_id(clip["source"], clip["member"], self.version, clip["offset_s"]))
        own = next((id for id in ids if id in self.done), ids[0])
        old = None if own in self.done else self.places.get((clip["member"], clip["offset_s"]))
        self.met.add(own)
        self.left -= {own, old}
        if clip["member"] is None:  # an error in place of the rest of the shard
            self.is_whole = False
        return own, old

    def end(self) -> dict[str, Any]:
        """`SHARD_END`. Rows that were not met are obsolete, unless some of the shard could not be read."""
        obsolete, kept = (self.left, []) if self.is_whole else ((), self.left)
        return {
            "clips": len(self.met),
            "skipped": len(self.met & self.done),
            "obsolete": sorted(obsolete),
            "kept": sorted(kept),
            "digest": digest(self.met),
        }


def _alive(
    source: Source,
    plan: pa.Table,
    input: Input,
    kept: pa.Schema,
    lost: Mapping[str, ClipError],
) -> Clips:
    """`source.clips`, but an error in place of each row of a file that is lost."""
    start = 0
    for error, rows in groupby(plan["source"].to_pylist(), lost.get):
        stretch = plan.slice(start, len(list(rows)))
        start += len(stretch)
        if error is None:
            yield from source.clips(stretch, input, kept)
        else:
            yield from ((row, error) for row in stretch.to_pylist())
