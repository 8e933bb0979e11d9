"""Encodings of sound without a header, as a config declares it. Imports no decoder."""

from __future__ import annotations

from dataclasses import dataclass

from audio_ops.decode.formats import Container


@dataclass(frozen=True)
class Encoding:
    """How sound without a header is decoded.

    subtype, endian: libsndfile's names for it; "" if FFmpeg decodes it.
    rate: its only sample rate in Hz; 0 for any.
    is_mono: whether it is always mono.
    """

    subtype: str = ""
    endian: str = "FILE"
    rate: int = 0
    is_mono: bool = False


ENCODINGS = {  # by the names that `ffmpeg -f` has for them; `vox` is sox's name for Dialogic ADPCM
    "mulaw": Encoding("ULAW"),
    "alaw": Encoding("ALAW"),
    "s8": Encoding("PCM_S8"),
    "u8": Encoding("PCM_U8"),
    **{
        f"{kind}{bits}{end}": Encoding(subtype, endian)
        for kind, bits, subtype in (
            ("s", 16, "PCM_16"),
            ("s", 24, "PCM_24"),
            ("s", 32, "PCM_32"),
            ("f", 32, "FLOAT"),
            ("f", 64, "DOUBLE"),
        )
        for end, endian in (("le", "LITTLE"), ("be", "BIG"))
    },
    "vox": Encoding("VOX_ADPCM", is_mono=True),
    "gsm": Encoding("GSM610", is_mono=True),
    "g722": Encoding(rate=16_000, is_mono=True),
    "g723_1": Encoding(rate=8_000, is_mono=True),
}
CONTAINERS = {name: Container("raw", demuxer=name, extensions=(), magic=None) for name in ENCODINGS}


@dataclass(frozen=True)
class Headerless:
    """A file without a header: its encoding, a key of ENCODINGS, its sample rate in Hz, and its number of
    interleaved channels."""

    encoding: str
    sample_rate: int
    channels: int = 1
