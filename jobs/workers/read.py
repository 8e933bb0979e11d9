"""A stretch of the plan -> tables of prepared clips.

The source opens the clips and `audio_ops` decodes them in a sandbox, which a clip may kill, hang
or bloat: see `jobs.workers.sandbox`.
"""

from __future__ import annotations

import io
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.decode.headerless import Headerless
from audio_ops.errors import ClipError
from audio_ops.prepare import prepare
from audio_ops.tasks import WantsSpeech, most_speech
from jobs.clips import clip_id, digest
from jobs.config import Audio
from jobs.input import Input
from jobs.planning.committed import RowSettings
from jobs.planning.shards import with_known
from jobs.shared_storage import SeenInput, expect_input
from jobs.sources import NO_COLUMNS, PLACE, Source, load_source
from jobs.sources._paths import open_file
from jobs.table.schema import CHANGE, IDENTITY, SHARD_END
from jobs.workers.crash_ledger import ReadLedger
from jobs.workers.kept import KeptRows, KeptSettings, due_of, without_kept
from jobs.workers.lanes import LONG_BYTES, Lanes
from jobs.workers.sandbox import Died, SharedMemory, sandbox

KILLS_OF_A_CLIP = 3  # from outside, the last ones while no other long recording is decoded
TAR_BLOCK = 512  # bytes
DEATHS_OF_A_FILE = 3  # between its clips, until the rest of it is given up
STARTS_IN_A_ROW = 10  # of a read task's process without a table, until the run is given up

Clips = Iterator[tuple[dict[str, Any], BinaryIO | ClipError | None]]


@dataclass(frozen=True)
class ReadSettings:
    """How clips are read and prepared, see `audio_ops.prepare.prepare`."""

    input: Input
    audio: Audio
    rates: tuple[int, ...]  # Hz
    want_speech: WantsSpeech
    kept: pa.Schema = NO_COLUMNS  # columns of the source that rows carry
    table_bytes: int = 8 << 20  # of a table that is handed on, or a little more
    clips_per_shard: int | None = None  # the first ones of each, for a sample; None: all
    # Of the run's tasks, by their bits in `_due`: rate and speech; none: all clips need all.
    needs: Mapping[int, tuple[int, WantsSpeech]] = field(default_factory=dict)

    def needed(self, due: int | None) -> tuple[tuple[int, ...], WantsSpeech]:
        """The rates in Hz, and for which clips speech, that the tasks in the bit mask `due` need; None is
        all tasks."""
        needs = [need for bit, need in self.needs.items() if due is None or due >> bit & 1]
        if not needs:
            return self.rates, self.want_speech
        rates = sorted({rate for rate, _ in needs})
        return tuple(rates), most_speech(wish for _, wish in needs)

    @property
    def bytes_per_s(self) -> int:
        """Of the waveforms of a second of sound, as float32."""
        return 4 * sum(self.rates)

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
    # By clip_id or source: not opened again.
    failed: Mapping[str, ClipError] = field(default_factory=dict)
    alone: AbstractSet[str] = frozenset()  # clip_ids, decoded while no other long recording is
    lanes_are_held: bool = False  # by the parent


def read_block(
    plan: pa.Table,
    settings: ReadSettings,
    *,
    number: int,
    seen: SeenInput,
    ledger: Any,
    known: RowSettings | None = None,
    kept: KeptSettings | None = None,
) -> Iterator[pa.Table]:
    """`read`, counted as stage `read`. `number` is that of the block in its task.

    If Ray starts the task again, after its process has died or what it read was lost, the tables that it
    handed on before have the same clips again, although other clips may fail this time: they may
    have been labelled already, and Ray takes the new tables for the old ones by their number.

    Raises OSError on a node that does not share the input, and RuntimeError if its process was
    started too often without reading anything.
    """
    from jobs.workers import metrics  # Ray is needed here, and not where `read` runs alone

    expect_input(seen)
    plan = with_known(plan, known)
    rows = KeptRows(plan, kept) if kept else None
    plan = without_kept(plan)
    reader = ReadLedger(ledger, number)
    cuts, deaths = reader.begin()
    if deaths >= STARTS_IN_A_ROW:
        raise RuntimeError(
            f"the process that reads {plan['source'][0]} died {deaths} times in a row without "
            "reading anything; its last messages are in Ray's logs (worker-*.err)"
        )
    started = time.monotonic()
    for number, clips in enumerate(read(plan, settings, cuts, alone=bool(deaths))):
        errors = clips["error_kind"].filter(clips["shard_end"].is_null())
        failed = len(errors) - errors.null_count
        metrics.count_clips("read", {"ok": errors.null_count, "error": failed})
        metrics.count_audio("read", clips["duration_s"])
        metrics.observe_time("read", started)
        if number >= len(cuts):
            reader.cut(len(clips))
        yield rows.beside(clips) if rows else clips
        started = time.monotonic()
    reader.end()


