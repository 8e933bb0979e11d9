"""A sound that is decoded block by block, its limits, and the check that nothing is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from audio_ops.decode.claims import Claim
from audio_ops.decode.decoder_errors import clip_errors
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError
from audio_ops.flags import Findings

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
    duration_s: seconds that the header claims; None if it claims nothing, or only timestamps do, which
        may start over.
    findings: what is odd about the blocks that were consumed.
    blocks: (channels, samples), of BLOCK_SAMPLES in all or somewhat more. int16 for formats of up
        to 16 bits, else float32 with a full scale of [-1, 1], NaN and Inf included. The iterator
        may raise ClipError.
    """

    sample_rate: int
    channels: int
    format: str
    duration_s: float | None
    findings: Findings
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


@dataclass
class Progress:
    """How far a sound was decoded.

    end_s: the last timestamp, at the end of the frame that has it; 0 if there are none.
    is_cut: whether the file ends within a frame.
    has_lost_packets: whether the packets before the next frame could not be decoded.
    """

    end_s: float = 0.0
    is_cut: bool = False
    has_lost_packets: bool = False


@dataclass(frozen=True)
class Expected:
    """What the blocks of a sound are compared with.

    cut: the error of a file that has fewer bytes than it claims, and the share that is missing.
    missing_kind: the error kind for less sound than claimed.
    has_frames: whether a file that ends between two frames may be a part of a longer one, whose
        header it still has.
    more: the size of the data after those that the header claims, as a multiple of the claim.
    """

    claim: Claim
    missing_kind: str = "truncated"
    cut: tuple[ClipError, float] | None = None
    has_frames: bool = False
    more: float = 0.0
    reached: Progress = field(default_factory=Progress)


def checked_blocks(
    blocks: Iterator[np.ndarray],
    source: Source,
    sample_rate: int,
    expected: Expected,
    findings: Findings,
) -> Iterator[np.ndarray]:
    """Yield `blocks`. Raises ClipError for the decoder's exceptions, for more than MAX_SAMPLES and
    for no samples at all; after the last block adds what is missing to `findings`."""
    count = 0
    with clip_errors(source, opened=True):
        for block in blocks:
            count += block.shape[1]
            if count * len(block) > MAX_SAMPLES:
                at_most = f"expected at most {MAX_SAMPLES:,} samples at the stored rate"
                raise ClipError("too_large", f"{at_most}, found more")
            yield block
    if not count and not expected.claim.end_s:
        raise ClipError("empty", "no samples")
    _compare_length(count / sample_rate, 1 / sample_rate, expected, findings)


def _compare_length(
    found_s: float, sample_s: float, expected: Expected, findings: Findings
) -> None:
    """Add to `findings` whether `found_s` seconds are less, or more, than expected."""
    claim, reached = expected.claim, expected.reached
    end_s = max(found_s, reached.end_s)
    cut, share = expected.cut or (None, 0.0)
    if claim.end_s and claim.end_s - claim.tolerance_s - end_s > sample_s / 2:
        message = f"header says {claim.end_s - claim.start_s:.2f} s, found {found_s:.2f} s"
        is_part = expected.has_frames and (claim.start_s > 0 or not reached.is_cut)
        missing_s = 0.0 if is_part else claim.end_s - end_s
        error = cut or ClipError(expected.missing_kind, message)
        findings.damage("shorter_than_header", error, missing_s=missing_s)
    elif cut:
        missing_s = 0.0 if claim.is_indexed else found_s * share / max(1e-9, 1 - share)
        findings.damage("shorter_than_header", cut, missing_s=missing_s)
    over_s = found_s - claim.end_s - max(0.25, claim.tolerance_s) if claim.end_s else 0.0
    if over_s > 0 or expected.more * found_s > 0.25:
        findings.note("longer_than_header")


def blocks_from(sound: Sound, start_s: float) -> Sound:
    """The sound with blocks that begin at `start_s`: those before it are decoded and dropped."""
    return replace(sound, blocks=_without(sound, start_s)) if start_s else sound


def _without(sound: Sound, start_s: float) -> Iterator[np.ndarray]:
    skip = round(start_s * sound.sample_rate)
    for block in sound.blocks:
        if skip < block.shape[1]:
            yield block[:, skip:]
        else:
            sound.findings.clear()
        skip = max(0, skip - block.shape[1])
