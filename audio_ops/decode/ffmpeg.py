"""Sound that FFmpeg demuxes and decodes, through PyAV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import av
from av.stream import Discard

from audio_ops.decode.amr import amr_packets
from audio_ops.decode.claims import HEAD_BYTES, Claim, byte_shortage
from audio_ops.decode.decoder_errors import clip_errors
from audio_ops.decode.formats import (
    CODECS,
    CONTAINERS,
    OTHER_DECODERS,
    Container,
    begins_with_magic,
)
from audio_ops.decode.frames import MPEG, amr_has_pauses
from audio_ops.decode.headerless import CONTAINERS as HEADERLESS
from audio_ops.decode.join import Joiner
from audio_ops.decode.mp3 import Packet, mp3_packets
from audio_ops.decode.ogg import changing_links, open_links, with_first_times, without_metadata
from audio_ops.decode.packets import (
    Decoded,
    PacketDecoder,
    demuxed,
    encrypted,
    without_repeated_times,
)
from audio_ops.decode.sound import (
    MAX_CHANNELS,
    Expected,
    Progress,
    Sound,
    checked_blocks,
    unsupported_channels,
)
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from audio_ops.flags import Findings

_CODECS = {*CODECS, *(name for name in av.codecs_available if name.startswith("pcm_"))}
_ENCRYPTED_TAGS = ("enca", "drms", "aavd")  # of MP4, iTunes and Audible
OPTIONS = {
    "format_whitelist": ",".join(it.demuxer for it in (*CONTAINERS, *HEADERLESS.values())),
    "protocol_whitelist": "none",
    "codec_whitelist": ",".join(sorted(_CODECS)),  # for probing; `_open_stream` checks again
}


def open_demuxer(source: Any, demuxer: str) -> av.container.InputContainer:
    """Open `source` as this format and no other, without access to any other file."""
    return av.open(
        source,
        "r",
        format=demuxer,
        container_options=OPTIONS,
        metadata_errors="replace",
    )


def open_ffmpeg(source: Source, container: Container, findings: Findings) -> Sound:
    """The file's first audio stream, from its beginning. Raises ClipError and PyAV's exceptions."""
    if container.name == "ogg" and (links := changing_links(source)):
        return open_links(
            source, links, findings, lambda part: open_ffmpeg(part, container, findings)
        )
    cut, more = _shortage(source, container)
    try:
        with clip_errors(source):
            return _open(source, container, findings, cut, more)
    except ClipError as error:
        if cut and error.kind in ("damaged", "no_audio", "empty"):
            raise cut[0] from error
        raise


def _shortage(source: Source, container: Container) -> tuple[tuple[ClipError, float] | None, float]:
    """What the file lacks of the bytes that it claims: the error and the missing share, or None; and what it
    has beyond them, as a multiple of the claim."""
    if container.sound_chunk:
        chunk = container.sound_chunk(source)
        return byte_shortage(
            chunk, max(0, source.length - chunk.start), tolerance=0
        ), chunk.more_share
    claimed = container.bytes_claimed(source)
    if claimed <= source.length:
        is_followed = claimed > 0 and begins_with_magic(source.at(claimed, HEAD_BYTES))
        return None, (source.length - claimed) / claimed if is_followed else 0.0
    error = ClipError("truncated", f"header says {claimed} bytes, found {source.length}")
    return (error, 1 - source.length / claimed), 0.0


def _open(
    source: Source,
    container: Container,
    findings: Findings,
    cut: tuple[ClipError, float] | None,
    more: float,
) -> Sound:
    mark = container.encryption
    if mark and re.search(mark, source.at(0, HEAD_BYTES), re.DOTALL):
        raise encrypted()
    source.seek(0)
    opened = open_demuxer(source, container.demuxer)
    stream = _open_stream(opened)
    with suppress(UnicodeDecodeError):  # PyAV's, for a tag that is no text
        if container.demuxer == "mov" and stream.codec_context.codec_tag in _ENCRYPTED_TAGS:
            raise encrypted()
    claim = container.duration(source, opened, stream)
    if claim.is_start_broken:
        findings.damage("corrupt", ClipError("damaged", "the first page with sound is broken"))
    packets: Iterator[Packet]
    reached = Progress()
    if container.frames is MPEG and stream.codec_context.name.startswith("mp3"):
        packets = mp3_packets(source, opened, stream)
    elif container.name == "amr":
        packets = amr_packets(source, stream, stream.codec_context.name, findings)
    else:
        packets = demuxed(opened, stream, findings, reached, cut[0] if cut else None)
    if container.demuxer in ("mpeg", "mpegts"):
        packets = without_repeated_times(packets)
    elif container.name == "ogg" and stream.codec_context.name == "flac":
        packets = with_first_times(without_metadata(packets))
    context = _other_decoder(source, container, stream)
    decoded = PacketDecoder(container, findings, reached, context)(packets)
    begun: list[Decoded] = []
    for part in decoded:
        begun.append(part)
        if isinstance(part, list):
            first: av.AudioFrame = part[0]
            break
    else:
        raise _no_samples(claim, findings)
    joiner = Joiner(first, container, findings, reached)
    codec = stream.codec_context.codec.canonical_name
    expected = Expected(
        claim,
        container.missing_kind,
        cut,
        has_frames=container.is_bare,
        more=more,
        reached=reached,
    )
    return Sound(
        joiner.rate,  # not the header's: HE-AAC decodes to twice that
        joiner.channels,
        codec if container.is_bare else f"{container.name}/{codec}",
        claim.duration_s if claim.is_indexed or container.is_bare else None,
        findings,
        checked_blocks(joiner(chain(begun, decoded)), source, joiner.rate, expected, findings),
    )


def _other_decoder(
    source: Source, container: Container, stream: av.AudioStream
) -> av.AudioCodecContext | None:
    """Another decoder where FFmpeg's own one fails or decodes something else: of Opus, and of AMR
    with pauses that were not sent."""
    codec = stream.codec_context.name
    if codec not in OTHER_DECODERS or OTHER_DECODERS[codec] not in av.codecs_available:
        return None
    if not (stream.channels if codec == "opus" else _has_pauses(source, container, codec)):
        return None
    context: Any = av.CodecContext.create(OTHER_DECODERS[codec], "r")
    if codec == "opus":
        context.extradata = stream.codec_context.extradata
        context.options = {"request_sample_fmt": "flt"}  # else 16 bits, which would clip
    return context  # type: ignore[no-any-return]


def _has_pauses(source: Source, container: Container, codec: str) -> bool:
    """Whether there are pauses in AMR that were not sent."""
    position = source.tell()
    source.seek(0)
    with open_demuxer(source, container.demuxer) as opened:
        packets = map(bytes, opened.demux(opened.streams.audio[0]))
        has_pauses = any(amr_has_pauses(packet, codec) for packet in packets)
    source.seek(position)
    return has_pauses


def _no_samples(claim: Claim, findings: Findings) -> ClipError:
    if findings.first_damage:
        return findings.first_damage
    if claim.end_s:
        message = f"header says {claim.duration_s:.2f} s, found no samples"
        return ClipError("damaged", message)
    return ClipError("empty", "no samples")


def _open_stream(opened: av.container.InputContainer) -> av.AudioStream:
    """The first audio stream, ready for decoding; all others are discarded. Raises ClipError."""
    if not opened.streams.audio:
        streams = ", ".join(stream.type for stream in opened.streams) or "none"
        raise ClipError("no_audio", f"no sound among the streams ({streams})")
    stream = opened.streams.audio[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in _CODECS:
        raise ClipError("unsupported", f"the codec {codec} is not supported")
    if stream.channels > MAX_CHANNELS:  # checked before decoding: one sample could fill a block
        raise unsupported_channels(stream.channels)
    for other in opened.streams:
        if other is not stream:
            other.discard = Discard.all  # so that a video's pictures are not read
    if codec in ("flac", "wavpack", "ac3", "eac3"):  # FFmpeg does not check a frame's CRC by itself
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    stream.codec_context.thread_count = 1
    return stream