def read(
    plan: pa.Table, settings: ReadSettings, cuts: Sequence[int] = (), alone: bool = False
) -> Iterator[pa.Table]:
    """Tables of prepared clips (see `audio_ops.prepare`), each clip of the plan once, in order.

    With `alone` no other process decodes a long recording meanwhile (see `lanes`). The first tables
    have as many rows as `cuts` says, the others `table_bytes`. A sandbox hands over few clips at a
    time, so that its death costs little, and here they are gathered: Ray's work for a table grows
    with its chunks times its columns.
    """
    gathered: list[pa.Table] = []
    size = 0  # bytes; summing up all tables each time took 0.1 ms per clip
    left = list(reversed(cuts))  # of the tables to come
    for table in _from_sandboxes(plan, settings, alone):
        gathered.append(table)
        size += table.nbytes
        while left and sum(map(len, gathered)) >= left[-1]:
            whole, rows = _one(gathered), left.pop()
            yield whole.slice(0, rows)
            gathered = [whole.slice(rows)] if rows < len(whole) else []
            size = sum(one.nbytes for one in gathered)
        if not left and size >= settings.table_bytes:
            yield _one(gathered)
            gathered, size = [], 0
    if gathered:
        yield _one(gathered)


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def _from_sandboxes(
    plan: pa.Table, settings: ReadSettings, alone: bool = False
) -> Iterator[pa.Table]:
    """Tables as sandboxes hand them over.

    A clip that ends its sandbox, or takes too long, becomes an error row, and a new sandbox
    continues with the clips that had not been delivered. After DEATHS_OF_A_FILE deaths between two
    clips of a file, the rest of the file becomes error rows.
    """
    audio, is_sharded = settings.audio, settings.source.SHARDED
    limits = audio.decode_timeout_s, audio.decode_memory_mb << 20
    deaths: Counter[str] = Counter()  # by clip_id or source
    work = SandboxWork(plan, settings, lanes_are_held=alone)
    delivered: dict[str, list[str]] = {}
    ended = 0  # shards of the plan
    lanes = _lanes(settings)
    if alone:
        lanes.take_all()
    try:
        while len(plan):
            try:
                with sandbox() as process:
                    for table in process.tables(prepared, {"work": work}, *limits):
                        for planned, id in _ids_of(table):
                            delivered.setdefault(planned, []).append(id)
                        ended += len(table) - table["shard_end"].null_count
                        yield table
                return
            except Died as death:
                work = _after(death, work, deaths)
            if is_sharded:
                plan, ended = plan.slice(ended), 0
            else:
                is_delivered = pc.is_in(plan["clip_id"], pa.array(list(delivered), pa.string()))
                plan = plan.filter(pc.invert(is_delivered))
            work = replace(work, plan=plan, delivered=delivered)
    finally:
        lanes.release()


def _ids_of(table: pa.Table) -> Iterator[tuple[str, str]]:
    """The plan's `clip_id` and the own one of each clip of a table."""
    ids, recordings = table["clip_id"].to_pylist(), table["_recording"]
    has_any = recordings.null_count < len(table)
    of_all = recordings.to_pylist() if has_any else [None] * len(table)
    for id, recording in zip(ids, of_all, strict=True):
        if id is not None:  # a shard's end has none
            yield (recording["id"] if recording else id), id


def _after(death: Died, work: SandboxWork, deaths: Counter[str]) -> SandboxWork:
    """The work for the sandbox after one that has died."""
    at = death.clip_id or work.plan["source"][min(death.row, len(work.plan) - 1)].as_py()
    deaths[at] += 1
    # One that was killed from outside, as for want of memory, gets more chances.
    may_die = (KILLS_OF_A_CLIP if death.by_chance else 1) if death.clip_id else DEATHS_OF_A_FILE
    if deaths[at] >= may_die:
        failed = {**work.failed, at: ClipError(death.kind, death.message)}
        return replace(work, failed=failed)
    return replace(work, alone=work.alone | {death.clip_id})


def _lanes(settings: ReadSettings, waits: Callable[[], None] = lambda: None) -> Lanes:
    """The lanes of this node, by what the longest clip takes."""
    return Lanes(settings.audio.max_clip_s * settings.bytes_per_s, waits)


def prepared(memory: SharedMemory, work: SandboxWork) -> Iterator[pa.Table]:
    """Tables of prepared clips, in a sandbox: records in `memory` which clip is in progress, and takes
    a lane for one that needs much memory."""
    settings = work.settings
    source, channels = settings.source, settings.audio.channels
    readings: dict[str, ShardReading] = {}
    lanes, needed = _lanes(settings, memory.waits), cache(settings.needed)

    def decoded(decoded_s: float) -> None:
        memory.decoded(decoded_s)
        if decoded_s * settings.bytes_per_s > LONG_BYTES and not work.lanes_are_held:
            lanes.take()

    def recorded() -> Clips:
        row = 0
        memory.working_on("", row)
        clips = (
            shards(work, readings, skip=lambda: memory.working_on("", row))
            if source.SHARDED
            else _opened(work, work.plan)
        )
        try:
            for clip, file in clips:
                memory.working_on(clip.get("clip_id", ""), row)
                if clip.get("clip_id") in work.alone and not work.lanes_are_held:
                    lanes.take_all()
                yield clip, file  # and it is prepared and, if it is long, handed over
                lanes.release()
                row += file is None or not source.SHARDED
                memory.working_on("", row)
        finally:
            lanes.release()

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
        needs=(lambda clip: needed(clip.get("_due"))) if settings.needs else None,
        failed=work.failed,
        decoded=decoded,
    )


