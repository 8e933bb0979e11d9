"""Short synthetic sounds, and their encoded bytes in every format that is decoded."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile

SNDFILE = {  # name: (libsndfile's container, its subtype)
    "wav": ("WAV", "PCM_16"),
    "wav_u8": ("WAV", "PCM_U8"),
    "wav_24": ("WAV", "PCM_24"),
    "wav_32": ("WAV", "PCM_32"),
    "wav_float": ("WAV", "FLOAT"),
    "wav_double": ("WAV", "DOUBLE"),
    "wav_alaw": ("WAV", "ALAW"),
    "wav_ulaw": ("WAV", "ULAW"),
    "wav_ima": ("WAV", "IMA_ADPCM"),
    "wav_ms": ("WAV", "MS_ADPCM"),
    "wavex": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "rifx": ("WAV", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aiff_float": ("AIFF", "FLOAT"),
    "au": ("AU", "PCM_16"),
    "au_ulaw": ("AU", "ULAW"),
    "caf": ("CAF", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "sph_ulaw": ("NIST", "ULAW"),
    "sph_alaw": ("NIST", "ALAW"),
    "flac": ("FLAC", "PCM_16"),
    "flac_24": ("FLAC", "PCM_24"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
}
PYAV = {  # name: (FFmpeg's muxer, its encoder)
    "opus": ("ogg", "libopus"),
    "ogg_flac": ("ogg", "flac"),
    "mp3_lame": ("mp3", "libmp3lame"),
    "mp2": ("mp2", "mp2"),
    "aac": ("adts", "aac"),
    "m4a": ("ipod", "aac"),
    "alac": ("ipod", "alac"),
    "mov": ("mov", "pcm_s16le"),
    "3gp": ("3gp", "aac"),
    "wma": ("asf", "wmav2"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "aac"),
    "mkv_flac": ("matroska", "flac"),
    "wav_mp3": ("wav", "libmp3lame"),
    "caf_alac": ("caf", "alac"),
    "amr": ("amr", "libopencore_amrnb"),
    "wv": ("wv", "wavpack"),
    "ac3": ("ac3", "ac3"),
    "eac3": ("eac3", "eac3"),
    "wav_g722": ("wav", "g722"),
    "wav_g723_1": ("wav", "g723_1"),
    "wav_g726": ("wav", "g726"),
}
VIDEO = {  # name: (FFmpeg's muxer, the video's encoder, the sound's)
    "mp4": ("mp4", "mpeg4", "aac"),
    "mkv_video": ("matroska", "mpeg4", "aac"),
    "avi": ("avi", "mpeg4", "mp2"),
    "flv": ("flv", "flv", "aac"),
    "ts": ("mpegts", "mpeg2video", "mp2"),
    "mpg": ("mpeg", "mpeg2video", "mp2"),
    "wmv": ("asf", "mpeg4", "wmav2"),
}
OWN = ("sph_shorten", "wav_oki")  # encoded here
PAUSES = {"amr_dtx": ("amr", "libopencore_amrnb")}  # in which pauses are not sent; noise is one
FORMATS = [*SNDFILE, *PYAV, *VIDEO, *OWN]
RATES = {  # of formats that have one only, in Hz
    **dict.fromkeys(("amr", "amr_dtx", "wav_g723_1", "wav_g726", "wav_oki"), 8000),
    **dict.fromkeys(("opus", "webm"), 48000),
    **dict.fromkeys(("wav_g722", "sph_shorten"), 16000),
}
MONO = {"amr", "wav_g722", "wav_g723_1", "wav_g726", "wav_oki", "sph_shorten"}
_BIT_RATES = {"wmav2": 128_000, "g723_1": 6300}  # of encoders without a default


def tone(seconds: float, rate: int = 16000, channels: int = 1, hz: float = 440) -> np.ndarray:
    """A sine at half of full scale: float32 (channels, samples), channel k at `hz` * (k + 1)."""
    at = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * hz * (k + 1) * at) for k in range(channels)]).astype(
        np.float32
    )


def noise(seconds: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """White noise at about -20 dBFS, hard to compress: float32 (channels, samples)."""
    generator = np.random.default_rng(0)
    return generator.normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)


def encode(samples: np.ndarray, rate: int, format: str) -> bytes:
    """Encode float32 (channels, samples) as one of FORMATS; videos show 25 black pictures a second."""
    if format in SNDFILE:
        container, subtype = SNDFILE[format]
        buffer = io.BytesIO()
        endian = "BIG" if format == "rifx" else "FILE"
        soundfile.write(buffer, samples.T, rate, subtype, endian, format=container)
        return buffer.getvalue()
    if format in PYAV:
        return _mux(*PYAV[format], None, samples, rate)
    if format in PAUSES:
        return _mux(*PAUSES[format], None, samples, rate, {"dtx": "1"})
    if format in OWN:
        integers = np.rint(samples[0] * 32767).astype(int)
        return (
            shorten_sphere(integers, rate) if format == "sph_shorten" else oki_wav(integers, rate)
        )
    muxer, video, audio = VIDEO[format]
    return _mux(muxer, audio, video, samples, rate)


def silent_video(format: str = "mp4", seconds: float = 1.0) -> bytes:
    """A video without a sound stream."""
    muxer, video, _ = VIDEO[format]
    return _mux(muxer, None, video, np.zeros((1, round(seconds * 16000)), np.float32), 16000)


def sphere(body: bytes, samples: int, **fields: str) -> bytes:
    """A SPHERE file with these header fields (`sample_rate="-i 8000"`) and body."""
    lines = {"channel_count": "-i 1", "sample_count": f"-i {samples}", **fields}
    header = "".join(f"{name} {value}\n" for name, value in lines.items())
    return f"NIST_1A\n   1024\n{header}end_head\n".encode().ljust(1024) + body


def shorten_sphere(
    samples: np.ndarray, rate: int, coding: str = "pcm,embedded-shorten-v2.00"
) -> bytes:
    """Integers of 16 bits in SPHERE, compressed by shorten: each block as its samples' differences,
    in Golomb-Rice codes."""
    bits: list[int] = []

    def code(value: int, low: int) -> None:
        bits.extend([0] * (value >> low) + [1])
        bits.extend(value >> place & 1 for place in reversed(range(low)))

    def number(value: int) -> None:
        code(value.bit_length(), 2)
        code(value, value.bit_length())

    size, last = 256, 0
    for value in (5, 1, size, 0, 0, 0):  # s16le, mono, block size, no prediction, no mean, no skip
        number(value)
    for start in range(0, len(samples), size):
        block = samples[start : start + size]
        if len(block) < size:
            code(5, 2)
            number(len(block))
        differences = np.diff(block, prepend=last)
        last = block[-1]
        low = int(np.abs(differences).mean()).bit_length()
        code(1, 2)
        code(low, 3)
        for difference in differences.tolist():
            code(difference << 1 if difference >= 0 else ~difference << 1 | 1, low + 1)
    code(4, 2)
    body = b"ajkg\x02" + np.packbits(bits + [0] * (-len(bits) % 32)).tobytes()
    sizes = {"sample_n_bytes": "-i 2", "sample_byte_format": "-s2 01", "sample_sig_bits": "-i 16"}
    named = {"sample_rate": f"-i {rate}", "sample_coding": f"-s{len(coding)} {coding}"}
    return sphere(body, len(samples), **named, **sizes)


def oki_wav(samples: np.ndarray, rate: int) -> bytes:
    """Integers of 16 bits as a WAV of Dialogic's ADPCM."""
    steps = [int(16 * 1.1**k) for k in range(49)]
    moves = (-1, -1, -1, -1, 2, 4, 6, 8)
    last = index = 0
    codes = []
    for sample in (samples >> 4).tolist():
        step, away = steps[index], sample - last
        code = min(7, abs(away) * 4 // step)
        change = (step >> 3) + (step >> 2) * (code & 1) + (step >> 1) * (code >> 1 & 1)
        change += step * (code >> 2 & 1)
        last = max(-2048, min(2047, last - change if away < 0 else last + change))
        index = max(0, min(48, index + moves[code]))
        codes.append(code | (8 if away < 0 else 0))
    data = bytes(a << 4 | b for a, b in zip(codes[::2], codes[1::2], strict=False))
    head = b"fmt " + struct.pack("<IHHIIHHH", 18, 0x10, 1, rate, rate // 2, 1, 4, 0)
    body = b"WAVE" + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _mux(
    muxer: str,
    audio: str | None,
    video: str | None,
    samples: np.ndarray,
    rate: int,
    options: dict[str, str] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer) as out:
        picture: Any = out.add_stream(video, rate=25) if video else None
        sound: Any = None
        if audio:
            layout = "mono" if len(samples) == 1 else "stereo"
            sound = out.add_stream(audio, rate=rate, layout=layout, options=options or {})
            if audio in _BIT_RATES:
                sound.codec_context.bit_rate = _BIT_RATES[audio]
        if picture:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            for at in range(round(samples.shape[1] / rate * 25)):
                black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
                black.pts, black.time_base = at, Fraction(1, 25)
                out.mux(picture.encode(black))
            out.mux(picture.encode(None))
        if sound:
            context = sound.codec_context
            whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
            whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
            convert = av.AudioResampler(context.format, layout, rate)
            fifo = av.AudioFifo()
            for frame in convert.resample(whole):
                fifo.write(frame)
            if not context.is_open:
                context.open()
            while part := fifo.read(context.frame_size or 1024) or fifo.read(0, partial=True):
                out.mux(sound.encode(part))
            out.mux(sound.encode(None))
    return buffer.getvalue()
