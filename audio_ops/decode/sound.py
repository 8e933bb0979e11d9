"""A sound that is decoded block by block, its limits, and the check that nothing is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from audio_ops.decode.claims import Claim
from audio_ops.decode.decoder_errors import clip_errors
from audio_ops.decode.formats import Container
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz
MAX_CHANNELS = 64
MAX_SAMPLES = 6_000_000_000  # in all channels together: 4 h at 48 kHz, 8 channels
# In one block, all channels together. The decoder and the resampler each fill a core's cache, so
# they should alternate rarely, but glibc reuses freed memory only below a threshold.
BLOCK_SAMPLES = 1 << 18


@dataclass(frozen=True)
class Sound:
    """A sound that is decoded while its `blocks` are consumed, once.

    sample_rate: Hz, as stored.
    channels: 1 to 64.
    format: `wav/pcm_16`, `flac`, `mp3`, `ogg/opus`, `mp4/aac`, ...
    duration_s: seconds that the header claims, None if it claims nothing.
    blocks: (channels, samples), of BLOCK_SAMPLES in all or somewhat more. int16 for formats of up
        to 16 bits, else float32 with a full scale of [-1, 1], NaN and Inf included. The iterator
        may raise ClipError.
    """

    sample_rate: int
    channels: int
    format: str
    duration_s: float | None
    blocks: Iterator[np.ndarray]


def check_supported(sample_rate: int, channels: int) -> None:
    """Raise ClipError `unsupported` for a rate (Hz) or number of channels outside the limits."""
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        expected = f"{MIN_RATE} to {MAX_RATE} Hz"
        raise ClipError("unsupported", f"sample rate: expected {expected}, found {sample_rate}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise unsupported_channels(channels)


def unsupported_channels(channels: int) -> ClipError:
    return ClipError("unsupported", f"channels: expected 1 to {MAX_CHANNELS}, found {channels}")


def checked_blocks(
    blocks: Iterator[np.ndarray],
    source: Source,
    container: Container,
    sample_rate: int,
    claim: Claim,
) -> Iterator[np.ndarray]:
    """Yield `blocks`. Raises ClipError for the decoder's exceptions, for more than MAX_SAMPLES and,
    after the last block, for less sound than claimed."""
    count = 0
    with clip_errors(source, opened=True):
        for block in blocks:
            count += block.shape[1]
            if count * len(block) > MAX_SAMPLES:
                expected = f"expected at most {MAX_SAMPLES:,} samples at the stored rate"
                raise ClipError("too_large", f"{expected}, found more")
            yield block
    found_s = count / sample_rate
    claimed_s = claim.duration_s
    if not count and not claimed_s:
        raise ClipError("empty", "no samples")
    if claimed_s and round((claimed_s - claim.tolerance_s) * sample_rate) > count:
        message = f"header says {claimed_s:.2f} s, found {found_s:.2f} s"
        raise ClipError(container.missing_kind, message)
