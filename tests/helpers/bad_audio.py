"""Every class of bad sound, made from good sound, with its expected outcome.

`sounds()` are files; `tars()`, `parquets()` and `manifests()` are packagings. An outcome is `ok` or
a kind of `errors.KINDS`, with several separated by `|` where decoders may differ.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import random
import resource
import struct
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sounds import RATES, encode, noise, silent_video, tone

from audio_ops.decode import headerless
from audio_ops.decode.headerless import Headerless
from audio_ops.errors import KINDS, ClipError
from audio_ops.flags import FLAGS, KEEP, Damage
from audio_ops.prepare import prepare_clip

RATE = 16_000
MAX_BYTES = 512 << 20  # memory that a bad clip may take
MAX_CLIP_S = 600.0
CUT = (  # one format of each container
    *("wav", "rf64", "w64", "aiff", "au", "caf", "flac", "mp3", "ogg", "opus", "aac"),
    *("m4a", "mov", "wma", "webm", "mkv", "amr", "ts", "mpg", "avi", "sph", "wv", "ac3", "eac3"),
)
OPEN_ENDED = ("aac", "amr", "ts", "ac3", "eac3")  # that do not say how long they are
LONG_FRAMES = ("ac3", "eac3")  # of which half a one is more than a tenth of these sounds
FUZZED = (*CUT, "sph_shorten", "wav_g722", "wav_g723_1", "wav_oki", "amr_dtx")
HEADERLESS = ("mulaw", "s24be", "vox", "gsm", "g722", "g723_1")
PCM = ("wav", "rf64", "w64", "aiff", "au", "caf", "sph")  # whose sizes may be some bytes off
ENCODINGS = (
    *("wav_u8", "wav_24", "wav_32", "wav_float", "wav_double", "wav_alaw", "wav_ulaw"),
    *("wav_ima", "wav_ms", "wavex", "rf64", "w64", "sph_ulaw", "sph_shorten"),
    *("wav_g722", "wav_g723_1", "wav_g726", "wav_oki"),
)


class Bad(NamedTuple):
    """A file, its outcome, and that with `on_damage: error` if it is another."""

    data: bytes
    outcome: str
    strict: str = ""


class Packed(NamedTuple):
    """A file that holds clips, with the expected outcome of each."""

    name: str
    data: bytes
    outcomes: list[str]


@cache
def good(seconds: float = 0.5, format: str = "wav") -> bytes:
    rate = RATES.get(format, 44100)
    return encode(noise(seconds, rate), rate, format)


@cache
def sounds() -> dict[str, Bad]:
    """Every class of bad file, and good files that look bad."""
    found = dict(_cut())
    found |= {f"encoded as {name}": Bad(good(0.5, name), "ok") for name in ENCODINGS}
    for group in (_wav, _other_pcm, _mpeg, _flac, _ogg, _containers, _samples, _no_sound):
        found |= group()
    return found


def _cut() -> Iterator[tuple[str, Bad]]:
    """Files cut in the header, in the next chunk, within a frame, and before the last byte."""
    for format in CUT:
        data = good(0.5, format)
        for where, size in {
            "header": 10,
            "chunk": 30,
            "middle": len(data) * 55 // 100,
            "last byte": len(data) - 1,
        }.items():
            in_head = "|damaged|not_audio|unsupported" if where in ("header", "chunk") else ""
            in_head += "|damaged" if format == "mpg" else ""
            is_kept = (where == "last byte" and format not in ("flac", "opus", "mov")) or (
                where == "middle" and format in OPEN_ENDED and format not in LONG_FRAMES
            )
            kept = "ok" if is_kept else f"truncated{in_head}"
            strict = "ok" if where == "last byte" and format in PCM else f"truncated{in_head}"
            if format in (*OPEN_ENDED, "wv"):  # behind which there is a tag
                strict += "|damaged"
            yield f"{format} cut in its {where}", Bad(data[:size], kept, strict)


def _changed(data: bytes, form: str, at: int, *values: Any) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def _wav() -> dict[str, Bad]:
    wav = encode(tone(0.5), RATE, "wav")
    rf64, w64 = encode(tone(0.5), RATE, "rf64"), encode(tone(0.5), RATE, "w64")
    ds64 = rf64.index(b"ds64") + 16
    junk = struct.pack("<4sI", b"junk", 0)
    twice = wav[:36] + wav[12:36] + wav[36:]
    return {
        "wav of 0 Hz": Bad(_changed(wav, "<I", 24, 0), "damaged"),
        "wav of 1 Hz": Bad(_changed(wav, "<I", 24, 1), "unsupported"),
        "wav of 2^31 Hz": Bad(_changed(wav, "<I", 24, 2**31), "damaged"),
        "wav of 2^31-1 Hz": Bad(_changed(wav, "<I", 24, 2**31 - 1), "unsupported"),
        "wav of 0 channels": Bad(_changed(wav, "<H", 22, 0), "damaged"),
        "wav of 65 channels": Bad(
            _changed(wav, "<HIIH", 22, 65, RATE, RATE * 130, 130), "unsupported"
        ),
        "wav of 1,024 channels": Bad(
            _changed(wav, "<HIIH", 22, 1024, RATE, RATE * 2048, 2048), "unsupported"
        ),
        "wav of 65,535 channels": Bad(_changed(wav, "<H", 22, 65535), "truncated"),
        "wav of 0 bits": Bad(_changed(wav, "<H", 34, 0), "unsupported"),
        "wav of 65,535 bits": Bad(_changed(wav, "<H", 34, 65535), "unsupported"),
        "wav with a block of 0 bytes": Bad(_changed(wav, "<H", 32, 0), "ok"),
        "wav in an unknown encoding": Bad(_changed(wav, "<H", 20, 0x1234), "unsupported"),
        "wav whose sound is longer than its file": Bad(_changed(wav, "<I", 40, 2**30), "truncated"),
        "wav without a format": Bad(wav[:12] + wav[36:], "damaged"),
        "wav with two formats": Bad(twice, "ok"),
        "wav with a format of 4 GB": Bad(_changed(wav, "<I", 16, 2**32 - 1), "truncated"),
        "wav without sound": Bad(wav[:36], "truncated"),
        "wav with 20,000 chunks": Bad(wav[:12] + junk * 20_000 + wav[12:], "truncated"),
        "wav of 0 samples": Bad(encode(tone(0), RATE, "wav"), "empty"),
        "wav of no known size": Bad(_changed(wav, "<I", 40, 2**32 - 1), "ok"),
        "wav with junk behind it": Bad(wav + b"\xff" * 1001, "ok"),
        "rf64 of 2^63 bytes": Bad(_changed(rf64, "<Q", ds64, 2**63), "truncated"),
        "w64 with a chunk of 0 bytes": Bad(_changed(w64, "<Q", 40 + 16, 0), "damaged"),
        "w64 with a chunk of 2^63 bytes": Bad(_changed(w64, "<Q", 40 + 16, 2**63), "truncated"),
        "mp3 inside of a wav": Bad(good(0.5, "wav_mp3"), "ok"),
    }


def _other_pcm() -> dict[str, Bad]:
    aiff, au = encode(tone(0.5), RATE, "aiff"), encode(tone(0.5), RATE, "au")
    caf = encode(tone(0.5), RATE, "caf")
    rate = aiff.index(b"COMM") + 16
    return {
        "aiff of 0 Hz": Bad(_changed(aiff, ">10s", rate, bytes(10)), "unsupported"),
        "aiff of Inf Hz": Bad(_changed(aiff, ">HQ", rate, 0x7FFF, 1 << 63), "unsupported"),
        "aiff of 1,024 channels": Bad(_changed(aiff, ">H", rate - 8, 1024), "unsupported"),
        "aiff with a chunk of 4 GB": Bad(_changed(aiff, ">I", 16, 2**32 - 1), "truncated"),
        "au of 0 channels": Bad(_changed(au, ">I", 20, 0), "damaged"),
        "au of 2^31 Hz": Bad(_changed(au, ">I", 16, 2**31), "damaged"),
        "au whose sound begins behind its end": Bad(_changed(au, ">I", 4, 2**31), "truncated"),
        "caf with a negative chunk": Bad(_changed(caf, ">q", 12, -2), "damaged"),
        "caf of NaN Hz": Bad(_changed(caf, ">d", 20, float("nan")), "damaged"),
        "caf of 1e300 Hz": Bad(_changed(caf, ">d", 20, 1e300), "unsupported"),
    }


def _mpeg() -> dict[str, Bad]:
    mp3 = good(1.0, "mp3")
    tag = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 50, 0, 1 << 31) + bytes(8 + 50)
    xing = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    other = encode(noise(0.5, 32000), 32000, "mp2")
    return {
        "mp3 behind a tag": Bad(tag + mp3, "ok"),
        "mp3 behind 3 tags": Bad(tag * 3 + mp3, "ok"),
        "mp3 behind 20 tags": Bad(tag * 20 + mp3, "not_audio"),
        "mp3 between APE tags": Bad(ape + mp3 + ape, "ok"),
        "mp3 behind junk": Bad(b"junk" * 300 + mp3, "ok"),
        "mp3 behind 100 kB of junk": Bad(b"junk" * 25_000 + mp3, "not_audio"),
        "mp3 before junk": Bad(mp3 + b"junk" * 300, "ok"),
        "mp3 before lyrics and a tag": Bad(
            mp3 + b"LYRICSBEGIN" + b"la" * 99 + b"TAG" + bytes(125), "ok"
        ),
        "a tag alone": Bad(tag, "truncated"),
        "a tag that claims 256 MB": Bad(b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + mp3, "truncated"),
        "an APE tag that claims 4 GB": Bad(
            b"APETAGEX" + struct.pack("<IIII", 2000, 2**32 - 1, 0, 1 << 31) + mp3, "truncated"
        ),
        "mp3 that claims 2^32 frames": Bad(_changed(mp3, ">I", xing + 8, 2**32 - 1), "ok"),
        "mp2 that changes its rate": Bad(
            encode(noise(0.5, 44100), 44100, "mp2") + other, "ok", "damaged"
        ),
        "a single frame header": Bad(mp3[:4], "damaged"),
        "frame headers alone": Bad(b"\xff\xfb\x90\x00" * 20_000, "not_audio"),
        "sync words alone": Bad(b"\xff" * 200_000, "not_audio"),
        "aac behind a tag": Bad(tag + good(0.5, "aac"), "ok"),
        "mp3 with a picture": Bad(_with_picture("mp3"), "ok"),
        "mp4 with a picture": Bad(_with_picture("mp4"), "ok"),
    }


def _flac() -> dict[str, Bad]:
    flac = encode(noise(1.0), RATE, "flac")
    at = 8 + 10  # in STREAMINFO: 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    huge_picture = b"\x06\xff\xff\xff"
    middle = len(flac) // 2
    spliced = flac[:middle] + flac[middle + 3000 :]
    flipped = flac[:middle] + bytes([flac[middle] ^ 0xFF]) + flac[middle + 1 :]
    return {
        "flac of 0 Hz": Bad(_changed(flac, ">H", at, 0), "ok"),
        "flac of 1,048,575 Hz": Bad(_changed(flac, ">H", at, 0xFFFF), "ok"),
        "flac that claims 2^36 samples": Bad(
            _changed(flac, ">BI", at + 3, flac[at + 3] | 15, 2**32 - 1), "too_long"
        ),
        "flac of no known length": Bad(_changed(flac, ">BI", at + 3, flac[at + 3] & 0xF0, 0), "ok"),
        "flac with a picture of 16 MB": Bad(
            flac[:4] + bytes([flac[4] & 127]) + flac[5:42] + huge_picture + flac[42:],
            "damaged",
        ),
        "flac without its middle": Bad(spliced, "damaged"),
        "flac with a byte changed": Bad(flipped, "damaged"),
        "flac of 0 samples": Bad(encode(tone(0), RATE, "flac"), "empty"),
        "flac and nothing else": Bad(b"fLaC", "damaged"),
        "flac behind a tag": Bad(b"ID3\x04\0\0\0\0\0\x00" + flac, "ok"),
    }


def _ogg() -> dict[str, Bad]:
    ogg, opus = good(1.0, "ogg"), good(1.0, "opus")
    other = encode(noise(0.5, 32000), 32000, "ogg")
    middle = len(ogg) // 2
    flipped = ogg[:middle] + bytes([ogg[middle] ^ 0xFF]) + ogg[middle + 1 :]
    head = opus.index(b"OpusHead")
    return {
        "chained ogg": Bad(ogg + ogg, "ok"),
        "chained opus": Bad(opus + opus, "ok"),
        "chained ogg that changes its rate": Bad(ogg + other, "ok", "damaged"),
        "ogg behind opus": Bad(opus + ogg, "ok", "damaged"),
        "ogg with a byte changed": Bad(flipped, "ok", "damaged"),
        "ogg without its first page": Bad(ogg[ogg.index(b"OggS", 4) :], "damaged"),
        "opus that skips all it has": Bad(
            _paged(_changed(opus, "<H", head + 10, 65535)), "damaged"
        ),
        "opus that skips a frame": Bad(_paged(_changed(opus, "<H", head + 10, 960)), "ok"),
        "opus of 0 channels": Bad(_paged(_changed(opus, "B", head + 9, 0)), "damaged"),
        "opus of 255 channels": Bad(_paged(_changed(opus, "B", head + 9, 255)), "damaged"),
        "opus of a later version": Bad(_paged(_changed(opus, "B", head + 8, 255)), "damaged"),
    }


def _paged(ogg: bytes) -> bytes:
    """The Ogg with the checksum of its first page corrected."""
    size = 27 + ogg[26] + sum(ogg[27 : 27 + ogg[26]])
    page = bytearray(ogg[:size])
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = crc.to_bytes(4, "little")
    return bytes(page) + ogg[size:]


def _containers() -> dict[str, Bad]:
    m4a, mkv = good(0.5, "m4a"), good(0.5, "mkv")
    stsz = m4a.index(b"stsz")
    mdhd = m4a.index(b"mdhd")
    duration = mkv.index(b"\x44\x89\x88")
    nested = b""
    for _ in range(2_000):
        nested = struct.pack(">I4s", len(nested) + 8, b"moov") + nested
    return {
        "a video without sound": Bad(silent_video("mp4"), "no_audio"),
        "a matroska video without sound": Bad(silent_video("mkv_video"), "no_audio"),
        "an avi without sound": Bad(silent_video("avi"), "no_audio"),
        "two sounds in one file": Bad(_two_sounds(), "ok"),
        "m4a without its index": Bad(m4a[: m4a.index(b"moov") - 4], "damaged"),
        "m4a with 2^32 samples": Bad(_changed(m4a, ">I", stsz + 12, 2**32 - 1), "damaged"),
        "m4a with a sample of 4 GB": Bad(_changed(m4a, ">I", stsz + 16, 2**31 - 1), "damaged"),
        "m4a of 0 ticks a second": Bad(_changed(m4a, ">I", mdhd + 16, 0), "truncated"),
        "m4a that claims 2^32 ticks": Bad(_changed(m4a, ">I", mdhd + 20, 2**32 - 2), "ok"),
        "m4a with a box of 2^63 bytes": Bad(
            m4a + struct.pack(">I4sQ", 1, b"free", 2**63), "ok", "truncated"
        ),
        "mp4 of boxes in boxes": Bad(m4a[:32] + nested, "damaged"),
        "matroska that claims 1e300 s": Bad(_changed(mkv, ">d", duration + 3, 1e300), "ok"),
        "matroska of no known size": Bad(_unknown_size(mkv), "ok"),
        "a codec that is not read": Bad(_in_matroska("tta"), "unsupported"),
    }


def _unknown_size(mkv: bytes) -> bytes:
    at = mkv.index(b"\x18\x53\x80\x67") + 4
    return mkv[:at] + b"\x01" + b"\xff" * 7 + mkv[at + 8 :] if mkv[at] == 1 else mkv


def _samples() -> dict[str, Bad]:
    def wav(samples: np.ndarray, format: str = "wav_float") -> bytes:
        return encode(samples.astype(np.float32), RATE, format)

    broken = {}
    for name, value in {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf, "3e38": 3e38}.items():
        samples = tone(0.5)
        samples[0, 5000] = value
        broken[f"a sample of {name}"] = Bad(wav(samples), "not_finite")
    return broken | {
        "NaN in doubles": Bad(wav(np.full((1, 8000), np.nan), "wav_double"), "not_finite"),
        "silence": Bad(wav(np.zeros((1, 8000)), "wav"), "ok"),
        "direct current": Bad(wav(np.ones((1, 8000)) * 0.5), "ok"),
        "clipped": Bad(wav(np.clip(tone(0.5) * 50, -1, 1), "wav"), "ok"),
        "100 times full scale": Bad(wav(tone(0.5) * 200), "ok"),
        "one sample": Bad(wav(np.full((1, 1), 0.5), "wav"), "ok"),
        "denormal samples": Bad(wav(np.full((1, 8000), 1e-42)), "ok"),
        "64 channels": Bad(encode(tone(0.1, RATE, 64), RATE, "wav"), "ok"),
        "4 kHz": Bad(encode(tone(0.5, 4000), 4000, "wav"), "ok"),
        "768 kHz": Bad(encode(tone(0.1, 768_000), 768_000, "wav"), "ok"),
    }


def _no_sound() -> dict[str, Bad]:
    random_bytes = random.Random(0).randbytes(50_000)
    texts = {
        "words": b"these are just words, renamed to .wav\n" * 100,
        "JSON": json.dumps({"not": ["sound"]}).encode(),
        "HTML": b"<!doctype html><html><body>404</body></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "an S3 error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "PDF": b"%PDF-1.7\n" + bytes(100),
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "JPEG": b"\xff\xd8\xff\xe0" + random_bytes[:1000],
        "ZIP": b"PK\x03\x04" + bytes(100),
        "gzip": gzip.compress(b"x" * 1000),
        "a program": b"\x7fELF\x02\x01\x01" + bytes(100),
        "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94.",
        "zeros": bytes(100_000),
        "random bytes": random_bytes,
        "one byte": b"R",
        "a sync word of AC-3": b"\x0b\x77" + bytes(1000),
        "AppleDouble": b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(100),
    }
    playlists = {
        "a playlist": b"#EXTM3U\nhttp://127.0.0.1/x.mp3\n",
        "a script of FFmpeg's": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "MIDI": b"MThd" + bytes(100),
        "IRCAM": b"\x64\xa3\x02\x00" + bytes(1024),
        "True Audio": b"TTA1" + bytes(100),
        "RealAudio": b".ra\xfd" + bytes(100),
    }
    found = {name: Bad(data, "not_audio") for name, data in texts.items()}
    found |= {name: Bad(data, "unsupported") for name, data in playlists.items()}
    return found | {"no bytes": Bad(b"", "empty")}


def _with_picture(muxer: str) -> bytes:
    """Sound with cover art, as FFmpeg writes it: a video stream of one picture."""
    picture = io.BytesIO()
    with av.open(picture, "w", format="image2pipe") as out:
        stream: Any = out.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8))
        out.mux(stream.encode(frame.reformat(format="yuvj420p")))
        out.mux(stream.encode(None))
    if muxer == "mp3":
        jpeg = picture.getvalue()
        body = b"\0image/jpeg\0\x03\0" + jpeg
        frame_ = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
        size = bytes(len(frame_) >> 7 * n & 127 for n in (3, 2, 1, 0))
        return b"ID3\x03\0\0" + size + frame_ + good(0.5, "mp3")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer) as out:
        sound: Any = out.add_stream("aac", rate=RATE, layout="mono")
        cover: Any = out.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        _write(out, sound, tone(0.5))
        out.mux(cover.encode(frame.reformat(format="yuvj420p")))
        out.mux(cover.encode(None))
    return buffer.getvalue()


def _two_sounds() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        streams: list[Any] = [out.add_stream("flac", rate=RATE, layout="mono") for _ in range(2)]
        for stream in streams:
            _write(out, stream, tone(0.5))
    return buffer.getvalue()


def _in_matroska(codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        _write(out, out.add_stream(codec, rate=RATE, layout="mono"), tone(0.5))
    return buffer.getvalue()


def _write(out: Any, stream: Any, samples: np.ndarray) -> None:
    resampler = av.AudioResampler(stream.codec_context.format, "mono", RATE)
    frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
    frame.sample_rate, frame.pts = RATE, 0
    fifo = av.AudioFifo()
    for part in resampler.resample(frame):
        fifo.write(part)
    if not stream.codec_context.is_open:
        stream.codec_context.open()
    size = stream.codec_context.frame_size or 4096
    while part := fifo.read(size) or fifo.read(0, partial=True):
        out.mux(stream.encode(part))
    out.mux(stream.encode(None))


# --- tars ----------------------------------------------------------------------------------------


@cache
def tars() -> list[Packed]:
    wav = good()
    plain = _tar([("a.wav", wav), ("b.wav", wav), ("c.wav", wav)])
    member = 512 + -(-len(wav) // 512) * 512
    special = {
        "a link": tarfile.SYMTYPE,
        "a hard link": tarfile.LNKTYPE,
        "a device": tarfile.CHRTYPE,
        "a disk": tarfile.BLKTYPE,
        "a pipe": tarfile.FIFOTYPE,
    }
    packed = [
        Packed(
            name,
            _tar([("a.wav", wav), ("b.wav", kind), ("c.wav", wav)]),
            ["ok", "unreadable", "ok"],
        )
        for name, kind in special.items()
    ]
    long_name = {"path": "x" * 3000 + ".wav"}
    gigabyte = _packed_zeros(1 << 30)
    return [
        *packed,
        Packed("a name twice", _tar([("a.wav", wav), ("a.wav", wav)]), ["ok", "ok"]),
        Packed("an absolute name", _tar([("/etc/x.wav", wav)]), ["ok"]),
        Packed("a name that leads up", _tar([("../../x.wav", wav)]), ["ok"]),
        Packed("a name that is not UTF-8", _tar([("caf\udce9.wav", wav)]), ["ok"]),
        Packed("a name with escapes", _tar([("a\x1b[31m\n\r\t.wav", wav)]), ["ok"]),
        Packed("a folder called x.wav", _tar([("x.wav", tarfile.DIRTYPE), ("a.wav", wav)]), ["ok"]),
        Packed("an old sparse file", _sparse() + _tar([("b.wav", wav)]), ["unreadable", "ok"]),
        Packed(
            "a sparse file",
            _tar(
                [
                    (
                        "a.wav",
                        wav,
                        {
                            "GNU.sparse.major": "1",
                            "GNU.sparse.minor": "0",
                            "GNU.sparse.realsize": "9",
                        },
                    ),
                    ("b.wav", wav),
                ]
            ),
            ["unreadable", "ok"],
        ),
        Packed("a long name", _tar([("a.wav", wav, long_name), ("b.wav", wav)]), ["ok", "ok"]),
        Packed(
            "a huge header",
            _tar([("a.wav", wav), ("b.wav", wav, {"x": "y" * 100_000})]),
            ["ok", "damaged"],
        ),
        Packed(
            "a header of 8 GB",
            _tar([("a.wav", wav)], end=False) + _header(tarfile.XHDTYPE, (8 << 30) - 1),
            ["ok", "damaged"],
        ),
        Packed(
            "headers upon headers",
            _tar([("a.wav", wav)], end=False) + (_header(tarfile.XHDTYPE, 0) * 5000) + plain,
            ["ok", "damaged"],
        ),
        Packed(
            "a member of 2^70 bytes",
            _tar([("a.wav", wav)], end=False) + _header(tarfile.REGTYPE, 2**70, "b.txt") + plain,
            ["ok", "truncated"],
        ),
        Packed(
            "a member of -512 bytes",
            _tar([("a.wav", wav)], end=False) + _header(tarfile.REGTYPE, -512, "b.wav") + plain,
            ["ok", "damaged"],
        ),
        Packed("a size that is no number", _tar([("a.wav", wav, {"size": "-5"})]), ["damaged"]),
        Packed("a member of 0 bytes", _tar([("a.wav", b""), ("b.wav", wav)]), ["empty", "ok"]),
        Packed("cut in a header", plain[: member + 100], ["ok", "truncated"]),
        Packed("cut in a member", plain[: member + 2000], ["ok", "truncated"]),
        Packed("without an end", plain[: 2 * member], ["ok", "ok", "truncated"]),
        Packed("no tar", b"no tar at all\n" * 999, ["damaged"]),
        Packed("no bytes in a tar", b"", ["empty"]),
        Packed("gzip", gzip.compress(plain), ["ok"] * 3),
        Packed(
            "gzip that is cut",
            gzip.compress(plain)[:-20_000],
            ["ok", "ok", "truncated"],
        ),
        Packed("gzip with a wrong checksum", _broken_gzip(plain), ["ok", "ok", "ok", "damaged"]),
        Packed("gzip of 1 GB of nothing", gigabyte, ["too_large"]),
        Packed(
            "gzip of a clip of 1 GB",
            _packed_zeros(1 << 30, _header(tarfile.REGTYPE, 1 << 30, "a.wav")),
            ["too_large", "too_large"],
        ),
        Packed("half a surrogate", _tar([("a.wav", wav), ("a.json", b'{"x": "\\ud800"}')]), ["ok"]),
        Packed("sidecars alone", _tar([("a.json", b"{}")]), ["no_audio"]),
    ]


def _tar(members: list[Any], end: bool = True) -> bytes:
    """A tar of members (name, content or a member type, and optionally pax headers)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, *headers in members:
            header = tarfile.TarInfo(name)
            header.pax_headers = headers[0] if headers else {}
            is_file = len(content) != 1
            header.type, header.linkname = (tarfile.REGTYPE, "") if is_file else (content, "a.wav")
            header.size = len(content) if is_file else 0
            if "\udce9" in name:
                tar.format = tarfile.GNU_FORMAT
            tar.addfile(header, io.BytesIO(content) if is_file else None)
        size = tar.offset
    return buffer.getvalue() if end else buffer.getvalue()[:size]


