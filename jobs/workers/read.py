"""A stretch of the plan -> tables of prepared clips.

The source opens the clips and `audio_ops` decodes them in a sandbox, which a clip may kill, hang
or bloat: see `jobs.workers.sandbox`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.decode.headerless import Headerless
from audio_ops.errors import ClipError
from audio_ops.prepare import prepare
from audio_ops.tasks import WantsSpeech
from jobs.config import Audio
from jobs.input import Input
from jobs.plan import clip_id, digest
from jobs.shared_storage import SeenInput, expect_input
from jobs.sources import NO_COLUMNS, PLACE, Source, load_source
from jobs.table.schema import CHANGE, IDENTITY, SHARD_END
from jobs.workers.sandbox import Died, SharedMemory, sandbox

DEATHS_OF_A_FILE = 3  # between its clips, until the rest of it is given up
GATHERED_BYTES = 8 << 20

Clips = Iterator[tuple[dict[str, Any], BinaryIO | ClipError | None]]


@dataclass(frozen=True)
class ReadSettings:
    """How clips are read and prepared, see `audio_ops.prepare.prepare`."""

    input: Input
    audio: Audio
    rates: tuple[int, ...]  # Hz
    want_speech: WantsSpeech
    kept: pa.Schema = NO_COLUMNS  # columns of the source that rows carry

    @property
    def source(self) -> Source:
        return load_source(self.input.format)

    def headerless(self, clip: Mapping[str, Any]) -> Headerless | None:
        """How a clip is encoded that has no header, by the extension of its name."""
        for name in (clip["member"] or "", clip["source"]):
            extension = name.rpartition(".")[2].partition("#")[0].lower()  # a.ulaw#2 in a tar
            for raw in self.audio.raw:
                if extension in raw.extensions:
                    return raw.headerless
        return None


@dataclass(frozen=True)
class SandboxWork:
    """A plan in a sandbox, and what became of it in earlier sandboxes.

    delivered: by the plan's `clip_id` those of its rows, which do not come again.
    """

    plan: pa.Table
    settings: ReadSettings
    delivered: Mapping[str, Sequence[str]] = field(default_factory=dict)
    failed: Mapping[str, ClipError] = field(
        default_factory=dict
    )  # by clip_id or source, not opened


def read_block(plan: pa.Table, settings: ReadSettings, seen: SeenInput) -> Iterator[pa.Table]:
    """`read`, counted as stage `read`. Raises OSError on a node that does not share the input."""
    from jobs.workers import metrics  # Ray is needed here, and not where `read` runs alone

    expect_input(seen)
    started = time.monotonic()
    for clips in read(plan, settings):
        errors = clips["error_kind"].filter(clips["shard_end"].is_null())
        failed = len(errors) - errors.null_count
        metrics.count_clips("read", {"ok": errors.null_count, "error": failed})
        metrics.count_audio("read", clips["duration_s"])
        metrics.observe_time("read", started)
        yield clips
        started = time.monotonic()


def read(plan: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    """Tables of prepared clips (see `audio_ops.prepare`), each clip of the plan once, in order.

    A sandbox hands over few clips at a time, so that its death costs little. Here they become
    tables of GATHERED_BYTES: Ray's work for a table grows with its chunks times its columns.
    """
    tables: list[pa.Table] = []
    size = 0
    for table in _from_sandboxes(plan, settings):
        tables.append(table)
        size += table.nbytes
        if size >= GATHERED_BYTES:
            yield _one(tables)
            tables, size = [], 0
    if tables:
        yield _one(tables)


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def _from_sandboxes(plan: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    """Tables as sandboxes hand them over.

    A clip that ends its sandbox, or takes too long, becomes an error row, and a new sandbox
    continues with the clips that had not been delivered. After DEATHS_OF_A_FILE deaths between two
    clips of a file, the rest of the file becomes error rows.
    """
    audio, is_sharded = settings.audio, settings.source.SHARDED
    limits = audio.decode_timeout_s, audio.decode_memory_mb << 20
    deaths: Counter[str] = Counter()  # by clip_id or source
    failed: dict[str, ClipError] = {}
    delivered: dict[str, list[str]] = {}
    ended = 0  # shards of the plan
    while len(plan):
        work = SandboxWork(plan, settings, delivered, failed)
        try:
            with sandbox() as process:
                for table in process.tables(prepared, {"work": work}, *limits):
                    for id, recording in zip(
                        table["clip_id"].to_pylist(), table["_recording"].to_pylist(), strict=True
                    ):
                        if id is not None:  # an end has none
                            delivered.setdefault(recording["id"] if recording else id, []).append(
                                id
                            )
                    ended += len(table) - table["shard_end"].null_count
                    yield table
            return
        except Died as death:
            at = death.clip_id or plan["source"][min(death.row, len(plan) - 1)].as_py()
            deaths[at] += 1
            # A sandbox that was killed from outside, as for want of memory, gets a second chance.
            if deaths[at] >= (1 + death.by_chance if death.clip_id else DEATHS_OF_A_FILE):
                failed[at] = ClipError(death.kind, death.message)
        if is_sharded:
            plan, ended = plan.slice(ended), 0
        else:
            is_delivered = pc.is_in(plan["clip_id"], pa.array(list(delivered), pa.string()))
            plan = plan.filter(pc.invert(is_delivered))


def prepared(memory: SharedMemory, work: SandboxWork) -> Iterator[pa.Table]:
    """Tables of prepared clips, in a sandbox: records in `memory` which clip is in progress."""
    settings = work.settings
    source, channels = settings.source, settings.audio.channels
    readings: dict[str, ShardReading] = {}

    def recorded() -> Clips:
        row = 0
        memory.working_on("", row)
        clips = (
            shards(work, readings, skip=lambda: memory.working_on("", row))
            if source.SHARDED
            else _opened(work, work.plan)
        )
        for clip, file in clips:
            memory.working_on(clip.get("clip_id", ""), row)
            yield clip, file  # and it is prepared
            row += file is None or not source.SHARDED
            memory.working_on("", row)

    def identified(clip: dict[str, Any], channel: int | None, rows: int) -> dict[str, Any]:
        own = _of_channel(clip, channel, rows) if channels == "each" and channel else clip
        if reading := readings.get(clip["source"]):
            reading.met.add(own["clip_id"])
        return own

    return prepare(
        recorded(),
        schema=pa.schema([*IDENTITY, *settings.kept, *CHANGE, ("shard_end", SHARD_END)]),
        rates=settings.rates,
        max_clip_s=settings.audio.max_clip_s,
        damage=settings.audio.damage,
        raw=settings.headerless,
        channels=channels,
        identified=identified,
        want_speech=settings.want_speech,
        failed=work.failed,
        decoded=memory.decoded,
    )


def _of_channel(clip: dict[str, Any], channel: int, rows: int) -> dict[str, Any]:
    """The identity of one channel of a recording. The first one replaces all its rows so far."""
    place = {name: clip[name] for name in PLACE.names}
    return clip | {
        "clip_id": clip_id(**place, channel=channel),
        "channel": channel,
        "supersedes": clip["supersedes"] if channel == 1 else None,
        "_recording": {"id": clip["clip_id"], "rows": rows},
    }


def shards(
    work: SandboxWork,
    readings: dict[str, ShardReading] | None = None,
    skip: Callable[[], None] = lambda: None,
) -> Clips:
    """The clips of each shard that are not done yet, and behind them a row without a clip (None),
    whose `shard_end` says what was in the shard.

    `readings` gets each shard's, to be told of channels. `skip` is called for each clip that is left out: those that are done,
    or delivered before.
    """
    channels = work.settings.audio.channels
    for number, shard in enumerate(work.plan.to_pylist()):
        part = ShardReading(shard)
        if readings is not None:
            readings[shard["source"]] = part
        for clip, file in _opened(work, work.plan.slice(number, 1)):
            clip["channel"] = channels if isinstance(channels, int) else None
            is_done = part.meet(clip)
            if is_done or clip["clip_id"] in work.delivered:
                part.met.update(work.delivered.get(clip["clip_id"], ()))
                skip()
                continue
            if channels != "each":  # else there may be several, of which decoding tells
                part.met.add(clip["clip_id"])
            yield clip, file
        if shard["source"] in work.failed:  # what came out of it before that counts all the same
            part.skipped |= part.done
            part.met |= part.done.union(*work.delivered.values())
            part.unmet -= part.met
        end = {name: shard[name] for name in ("source", "source_version", "offset_s")}
        yield end | {"shard_end": part.end()}, None


class ShardReading:
    """A shard while it is read, compared with the rows that the table holds from it."""

    def __init__(self, shard: Mapping[str, Any]) -> None:
        known = shard["known"]
        self.version = shard["source_version"]
        self.done = {row["clip_id"] for row in known if row["done"]}
        self.rows: dict[tuple[str, float], list[dict[str, Any]]] = {}  # by place
        for row in known:
            self.rows.setdefault((row["member"], row["offset_s"]), []).append(row)
        self.unmet = {row["clip_id"] for row in known}  # rows whose clips did not come so far
        self.met: set[str] = set()  # clip_ids
        self.skipped: set[str] = set()
        self.is_whole = True

    def meet(self, clip: dict[str, Any]) -> bool:
        """Set the clip's `clip_id` and the rows that its new row replaces; returns whether it is
        done."""
        source, member, version, offset_s = (clip[name] for name in PLACE.names)
        known = self.rows.get((member, offset_s), [])

        def ids(channel: int | None) -> list[str]:
            # Rows from before clips of shards had versions of their own.
            versions = version, self.version
            return [clip_id(source, member, each, offset_s, channel) for each in versions]

        clip["clip_id"] = ids(clip["channel"])[0]
        done = self.done.intersection(ids(clip["channel"]))
        if not done and clip["channel"] is None:  # each channel may have its row
            own = [row for row in known if row["channel"] and row["clip_id"] in ids(row["channel"])]
            own = [row for row in own if row["done"]]
            done = {row["clip_id"] for row in own if len(own) == row["channels"]}
        self.unmet -= done or {row["clip_id"] for row in known}
        self.met |= done
        self.skipped |= done
        clip["supersedes"] = None if done else [row["clip_id"] for row in known] or None
        if member is None:  # an error in place of the rest of the shard
            self.is_whole = False
        return bool(done)

    def end(self) -> dict[str, Any]:
        """`SHARD_END`. Rows whose clips did not come are removed, unless some of the shard could
        not be read."""
        obsolete, kept = (self.unmet, []) if self.is_whole else ((), self.unmet)
        return {
            "clips": len(self.met),
            "skipped": len(self.met & self.skipped),
            "obsolete": sorted(obsolete),
            "kept": sorted(kept),
            "digest": digest(self.met),
        }


def _opened(work: SandboxWork, plan: pa.Table) -> Clips:
    """The source's clips of a plan, but an error in place of each row of a file that has failed."""
    input, kept = work.settings.input, work.settings.kept
    start = 0
    for error, rows in groupby(plan["source"].to_pylist(), work.failed.get):
        stretch = plan.slice(start, len(list(rows)))
        start += len(stretch)
        if error is None:
            yield from work.settings.source.clips(stretch, input, kept)
        else:
            yield from ((row, error) for row in stretch.to_pylist())
