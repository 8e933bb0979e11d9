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
_STREAM_HEADER_BYTES = 1 << 13  # that a placeholder may count in, or leave out
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
    wav_format: the first 16 bytes of the first format chunk of WAV or W64, if that precedes the
        samples.
    more: bytes after it that are no chunks.
    """

    start: int
    size: int | None
    wav_format: bytes = b""
    more: int = 0

    @property
    def more_share(self) -> float:
        """`more` in proportion to `size`."""
        return self.more / self.size if self.size else 0.0


HEADER_BYTES = 64  # a size too large by at most this includes the header: no sound is missing


def byte_shortage(
    chunk: SoundChunk, available: int, found_s: float = 0.0, tolerance: int = HEADER_BYTES
) -> tuple[ClipError, float] | None:
    """The error of a file that ends within its sound, and the share of its bytes that is missing;
    None if it is whole, but for `tolerance` bytes. found_s: seconds of sound in the `available` bytes."""
    if chunk.size is None or (chunk.size - available <= tolerance and available):
        return None
    share = (chunk.size - available) / chunk.size if chunk.size else 0.0
    if share <= 0:
        return None
    in_s = (
        f"header says {found_s / (1 - share):.2f} s, found {found_s:.2f} s; "
        if found_s and available
        else ""
    )
    in_bytes = f"{available} of {chunk.size} bytes of sound"
    return ClipError("truncated", in_s + in_bytes), share


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
        if chunks.size_includes_header and size not in _UNKNOWN_SIZES:
            size -= len(header)
        if size < 0 and (name != chunks.sound or size != -1):
            raise ClipError("damaged", f"the chunk {name!r} has a negative size")
        if name == b"ds64":
            rf64_size = int.from_bytes(source.at(start + 8, 8), "little")
        if name == chunks.sound:
            if size == 0xFFFFFFFF and rf64_size:
                size = rf64_size
            return _sized(source, chunks, start, size, wav_format)
        if name in (b"fmt ", b"fmt " + W64_TAIL):
            wav_format = wav_format or source.at(start, 16)
        position = start + size + -size % chunks.align
    raise _no_sound_chunk(source)


def _no_sound_chunk(source: Source) -> ClipError:
    message = f"the file ends before its sound, after {source.length} bytes"
    return ClipError("truncated", message)


def _sized(
    source: Source, chunks: Chunks | None, start: int, size: int, wav_format: bytes = b""
) -> SoundChunk:
    """The chunk at `start` that claims `size` bytes, as far as the claim can be believed."""
    available = source.length - start
    if size in _UNKNOWN_SIZES:
        return SoundChunk(start, None, wav_format)
    if available - size <= 1:  # nothing follows, or a byte of padding
        is_streamed = size > available and _is_placeholder(size)
        return SoundChunk(start, None if is_streamed else size, wav_format)
    more = _bytes_without_chunks(source, chunks, start + size)
    if more and (size == 0 or _is_placeholder(size)):
        return SoundChunk(start, None, wav_format)
    wrapped = more >> 32 << 32  # of a size of 32 bits
    return SoundChunk(start, size + wrapped, wav_format, more - wrapped)


_UNKNOWN_SIZES = (-1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)
_STREAMED_SIZES = (1 << 31, 1 << 32, 0x7F000000)  # the last one is sox's in AIFF


def _is_placeholder(size: int) -> bool:
    """True for the sizes that writers leave if they cannot seek back to the header: those next to
    _STREAMED_SIZES and multiples of 10^9, with or without the header's own bytes."""
    return any(
        abs(size - whole) <= _STREAM_HEADER_BYTES
        for whole in (*_STREAMED_SIZES, max(1, round(size / 10**9)) * 10**9)
    )


