"""Opened clips -> encoded sound: as it is, or decoded, cut into segments and encoded again.

This runs in a sandbox, as a clip may kill, hang or bloat the process that decodes it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from audio_ops.decode.formats import CONTAINERS, EXTENSIONS
from audio_ops.errors import ClipError
from jobs.config import Audio as AudioSettings
from jobs.export.options import Audio
from jobs.input import Input
from jobs.workers.lanes import LONG_BYTES, Lanes
from jobs.workers.reopen import Clip, opened
from jobs.workers.sandbox import Died, SharedMemory, sandbox

BYTES_PER_SAMPLE = 8  # float32 while it is decoded, then int16 and FLAC
DEATHS_OF_A_SOURCE = 3  # between its clips, until the rest of it is given up
KILLS_OF_A_CLIP = 3  # from outside, as when memory is short
ENCODED = pa.schema(
    [
        ("item", pa.int64()),  # number of the row in its shard
        ("content", pa.large_binary()),
        ("extension", pa.string()),
        ("sample_rate", pa.int32()),  # Hz; null for a copy, as the next two
        ("samples", pa.int64()),
        ("channels", pa.int32()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
    ]
)


class Encoded(NamedTuple):
    """A row of `ENCODED` without an error."""

    content: bytes
    extension: str
    sample_rate: int | None
    samples: int | None
    channels: int | None


class Segment(NamedTuple):
    """The part of a clip that an item is, in seconds; `end_s` None is the clip's end."""

    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class SoundSettings:
    """How clips are read and written."""

    input: Input
    decoding: AudioSettings  # as the table's labels were made with
    kept: pa.Schema
    audio: Audio
    encoding: str  # `flac` or `wav`, of what is not copied
    sample_rate: int | None  # Hz; None: as stored


@dataclass(frozen=True)
class SoundWork:
    """Clips of a shard, the segments of its items, and which clips have failed."""

    clips: Sequence[Clip]
    segments: Mapping[int, Segment]  # by item; without one, all of the clip is wanted
    settings: SoundSettings
    failed: Mapping[str, ClipError] = field(default_factory=dict)  # by clip_id or source
    alone: AbstractSet[str] = frozenset()  # clip_ids, decoded while no other long recording is
    batch_bytes: int = 8 << 20  # handed over at once; after a death each clip by itself


def encoded_items(work: SoundWork) -> Iterator[tuple[int, Encoded | ClipError]]:
    """The sound of each item, or what is wrong with it. One whose decoder dies is an error, and
    a new process continues with the clips that had not come."""
    limits = work.settings.decoding.decode_timeout_s, work.settings.decoding.decode_memory_mb << 20
    deaths: Counter[str] = Counter()
    left = {item for clip in work.clips for item in clip.items}
    while left:
        clips = [clip for clip in work.clips if left.intersection(clip.items)]
        work = replace(work, clips=clips)
        try:
            with sandbox() as process:
                for table in process.tables(encoded_tables, {"work": work}, *limits):
                    for row in table.to_pylist():
                        if row["item"] in left:  # segments before a death come again
                            left.discard(row["item"])
                            yield row.pop("item"), _result(row)
            return
        except Died as death:
            work = _after(death, work, deaths)


def _result(row: dict[str, Any]) -> Encoded | ClipError:
    kind, message = row.pop("error_kind"), row.pop("error_message")
    return ClipError(kind, message) if kind else Encoded(**row)


def _after(death: Died, work: SoundWork, deaths: Counter[str]) -> SoundWork:
    """The work for the process after one that has died."""
    at = death.clip_id or work.clips[min(death.row, len(work.clips) - 1)].source
    deaths[at] += 1
    work = replace(work, batch_bytes=0)
    may_die = (KILLS_OF_A_CLIP if death.by_chance else 1) if death.clip_id else DEATHS_OF_A_SOURCE
    if deaths[at] >= may_die:
        return replace(work, failed={**work.failed, at: ClipError(death.kind, death.message)})
    return replace(work, alone=work.alone | {death.clip_id})


def encoded_tables(memory: SharedMemory, work: SoundWork) -> Iterator[pa.Table]:
    """`ENCODED` of all items, in a sandbox: records in `memory` which clip is in progress."""
    import soundfile  # noqa: F401  # now, as the time that it takes is no clip's

    import audio_ops.prepare  # noqa: F401

    lanes = Lanes(_most_bytes(work), memory.waits)
    numbers = {clip.clip_id: number for number, clip in enumerate(work.clips)}

    def between(clip: Clip) -> None:
        memory.working_on("", numbers[clip.clip_id])

    rows: list[dict[str, Any]] = []
    size = 0
    try:
        for clip, file in _opened(work, between):
            memory.working_on(clip.clip_id, numbers[clip.clip_id])
            if clip.clip_id in work.alone:
                lanes.take_all()
            for row in _items(clip, file, work, _watching(memory, lanes, clip)):
                rows.append(row)
                size += len(row.get("content") or b"")
                if size >= work.batch_bytes:
                    yield pa.Table.from_pylist(rows, schema=ENCODED)
                    rows, size = [], 0
            lanes.release()
            between(clip)
    finally:
        lanes.release()
    if rows:
        yield pa.Table.from_pylist(rows, schema=ENCODED)


