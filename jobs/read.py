"""A stretch of the plan -> prepared clips: the source opens them, `audio_ops` decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, BinaryIO

import pyarrow as pa

from audio_ops.decode import ClipError
from audio_ops.prepare import prepare
from audio_ops.tasks import WantsSpeech
from jobs.config import Input
from jobs.plan import clip_id
from jobs.sources import NO_COLUMNS, PLACE, load_source

# The last row of a shard is no clip: it tells the driver how many clips the shard holds, and how
# many of them were done before. It walks with them as a row that has failed, and ends at `write`.
END_OF_SHARD = "end of shard"

Clips = Iterator[tuple[dict[str, Any], BinaryIO | ClipError]]


def read(
    plan: pa.Table,
    *,
    input: Input,
    rates: Sequence[int],
    max_clip_s: float,
    want_speech: WantsSpeech,
    kept: pa.Schema = NO_COLUMNS,
) -> Iterator[pa.Table]:
    """Tables of prepared clips (see `audio_ops.prepare`), each clip of the plan once, in order."""
    source = load_source(input.format)
    text = pa.string()
    yield from prepare(
        shards(source, plan, input, kept) if source.SHARDED else source.clips(plan, input, kept),
        schema=pa.schema([("clip_id", text), *PLACE, *kept, ("supersedes", text)]),
        rates=rates,
        max_clip_s=max_clip_s,
        want_speech=want_speech,
    )


def shards(source: ModuleType, plan: pa.Table, input: Input, kept: pa.Schema) -> Clips:
    """The clips of each shard that are not done yet, and after them the shard's last row."""
    for number, shard in enumerate(plan.to_pylist()):
        done = {row["clip_id"] for row in shard["known"] if row["done"]}
        places = {
            (row["member"], row["offset_s"]): row["clip_id"]
            for row in shard["known"]
            if not row["done"]
        }
        found = skipped = 0
        for clip, file in source.clips(plan.slice(number, 1), input, kept):
            found += 1
            clip["clip_id"] = clip_id(*(clip[name] for name in PLACE.names))
            if clip["clip_id"] in done:
                skipped += 1
                continue
            clip["supersedes"] = places.get((clip["member"], clip["offset_s"]))
            yield clip, file
        end = {name: shard[name] for name in ("source", "source_version", "offset_s")}
        yield end, ClipError(END_OF_SHARD, f"{found} {skipped}")
