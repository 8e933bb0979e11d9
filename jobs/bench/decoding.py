"""Decoding and resampling alone."""

from __future__ import annotations

import argparse
import io

import numpy as np

from jobs.bench import peers, testbed
from jobs.bench.report import show, target
from jobs.workers.sandbox import Sandbox


def decode(options: argparse.Namespace) -> None:
    """Decoding and resampling to 16 kHz alone, on one core, by format and rate."""
    import soundfile
    import soxr

    sample = testbed.sample(options.data, options.hours).every(96)
    speech = np.concatenate(
        [soundfile.read(file, dtype="float32", always_2d=True)[0].mean(1) for file in sample.files]
    )
    rate_of_speech = soundfile.info(sample.files[0]).samplerate

    def encoded(rate: int, container: str, codec: str | None) -> list[bytes]:
        sound = soxr.resample(speech, rate_of_speech, rate)
        clips = []
        for at in range(0, len(sound), 10 * rate):
            file = io.BytesIO()
            soundfile.write(file, sound[at : at + 10 * rate], rate, codec, format=container)
            clips.append(file.getvalue())
        return clips

    header = ["format", *peers.DECODERS, "Earmark / the better one"]
    rows = []
    for container, codec, rates in (
        ("WAV", "PCM_16", (8_000, 16_000, 44_100, 48_000)),
        ("FLAC", "PCM_16", (16_000, 48_000)),
        ("MP3", None, (48_000,)),
        ("OGG", "VORBIS", (48_000,)),
        ("OGG", "OPUS", (48_000,)),
    ):
        for rate in rates:
            clips = encoded(rate, container, codec)
            audio_s = len(speech) / rate_of_speech
            work = {"clips": clips, "rounds": 3 * options.rounds}
            process = Sandbox()
            try:
                (took,) = process.tables(peers.decode_in_turns, work, 600.0, 8 << 30)
            finally:
                process.end()  # `measured` waits for all that live
            speeds = {name: audio_s / took[name][0].as_py() for name in peers.DECODERS}
            ratio = speeds["Earmark"] / max(speeds["soundfile + soxr"], speeds["PyAV"])
            what = (
                f"{container if codec in (None, 'PCM_16') else codec.title()} {rate / 1000:g} kHz"
            )
            rows.append([what, *(f"{speed:.0f}" for speed in speeds.values()), f"{ratio:.2f}"])
            if rate == 48_000 and container != "OGG":
                target(f"{what} → 16 kHz / the better decoder", ratio, 0.9)
    show("Decoding to 16 kHz mono, × real time of one core (CPU time)", header, rows)