def _bytes_without_chunks(source: Source, chunks: Chunks | None, at: int) -> int:
    """The bytes from `at` on, 0 if they are whole chunks, as of metadata."""
    left = source.length - at
    if chunks is None:
        return left
    at += -at % chunks.align
    for _ in range(_MAX_CHUNKS):
        header = source.at(at, struct.calcsize(chunks.header))
        if len(header) < struct.calcsize(chunks.header):
            break
        name, size = struct.unpack(chunks.header, header)
        size -= len(header) if chunks.size_includes_header else 0
        if not name[:4].isascii() or not name[:4].decode().isprintable():
            return left
        if name == chunks.sound or name[:4] in (b"RIFF", b"riff", b"FORM"):  # or another file
            return left
        at += len(header) + size + -size % chunks.align
        if size < 0 or at > source.length + 1:
            return left
    return 0 if source.length - at < 4 else left


def au_sound_chunk(source: Source) -> SoundChunk:
    """The samples after AU's header. Raises ClipError `truncated` for an incomplete header."""
    header = source.at(0, 12)
    if len(header) < 12:
        raise _no_sound_chunk(source)
    start, size = struct.unpack(">4xII", header)
    return _sized(source, None, start, size)


def sphere_sound_chunk(source: Source) -> SoundChunk:
    """The samples after SPHERE's header, which is text; of unknown size if they are compressed.

    Raises ClipError `truncated` for an incomplete header, `unsupported` for a compression that no
    decoder knows.
    """
    start = re.match(rb"NIST_1A\s+(\d{1,7})\s", source.at(0, 32))
    if not start or int(start[1]) > source.length:
        raise _no_sound_chunk(source)
    text = source.at(0, min(int(start[1]), HEAD_BYTES)).partition(b"end_head")[0]
    fields = dict(re.findall(rb"(?m)^(\w+) -\w+ (.*?)\s*$", text))
    coding = fields.get(b"sample_coding", b"pcm")
    if b"," in coding:
        if not coding.startswith(b"pcm,embedded-shorten"):
            name = coding.decode("ascii", "replace")
            remedy = "`sph2pipe -f wav x.sph x.wav` converts it"
            raise ClipError("unsupported", f"SPHERE as {name} is not supported: {remedy}")
        return SoundChunk(int(start[1]), None)
    size = 1
    for name in (b"sample_count", b"channel_count", b"sample_n_bytes"):
        size *= int(fields[name]) if fields.get(name, b"").isdigit() else 0
    return _sized(source, None, int(start[1]), size or -1)


# --- bytes of a whole file, by its own structure; 0 if unknown -----------------------------------


def no_bytes(source: Source) -> int:
    return 0


_MP4_BOXES = (
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"free", b"skip"),
    *(b"wide", b"pnot", b"uuid", b"udta", b"meta", b"emsg", b"prft", b"pdin", b"meco", b"PICT"),
)


def mp4_bytes(source: Source) -> int:
    """The end of the last box; what follows may be an upload's form, or another file."""
    end = 0
    for _ in range(_MAX_CHUNKS):
        box = source.at(end, 16)
        if len(box) < 8 or box[4:8] not in _MP4_BOXES or (end and box[4:8] == b"ftyp"):
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
    properties = _asf_properties(source)
    return int.from_bytes(properties[40:48], "little") if properties else 0


def _asf_properties(source: Source) -> bytes:
    """ASF's file properties object; nothing if there is none, or if it is that of a broadcast, whose
    size and duration were not known."""
    head = source.at(0, HEAD_BYTES)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    properties = head[at : at + 104] if at >= 0 else b""
    return properties if len(properties) == 104 and not properties[88] & 1 else b""


def avi_bytes(source: Source) -> int:
    size = int.from_bytes(source.at(4, 4), "little")
    return 0 if size in (0, 0xFFFFFFFF) else size + 8


def wavpack_bytes(source: Source) -> int:
    """The end of the last block; tags may follow."""
    end = 0
    for _ in range(_MAX_CHUNKS):
        block = source.at(end, 8)
        if len(block) < 8 or block[:4] != b"wvpk":
            break
        end += 8 + int.from_bytes(block[4:], "little")
    return end


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
    """What a header claims of the sound's end.

    end_s: seconds from the start of the timestamps, or of the sound, to its end; None if unknown.
    tolerance_s: how many of them may be missing.
    start_s: the first timestamp.
    is_indexed: whether an index of the sound says so, which is there whole.
    is_start_broken: whether the first of the sound is there, but cannot be decoded.
    """

    end_s: float | None
    tolerance_s: float = 0.0
    start_s: float = 0.0
    is_indexed: bool = False
    is_start_broken: bool = False

    @property
    def duration_s(self) -> float | None:
        """Seconds of sound, as far as timestamps tell."""
        if self.end_s is None or self.start_s < self.tolerance_s:
            return self.end_s
        return max(0.0, self.end_s - self.start_s)


