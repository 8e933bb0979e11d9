"""Lengths that headers claim, in bytes and in seconds, to find out whether sound is missing.

FFmpeg and libsndfile read a truncated file to its end without an error.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audio_ops.decode.frames import mpeg_frame
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

if TYPE_CHECKING:
    import av

HEAD_BYTES = 1 << 16  # searched for headers
TAIL_BYTES = 1 << 16  # searched for the last page or packet
_MAX_CHUNKS = 10_000  # a header with more is hostile, or a fragmented MP4
_TIME_BASE = 1_000_000  # AV_TIME_BASE: ticks per second of a file's duration


# --- chunks of WAV and similar formats -----------------------------------------------------------

W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of every chunk GUID but the first


@dataclass(frozen=True)
class Chunks:
    """How a file is divided into chunks.

    first: offset of the first chunk.
    header: `struct` format of a chunk's header: its name, and its size in bytes.
    sound: name of the chunk with the samples.
    align: chunks begin at multiples of this many bytes.
    size_includes_header: whether a chunk's size includes its header.
    """

    first: int
    header: str
    sound: bytes
    align: int
    size_includes_header: bool = False


@dataclass(frozen=True)
class SoundChunk:
    """The part of a file that holds its samples.

    start: its offset in bytes.
    size: its size in bytes, as claimed; None if it extends to the end of a streamed file.
    wav_format: the first 16 bytes of a WAV's first format chunk, if that precedes the samples.
    """

    start: int
    size: int | None
    wav_format: bytes = b""


def find_sound_chunk(source: Source, chunks: Chunks) -> SoundChunk:
    """The chunk with the samples, and the size that it claims, which libsndfile would silently cut
    to the file's.

    Raises ClipError `truncated` if there is none, `damaged` for a chunk of negative size.
    """
    position = chunks.first
    wav_format = b""
    rf64_size = 0
    for _ in range(_MAX_CHUNKS):
        header = source.at(position, struct.calcsize(chunks.header))
        if len(header) < struct.calcsize(chunks.header):
            break
        name, size = struct.unpack(chunks.header, header)
        start = position + len(header)
        if chunks.size_includes_header:
            size -= len(header)
        if name == b"ds64":
            rf64_size = int.from_bytes(source.at(start + 8, 8), "little")
        if name == chunks.sound:
            if size == 0xFFFFFFFF and rf64_size:
                size = rf64_size
            return SoundChunk(
                start, None if _is_streamed(source, start, size) else size, wav_format
            )
        if name == b"fmt ":
            wav_format = wav_format or source.at(start, 16)
        if size < 0:
            raise ClipError("damaged", f"the chunk {name!r} has a negative size")
        position = start + size + -size % chunks.align
    raise _no_sound_chunk(source)


def _no_sound_chunk(source: Source) -> ClipError:
    message = f"the file ends before its sound, after {source.length} bytes"
    return ClipError("truncated", message)


def _is_streamed(source: Source, start: int, size: int) -> bool:
    """True for the sizes that writers leave if they cannot seek back to the header."""
    if size == 0:  # really empty if the size of the whole file is right
        whole = int.from_bytes(source.at(4, 4), "little")
        return source.length > start and whole + 8 != source.length
    return size in (0xFFFFFFFF, -1) or (
        0x7FFFE000 <= size <= 0x80001000 and size > source.length - start  # SoX, arecord
    )


def au_sound_chunk(source: Source) -> SoundChunk:
    """The samples behind AU's header. Raises ClipError `truncated` for an incomplete header."""
    header = source.at(0, 12)
    if len(header) < 12:
        raise _no_sound_chunk(source)
    start, size = struct.unpack(">4xII", header)
    return SoundChunk(start, None if size == 0xFFFFFFFF else size)


# --- bytes of a whole file, by its own structure; 0 if unknown -----------------------------------


def no_bytes(source: Source) -> int:
    return 0


def mp4_bytes(source: Source) -> int:
    end = 0
    for _ in range(_MAX_CHUNKS):
        box = source.at(end, 16)
        if len(box) < 8 or not box[4:8].isalnum():
            break
        size = int.from_bytes(box[:4], "big")
        if size == 1:
            size = int.from_bytes(box[8:16], "big")
        if size < 8:  # 0: up to the end of the file
            break
        end += size
    return end


def matroska_bytes(source: Source) -> int:
    head = source.at(0, HEAD_BYTES)
    at = head.find(b"\x18\x53\x80\x67") + 4  # the segment
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()  # bytes of the size, encoded in its first byte
    size = int.from_bytes(head[at : at + width], "big") & ~(-1 << 7 * width)
    unknown = size == ~(-1 << 7 * width)
    return 0 if unknown else at + width + size


def asf_bytes(source: Source) -> int:
    head = source.at(0, HEAD_BYTES)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # file properties
    is_broadcast = head[at + 88 : at + 89] != b"\x02" and head[at + 88 : at + 89] != b"\x00"
    return 0 if at < 0 or is_broadcast else int.from_bytes(head[at + 40 : at + 48], "little")