def _of_channel(clip: dict[str, Any], channel: int, rows: int) -> dict[str, Any]:
    """The identity of one channel of a recording. The first one replaces all its rows so far."""
    place = {name: clip[name] for name in PLACE.names}
    id = clip_id(**place, channel=channel)
    return clip | {
        "clip_id": id,
        "_keeps": id if clip.get("_keeps") else None,
        "channel": channel,
        "supersedes": clip["supersedes"] if channel == 1 else None,
        "_recording": {"id": clip["clip_id"], "rows": rows},
    }


def shards(
    work: SandboxWork,
    readings: dict[str, ShardReading] | None = None,
    skip: Callable[[], None] = lambda: None,
) -> Clips:
    """The clips of each shard that are not done yet, then a row without a clip (None), whose `shard_end`
    says what was in the shard.

    `readings` gets each shard's, by its source. `skip` is called for each clip that is left out:
    those that are done, or delivered before.
    """
    limit, channels = work.settings.clips_per_shard, work.settings.audio.channels
    for number, shard in enumerate(work.plan.to_pylist()):
        part = ShardReading(shard)
        if readings is not None:
            readings[shard["source"]] = part
        clips = _opened(work, work.plan.slice(number, 1), part.passed_over)
        for count, (clip, file) in enumerate(clips, 1):
            clip["channel"] = channels if isinstance(channels, int) else None
            is_done = part.meet(clip)
            if limit is not None:
                part.count_bytes(file)
            if is_done or clip["clip_id"] in work.delivered:
                part.met.update(work.delivered.get(clip["clip_id"], ()))
                skip()
            else:
                if channels != "each":  # else there may be several: known after decoding
                    part.met.add(clip["clip_id"])
                yield clip, file
            if count == limit:
                part.leave(work.settings.input)
                break
        if shard["source"] in work.failed:  # the clips that came before the failure still count
            part.skipped |= part.done
            part.met |= part.done.union(*work.delivered.values())
            part.unmet -= part.met
        end = {name: shard[name] for name in ("source", "source_version", "offset_s")}
        yield end | {"shard_end": part.end()}, None


class ShardReading:
    """A shard while it is read, compared with the rows that the table holds from it."""

    def __init__(self, shard: Mapping[str, Any]) -> None:
        known = shard.get("known") or ()  # absent if there is no table
        self.version = shard["source_version"]
        self.done = {row["clip_id"] for row in known if not row["due"]}
        self.rows: dict[tuple[str, float], list[dict[str, Any]]] = {}  # by place
        for row in known:
            self.rows.setdefault((row["member"], row["offset_s"]), []).append(row)
        self.unmet = {row["clip_id"] for row in known}  # rows whose clips did not come so far
        self.met: set[str] = set()  # clip_ids
        self.passed_over: Counter[str] = Counter()  # what else is in it, by extension
        self.skipped: set[str] = set()
        self.is_whole = True
        self.source = shard["source"]
        self.bytes_met = 0
        self.part = 1.0

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
            own = [row for row in own if not row["due"]]
            done = {row["clip_id"] for row in own if len(own) == row["channels"]}
        self.unmet -= done or {row["clip_id"] for row in known}
        self.met |= done
        self.skipped |= done
        clip["supersedes"] = None if done else [row["clip_id"] for row in known] or None
        if not done:
            own = [row for row in known if row["clip_id"] in ids(row["channel"])]
            clip["_due"], clip["_keeps"] = due_of(clip["channel"], own)
        if member is None:  # an error in place of the rest of the shard
            self.is_whole = False
        return bool(done)

    def count_bytes(self, file: BinaryIO | ClipError | None) -> None:
        """Add a clip's bytes to those that were read, with the tar's header and padding."""
        if file is not None and not isinstance(file, ClipError):
            self.bytes_met += TAR_BLOCK * (1 + math.ceil(file.seek(0, io.SEEK_END) / TAR_BLOCK))
            file.seek(0)

    def leave(self, input: Input) -> None:
        """Read no further, as for a sample: the rest may hold any number of clips."""
        self.is_whole = False
        with open_file(self.source, self.version, input.storage_options) as file:
            size = file.seek(0, io.SEEK_END)
        self.part = min(1.0, self.bytes_met / size)

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
            "passed_over": sorted(self.passed_over.items()),
            "part": self.part,
        }


def _opened(work: SandboxWork, plan: pa.Table, passed_over: Counter[str] | None = None) -> Clips:
    """The source's clips of a plan, but an error in place of each row of a file that has failed."""
    input, kept = work.settings.input, work.settings.kept
    start = 0
    for error, rows in groupby(plan["source"].to_pylist(), work.failed.get):
        stretch = plan.slice(start, len(list(rows)))
        start += len(stretch)
        if error is None:
            yield from work.settings.source.clips(stretch, input, kept, passed_over)
        else:
            yield from ((row, error) for row in stretch.to_pylist())