def _opened(
    work: SoundWork, begins: Callable[[Clip], None]
) -> Iterator[tuple[Clip, BinaryIO | ClipError]]:
    """The clips, without opening those that have failed."""
    failed = work.failed
    for clip in work.clips:
        if error := failed.get(clip.clip_id) or failed.get(clip.source):
            yield clip, error
    sound = [c for c in work.clips if c.clip_id not in failed and c.source not in failed]
    yield from opened(sound, work.settings.input, work.settings.kept, begins)


def _most_bytes(work: SoundWork) -> float:
    rates = [work.settings.sample_rate or clip.sample_rate for clip in work.clips]
    return work.settings.decoding.max_clip_s * BYTES_PER_SAMPLE * max(rates, default=1)


def _watching(memory: SharedMemory, lanes: Lanes, clip: Clip) -> Callable[[float], None]:
    """Called while a clip is decoded: takes a lane for one that needs much memory."""

    def decoded(decoded_s: float) -> None:
        memory.decoded(decoded_s)
        if decoded_s * BYTES_PER_SAMPLE * clip.sample_rate > LONG_BYTES:
            lanes.take()

    return decoded


def _items(
    clip: Clip, file: BinaryIO | ClipError, work: SoundWork, decoded: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    """The rows of a clip's items. Closes the file."""
    try:
        if isinstance(file, ClipError):
            raise file
        with file:
            is_copied = work.settings.audio == "copy" and clip.is_whole
            if is_copied and not work.segments.keys() & set(clip.items):
                content, extension = file.read(), _extension(clip)
                if not content:
                    raise ClipError("empty", "there are no bytes")
                for item in clip.items:
                    yield {"item": item, "content": content, "extension": extension}
                return
            yield from _decoded_items(clip, file, work, decoded)
    except ClipError as error:
        for item in clip.items:
            yield {"item": item, "error_kind": error.kind, "error_message": error.message}
    except MemoryError:
        for item in clip.items:
            what = "the sound does not fit into memory"
            yield {"item": item, "error_kind": "memory", "error_message": what}


def _decoded_items(
    clip: Clip, file: BinaryIO, work: SoundWork, decoded: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    """The items of a clip that is decoded as its labels' was, in one channel."""
    from audio_ops.prepare import prepare_clip  # a decoder, which no command's help imports

    settings = work.settings
    rate = settings.sample_rate or clip.sample_rate
    row = prepare_clip(
        file,
        (rate,),
        settings.decoding.max_clip_s,
        clip.stretch,
        decoded,
        damage=settings.decoding.damage,
        raw=_headerless(clip, settings.decoding),
        channels=clip.channel or "mean",
    )
    sound = row[f"sound_{rate}"]
    for item in clip.items:
        segment = work.segments.get(item, Segment(0.0, None))
        start = round(segment.start_s * rate)
        stop = len(sound) if segment.end_s is None else round(segment.end_s * rate)
        samples = _int16(sound, start, stop)
        if not len(samples):
            what = f"the sound ends before {segment.start_s:g} s"
            yield {"item": item, "error_kind": "truncated", "error_message": what}
            continue
        yield {
            "item": item,
            "content": encode(samples, rate, settings.encoding),
            "extension": settings.encoding,
            "sample_rate": rate,
            "samples": len(samples),
            "channels": 1,
        }


def _int16(sound: Any, start: int, stop: int) -> Any:
    """Samples as 16 bits: as they are stored, or rounded, and cut at full scale."""
    import numpy as np

    from audio_ops.signal.waveforms import Pcm16

    if isinstance(sound, Pcm16):
        return sound.samples[start:stop]
    return np.clip(np.rint(sound[start:stop] * np.float32(32768)), -32768, 32767).astype(np.int16)


def encode(samples: Any, rate: int, encoding: str) -> bytes:
    """A FLAC or WAV file of int16 (samples,). Raises ClipError for a rate that FLAC does not have."""
    import soundfile

    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format=encoding.upper(), subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        what = f"{rate} Hz can't be written as {encoding}: {error}"
        raise ClipError("unsupported", what) from None
    return file.getvalue()


def _headerless(clip: Clip, decoding: AudioSettings) -> Any:
    """How the clip is encoded, if it has no header (see `Raw`)."""
    name = clip.place.name if clip.place.kind == "member" else clip.source
    extension = name.rpartition(".")[2].partition("#")[0].lower()
    raws = (raw for raw in decoding.raw if extension in raw.extensions)
    return next((raw.headerless for raw in raws), None)


def _extension(clip: Clip) -> str:
    """The extension that a copied clip gets: of its name, or else of its container."""
    name = clip.place.name if clip.place.kind == "member" else clip.source
    own = name.rpartition("/")[2].partition("#")[0].rpartition(".")[2].lower()
    if own in EXTENSIONS and clip.place.kind != "row":
        return own
    container = (clip.format or "").partition("/")[0]
    usual = (it.extensions[0] for it in CONTAINERS if it.name == container)
    return next(usual, container if container in EXTENSIONS else "audio")
