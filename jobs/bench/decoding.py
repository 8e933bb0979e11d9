"""Decoding and resampling alone."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

import numpy as np

from jobs.bench import peers, testbed
from jobs.bench.report import show, target
from jobs.workers.sandbox import Sandbox

FORMATS: tuple[tuple[str, str | None, tuple[int, ...]], ...] = (
    ("WAV", "PCM_16", (8_000, 16_000, 44_100, 48_000)),
    ("FLAC", "PCM_16", (16_000, 48_000)),
    ("MP3", None, (48_000,)),
    ("OGG", "VORBIS", (48_000,)),
    ("OGG", "OPUS", (48_000,)),
)


def decode(options: argparse.Namespace) -> None:
    """Decoding and resampling to 16 kHz alone, on one core, by format and rate."""
    import soundfile

    sample = testbed.sample(options.data, options.hours).every(96)
    speech = np.concatenate(
        [soundfile.read(file, dtype="float32", always_2d=True)[0].mean(1) for file in sample.files]
    )
    speech_rate = soundfile.info(sample.files[0]).samplerate
    rows = []
    for container, codec, rates in FORMATS:
        for rate in rates:
            clips = _encoded(speech, speech_rate, rate, container, codec)
            cpu_s = _cpu_seconds(clips, 3 * options.rounds)
            speeds = {name: len(speech) / speech_rate / cpu_s[name] for name in peers.DECODERS}
            ratio = speeds["Earmark"] / max(speeds["soundfile + soxr"], speeds["PyAV"])
            name = container if codec in (None, "PCM_16") else codec.title()
            what = f"{name} {rate / 1000:g} kHz"
            rows.append([what, *(f"{speed:.0f}" for speed in speeds.values()), f"{ratio:.2f}"])
            if rate == 48_000 and container != "OGG":
                target(f"{what} → 16 kHz / the better decoder", ratio, 0.9)
    header = ["format", *peers.DECODERS, "Earmark / the better one"]
    show("Decoding to 16 kHz mono, × real time of one core (CPU time)", header, rows)


def _encoded(
    sound: np.ndarray, sound_rate: int, rate: int, container: str, codec: str | None
) -> list[bytes]:
    """Files of 10 s each from float32 samples `(samples,)`, resampled to `rate` Hz."""
    import soundfile
    import soxr

    resampled = soxr.resample(sound, sound_rate, rate)
    clips = []
    for at in range(0, len(resampled), 10 * rate):
        file = io.BytesIO()
        soundfile.write(file, resampled[at : at + 10 * rate], rate, codec, format=container)
        clips.append(file.getvalue())
    return clips


def _cpu_seconds(clips: Sequence[bytes], rounds: int) -> dict[str, float]:
    """The CPU seconds that each of `peers.DECODERS` takes for all clips."""
    process = Sandbox()
    try:
        work = {"clips": clips, "rounds": rounds}
        (row,) = process.tables(peers.decode_in_turns, work, 600.0, 8 << 30)
    finally:
        process.end()  # `measured` waits for all living descendants
    return {name: row[name][0].as_py() for name in peers.DECODERS}