def no_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """None: FFmpeg estimates the container's duration from the bit rate or the last timestamp."""
    return Claim(None)


def exact_claim(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Claim:
    """The stream's duration, from a header that counts samples."""
    return replace(_tolerant(_stream_duration(stream), stream), tolerance_s=0.0)


def stream_claim(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Claim:
    """The stream's duration, from a header that may round it or include an encoder's padding."""
    return _tolerant(_stream_duration(stream), stream)


def index_claim(
    source: Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Claim:
    """MP4: like `stream_claim`, by an index of all packets."""
    return replace(stream_claim(source, opened, stream), is_indexed=True)


def tag_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """Matroska: the stream's DURATION tag, or else the duration of a file with one stream."""
    tagged = _tagged(stream)
    if tagged is None and b"\x44\x89" in source.at(0, HEAD_BYTES):
        return _tolerant(_file_duration(opened), stream)
    return _tolerant(tagged, stream)


def asf_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """ASF: the play duration of a file with one stream; of several it is that of the longest."""
    properties = _asf_properties(source)
    if not properties or len(opened.streams) > 1:
        return Claim(None)
    play, preroll = struct.unpack_from("<Q8xQ", properties, 64)  # in 100 ns and in ms
    return _tolerant(play / 1e7 - preroll / 1e3, stream)


def flv_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """FLV: like `tag_claim`, if its metadata has a duration; else FFmpeg guesses one."""
    tagged = _tagged(stream)
    if tagged is None and b"\x08duration\0" in source.at(0, HEAD_BYTES):
        return _tolerant(_file_duration(opened), stream)
    return _tolerant(tagged, stream)


def ogg_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """Ogg: by the last page, whole or not. None for chained streams: FFmpeg reports the duration of
    one only."""
    tail = source.tail(TAIL_BYTES)
    last = tail[tail.rfind(b"OggS") :]
    if last[14:18] != source.at(14, 4):  # another stream's serial number
        return Claim(None)
    seconds = _stream_duration(stream)
    if len(opened.streams) == 1:
        pages = re.findall(rb"OggS\0.(.{8})", source.at(0, HEAD_BYTES) + last[:14], re.DOTALL)
        ends = [int.from_bytes(end, "little", signed=True) for end in pages]  # in samples
        seconds = max(seconds or 0.0, float((ends[-1] if ends else 0) * (stream.time_base or 0)))
        start = stream.start_time or 0  # FFmpeg skips broken pages, and counts from the next one
        is_start_broken = start >= next((end for end in ends if end > 0), start + 1)
        return replace(_tolerant(seconds, stream), is_start_broken=is_start_broken)
    return _tolerant(seconds, stream)


def mp3_claim(source: Source, opened: av.container.InputContainer, stream: av.AudioStream) -> Claim:
    """MP3: the frames of a Xing, Info or VBRI header, less the encoder's delay and padding."""
    frame = mpeg_frame(source.at(0, 4))
    frames, delay, padding = mp3_lengths(source)
    if not frame or frames in (None, 0xFFFFFFFF):
        return Claim(None)
    seconds = max(0, (frames or 0) * frame.samples - delay - padding) / frame.sample_rate
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


def _tolerant(seconds: float | None, stream: av.AudioStream) -> Claim:
    if not seconds or seconds <= 0:
        return Claim(None)
    start_s = float((stream.start_time or 0) * (stream.time_base or 0))
    return Claim(seconds, max(0.25, 0.01 * max(0.0, seconds - start_s)), max(0.0, start_s))
