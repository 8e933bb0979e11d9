"""Frame headers of streams without a container: MPEG audio (MP1, MP2, MP3), ADTS (raw AAC)."""

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


MPEG = FrameSyntax(4, mpeg_frame)
ADTS = FrameSyntax(7, adts_frame)