def avi_bytes(source: Source) -> int:
    size = int.from_bytes(source.at(4, 4), "little")
    return 0 if size in (0, 0xFFFFFFFF) else size + 8


def mpegts_bytes(source: Source) -> int:
    """The file's length, rounded up to whole packets."""
    head = source.at(0, 189)
    packet = 188 if head[188:189] == b"G" == head[:1] else 192
    return -(-source.length // packet) * packet


def mpegps_bytes(source: Source) -> int:
    """The end of the last packet."""
    tail = source.tail(TAIL_BYTES)
    packets = list(re.finditer(rb"\x00\x00\x01[\xbd\xbe\xc0-\xef](..)", tail, re.DOTALL))
    size = 6 + int.from_bytes(packets[-1][1], "big") if packets else 0
    return source.length - len(tail) + packets[-1].start() + size if packets else 0


def ogg_bytes(source: Source) -> int:
    """The end of the last page."""
    tail = source.tail(TAIL_BYTES)
    page = tail.rfind(b"OggS")
    table = tail[page + 27 :][: tail[page + 26] if len(tail) > page + 26 else 255]
    return source.length - len(tail) + page + 27 + len(table) + sum(table) if page >= 0 else 0


# --- seconds of the audio stream -----------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """The seconds of sound that a header claims, or None, and how many of them may be missing."""

    duration_s: float | None
    tolerance_s: float = 0.0


def no_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """None: FFmpeg estimates the container's duration from the bit rate or the last timestamp."""
    return Claim(None)


def exact_claim(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Claim:
    """The stream's duration, from a header that counts samples."""
    return replace(_tolerant(_stream_duration(stream)), tolerance_s=0.0)


def stream_claim(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Claim:
    """The stream's duration, from a header that may round it or include an encoder's padding."""
    return _tolerant(_stream_duration(stream))


def tag_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """Matroska: the stream's DURATION tag, or else the duration of a file with one stream."""
    tagged = _tagged(stream)
    if tagged is None and b"\x44\x89" in source.at(0, HEAD_BYTES):
        return _tolerant(_file_duration(opened))
    return _tolerant(tagged)


def flv_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """FLV: like `tag_claim`, but the file always has a duration."""
    tagged = _tagged(stream)
    return _tolerant(_file_duration(opened) if tagged is None else tagged)


def ogg_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """Ogg: by the last page. None for chained streams: FFmpeg reports the duration of one only.

    Raises ClipError `damaged` if the first page with sound is broken: FFmpeg skips broken pages and
    counts from the next one.
    """
    tail = source.tail(TAIL_BYTES)
    last = tail[tail.rfind(b"OggS") :]
    if last[14:18] != source.at(14, 4):  # another stream's serial number
        return Claim(None)
    seconds = _stream_duration(stream)
    if len(opened.streams) == 1:
        pages = re.findall(rb"OggS\0.(.{8})", source.at(0, HEAD_BYTES) + last[:14], re.DOTALL)
        ends = [int.from_bytes(end, "little", signed=True) for end in pages]  # in samples
        start = stream.start_time or 0
        if start >= next((end for end in ends if end > 0), start + 1):
            raise ClipError("damaged", "the first page with sound is broken")
        seconds = max(seconds or 0.0, float((ends[-1] - start) * (stream.time_base or 0)))
    return _tolerant(seconds)


def mp3_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """MP3: the frames of a Xing, Info or VBRI header, less the encoder's delay and padding."""
    frame = mpeg_frame(source.at(0, 4))
    frames, delay, padding = mp3_lengths(source)
    if not frame or frames is None:
        return Claim(None)
    seconds = max(0, frames * frame.samples - delay - padding) / frame.sample_rate
    return Claim(seconds or None, 3 * frame.samples / frame.sample_rate)


def mp3_lengths(source: Source) -> tuple[int | None, int, int]:
    """(frames, delay, padding) of a Xing, Info or VBRI header: the number of frames if it has one,
    the encoder's delay and padding in samples."""
    head = source.at(0, 512)
    at = max(head.find(b"Xing", 0, 64), head.find(b"Info", 0, 64))
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big"), 0, 0
    if at <= 0 or not head[at + 7] & 1:
        return None, 0, 0
    delays = int.from_bytes(head[at + 141 : at + 144], "big")  # 12 bits at each end
    has_delays = head[at + 7] & 15 == 15  # and all optional fields before them
    frames = int.from_bytes(head[at + 8 : at + 12], "big")
    return frames, *divmod(delays if has_delays else 0, 1 << 12)


def _stream_duration(stream: av.AudioStream) -> float | None:
    return float(stream.duration * (stream.time_base or 0)) if stream.duration else None


def _tagged(stream: av.AudioStream) -> float | None:
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else None


def _file_duration(opened: av.container.InputContainer) -> float | None:
    if len(opened.streams) == 1 and opened.duration:
        return opened.duration / _TIME_BASE
    return None


def _tolerant(seconds: float | None) -> Claim:
    if not seconds or seconds <= 0:
        return Claim(None)
    return Claim(seconds, max(0.25, 0.01 * seconds))
