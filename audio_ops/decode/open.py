"""Open a file of any format and decode its first audio stream.

libsndfile decodes WAV (16-bit PCM needs no decoder), W64, AIFF, AU and CAF; FFmpeg (PyAV) decodes
the rest, MP3 included, in which libsndfile hides damage. Files are read block by block, and
truncation and damage are reported as far as headers and decoders show them.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from audio_ops.decode.claims import HEAD_BYTES
from audio_ops.decode.decoder_errors import clip_errors
from audio_ops.decode.ffmpeg import open_ffmpeg
from audio_ops.decode.formats import begins_with_magic, recognise
from audio_ops.decode.headerless import CONTAINERS as HEADERLESS
from audio_ops.decode.headerless import Headerless
from audio_ops.decode.pcm import open_headerless, open_pcm
from audio_ops.decode.sound import Sound, blocks_from, check_supported
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


def open_sound(
    file: BinaryIO, start_s: float = 0.0, damage: Damage = KEEP, raw: Headerless | None = None
) -> Sound:
    """Recognise a seekable binary file and decode its first audio stream. Raises ClipError.

    start_s: the blocks begin so many seconds into the sound; earlier sound is decoded only in formats
        without seeking.
    damage: decides which damage raises an error; the rest is in `findings` once blocks are consumed.
    raw: how to decode a file that does not begin with a container's magic bytes.

    The file must stay open while the blocks are consumed, and is not closed.
    """
    source = Source(file)
    source.check()
    if not source.length:
        raise ClipError("empty", "the file has no bytes")
    findings = Findings(damage)
    headerless = raw if raw and not begins_with_magic(source.at(0, HEAD_BYTES)) else None
    container = HEADERLESS[headerless.encoding] if headerless else recognise(source)
    with clip_errors(source):
        if headerless:
            sound = open_headerless(source, headerless, findings, start_s)
        else:
            sound = open_pcm(source, container, findings, start_s)
        if sound is None:
            sound = blocks_from(open_ffmpeg(source, container, findings), start_s)
    check_supported(sound.sample_rate, sound.channels)
    return sound
