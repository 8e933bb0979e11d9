"""Encoded bytes -> samples, or a ClipError that says why not.

The decoder is chosen by magic bytes, never by name: libsndfile for WAV (but for that of 16 bits,
which needs none), AIFF, AU and CAF, FFmpeg (PyAV) for the rest. Of MP3 libsndfile would hide damage
that FFmpeg reports; FFmpeg gets many frames at a time where frame follows frame. Everything is
read in a stream, and what is cut short or damaged is reported as far as the headers and the
decoder tell.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
from av.stream import Discard

from audio_ops.waveforms import as_float32

av.logging.set_level(None)  # FFmpeg's own lines: every error it reports comes back as an exception

KINDS = {
    "empty": "no bytes, or no samples",
    "unreadable": "the bytes could not be read: permission, vanished, connection",
    "not_audio": "something else than sound: text, an image, an archive",
    "unsupported": "sound in a format, a codec, a rate or a number of channels that is refused",
    "no_audio": "a container without a sound stream, such as a silent video",
    "truncated": "less sound than the header says",
    "damaged": "cannot be decoded, or changes its rate or channels on the way",
    "not_finite": "NaN, Inf or as good as Inf among the samples",
    "too_long": "over audio.max_clip_s",
    "too_short": "less sound than one frame of the model",
    "too_large": "over a limit on bytes or samples, or a few bytes that unpack to very many",
    "out_of_memory": "the model ran out of memory with this clip alone",
    "model": "the model failed on this clip",
    "when": "the task's `when` has no value for this clip, such as a text cast to a number",
    "timeout": "took longer than its limit",
    "crashed": "killed the process that worked on it",
    "memory": "decoding took more memory than its limit",
}

MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz
MAX_CHANNELS = 64
MAX_SAMPLES = 6_000_000_000  # of all channels together: 4 h at 48 kHz, 8 channels
# Of all channels together, in one block. The decoder and the resampler each fill a core's cache, so
# that a turn should be long; but what glibc keeps for the next block (see `jobs.child`) is limited.
BLOCK_SAMPLES = 1 << 18
_MAX_MESSAGE = 500  # characters
_HEAD = 1 << 16  # bytes looked at to recognise a format
_MAX_CHUNKS = 10_000  # a header with more is hostile, or a fragmented MP4


class ClipError(Exception):
    """A clip that can't be labelled. `kind` is one of KINDS, `message` is for people: what a file
    says of itself is quoted in it, but not at any length."""

    def __init__(self, kind: str, message: str) -> None:
        if len(message) > _MAX_MESSAGE:
            message = f"{message[: _MAX_MESSAGE - 4]} ..."
        super().__init__(kind, message)  # both, so that it pickles
        self.kind, self.message = kind, message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class Sound:
    """A sound that is decoded while `blocks` is consumed, once; that may raise ClipError.

    sample_rate: Hz, as stored.
    channels: 1 to 64.
    format: `wav/pcm_16`, `flac`, `mp3`, `ogg/opus`, `mp4/aac`, ...
    duration_s: what the header claims, None where it claims nothing.
    blocks: (channels, samples), BLOCK_SAMPLES or somewhat more each: int16 if that is how the sound
        is stored or coded, else float32, full scale is [-1, 1], with NaN and Inf if it has them.
    """

    sample_rate: int
    channels: int
    format: str
    duration_s: float | None
    blocks: Iterator[np.ndarray]


def decode(file: BinaryIO) -> tuple[np.ndarray, int, str]:
    """A whole clip: float32 (channels, samples), its rate in Hz, its format. Raises ClipError."""
    sound = open_sound(file)
    samples = np.concatenate([as_float32(block) for block in sound.blocks], axis=1)
    return samples, sound.sample_rate, sound.format


def open_sound(file: BinaryIO, start_s: float = 0.0) -> Sound:
    """Recognise a seekable binary file and decode its first audio stream. Raises ClipError.

    The blocks begin `start_s` into the sound; what is before that is decoded only if it must be.
    The file is not closed, and has to stay open while the blocks are consumed.
    """
    source = _Source(file)
    source.check()
    if not source.length:
        raise ClipError("empty", "the file has no bytes")
    container = _recognise(source)
    with _clip_errors(source):
        sound = _open_pcm(source, container, start_s) if container in _CHUNKS else None
        if sound is None:
            sound = _open_ffmpeg(source, container)
            sound = replace(sound, blocks=_from(sound, start_s)) if start_s else sound
    _check(sound.sample_rate, sound.channels)
    return sound


def _check(sample_rate: int, channels: int) -> None:
    """Raise ClipError for a rate in Hz, or a number of channels, that no recording has."""
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        expected = f"{MIN_RATE} to {MAX_RATE} Hz"
        raise ClipError("unsupported", f"sample rate: expected {expected}, found {sample_rate}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise _not_channels(channels)


def _not_channels(channels: int) -> ClipError:
    return ClipError("unsupported", f"channels: expected 1 to {MAX_CHANNELS}, found {channels}")


class _Source:
    """A file from byte `start` on, with `read`, `seek`, `tell` and nothing else for a decoder.

    It has no `name` that a decoder could follow or guess from. What a read raises is kept for
    `check`: libsndfile would print it and FFmpeg would wrap it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.start = file, 0
        self._failure: BaseException | None = None
        self.length = self.seek(0, 2)
        self.seek(0)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except BaseException as exc:
            self._failure = self._failure or exc
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset + (0 if whence else self.start), whence) - self.start
        except (ValueError, OverflowError):  # before the start or beyond any file: a lying header
            return -1
        except BaseException as exc:
            if getattr(exc, "errno", None) != errno.EINVAL:  # beyond any file, on a local disk
                self._failure = self._failure or exc
            return -1

    def tell(self) -> int:
        return self._file.tell() - self.start

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; a decoder that is reading does not notice."""
        here = self.tell()
        found = self.read(size) if self.seek(offset) >= 0 else b""
        self.seek(here)
        return found

    def skip(self, count: int) -> None:
        """Make the byte at `count` the first one."""
        self.start += count
        self.length -= count
        self.seek(0)

    def check(self) -> None:
        """Raise what a read has raised: ClipError("unreadable") for an OSError, else as it was."""
        if isinstance(self._failure, OSError):
            raise ClipError("unreadable", f"reading failed: {self._failure}") from self._failure
        if self._failure:
            raise self._failure


@contextmanager
def _clip_errors(source: _Source, opened: bool = False) -> Iterator[None]:
    """Turn what the decoders raise on bad data into a ClipError."""
    try:
        yield
    except ClipError:
        source.check()  # a lost connection looks like the end of the file
        raise
    except MemoryError as exc:
        raise ClipError("memory", "decoding ran out of memory") from exc
    except (av.DecoderNotFoundError, av.PatchWelcomeError) as exc:
        source.check()
        if opened:  # FFmpeg's answer to Vorbis whose rate or channels change
            raise ClipError("damaged", "the sound changes in a way that can't be followed") from exc
        raise ClipError("unsupported", _reason(exc)) from exc
    except (
        av.FFmpegError,
        soundfile.SoundFileError,
        OSError,
        EOFError,
        ValueError,  # also bad UTF-8 in metadata
        ArithmeticError,
        LookupError,
        AttributeError,  # PyAV, for a codec that names no sample format: 0 bits a sample
        RuntimeError,  # PyAV, for an unknown sample format; soundfile, for a failing seek
    ) as exc:
        source.check()
        raise ClipError("damaged", _reason(exc)) from exc
    source.check()


def _reason(exc: Exception) -> str:
    if isinstance(exc, soundfile.LibsndfileError):
        return f"libsndfile: {exc.error_string or f'error {exc.code}'}"
    return f"FFmpeg: {getattr(exc, 'strerror', None) or exc or type(exc).__name__}"


# --- recognising -----------------------------------------------------------------------------

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of every chunk GUID but the first
_KNOWN = [  # container, what it starts with
    ("wav", rb"(RIFF|RF64|BW64)....WAVE"),
    ("w64", rb"riff\x2e\x91\xcf\x11"),
    ("aiff", rb"FORM....AIF[FC]"),
    ("au", rb"\.snd"),
    ("caf", rb"caff"),
    ("flac", rb"fLaC"),
    ("ogg", rb"OggS"),
    ("mov", rb"....(ftypqt  |moov|mdat|wide|free|skip)"),
    ("mp4", rb"....ftyp"),
    ("webm", rb"\x1aE\xdf\xa3.{0,40}webm"),
    ("matroska", rb"\x1aE\xdf\xa3"),
    ("asf", re.escape(_ASF)),
    ("avi", rb"RIFF....AVI "),
    ("flv", rb"FLV\x01"),
    ("mpegts", rb"G(.{187}G){2}|.{4}G(.{191}G){2}"),
    ("mpegps", rb"\x00\x00\x01\xba"),
    ("amr", rb"#!AMR(-WB)?\n"),
]
_KNOWN_AT_START = re.compile(
    b"|".join(b"(?P<%s>%s)" % (name.encode(), pattern) for name, pattern in _KNOWN), re.DOTALL
)
_REFUSED = [  # kind, name, what it starts with
    ("unsupported", "a playlist", rb"(?i)\s*(#EXTM3U|\[playlist\]|ffconcat|<asx|<smil|<MPD)"),
    ("unsupported", "a MIDI score", rb"MThd"),
    ("unsupported", "IRCAM", rb"\x64\xa3[\x00-\x04]\x00|\x00[\x00-\x04]\xa3\x64"),
    ("unsupported", "WavPack", rb"wvpk"),
    ("unsupported", "Monkey's Audio", rb"MAC "),
    ("unsupported", "True Audio", rb"TTA[12]"),
    ("unsupported", "Musepack", rb"MP\+|MPCK"),
    ("unsupported", "NIST SPHERE", rb"NIST_1A"),
    ("unsupported", "VOC", rb"Creative Voice File"),
    ("unsupported", "DSD", rb"DSD |FRM8"),
    ("unsupported", "RealMedia", rb"\.RMF|\.ra\xfd"),
    ("unsupported", "AC-3", rb"\x0b\x77"),
    ("unsupported", "DTS", rb"\x7f\xfe\x80\x01"),
    ("not_audio", "an image", rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM.{4}\0{4}"),
    ("not_audio", "an archive", rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|Rar!|.{257}ustar"),
    (
        "not_audio",
        "a document",
        rb"%PDF|\xd0\xcf\x11\xe0|PAR1|ARROW1|(?i:\s*<(!DOCTYPE|html|svg|\?xml))",
    ),
    ("unsupported", "an unknown RIFF or IFF file", rb"RIFF|FORM"),
]
_REFUSED_AT_START = [
    (kind, name, re.compile(pattern, re.DOTALL)) for kind, name, pattern in _REFUSED
]
_TEXT = re.compile(rb"[\t\n\f\r -~]*")


def _recognise(source: _Source) -> str:
    """The container's name; skips tags and junk ahead of it. Raises ClipError."""
    for _ in range(16):
        head = source.at(0, _HEAD)
        if head[:3] == b"ID3" and len(head) > 9:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            tag = 10 + size + (10 if head[5] & 0x10 else 0)  # with its footer
        elif head[:8] == b"APETAGEX" and len(head) > 31:
            tag = 32 + int.from_bytes(head[12:16], "little")
        else:
            break
        if tag >= source.length:
            raise ClipError(
                "truncated", f"the tag at the start says {tag} bytes, found {source.length}"
            )
        source.skip(tag)
    if known := _KNOWN_AT_START.match(head):
        return str(known.lastgroup)
    for kind, name, pattern in _REFUSED_AT_START:
        if pattern.match(head):
            raise ClipError(kind, f"{name} is not among the formats that are read")
    for start in re.finditer(rb"\xff[\xe0-\xff]", head):  # MPEG audio and ADTS, junk ahead or not
        for container, frame in (("aac", _adts_frame), ("mp3", _mpeg_frame)):
            if _is_chain(source, head, start.start(), frame):
                source.skip(start.start())
                return container
    what = "text" if _TEXT.fullmatch(head) else f"it starts with {head[:12]!r}"
    raise ClipError("not_audio", f"no known sound format: {what}")


