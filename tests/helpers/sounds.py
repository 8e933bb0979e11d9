"""Short synthetic sounds, and their encoded bytes in every format that is decoded."""

from __future__ import annotations

import io
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
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aiff_float": ("AIFF", "FLOAT"),
    "au": ("AU", "PCM_16"),
    "au_ulaw": ("AU", "ULAW"),
    "caf": ("CAF", "PCM_16"),
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
FORMATS = [*SNDFILE, *PYAV, *VIDEO]


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
        soundfile.write(buffer, samples.T, rate, format=container, subtype=subtype)
        return buffer.getvalue()
    if format in PYAV:
        return _mux(*PYAV[format], None, samples, rate)
    muxer, video, audio = VIDEO[format]
    return _mux(muxer, audio, video, samples, rate)


def silent_video(format: str = "mp4", seconds: float = 1.0) -> bytes:
    """A video without a sound stream."""
    muxer, video, _ = VIDEO[format]
    return _mux(muxer, None, video, np.zeros((1, round(seconds * 16000)), np.float32), 16000)


def _mux(muxer: str, audio: str | None, video: str | None, samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer) as out:
        picture: Any = out.add_stream(video, rate=25) if video else None
        sound: Any = None
        if audio:
            layout = "mono" if len(samples) == 1 else "stereo"
            sound = out.add_stream(audio, rate=rate, layout=layout)
            if audio == "wmav2":  # has no default
                sound.codec_context.bit_rate = 128_000
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
