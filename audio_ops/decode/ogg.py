"""Chained Ogg files whose links differ in ways that FFmpeg's decoders can't follow."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np

from audio_ops.decode.claims import TAIL_BYTES
from audio_ops.decode.join import Converter
from audio_ops.decode.mp3 import Packet
from audio_ops.decode.sound import Sound
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from audio_ops.flags import Findings

_HEADERS = {  # of codecs: by their first bytes, those that say the rate and the number of channels
    b"\x01vorbis": slice(11, 16),
    b"OpusHead": slice(9, 10),
    b"\x7fFLAC": slice(27, 30),
    b"Speex   ": slice(36, 52),
}


def changing_links(source: Source) -> list[int]:
    """The offset of each link, and the end of the file; none unless the links differ in their codec,
    rate or channels, and each has one stream alone."""
    tail = source.tail(TAIL_BYTES)
    last = tail[tail.rfind(b"OggS") :]
    if last[14:18] == source.at(14, 4):  # one serial number, and so one link
        return []
    starts: list[int] = []
    kinds: set[bytes] = set()
    at, is_begin = 0, False
    while (page := source.at(at, 27 + 255 + 64))[:4] == b"OggS" and len(page) > 27:
        was_begin, is_begin = is_begin, bool(page[5] & 2)
        payload = 27 + page[26]
        if is_begin:
            if was_begin:  # several streams at once
                return []
            starts.append(at)
            kinds.add(_kind(page[payload:]))
        at += payload + sum(page[27:payload])
    return [*starts, source.length] if len(kinds) > 1 else []


def _kind(header: bytes) -> bytes:
    for magic, part in _HEADERS.items():
        if header.startswith(magic):
            return magic + header[part]
    return header[:8]


def with_first_times(packets: Iterator[Packet]) -> Iterator[Packet]:
    """The packets; those before the first page that has a time get times that lead up to it. FFmpeg lets
    FLAC begin at 0, even if it was cut from a longer stream."""
    begun: list[Packet] = []
    late = 0
    for item in packets:
        packet, before = item[0], begun[-1][0] if begun else None
        if before and None not in (packet.pts, before.pts, before.duration):
            late = packet.pts - before.pts - before.duration
        if late or (before and packet.pos != before.pos):
            packets = chain([item], packets)
            break
        begun.append(item)
    for packet, _ in begun if late > 0 else ():
        packet.pts = None if packet.pts is None else packet.pts + late
    yield from begun
    yield from packets


def without_metadata(packets: Iterator[Packet]) -> Iterator[Packet]:
    """The packets of FLAC without the metadata blocks at the beginning of a later link, which FFmpeg
    takes for sound."""
    for item in packets:
        block_bytes = int.from_bytes(bytes(memoryview(item[0])[1:4]), "big")
        if block_bytes + 4 != item[0].size:
            yield item


def open_links(
    source: Source,
    links: list[int],
    findings: Findings,
    open_one: Callable[[Source], Sound],
) -> Sound:
    """The sounds of all links as one, with the rate and the channels of the first."""
    parts = [(start, end - start) for start, end in pairwise(links)]
    first = open_one(_part(source, *parts[0]))

    def blocks() -> Iterator[np.ndarray]:
        count = 0
        dtype = np.dtype(np.float32)
        for block in first.blocks:
            count, dtype = count + block.shape[1], block.dtype
            yield block
        for part in parts[1:]:
            sound = open_one(_part(source, *part))
            at_s = count / first.sample_rate
            change = f"changes to {sound.sample_rate} Hz, {sound.channels} channels at {at_s:.2f} s"
            findings.damage("changed", ClipError("damaged", change))
            rates = (sound.sample_rate, sound.channels), (first.sample_rate, first.channels)
            convert = Converter(*rates, dtype)
            for block in sound.blocks:
                for piece in convert(block, last=False):
                    count += piece.shape[1]
                    yield piece
            yield from convert(np.empty((sound.channels, 0), np.float32), last=True)

    return replace(first, duration_s=None, blocks=blocks())


def _part(source: Source, start: int, size: int) -> Source:
    """A link, in memory."""
    data = source.at(start, size)
    source.check()
    return Source(io.BytesIO(data))