@dataclass(frozen=True)
class _Frame:
    size: int  # bytes
    samples: int
    sample_rate: int
    kind: int  # the header bits that all frames of a stream share


_KBITS = {  # by (is MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_frame(head: bytes) -> _Frame | None:
    """The MPEG audio (MP1, MP2, MP3) frame header that `head` starts with, if it does."""
    bits = int.from_bytes(head[:4], "big")
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    kbits, rate = bits >> 12 & 15, bits >> 10 & 3
    if len(head) < 4 or bits >> 21 != 0x7FF or version == 1 or layer == 4:
        return None
    if kbits in (0, 15) or rate == 3:
        return None
    sample_rate = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bytes_per_s = _KBITS[version == 3, layer][kbits - 1] * 125
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot = 4 if layer == 1 else 1
    size = (samples // slot * bytes_per_s // sample_rate + (bits >> 9 & 1)) * slot
    return _Frame(size, samples, sample_rate, bits & 0xFFFE0C00)


def _adts_frame(head: bytes) -> _Frame | None:
    """The ADTS (raw AAC) frame header that `head` starts with, if it does."""
    bits = int.from_bytes(head[:7], "big")
    rate, size = bits >> 34 & 15, bits >> 13 & 0x1FFF
    if len(head) < 7 or bits >> 44 != 0xFFF or bits >> 41 & 3 or rate > 12 or size < 7:
        return None
    return _Frame(size, 1024, 0, bits >> 30)


def _is_chain(source: _Source, head: bytes, start: int, frame: Any) -> bool:
    """True if three frames of one kind follow each other, or fewer up to the end of the file."""
    if not (first := frame(head[start : start + 8])):
        return False
    position = start + first.size
    for count in (1, 2):
        here = frame(source.at(position, 8))
        if not here or here.kind != first.kind:
            return position + 8 > source.length and (start == 0 or count > 1)
        position += here.size
    return True


# --- what headers claim ----------------------------------------------------------------------

_CHUNKS = {  # container: first chunk, its header, the chunk with the sound, alignment
    "wav": (12, "<4sI", b"data", 2),
    "w64": (40, "<16sQ", b"data" + _W64_TAIL, 8),
    "aiff": (12, ">4sI", b"SSND", 2),
    "caf": (8, ">4sq", b"data", 1),
    "au": (0, "", b"", 1),
}


def _sound_chunk(source: _Source, container: str) -> tuple[int, int | None, bytes]:
    """(offset, bytes claimed) of the chunk with the sound; None: whatever follows, up to the end.
    And the start of the (first) format chunk that a WAV has ahead of it.

    libsndfile clamps a chunk that is longer than its file without a word.
    """
    position, form, wanted, align = _CHUNKS[container]
    if container == "au":
        header = source.at(0, 12)
        if len(header) == 12:
            start, size = struct.unpack(">4xII", header)
            return start, None if size == 0xFFFFFFFF else size, b""
    form_chunk = b""
    large = 0  # the 64-bit size that RF64 keeps elsewhere
    for _ in range(_MAX_CHUNKS if form else 0):
        header = source.at(position, struct.calcsize(form))
        if len(header) < struct.calcsize(form):
            break
        name, size = struct.unpack(form, header)
        start = position + len(header)
        if container == "w64":
            size -= len(header)
        if name == b"ds64":
            large = int.from_bytes(source.at(start + 8, 8), "little")
        if name == wanted:
            if size == 0xFFFFFFFF and large:
                size = large
            return start, None if _is_streamed(source, start, size) else size, form_chunk
        if name == b"fmt ":
            form_chunk = form_chunk or source.at(start, 16)
        if size < 0:
            raise ClipError("damaged", f"the chunk {name!r} has a negative size")
        position = start + size + -size % align
    raise ClipError("truncated", f"the file ends before its sound, after {source.length} bytes")


def _is_streamed(source: _Source, start: int, size: int) -> bool:
    """True for the sizes that writers leave behind who could not seek back to the header."""
    if size == 0:  # an honest zero has an honest size of the whole file too
        whole = int.from_bytes(source.at(4, 4), "little")
        return source.length > start and whole + 8 != source.length
    return size in (0xFFFFFFFF, -1) or (
        0x7FFFE000 <= size <= 0x80001000 and size > source.length - start  # SoX, arecord
    )


def _bytes_claimed(source: _Source, container: str) -> int:
    """How long the file has to be by its own structure; 0 where that can't be told."""
    head = source.at(0, _HEAD)
    if container in ("mp4", "mov"):
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
    if container in ("matroska", "webm"):
        at = head.find(b"\x18\x53\x80\x67") + 4
        if at < 4 or at >= len(head) or not head[at]:
            return 0
        width = 9 - head[at].bit_length()  # of the size, a number with its width in front
        size = int.from_bytes(head[at : at + width], "big") & ~(-1 << 7 * width)
        unknown = size == ~(-1 << 7 * width)
        return 0 if unknown else at + width + size
    if container == "asf":
        at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
        broadcast = head[at + 88 : at + 89] != b"\x02" and head[at + 88 : at + 89] != b"\x00"
        return 0 if at < 0 or broadcast else int.from_bytes(head[at + 40 : at + 48], "little")
    if container == "avi":
        size = int.from_bytes(head[4:8], "little")
        return 0 if size in (0, 0xFFFFFFFF) else size + 8
    if container == "mpegts":
        packet = 188 if head[188:189] == b"G" == head[:1] else 192
        return -(-source.length // packet) * packet
    if container == "mpegps":
        tail = source.at(max(0, source.length - 65_536), 65_536)
        packets = list(re.finditer(rb"\x00\x00\x01[\xbd\xbe\xc0-\xef](..)", tail, re.DOTALL))
        size = 6 + int.from_bytes(packets[-1][1], "big") if packets else 0
        return source.length - len(tail) + packets[-1].start() + size if packets else 0
    if container == "ogg":
        tail = source.at(max(0, source.length - 65_536), 65_536)
        page = tail.rfind(b"OggS")
        table = tail[page + 27 :][: tail[page + 26] if len(tail) > page + 26 else 255]
        return source.length - len(tail) + page + 27 + len(table) + sum(table) if page >= 0 else 0
    return 0


def _duration_claimed(
    source: _Source, container: str, opened: av.container.InputContainer, stream: av.AudioStream
) -> tuple[float | None, float]:
    """(seconds that the header claims for this stream, tolerance); FFmpeg's guesses don't count."""
    if container == "mp3":
        return _mp3_claimed(source)
    seconds: float | None = None
    if container in ("flac", "mp4", "mov", "avi", "asf", "ogg") and stream.duration:
        seconds = float(stream.duration * (stream.time_base or 0))
    elif container in ("matroska", "webm", "flv"):
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        has_duration = container == "flv" or b"\x44\x89" in source.at(0, _HEAD)
        if tag:
            seconds = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        elif has_duration and len(opened.streams) == 1 and opened.duration:
            seconds = opened.duration / av.time_base
    if container == "ogg":
        tail = source.at(max(0, source.length - 65_536), 65_536)
        last = tail[tail.rfind(b"OggS") :]
        if last[14:18] != source.at(14, 4):  # in a chain the duration is that of one link
            seconds = None
        elif len(opened.streams) == 1:  # FFmpeg skips broken pages, and counts from the next one
            ends = re.findall(rb"OggS\0.(.{8})", source.at(0, _HEAD) + last[:14], re.DOTALL)
            ends = [int.from_bytes(end, "little", signed=True) for end in ends]  # in samples
            start = stream.start_time or 0
            if start >= next((end for end in ends if end > 0), start + 1):
                raise ClipError("damaged", "the first page with sound is broken")
            seconds = max(seconds or 0.0, float((ends[-1] - start) * (stream.time_base or 0)))
    if not seconds or seconds <= 0:
        return None, 0.0
    return seconds, 0.0 if container == "flac" else max(0.25, 0.01 * seconds)


def _mp3_claimed(source: _Source) -> tuple[float | None, float]:
    """By the frame count of a Xing, Info or VBRI header, less the encoder's padding."""
    frame = _mpeg_frame(source.at(0, 4))
    frames, delay, padding = _mp3_lengths(source)
    if not frame or frames is None:
        return None, 0.0
    seconds = max(0, frames * frame.samples - delay - padding) / frame.sample_rate
    return seconds or None, 3 * frame.samples / frame.sample_rate


def _mp3_lengths(source: _Source) -> tuple[int | None, int, int]:
    """What a Xing, Info or VBRI header says: frames, the encoder's delay and padding in samples."""
    head = source.at(0, 512)
    at = max(head.find(b"Xing", 0, 64), head.find(b"Info", 0, 64))
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big"), 0, 0
    if at <= 0 or not head[at + 7] & 1:
        return None, 0, 0
    delays = int.from_bytes(head[at + 141 : at + 144], "big")  # 12 bits at each end
    has_delays = head[at + 7] & 15 == 15  # and so does what is in front of them
    frames = int.from_bytes(head[at + 8 : at + 12], "big")
    return frames, *divmod(delays if has_delays else 0, 1 << 12)


# --- decoding --------------------------------------------------------------------------------


def _from(sound: Sound, start_s: float) -> Iterator[np.ndarray]:
    """The sound's blocks without what comes before `start_s`."""
    skip = round(start_s * sound.sample_rate)
    for block in sound.blocks:
        if skip < block.shape[1]:
            yield block[:, skip:]
        skip = max(0, skip - block.shape[1])


def _open_pcm(source: _Source, container: str, start_s: float = 0.0) -> Sound | None:
    """As it is, or through libsndfile; None if that is a case for FFmpeg: a streamed file, an
    unknown codec."""
    start, size, form = _sound_chunk(source, container)
    if size is None:
        return None
    available = max(0, source.length - start)
    file: Any = _pcm_16(source, start, min(size, available), form) if container == "wav" else None
    if file is None:
        source.seek(0)
        with suppress(soundfile.LibsndfileError):
            file = soundfile.SoundFile(source)
    if size > available:
        found_s = file.frames / file.samplerate if file and available else 0.0
        in_s = f"header says {found_s * size / available:.2f} s, found {found_s:.2f} s; "
        in_bytes = f"{available} of {size} bytes of sound"
        raise ClipError("truncated", (in_s if found_s else "") + in_bytes)
    if file is None or file.subtype.startswith("MPEG"):  # its length would be a guess
        return None

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, BLOCK_SAMPLES // file.channels)
        dtype = "int16" if file.subtype in _OF_16_BITS else "float32"
        for left in range(file.frames - start, 0, -step):  # asking at the end takes as long again
            yield file.read(min(left, step), dtype=dtype, always_2d=True).T

    duration_s = file.frames / file.samplerate
    start = round(start_s * file.samplerate)
    if start >= file.frames > 0:
        raise ClipError("truncated", f"the sound ends at {duration_s:.2f} s, before {start_s:g} s")
    if start:
        file.seek(start)
    left_s = (file.frames - start) / file.samplerate
    return Sound(
        file.samplerate,
        file.channels,
        f"{container}/{file.subtype.lower()}",
        duration_s,
        _checked(blocks(), source, container, file.samplerate, left_s, 0.0),
    )


_OF_16_BITS = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW"}  # or of fewer


@dataclass
class _Pcm16:
    """The part of `soundfile.SoundFile` that is needed here, for 16-bit WAV: the commonest sound,
    of which short clips take libsndfile many times as long to open as to read."""

    source: _Source
    start: int
    frames: int
    samplerate: int
    channels: int
    subtype = "PCM_16"

    def seek(self, frame: int) -> None:
        self.source.seek(self.start + frame * 2 * self.channels)

    def read(self, frames: int, **_: Any) -> np.ndarray:
        data = self.source.read(frames * 2 * self.channels)
        data = data[: len(data) - len(data) % (2 * self.channels)]
        return np.frombuffer(data, "<i2").reshape(-1, self.channels)


def _pcm_16(source: _Source, start: int, size: int, form: bytes) -> _Pcm16 | None:
    """`size` bytes of sound from `start` on, or None if its format is any but the plainest."""
    if len(form) < 16:
        return None
    tag, channels, sample_rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", form)
    if (tag, bits, frame_bytes) != (1, 16, 2 * channels) or not 1 <= channels <= MAX_CHANNELS:
        return None
    if not MIN_RATE <= sample_rate <= MAX_RATE:  # libsndfile and FFmpeg say what it is
        return None
    source.seek(start)
    return _Pcm16(source, start, size // frame_bytes, sample_rate, channels)


_DEMUXERS = {  # container: FFmpeg's name of its demuxer, if it is another
    "mp4": "mov",
    "webm": "matroska",
    "mpegps": "mpeg",
}
_CONTAINERS = [name for name, _ in _KNOWN] + ["mp3", "aac"]
_CODECS = (
    "aac,aac_latm,ac3,eac3,alac,amrnb,amrwb,dca,flac,g726,gsm,gsm_ms,mp1,mp1float,mp2,mp2float,"
    "mp3,mp3float,opus,libopus,vorbis,libvorbis,speex,truehd,mlp,wmav1,wmav2,wmapro,wmalossless,"
    "wmavoice,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,adpcm_swf,adpcm_yamaha,nellymoser,"
    + ",".join(sorted(name for name in av.codecs_available if name.startswith("pcm_")))
)
_OPTIONS = {
    "format_whitelist": ",".join(_DEMUXERS.get(name, name) for name in _CONTAINERS),
    "protocol_whitelist": "none",
    "codec_whitelist": _CODECS,  # for the probing; streams are checked by themselves
}


def _open_demuxer(source: Any, demuxer: str) -> av.container.InputContainer:
    """Open `source` as this format and nothing else, with no way to reach another file."""
    return av.open(
        source,
        "r",
        format=demuxer,
        container_options=_OPTIONS,
        metadata_errors="replace",
    )


def _open_ffmpeg(source: _Source, container: str) -> Sound:
    claimed = _bytes_claimed(source, container)
    if claimed > source.length:
        raise ClipError("truncated", f"header says {claimed} bytes, found {source.length}")
    source.seek(0)
    opened = _open_demuxer(source, _DEMUXERS.get(container, container))
    if not opened.streams.audio:
        streams = ", ".join(stream.type for stream in opened.streams) or "none"
        raise ClipError("no_audio", f"no sound among the streams ({streams})")
    stream = opened.streams.audio[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in _CODECS.split(","):
        raise ClipError("unsupported", f"the codec {codec} is not among those that are read")
    if stream.channels > MAX_CHANNELS:  # before they are decoded: one sample would be a block
        raise _not_channels(stream.channels)
    for other in opened.streams:
        if other is not stream:
            other.discard = Discard.all  # saves reading the pictures of a video
    if codec == "flac":  # FFmpeg does not check a frame's CRC by itself
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    stream.codec_context.thread_count = 1
    duration_s, tolerance_s = _duration_claimed(source, container, opened, stream)
    if container == "mp3" and codec.startswith("mp3"):
        packets = _mp3_packets(source, opened, stream)
    else:
        packets = ((packet, None) for packet in opened.demux(stream))
    frames = _frames(packets, container)
    ahead = next(frames, None)
    if not ahead and duration_s:
        raise ClipError("damaged", f"header says {duration_s:.2f} s, found no samples")
    if not ahead:
        raise ClipError("empty", "no samples")
    first = ahead[0]
    name = stream.codec_context.codec.canonical_name
    blocks = _blocks(chain([ahead], frames), container)
    return Sound(
        first.sample_rate,  # not the header's: HE-AAC decodes to twice that
        first.layout.nb_channels,
        name if container in ("flac", "mp3", "aac") else f"{container}/{name}",
        duration_s,
        _checked(blocks, source, container, first.sample_rate, duration_s, tolerance_s),
    )


_RUN = 1 << 13  # bytes of MP3 in a packet: some dozens of frames, which stay in the CPU's cache
_LATE = 529  # samples that an MP3 decoder itself adds to the encoder's delay
_Packet = tuple[Any, int | None]  # an av.Packet, and the samples that have to come of it, if known


def _mp3_packets(
    source: _Source, opened: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[_Packet]:
    """The stream's packets, of many frames each where frame follows frame.

    FFmpeg's demuxer makes one for each, which takes over a third of the time of decoding them. It
    gives the first ones, whose delay it trims, and what is no plain chain of frames.
    """
    end: int | None = None  # of what did not come from the demuxer
    packet: Any
    for packet in opened.demux(stream):
        if None in (packet.pos, packet.pts, packet.duration) or not packet.size:
            yield packet, None
        elif end is None:
            yield packet, None
            if packet.pts + packet.duration >= (stream.start_time or 0):
                end = yield from _mp3_chain(source, packet, stream)
                if end == source.length:
                    return
        elif packet.pos >= end:
            yield packet, None


def _mp3_chain(
    source: _Source, before: Any, stream: av.AudioStream
) -> Generator[_Packet, None, int]:
    """Packets of the frames that follow upon one; returns the offset of the first byte behind them.

    The last frame has one to itself, and so have those with padding to trim. Where the file goes on
    behind them, or has more or fewer than its header says, they are left to the demuxer.
    """
    first = _mpeg_frame(bytes(memoryview(before)[:4]))
    at = before.pos + before.size
    if not first:
        return at
    kind, index = first.kind, before.pts // before.duration + 1  # the index of the frame at `at`
    frames, delay, padding = _mp3_lengths(source)
    sound = 1 << 62  # samples up to the padding
    if stream.start_time:  # FFmpeg trims both ends, or none
        sound = (frames or 0) * first.samples - padding + _LATE
        start, tick = delay + _LATE, before.duration // first.samples
        if (stream.start_time, stream.duration) != (start * tick, (sound - start) * tick):
            return at  # it understands the header in another way

    @lru_cache
    def size(header: bytes) -> int:
        frame = _mpeg_frame(header)
        return frame.size if frame and frame.kind == kind else 0

    def packet(data: bytes) -> Any:
        made: Any = av.Packet(data)
        made.stream, made.time_base, made.pts = stream, stream.time_base, index * before.duration
        return made

    while True:
        data = source.at(at, _RUN)
        ends, end = [0], 0
        while (more := size(data[end : end + 4])) and (end := end + more) <= len(data):
            ends.append(end)
        count = min(len(ends) - 2, sound // first.samples - index)
        if count < 1:
            break
        yield packet(data[: ends[count]]), count * first.samples
        at, index = at + ends[count], index + count
    rest = data[ends[-1] :]
    has_tag = len(rest) == 128 and rest.startswith(b"TAG")
    is_all = at + len(data) == source.length and (not rest or has_tag)
    if not is_all or (stream.start_time and index + len(ends) - 1 != frames):
        return at
    for start, end in pairwise(ends):
        yield packet(data[start:end]), min(max(0, sound - index * first.samples), first.samples)
        index += 1
    return source.length


def _head(frame: av.AudioFrame, samples: int) -> list[av.AudioFrame]:
    """The frame's first samples; nothing if these are none."""
    fifo = av.AudioFifo()
    frame.pts = None
    fifo.write(frame)
    return [part] if samples > 0 and (part := fifo.read(samples)) else []


def _frames(packets: Iterator[_Packet], container: str) -> Iterator[list[av.AudioFrame]]:
    """What each packet holds, if anything; a bad one is `truncated` if it is the last, else
    `damaged`.

    FFmpeg passes over a bad frame in a packet of several: then samples are missing.
    """
    header: Any = {"mp3": lru_cache(_mpeg_frame), "aac": _adts_frame}.get(container)
    length = 4 if container == "mp3" else 7
    for packet, expected in packets:
        try:
            frames = packet.decode()
            head = bytes(memoryview(packet)[:length]) if header and packet.size else b""
            found = header(head) if header and head else None
            cut = packet.is_corrupt and container not in _CHUNKS  # PCM ends as it likes
            cut = cut or (found is not None and found.size > packet.size)
            problem = "incomplete packet" if cut else ""
            extra = 0 if expected is None else sum(frame.samples for frame in frames) - expected
            if extra < 0:
                problem = f"{-extra} of {expected} samples can't be decoded"
            elif extra:
                frames[-1:] = _head(frames[-1], frames[-1].samples - extra)
        except (av.InvalidDataError, av.ArgumentError) as exc:
            frames, problem = [], _reason(exc)
        if problem:
            at = f"at {float(packet.pts * packet.time_base):.2f} s" if packet.pts else "at 0 s"
            if next((later for later, _ in packets if later.size), None):
                raise ClipError("damaged", f"{problem}, {at}")
            if header and not header(bytes(memoryview(packet)[:length])):
                return  # a tag, or other junk behind the sound
            raise ClipError("truncated", f"the last packet is cut short: {problem}, {at}")
        if frames:
            yield frames


# Of FFmpeg's samples. PyAV's own table lacks s64.
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_SCALE = {"s32": 2.0**-31, "s64": 2.0**-63}


def _samples(frame: av.AudioFrame) -> np.ndarray:
    """(channels, samples), as in `Sound.blocks`; by the exact power of two."""
    name = frame.format.name.removesuffix("p")
    if len(frame.planes) == 1:  # packed, or mono: to_ndarray would copy it
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
    with np.errstate(over="ignore"):  # a double becomes Inf, and is found as such
        return samples.astype(np.float32, copy=False)


def _blocks(decoded: Iterable[list[av.AudioFrame]], container: str) -> Iterator[np.ndarray]:
    """Join frames to blocks. Rate, channels and (FLAC counts its samples) position have to go on."""
    joined = av.AudioFifo()  # an array for each frame would take as long as decoding
    rate = channels = 0
    for frames in decoded:
        for frame in frames:
            if frame.sample_rate != rate or frame.layout.nb_channels != channels:
                now = f"{frame.sample_rate} Hz, {frame.layout.nb_channels} channels"
                if rate:
                    before, at_s = f"{rate} Hz, {channels} channels", joined.samples_written / rate
                    raise ClipError("damaged", f"changes from {before} to {now} at {at_s:.2f} s")
                rate, channels = frame.sample_rate, frame.layout.nb_channels
            if container == "flac" and frame.time is not None:
                gap = round(frame.time * rate) - joined.samples_written
                if gap > 0:
                    at_s = joined.samples_written / rate
                    raise ClipError("damaged", f"{gap} samples are missing at {at_s:.2f} s")
            frame.pts = None  # they may overlap
            joined.write(frame)
        frames.clear()  # the next ones get their memory, which is in the cache
        if joined.samples * channels >= BLOCK_SAMPLES and (block := joined.read()):
            yield _samples(block)
    if block := joined.read():
        yield _samples(block)


def _checked(
    blocks: Iterator[np.ndarray],
    source: _Source,
    container: str,
    sample_rate: int,
    claimed_s: float | None,
    tolerance_s: float,
) -> Iterator[np.ndarray]:
    """Pass blocks on; raise ClipError for what the decoder raises, and for missing samples."""
    count = 0
    with _clip_errors(source, opened=True):
        for block in blocks:
            count += block.shape[1]
            if count * len(block) > MAX_SAMPLES:
                expected = f"a clip may have {MAX_SAMPLES:,} samples at its own rate"
                raise ClipError("too_large", expected)
            yield block
    found_s = count / sample_rate
    if not count and not claimed_s:
        raise ClipError("empty", "no samples")
    if claimed_s and round((claimed_s - tolerance_s) * sample_rate) > count:
        # an Ogg file ends with a whole page (or we weren't here): its gap is in the middle
        kind = "damaged" if container == "ogg" else "truncated"
        raise ClipError(kind, f"header says {claimed_s:.2f} s, found {found_s:.2f} s")
