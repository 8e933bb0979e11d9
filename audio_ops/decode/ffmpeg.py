"""Sound that FFmpeg demuxes and decodes, through PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import av
import numpy as np
from av.stream import Discard

from audio_ops.decode.decoder_errors import reason
from audio_ops.decode.formats import CODECS, CONTAINERS, Container
from audio_ops.decode.frames import MPEG
from audio_ops.decode.mp3 import Packet, mp3_packets
from audio_ops.decode.sound import (
    BLOCK_SAMPLES,
    MAX_CHANNELS,
    Sound,
    checked_blocks,
    unsupported_channels,
)
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

_CODECS = {*CODECS, *(name for name in av.codecs_available if name.startswith("pcm_"))}
OPTIONS = {
    "format_whitelist": ",".join(container.demuxer for container in CONTAINERS),
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


def open_ffmpeg(source: Source, container: Container) -> Sound:
    """The file's first audio stream, from its beginning. Raises ClipError and PyAV's exceptions."""
    claimed = container.bytes_claimed(source)
    if claimed > source.length:
        raise ClipError("truncated", f"header says {claimed} bytes, found {source.length}")
    source.seek(0)
    opened = open_demuxer(source, container.demuxer)
    stream = _open_stream(opened)
    claim = container.duration(source, opened, stream)
    packets: Iterator[Packet]
    if container.frames is MPEG and stream.codec_context.name.startswith("mp3"):
        packets = mp3_packets(source, opened, stream)
    else:
        packets = ((packet, None) for packet in opened.demux(stream))
    decoded = _decode(packets, container)
    ahead = next(decoded, None)
    if not ahead and claim.duration_s:
        message = f"header says {claim.duration_s:.2f} s, found no samples"
        raise ClipError("damaged", message)
    if not ahead:
        raise ClipError("empty", "no samples")
    first = ahead[0]
    sample_rate = first.sample_rate  # not the header's: HE-AAC decodes to twice that
    codec = stream.codec_context.codec.canonical_name
    blocks = _join(chain([ahead], decoded), container)
    return Sound(
        sample_rate,
        first.layout.nb_channels,
        codec if container.is_bare else f"{container.name}/{codec}",
        claim.duration_s,
        checked_blocks(blocks, source, container, sample_rate, claim),
    )


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
    if codec == "flac":  # FFmpeg does not check a frame's CRC by itself
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    stream.codec_context.thread_count = 1
    return stream


def _decode(packets: Iterator[Packet], container: Container) -> Iterator[list[av.AudioFrame]]:
    """The frames of each packet that has any.

    Raises ClipError for a bad packet: `truncated` if it is the last, else `damaged`. Of a packet of
    several frames FFmpeg skips bad ones without an error, so their samples are counted.
    """
    frames_syntax = container.frames
    header_bytes = frames_syntax.header_bytes if frames_syntax else 0
    # Cached for MP3, whose streams have few different headers; ADTS headers hold the frame's size.
    parse: Any = frames_syntax and frames_syntax.parse
    parse = lru_cache(parse) if frames_syntax is MPEG else parse
    for packet, expected in packets:
        try:
            frames = packet.decode()
            head = bytes(memoryview(packet)[:header_bytes]) if parse and packet.size else b""
            found = parse(head) if parse and head else None
            is_cut = packet.is_corrupt and not container.sound_chunk  # PCM may end within a packet
            is_cut = is_cut or (found is not None and found.size > packet.size)
            problem = "incomplete packet" if is_cut else ""
            extra = 0 if expected is None else sum(frame.samples for frame in frames) - expected
            if extra < 0:
                problem = f"{-extra} of {expected} samples can't be decoded"
            elif extra:
                frames[-1:] = _first_samples(frames[-1], frames[-1].samples - extra)
        except (av.InvalidDataError, av.ArgumentError) as exc:
            frames, problem = [], reason(exc)
        if problem:
            at = f"at {float(packet.pts * packet.time_base):.2f} s" if packet.pts else "at 0 s"
            if next((later for later, _ in packets if later.size), None):
                raise ClipError("damaged", f"{problem}, {at}")
            if parse and not parse(bytes(memoryview(packet)[:header_bytes])):
                return  # a tag, or junk after the sound
            raise ClipError("truncated", f"the last packet is cut short: {problem}, {at}")
        if frames:
            yield frames


def _first_samples(frame: av.AudioFrame, samples: int) -> list[av.AudioFrame]:
    """A frame of the first `samples`; no frame for 0 or fewer."""
    fifo = av.AudioFifo()
    frame.pts = None
    fifo.write(frame)
    return [part] if samples > 0 and (part := fifo.read(samples)) else []


def _join(decoded: Iterable[list[av.AudioFrame]], container: Container) -> Iterator[np.ndarray]:
    """Join frames into blocks (channels, samples), of BLOCK_SAMPLES in all or somewhat more.

    Raises ClipError `damaged` if the rate or the channels change, or samples are missing.
    """
    joined = av.AudioFifo()  # an array per frame would take as long as decoding
    rate = channels = 0
    for frames in decoded:
        for frame in frames:
            if frame.sample_rate != rate or frame.layout.nb_channels != channels:
                now = f"{frame.sample_rate} Hz, {frame.layout.nb_channels} channels"
                if rate:
                    before, at_s = f"{rate} Hz, {channels} channels", joined.samples_written / rate
                    raise ClipError("damaged", f"changes from {before} to {now} at {at_s:.2f} s")
                rate, channels = frame.sample_rate, frame.layout.nb_channels
            if container.has_sample_positions and frame.time is not None:
                gap = round(frame.time * rate) - joined.samples_written
                if gap > 0:
                    at_s = joined.samples_written / rate
                    raise ClipError("damaged", f"{gap} samples are missing at {at_s:.2f} s")
            frame.pts = None  # else AudioFifo refuses those that overlap
            joined.write(frame)
        frames.clear()  # so that the next frames reuse their memory, which is in the cache
        if joined.samples * channels >= BLOCK_SAMPLES and (block := joined.read()):
            yield frame_samples(block)
    if block := joined.read():
        yield frame_samples(block)


# By FFmpeg's sample format, without the p of planar ones. PyAV's own table lacks s64.
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_SCALE = {"s32": 2.0**-31, "s64": 2.0**-63}


def frame_samples(frame: av.AudioFrame) -> np.ndarray:
    """A frame's samples (channels, samples): int16 for formats of up to 16 bits, else float32 with
    a full scale of 1, scaled by an exact power of two."""
    name = frame.format.name.removesuffix("p")
    if len(frame.planes) == 1:  # packed or mono, which to_ndarray would copy
        plane: Any = frame.planes[0]
        channels = frame.layout.nb_channels
        samples = np.frombuffer(plane, _DTYPES[name], frame.samples * channels)
        samples = samples.reshape(-1, channels).T
    else:
        samples = frame.to_ndarray()
    if name == "s16":
        return samples
    if name == "u8":
        return (samples.astype(np.int16) - 128) << 8
    if scale := _SCALE.get(name):
        return samples.astype(np.float32) * np.float32(scale)
    with np.errstate(over="ignore"):  # doubles may become Inf, which is reported later
        return samples.astype(np.float32, copy=False)
