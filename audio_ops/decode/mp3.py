"""MP3 packets of many frames each.

FFmpeg's demuxer makes a packet of each frame, which takes over a third as long as decoding it.
Frames that directly follow each other are joined here into packets of up to `PACKET_BYTES`.
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

PACKET_BYTES = 1 << 13  # dozens of frames, which stay in the CPU's cache
DECODER_DELAY = 529  # samples, of an MP3 decoder, in addition to the encoder's delay
Packet = tuple[Any, int | None]  # an av.Packet, and how many samples it decodes to, if known


def mp3_packets(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[Packet]:
    """The stream's packets, each with the number of samples that it decodes to, if known.

    The demuxer makes the first ones, whose delay it trims, and those of anything but plain frames.
    """
    end: int | None = None  # offset at which the joined packets end
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
    """A whole stream's length by its header."""

    frames: int | None
    samples: int  # without the padding at the end, which FFmpeg trims


def _trimmed_length(
    source: Source, stream: av.AudioStream, first: Frame, ticks_per_frame: int
) -> _Length | None:
    """The stream's length, or None if FFmpeg does not trim it as its header says."""
    frames, delay, padding = mp3_lengths(source)
    if not stream.start_time:  # FFmpeg trims both ends, or none
        return _Length(frames, 1 << 62)
    samples = (frames or 0) * first.samples - padding + DECODER_DELAY
    start, tick = delay + DECODER_DELAY, ticks_per_frame // first.samples
    if (stream.start_time, stream.duration) != (start * tick, (samples - start) * tick):
        return None
    return _Length(frames, samples)


@dataclass(frozen=True)
class _Frames:
    """Frames that directly follow each other, of the kind of `first`, each `ticks` long."""

    stream: av.AudioStream
    first: Frame
    ticks: int  # in the stream's time base

    def ends(self, data: bytes) -> list[int]:
        """0, and the offset of the end of each complete frame, from the start of `data`."""
        ends, end = [0], 0
        while size := _frame_size(data[end : end + 4], self.first.kind):
            end += size
            if end > len(data):
                break
            ends.append(end)
        return ends

    def packet(self, data: bytes, index: int) -> Any:
        """A packet of `data`, whose first frame is the stream's frame `index`."""
        packet: Any = av.Packet(data)
        packet.stream, packet.time_base = self.stream, self.stream.time_base
        packet.pts = index * self.ticks
        return packet


@lru_cache
def _frame_size(header: bytes, kind: int) -> int:
    """Bytes of the frame with that header, 0 if it is none of that kind."""
    frame = mpeg_frame(header)
    return frame.size if frame and frame.kind == kind else 0


def _joined_packets(
    source: Source, before: Any, stream: av.AudioStream
) -> Generator[Packet, None, int]:
    """Packets of the frames that follow the packet `before`; returns the offset at which they end.

    The last frame has its own packet, and so has each with padding to trim. They are left to the
    demuxer if anything but an ID3v1 tag follows, or the number of frames is not the header's.
    """
    first = mpeg_frame(bytes(memoryview(before)[:4]))
    at = before.pos + before.size
    length = first and _trimmed_length(source, stream, first, before.duration)
    if not first or not length:
        return at
    frames = _Frames(stream, first, before.duration)
    index = before.pts // before.duration + 1  # of the frame at `at`
    while True:
        data = source.at(at, PACKET_BYTES)
        ends = frames.ends(data)
        count = min(len(ends) - 2, length.samples // first.samples - index)
        if count < 1:
            break
        yield frames.packet(data[: ends[count]], index), count * first.samples
        at, index = at + ends[count], index + count
    rest = data[ends[-1] :]
    has_tag = len(rest) == 128 and rest.startswith(b"TAG")
    is_all = at + len(data) == source.length and (not rest or has_tag)
    if not is_all or (stream.start_time and index + len(ends) - 1 != length.frames):
        return at
    for start, end in pairwise(ends):
        left = max(0, length.samples - index * first.samples)
        yield frames.packet(data[start:end], index), min(left, first.samples)
        index += 1
    return source.length
