"""A stretch of the plan -> prepared clips: the source opens them, `audio_ops` decodes them.

Both happen in a process of its own, which a clip may kill, hang or bloat: see `jobs.child`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from types import ModuleType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import END_OF_SHARD, NONE_LOST, ClipError
from audio_ops.prepare import prepare
from audio_ops.tasks import WantsSpeech
from jobs.child import Died, Shared, child
from jobs.config import Audio, Input
from jobs.plan import clip_id
from jobs.sources import NO_COLUMNS, PLACE, load_source

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
                    given.update(table["clip_id"].to_pylist())
                    ended += table["error_kind"].to_pylist().count(END_OF_SHARD)
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
    text = pa.string()

    def noted() -> Clips:
        row = 0
        shared.at("", row)
        clips = (
            shards(source, plan, input, kept, given, lost, lambda: shared.at("", row))
            if source.SHARDED
            else _alive(source, plan, input, kept, lost)
        )
        for clip, file in clips:
            is_end = isinstance(file, ClipError) and file.kind == END_OF_SHARD
            shared.at(clip.get("clip_id", ""), row)
            yield clip, file  # and it is prepared
            row += is_end or not source.SHARDED
            shared.at("", row)

    return prepare(
        noted(),
        schema=pa.schema([("clip_id", text), *PLACE, *kept, ("supersedes", text)]),
        rates=rates,
        max_clip_s=max_clip_s,
        want_speech=want_speech,
        lost=lost,
        decoded=shared.decoded,
    )


def shards(
    source: ModuleType,
    plan: pa.Table,
    input: Input,
    kept: pa.Schema,
    given: AbstractSet[str] = frozenset(),
    lost: Mapping[str, ClipError] = NONE_LOST,
    passed: Callable[[], None] = lambda: None,
) -> Clips:
    """The clips of each shard that are not done yet, and after them the shard's last row.

    `passed` hears of each clip that is left out. What is `given` counts, but does not come again.
    """
    for number, shard in enumerate(plan.to_pylist()):
        done = {row["clip_id"] for row in shard["known"] if row["done"]}
        places = {
            (row["member"], row["offset_s"]): row["clip_id"]
            for row in shard["known"]
            if not row["done"]
        }
        found = skipped = 0
        if shard["source"] in lost:  # then none of those is seen
            found, skipped = len(done | given), len(done)
        for clip, file in _alive(source, plan.slice(number, 1), input, kept, lost):
            found += 1
            clip["clip_id"] = clip_id(*(clip[name] for name in PLACE.names))
            if clip["clip_id"] in done or clip["clip_id"] in given:
                skipped += clip["clip_id"] in done
                passed()
                continue
            clip["supersedes"] = places.get((clip["member"], clip["offset_s"]))
            yield clip, file
        end = {name: shard[name] for name in ("source", "source_version", "offset_s")}
        yield end, ClipError(END_OF_SHARD, f"{found} {skipped}")


def _alive(
    source: ModuleType,
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
