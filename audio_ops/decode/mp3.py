"""MP3 packets of many frames each.

FFmpeg's demuxer makes a packet for each frame, which takes over a third of the time of decoding
them. Where frame follows frame, they are joined here into packets of `PACKET_BYTES` instead.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import av

from audio_ops.decode.claims import mp3_lengths
from audio_ops.decode.frames import Frame, mpeg_frame
from audio_ops.decode.source import Source

PACKET_BYTES = 1 << 13  # some dozens of frames, which stay in the CPU's cache
DECODER_DELAY = 529  # samples that an MP3 decoder itself adds to the encoder's delay
Packet = tuple[Any, int | None]  # an av.Packet, and how many samples it decodes to, if known


def mp3_packets(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[Packet]:
    """The stream's packets, of many frames each where frame follows frame.

    The demuxer gives the first ones, whose delay it trims, and what is no plain chain of frames.
    """
    end: int | None = None  # of what did not come from the demuxer
    packet: Any
    for packet in opened.demux(stream):
        if None in (packet.pos, packet.pts, packet.duration) or not packet.size:
            yield packet, None
        elif end is None:
            yield packet, None
            if packet.pts + packet.duration >= (stream.start_time or 0):
                end = yield from _joined_packets(source, packet, stream)
                if end == source.length:
                    return
        elif packet.pos >= end:
            yield packet, None


@dataclass(frozen=True)
class _Length:
    """What a header says of the whole stream. `samples`: up to the padding, which FFmpeg trims."""

    frames: int | None
    samples: int


def _trimmed_length(
    source: Source, stream: av.AudioStream, first: Frame, ticks_per_frame: int
) -> _Length | None:
    """None if FFmpeg trims the stream in another way than its header says."""
    frames, delay, padding = mp3_lengths(source)
    if not stream.start_time:  # FFmpeg trims both ends, or none
        return _Length(frames, 1 << 62)
    samples = (frames or 0) * first.samples - padding + DECODER_DELAY
    start, tick = delay + DECODER_DELAY, ticks_per_frame // first.samples
    if (stream.start_time, stream.duration) != (start * tick, (samples - start) * tick):
        return None
    return _Length(frames, samples)


def _joined_packets(
    source: Source, before: Any, stream: av.AudioStream
) -> Generator[Packet, None, int]:
    """Packets of the frames that follow the packet `before`; returns the offset behind them.

    The last frame has a packet of its own, and so have those with padding to trim. Where the file
    goes on behind them, or has more or fewer frames than its header says, they are left to the
    demuxer.
    """
    first = mpeg_frame(bytes(memoryview(before)[:4]))
    at = before.pos + before.size
    if not first:
        return at
    index = before.pts // before.duration + 1  # of the frame at `at`
    length = _trimmed_length(source, stream, first, before.duration)
    if not length:
        return at

    @lru_cache
    def size(header: bytes) -> int:
        frame = mpeg_frame(header)
        return frame.size if frame and frame.kind == first.kind else 0

    def packet(data: bytes) -> Any:
        made: Any = av.Packet(data)
        made.stream, made.time_base, made.pts = stream, stream.time_base, index * before.duration
        return made

    while True:
        data = source.at(at, PACKET_BYTES)
        ends, end = [0], 0
        while (more := size(data[end : end + 4])) and (end := end + more) <= len(data):
            ends.append(end)
        count = min(len(ends) - 2, length.samples // first.samples - index)
        if count < 1:
            break
        yield packet(data[: ends[count]]), count * first.samples
        at, index = at + ends[count], index + count
    rest = data[ends[-1] :]
    has_tag = len(rest) == 128 and rest.startswith(b"TAG")
    is_all = at + len(data) == source.length and (not rest or has_tag)
    if not is_all or (stream.start_time and index + len(ends) - 1 != length.frames):
        return at
    for start, end in pairwise(ends):
        left = max(0, length.samples - index * first.samples)
        yield packet(data[start:end]), min(left, first.samples)
        index += 1
    return source.length
