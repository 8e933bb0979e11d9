"""Packets of AMR files, one for each frame of 20 ms, even after a frame whose header is broken.

FFmpeg takes any byte for a header, and turns all that follows a broken one into noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av

from audio_ops.decode.frames import AMR_BYTES
from audio_ops.decode.mp3 import Packet
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from audio_ops.flags import Findings

_MAGICS = (b"#!AMR\n", b"#!AMR-WB\n")
_FRAME_S = 0.02
_NO_DATA = b"\x7c"  # a frame of which nothing was sent
_WINDOW = 1 << 16  # bytes that are searched for the next frame
_MAX_BYTES = 64  # more than any frame has


def amr_packets(
    source: Source, stream: av.AudioStream, codec: str, findings: Findings
) -> Iterator[Packet]:
    """The file's frames. Bytes between them are lost frames, which the decoder conceals; magic bytes
    between them begin another part."""
    sizes, at, index = AMR_BYTES[codec], 0, 0
    size = len(_MAGICS[codec == "amrwb"])
    window = b""
    start = 0  # of `window`
    while at < source.length:
        if at + 4 * _MAX_BYTES > start + len(window) < source.length or not window:
            start, window = at, source.at(at, _WINDOW)
            if not window:
                return
        here = at - start
        if window.startswith(_MAGICS, here):
            at += len(_MAGICS[codec == "amrwb"])
            continue
        if frame := _frame_bytes(window, here, sizes):
            size = frame
            yield _packet(stream, window[here : here + size], index), None
            at, index = at + size, index + 1
            continue
        found = next(
            (k for k in range(here + 1, len(window)) if _is_chain(window, k, sizes)), len(window)
        )
        lost = max(1, round((found - here) / size))
        where = f"at {index * _FRAME_S:.2f} s"
        error = ClipError("damaged", f"{found - here} bytes are no frames, {where}")
        findings.damage("corrupt", error, silenced_s=lost * _FRAME_S)
        for _ in range(lost):
            yield _packet(stream, _NO_DATA, index), None
            index += 1
        at = start + found


def _frame_bytes(data: bytes, at: int, sizes: tuple[int, ...]) -> int:
    """Bytes of the frame with its header at `at`, 0 if there is none (RFC 4867, 5.3)."""
    kind = data[at] >> 3 & 15
    if data[at] & 0x83 or (kind >= len(sizes) and kind < 14):
        return 0
    return 1 + (sizes[kind] if kind < len(sizes) else 0)


def _is_chain(data: bytes, at: int, sizes: tuple[int, ...]) -> bool:
    """Whether three frames follow each other, all of speech, or a part begins."""
    if data.startswith(_MAGICS, at):
        return True
    for _ in range(3):
        size = _frame_bytes(data, at, sizes) if at < len(data) else 0
        if size <= 6:
            return False
        at += size
    return True


def _packet(stream: av.AudioStream, data: bytes, index: int) -> Any:
    packet: Any = av.Packet(data)
    ticks = round(_FRAME_S / (stream.time_base or 1))
    packet.stream, packet.time_base = stream, stream.time_base
    packet.pts, packet.duration = index * ticks, ticks
    return packet
