"""Frame headers of streams without a container: MPEG audio (MP1, MP2, MP3), ADTS (raw AAC), AC-3,
E-AC-3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """A frame, as its header describes it."""

    size: int  # bytes, with its header
    samples: int  # per channel
    sample_rate: int  # Hz; 0 where `parse` does not need it
    kind: int  # the header bits that all frames of a stream share


@dataclass(frozen=True)
class FrameSyntax:
    """How to read frame headers: `parse` takes at least the first `header_bytes` of a frame, and
    returns None if they are no header."""

    header_bytes: int
    parse: Callable[[bytes], Frame | None]


_KBITS = {  # by (is MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def mpeg_frame(head: bytes) -> Frame | None:
    """The MPEG audio frame that begins with `head`, or None (ISO/IEC 11172-3 and 13818-3)."""
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
    return Frame(size, samples, sample_rate, bits & 0xFFFE0C00)


def adts_frame(head: bytes) -> Frame | None:
    """The ADTS frame that begins with `head`, or None (ISO/IEC 13818-7)."""
    bits = int.from_bytes(head[:7], "big")
    rate, size = bits >> 34 & 15, bits >> 13 & 0x1FFF
    if len(head) < 7 or bits >> 44 != 0xFFF or bits >> 41 & 3 or rate > 12 or size < 7:
        return None
    return Frame(size, 1024, 0, bits >> 30)


_AC3_KBITS = (
    *(32, 40, 48, 56, 64, 80, 96, 112, 128, 160),
    *(192, 224, 256, 320, 384, 448, 512, 576, 640),
)


def ac3_frame(head: bytes) -> Frame | None:
    """The AC-3 frame that begins with `head`, or None (ETSI TS 102 366)."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return None
    rate, code, version = head[4] >> 6, head[4] & 63, head[5] >> 3
    if rate == 3 or code >> 1 >= len(_AC3_KBITS) or version > 10:
        return None
    sample_rate = (48000, 44100, 32000)[rate]
    words = _AC3_KBITS[code >> 1] * 1000 * 1536 // 16 // sample_rate
    return Frame(2 * (words + (code & 1 if rate == 1 else 0)), 1536, 0, version << 2 | rate)


def eac3_frame(head: bytes) -> Frame | None:
    """The E-AC-3 frame that begins with `head`, or None (ETSI TS 102 366, annex E)."""
    if len(head) < 6 or head[:2] != b"\x0b\x77" or not 10 < head[5] >> 3 <= 16:
        return None
    size = 2 * (1 + ((head[2] & 7) << 8 | head[3]))
    return Frame(size, 0, 0, head[5] >> 3 << 2 | head[4] >> 6) if size > 6 else None


AMR_BYTES = {  # of speech, and of the description of a pause, by frame type
    "amrnb": (12, 13, 15, 17, 19, 20, 26, 31, 5),
    "amrwb": (17, 23, 32, 36, 40, 46, 50, 58, 60, 5),
}


def amr_has_pauses(packet: bytes, codec: str) -> bool:
    """Whether one of the frames in an AMR packet is not speech (3GPP TS 26.101, 26.201)."""
    sizes, at = AMR_BYTES[codec], 0
    while at < len(packet):
        kind = packet[at] >> 3 & 15
        if kind >= len(sizes) - 1:
            return True
        at += 1 + sizes[kind]
    return False


MPEG = FrameSyntax(4, mpeg_frame)
ADTS = FrameSyntax(7, adts_frame)
AC3 = FrameSyntax(6, ac3_frame)
EAC3 = FrameSyntax(6, eac3_frame)
