"""Packets of a stream -> frames of samples, and what is lost where a packet cannot be decoded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import av

from audio_ops.decode.decoder_errors import reason
from audio_ops.decode.formats import Container
from audio_ops.decode.frames import MPEG
from audio_ops.decode.mp3 import Packet
from audio_ops.decode.sound import Progress
from audio_ops.errors import ClipError
from audio_ops.flags import Findings

Decoded = list[av.AudioFrame] | float  # a packet's frames, or seconds that are lost in their place
_DEMUXER_ERRORS = 3  # in a file, after which the rest of it is given up
_TAG = re.compile(rb"ID3|TAG|APETAGEX|LYRICS|3DI|\0\0\0\0")


def demuxed(
    opened: av.container.InputContainer,
    stream: av.AudioStream,
    findings: Findings,
    reached: Progress,
    cut: ClipError | None,
) -> Iterator[Packet]:
    """The stream's packets. After damage to the container, reading continues.

    cut: the error of a file that is shorter than it claims, which explains damage.

    Raises ClipError `unsupported` for an encrypted packet, of which a decoder would make noise.
    """
    for _ in range(_DEMUXER_ERRORS):
        try:
            for packet in opened.demux(stream):
                if packet.has_sidedata("encryption_info"):
                    raise encrypted()
                yield packet, None
            return
        except av.InvalidDataError as exc:
            reached.is_cut = True
            findings.damage("corrupt", cut or ClipError("damaged", reason(exc)))


def without_repeated_times(packets: Iterator[Packet]) -> Iterator[Packet]:
    """The packets, without the timestamp of each that has that of the next one: FFmpeg's parsers give
    the time of a frame that begins in a transport packet also to the frame that ends in it."""
    before = next(packets, None)
    while before:
        packet = next(packets, None)
        if packet and before[0].pts is not None and before[0].pts == packet[0].pts:
            before[0].pts = None
        yield before
        before = packet


def encrypted() -> ClipError:
    """The error of a file whose sound is encrypted."""
    remedy = "`ffmpeg -decryption_key KEY -i x.mp4 -c copy y.mp4` decrypts it"
    return ClipError("unsupported", f"the sound is encrypted, not damaged: {remedy}")


class PacketDecoder:
    """Decodes a stream's packets one by one, and passes over those that cannot be decoded.

    Of a packet of several frames FFmpeg skips bad ones without an error, so samples are counted.
    """

    def __init__(
        self,
        container: Container,
        findings: Findings,
        reached: Progress,
        context: av.AudioCodecContext | None,
    ) -> None:
        """context: decodes in place of the stream's own one."""
        self._container, self._findings, self._reached = container, findings, reached
        self._context = context
        syntax = container.frames
        self._header_bytes = syntax.header_bytes if syntax else 0
        # Cached for MP3, whose streams have few different headers; ADTS headers hold the frame's size.
        parse: Any = syntax and syntax.parse
        self._parse = lru_cache(parse) if syntax is MPEG else parse

    def __call__(self, packets: Iterator[Packet]) -> Iterator[Decoded]:
        """The frames of each packet that has any, and the seconds that others have lost."""
        while found := next(packets, None):
            packet, expected = found
            frames, problem, missing = self._frames(packet, expected)
            if frames:
                yield frames
            if not problem:
                continue
            later = []
            for item in packets:
                later.append(item)
                if item[0].size:
                    break
            packets = chain(later, packets)
            lost_s = self._lost(packet, problem, missing, is_last=not (later and later[-1][0].size))
            if lost_s:
                yield lost_s

    def _frames(self, packet: Any, expected: int | None) -> tuple[list[Any], str, int]:
        """A packet's frames, what is wrong with it, and how many samples it lacks, if that is known."""
        parse = self._parse
        try:
            frames = self._context.decode(packet) if self._context else packet.decode()
        except (av.MemoryError, av.EOFError):
            raise
        except av.FFmpegError as exc:  # AAC's and AC-3's have numbers of their own
            return [], reason(exc), expected or 0
        head = self._head(packet) if parse and packet.size else b""
        found = parse(head) if parse and head else None
        is_cut = packet.is_corrupt and not self._container.sound_chunk  # PCM may end in a packet
        if is_cut or (found is not None and found.size > packet.size):
            return [], "incomplete packet", expected or 0
        extra = 0 if expected is None else sum(frame.samples for frame in frames) - expected
        if extra < 0:
            return frames, f"{-extra} of {expected} samples can't be decoded", -extra
        if extra:
            frames[-1:] = _first_samples(frames[-1], frames[-1].samples - extra)
        return frames, "", 0

    def _head(self, packet: Any) -> bytes:
        return bytes(memoryview(packet)[: self._header_bytes])

    def _lost(self, packet: Any, problem: str, missing: int, *, is_last: bool) -> float:
        """Add a bad packet to the findings; returns the seconds that silence has to fill."""
        at_s = float(packet.pts * packet.time_base) if packet.pts else 0.0
        if self._parse and not self._parse(self._head(packet)):  # no frame
            if not (is_last or _TAG.match(bytes(memoryview(packet)[:8]))):
                error = ClipError("damaged", f"{problem}, at {at_s:.2f} s")
                self._findings.damage("corrupt", error)
            return 0.0
        lost_s = float(packet.duration * packet.time_base) if packet.duration else 0.0
        if missing:
            lost_s = missing / packet.stream.codec_context.sample_rate
        if is_last:
            self._reached.is_cut = True
            message = f"the last packet is cut short: {problem}, at {at_s:.2f} s"
            self._findings.damage(
                "shorter_than_header", ClipError("truncated", message), missing_s=lost_s
            )
            return 0.0
        error = ClipError("damaged", f"{problem}, at {at_s:.2f} s")
        if self._container.has_timestamps:  # the next one says how long the gap is
            self._reached.has_lost_packets = True
            self._findings.damage("corrupt", error, missing_s=lost_s)
            return 0.0
        self._findings.damage("corrupt", error, silenced_s=lost_s)
        return lost_s


def _first_samples(frame: av.AudioFrame, samples: int) -> list[av.AudioFrame]:
    """A frame of the first `samples`; no frame for 0 or fewer."""
    fifo = av.AudioFifo()
    frame.pts = None
    fifo.write(frame)
    return [part] if samples > 0 and (part := fifo.read(samples)) else []