def _header(kind: bytes, size: int, name: str = "x") -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, size
    return header.tobuf(tarfile.GNU_FORMAT)


def _sparse() -> bytes:
    """A member with a map of 3 blocks, and one block of content."""
    header = bytearray(_header(tarfile.GNUTYPE_SPARSE, 512, "a.wav"))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = bytearray(512)
    more[504] = 1
    return bytes(header) + bytes(more) * 2 + bytes(512) + bytes(512)


def _packed_zeros(size: int, head: bytes = b"") -> bytes:
    return gzip.compress(head) + gzip.compress(bytes(16 << 20)) * (size >> 24)


def _broken_gzip(plain: bytes) -> bytes:
    packed = gzip.compress(plain)
    return packed[:-8] + bytes(4) + packed[-4:]


# --- Parquet -------------------------------------------------------------------------------------


@cache
def parquets() -> list[Packed]:
    """Parquet files, each to be read beside a good one, which has the expected columns."""
    wav = good()
    whole = _parquet({"audio": [wav, wav]})
    one = pa.array([0, 0], pa.int32())
    large = pa.DictionaryArray.from_arrays(one, pa.array([bytes(48 << 20)]))
    invalid = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(struct.pack("<3i", 0, 2, 4)), pa.py_buffer(b"\xff\xffab")],
    )
    return [
        Packed("whole", whole, ["ok", "ok"]),
        Packed(
            "null", _parquet({"audio": [wav, None, b"", wav]}), ["ok", "unreadable", "empty", "ok"]
        ),
        Packed("numbers", _parquet({"audio": [1.5, 2.5]}), ["unreadable"] * 2),
        Packed("lists", _parquet({"audio": [[1], [2]]}), ["unreadable"] * 2),
        Packed("no column of sound", _parquet({"x": [1]}), ["unreadable"]),
        Packed(
            "paths of nothing", _parquet({"path": ["x.wav", "/etc/passwd", ""]}), ["unreadable"] * 3
        ),
        Packed("paths with a NUL", _parquet({"path": ["a\0b.wav"]}), ["unreadable"]),
        Packed("paths that are not UTF-8", _parquet({"path": invalid}), ["damaged", "unreadable"]),
        Packed("a name twice", _twice(wav), ["unreadable"]),
        Packed("a cut footer", whole[:-100], ["damaged"]),
        Packed("a cut middle", whole[: len(whole) // 2] + whole[-600:], ["damaged"] * 2),
        Packed(
            "a footer of 2 GB", whole[:-8] + struct.pack("<I4s", 2**31 - 1, b"PAR1"), ["damaged"]
        ),
        Packed("no bytes in Parquet", b"", ["damaged"]),
        Packed("PAR1 alone", b"PAR1", ["damaged"]),
        Packed("broken pages", whole[:40] + b"\xff" * 200 + whole[240:], ["damaged"] * 2),
        Packed("a small page that unpacks to 48 MB", _parquet({"audio": large}), ["too_large"] * 2),
    ]


def _parquet(columns: Any) -> bytes:
    """A Parquet file. Dictionaries are stored as Parquet's own: readers see plain columns."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    has_dictionary = any(pa.types.is_dictionary(type) for type in table.schema.types)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        store_schema=not has_dictionary,
    )
    return buffer.getvalue()


def pickled(column: str, data: bytes) -> bytes:
    """A Parquet file with a column marked as one that Ray unpickles."""
    kind = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    fields = [pa.field("audio", pa.binary()), pa.field("x", pa.large_binary())]
    fields = [field.with_metadata(kind if field.name == column else None) for field in fields]
    values = [pa.array([good()]), pa.array([b""], pa.large_binary())]
    values[[field.name for field in fields].index(column)] = pa.array(
        [data], fields[0 if column == "audio" else 1].type
    )
    return _parquet(pa.Table.from_arrays(values, schema=pa.schema(fields)))


def _twice(wav: bytes) -> bytes:
    return _parquet(pa.Table.from_arrays([pa.array([wav])] * 2, names=["audio", "audio"]))


# --- manifests -----------------------------------------------------------------------------------


@cache
def manifests() -> list[Packed]:
    """Manifests, each to be read beside `good.wav`."""
    wild = ["NaN", "Infinity", "-1", "1e300", "1" * 400, '"x"', "[]", "true", "1e-300"]
    lines = [f'{{"audio_filepath": "good.wav", "offset": {value}}}' for value in wild]
    lengths = [f'{{"audio_filepath": "good.wav", "duration": {value}}}' for value in [*wild, "0"]]
    listed = '{"audio_filepath": "good.wav"}'
    kept = '{"audio_filepath": "good.wav", "text": "\\ud800"}'
    return [
        Packed("offsets.jsonl", "\n".join(lines).encode(), ["damaged"] * 7 + ["truncated", "ok"]),
        Packed(
            "durations.jsonl",
            "\n".join(lengths).encode(),
            ["damaged"] * 7 + ["truncated", "ok", "empty"],
        ),
        Packed(
            "half_a_surrogate.jsonl",
            f"{kept}\n{kept.replace('ud800', 'ue000')}".encode(),
            ["damaged", "ok"],
        ),
        Packed(
            "odd_paths.jsonl",
            b'{"audio_filepath": "\\udcff.wav"}\n{"audio_filepath": "a\\u0000b.wav"}\n',
            ["damaged", "unreadable"],
        ),
        Packed(
            "long.jsonl",
            b'{"audio_filepath": "' + b"x" * (8 << 20) + b'"}\n{"audio_filepath": "good.wav"}',
            ["damaged", "ok"],
        ),
        Packed(
            "long.tsv", b"path\ttext\n" + b"x" * (8 << 20) + b"\ngood.wav\tx\n", ["damaged", "ok"]
        ),
        Packed(
            "long.csv",
            b"path,text\ngood.wav,x\n" + b'"a","\n' + b'","\n' * (1 << 19),
            ["ok"] + ["damaged"] * 1000,
        ),
        Packed(
            "nuls.csv",
            b"path,text\na\0b.wav,x\ngood.wav,\0\n",
            ["unreadable", "ok"],
        ),
        Packed(
            "nuls.jsonl",
            b'{"audio_filepath": "good\0.wav"}\n\0\0\0\n{"audio_filepath": "good.wav"}\n',
            ["damaged", "damaged", "ok"],
        ),
        Packed(
            "deep.jsonl", b"[" * 100_000 + b'\n{"audio_filepath": "good.wav"}', ["damaged", "ok"]
        ),
        Packed(
            "long_number.jsonl",
            b'{"audio_filepath": "good.wav", "n": ' + b"9" * 5000 + b"}\n" + listed.encode(),
            ["damaged", "ok"],
        ),
        Packed("not_utf8.csv", b"path,text\ncaf\xe9.wav,x\ngood.wav,\xc3\xa9\n", ["damaged", "ok"]),
        Packed("fields.csv", b"path,text\ngood.wav\ngood.wav,x\n", ["damaged", "ok"]),
    ]


# --- mutants -------------------------------------------------------------------------------------


def mutants(seed: int, count: int) -> Iterator[tuple[int, bytes, Headerless | None]]:
    """Numbered files of every container, and without one, each damaged in some way that the seed
    decides."""
    originals = [good(0.3, format) for format in FUZZED]
    originals.append(good(0.3, "ogg") + encode(noise(0.3, 32000), 32000, "ogg"))
    bare = [random.Random(0).randbytes(4000)] * len(HEADERLESS)
    for number in range(seed, seed + count):
        chance = random.Random(number)
        place = number % len([*originals, *bare])
        raw = None
        if place >= len(originals):
            encoding = HEADERLESS[place - len(originals)]
            raw = Headerless(encoding, headerless.ENCODINGS[encoding].rate or 8000)
        data = bytearray([*originals, *bare][place])
        for _ in range(chance.choice((1, 1, 2, 8))):
            _mutate(data, chance, originals)
        yield number, bytes(data), raw


def _mutate(data: bytearray, chance: random.Random, originals: list[bytes]) -> None:
    size = len(data)
    # In the header as often as in all the rest, because decoders decide by the header.
    at = chance.randrange(min(size, chance.choice((64, 512, size))) or 1)
    what = chance.choice(("bits", "bits", "field", "field", "cut", "splice", "remove", "repeat"))
    if what == "bits":
        for _ in range(chance.choice((1, 4, 32))):
            place = min(at + chance.randrange(64), size - 1)
            data[place : place + 1] = bytes([data[place] ^ 1 << chance.randrange(8)])
    elif what == "field":
        value = chance.choice((0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
        width, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
        data[at : at + width] = (value % 256**width).to_bytes(width, order)
    elif what == "cut":
        del data[max(1, at) :]
    elif what == "splice":
        other = chance.choice(originals)
        start = chance.randrange(len(other))
        data[at : at + chance.randrange(2000)] = other[start : start + chance.randrange(2000)]
    elif what == "remove":
        del data[at : at + chance.randrange(1, 2000)]
    else:
        data[at:at] = data[at : at + chance.randrange(1, 2000)] * chance.randrange(1, 20)
    if not data:
        data += b"x"


# --- outcomes ------------------------------------------------------------------------------------


def memory(name: str) -> int:
    """This process's memory in bytes: VmRSS, or its peak VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise LookupError(name)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Assert that the memory's peak is less than MAX_BYTES above the start (Linux)."""
    if sys.platform != "linux":
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < MAX_BYTES


def outcome(file: Any, damage: Damage = KEEP, raw: Headerless | None = None) -> str:
    """`ok`, or the kind of the ClipError. Any other exception is a bug."""
    try:
        row = prepare_clip(file, [16_000, 48_000], MAX_CLIP_S, damage=damage, raw=raw)
    except ClipError as caught:
        error: ClipError | None = caught
    else:
        error = None
    if error:
        assert error.kind in KINDS and error.message and len(error.message) <= 500
        return error.kind
    assert np.isfinite(row["sound_48000"][:]).all()
    assert set(row["sound_flags"]) <= set(FLAGS)
    return "ok"


def decode_mutants(seed: int, count: int) -> None:
    """Print each mutant's number, then all outcomes; for a process that may die."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    found: Counter[str] = Counter()
    for number, data, raw in mutants(seed, count):
        print(f"mutant {number}", flush=True)
        faulthandler.dump_traceback_later(120, exit=True)
        with bounded_memory():
            found[outcome(io.BytesIO(data), raw=raw)] += 1
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(found))


if __name__ == "__main__":
    decode_mutants(int(sys.argv[1]), int(sys.argv[2]))
