"""Open a file of any format and decode its first audio stream.

libsndfile decodes WAV (16-bit PCM needs no decoder), W64, AIFF, AU and CAF; FFmpeg (PyAV) decodes
the rest, MP3 included, in which libsndfile hides damage. Files are read block by block, and
truncated or damaged ones are reported as far as headers and decoders tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from audio_ops.decode.decoder_errors import clip_errors
from audio_ops.decode.ffmpeg import open_ffmpeg
from audio_ops.decode.formats import recognise
from audio_ops.decode.pcm import open_pcm
from audio_ops.decode.sound import Sound, check_supported
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from audio_ops.flags import KEEP, Damage, Findings
from audio_ops.signal.waveforms import as_float32


def decode(file: BinaryIO, damage: Damage = KEEP) -> tuple[np.ndarray, int, str]:
    """Decode a whole clip to float32 (channels, samples), its sample rate in Hz and its format.

    Raises ClipError.
    """
    sound = open_sound(file, damage=damage)
    samples = np.concatenate([as_float32(block) for block in sound.blocks], axis=1)
    return samples, sound.sample_rate, sound.format


def open_sound(file: BinaryIO, start_s: float = 0.0, damage: Damage = KEEP) -> Sound:
    """Recognise a seekable binary file and decode its first audio stream. Raises ClipError.

    The blocks begin `start_s` seconds into the sound; earlier sound is decoded only in formats
    without seeking. What is odd about them is in `findings`; `damage` decides what raises an error.
    The file must stay open while the blocks are consumed, and is not closed.
    """
    source = Source(file)
    source.check()
    if not source.length:
        raise ClipError("empty", "the file has no bytes")
    container = recognise(source)
    with clip_errors(source):
        findings = Findings(damage)
        sound = open_pcm(source, container, findings, start_s)
        if sound is None:
            sound = open_ffmpeg(source, container, findings)
            sound = replace(sound, blocks=_blocks_from(sound, start_s)) if start_s else sound
    check_supported(sound.sample_rate, sound.channels)
    return sound


def _blocks_from(sound: Sound, start_s: float) -> Iterator[np.ndarray]:
    """The sound's blocks without the first `start_s` seconds."""
    skip = round(start_s * sound.sample_rate)
    for block in sound.blocks:
        if skip < block.shape[1]:
            yield block[:, skip:]
        else:
            sound.findings.clear()
        skip = max(0, skip - block.shape[1])
