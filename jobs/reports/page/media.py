"""What the page plays and shows of a clip's sound: Opus, its waveform and its spectrogram."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from jobs.reports.page.clips import RATE

WIDTH = 1000  # pixels of both pictures
WAVE_HEIGHT, MELS = 96, 96
WINDOW = 1024  # samples, 43 ms
LOWEST_HZ = 50.0
TOP_DB = 65.0  # from black to white
QUALITY = "55"  # of WebP: a spectrogram of 10 s takes 10 KB, as PNG 80 KB
# As good as level 10 at this rate, in a quarter of the time: 4 ms for a second of sound. libsndfile,
# which sets no level, takes 40.
OPUS = {"b": "32k", "compression_level": "5"}


class Media(NamedTuple):
    """The names of a clip's files, and the seconds of sound in it."""

    sound: str
    wave: str
    spectrogram: str
    seconds: float


def write_media(folder: Path, name: str, samples: np.ndarray, stored_rate: int | None) -> Media:
    """Write the files of (samples,) float32 at RATE into a folder, under names that begin so.

    stored_rate: of the source, in Hz: there is no sound above half of it.
    """
    media = Media(f"{name}.opus", f"{name}.png", f"{name}.webp", len(samples) / RATE)
    write_opus(folder / media.sound, samples)
    (folder / media.wave).write_bytes(encoded(wave_picture(samples), "png", "gray"))
    picture = spectrogram_picture(samples, min(stored_rate or RATE, RATE) / 2)
    (folder / media.spectrogram).write_bytes(encoded(picture, "libwebp", "yuv420p"))
    return media


def write_opus(path: Path, samples: np.ndarray) -> None:
    """Write (samples,) float32 at RATE as Opus in Ogg, which every current browser plays."""
    scale = 32_767 / max(1.0, float(np.abs(samples).max(initial=0.0)))
    frame = av.AudioFrame.from_ndarray((samples * scale).astype(np.int16)[None], "s16", "mono")
    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
    with av.open(str(path), "w", format="ogg") as file:
        stream = file.add_stream("libopus", rate=RATE, layout="mono", options=OPUS)
        for each in (frame, None):
            file.mux(stream.encode(each))


def wave_picture(samples: np.ndarray) -> np.ndarray:
    """(WAVE_HEIGHT, WIDTH) uint8: black between each column's lowest and highest sample, relative to
    the clip's peak, on white."""
    edges = np.linspace(0, len(samples), WIDTH + 1).astype(int)[:-1]
    edges = np.minimum(edges, len(samples) - 1)
    high, low = np.maximum.reduceat(samples, edges), np.minimum.reduceat(samples, edges)
    peak = max(float(np.abs(samples).max()), 1e-3)
    middle = (WAVE_HEIGHT - 1) / 2
    top = np.floor(middle - middle * np.maximum(high, 0) / peak)
    bottom = np.ceil(middle - middle * np.minimum(low, 0) / peak)
    rows = np.arange(WAVE_HEIGHT)[:, None]
    return np.where((rows >= top) & (rows <= bottom), 0, 255).astype(np.uint8)


def spectrogram_picture(samples: np.ndarray, highest_hz: float) -> np.ndarray:
    """(MELS, WIDTH) uint8: a mel spectrogram in dB, the loudest black, `highest_hz` on top."""
    import librosa

    hop = max(len(samples) // WIDTH, 64)
    sound = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    mel = librosa.feature.melspectrogram(
        y=sound,
        sr=RATE,
        n_fft=max(WINDOW, 2 ** int(np.log2(hop))),
        hop_length=hop,
        n_mels=MELS,
        fmin=LOWEST_HZ,
        fmax=highest_hz,
    )
    loud = max(float(np.percentile(mel, 99.5)), 1e-8)
    decibels = librosa.power_to_db(mel, ref=loud, top_db=None)
    levels = 255 * np.clip(-decibels / TOP_DB, 0, 1)
    columns = np.linspace(0, levels.shape[1] - 1, WIDTH).round().astype(int)
    return levels[::-1, columns].round().astype(np.uint8)


def encoded(picture: np.ndarray, codec: str, pixels: str) -> bytes:
    """A gray picture, (height, width) uint8, as a PNG or WebP file."""
    height, width = picture.shape
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, pixels  # type: ignore[attr-defined]
    encoder.time_base = Fraction(1, 1)
    if codec == "libwebp":
        encoder.options = {"quality": QUALITY}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")
    packets = [*encoder.encode(frame.reformat(format=pixels)), *encoder.encode(None)]  # type: ignore[attr-defined]
    return b"".join(bytes(packet) for packet in packets)
