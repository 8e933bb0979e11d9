"""Long sound -> windows that fit a model, cut in pauses."""

from __future__ import annotations

import numpy as np

from audio_ops.signal.waveforms import Waveform

FRAME_S = 0.032  # one speech probability of Silero VAD: 512 samples at 16 kHz
QUIET = 26  # uint8 speech probability below which a frame is a pause: 0.1
LONG_PAUSE = 16  # frames, 0.5 s: a longer pause is no better for a cut
SMOOTHING = 7  # frames, 0.2 s: energy dips inside a word are shorter


def cut_at_quiet(
    samples: int,
    sample_rate: int,
    max_s: float,
    speech: np.ndarray | None = None,
    waveform: Waveform | None = None,
) -> list[tuple[int, int]]:
    """Windows `[start, stop)` of at most `max_s` seconds that cover the sound once, in order.

    speech: Silero's speech probability per 32 ms, uint8 (frames,), 255 = certain.
    waveform: float32 or Pcm16 (samples,), at `sample_rate` Hz.

    Sound that fits is one window. Otherwise each cut lies between half of `max_s` after the
    window's start and the window's end, but at least a third of `max_s` before the end of the sound:
    no window is shorter than a third of `max_s`, so the last words keep some context, and there are
    always several seconds in which to find a pause. (31 s at 30 s a window: the cut lies between 15
    and 21 s.)

    The cut is made in the middle of a pause, a run of frames with speech probability under 0.1:
    the last one of at least half a second, since later cuts make fewer windows, or else the
    longest. Without any pause it is made where the sound (or, without a waveform, the speech
    probability) is quietest over 0.2 s; with neither, at the end of the span.

    Raises ValueError if `max_s` is under 3 samples.
    """
    longest = int(max_s * sample_rate)
    if longest < 3:
        raise ValueError(f"max_s: expected at least 3 samples at {sample_rate} Hz, got {max_s} s")
    cuts = [0]
    while samples - cuts[-1] > longest:
        first = cuts[-1] + longest // 2
        last = min(cuts[-1] + longest, samples - longest // 3)
        cuts.append(_quiet_place(first, last, FRAME_S * sample_rate, speech, waveform))
    return list(zip(cuts, [*cuts[1:], samples], strict=True))


def _quiet_place(
    first: int, last: int, frame: float, speech: np.ndarray | None, waveform: Waveform | None
) -> int:
    """The sample in `[first, last]` at which to cut; `frame` is in samples."""
    start, stop = int(np.ceil(first / frame)), int(last / frame)  # whole frames inside the span
    if speech is not None:
        probability = speech[start:stop]
        edges = np.flatnonzero(np.diff(np.r_[False, probability < QUIET, False]))
        begins, ends = edges[::2], edges[1::2]
        if begins.size:
            lengths = np.minimum(ends - begins, LONG_PAUSE)
            pause = lengths.size - 1 - int(np.argmax(lengths[::-1]))
            middle = (begins[pause] + ends[pause]) / 2
            return int(np.clip(round((start + middle) * frame), first, last))
    if waveform is not None:
        edges = np.round(np.arange(start, stop + 1) * frame).astype(np.int64)
        sums = np.r_[0.0, np.cumsum(np.square(waveform[edges[0] : edges[-1]], dtype=np.float64))]
        loudness = np.diff(sums[edges - edges[0]])
    elif speech is not None:
        loudness = probability.astype(np.float64)
    else:
        return last
    if loudness.size < SMOOTHING:
        return (first + last) // 2
    smooth = np.convolve(loudness, np.ones(SMOOTHING), "valid")
    # A plateau (digital silence) is cut in its middle; what counts as equal must not depend on the
    # rounding of the cumulative sum.
    equal = np.flatnonzero(smooth <= smooth.min() + 1e-9 * (1 + smooth.max()))
    middle = (equal[0] + equal[-1]) / 2 if np.ptp(equal) == equal.size - 1 else equal[0]
    return int(np.clip(round((start + middle + SMOOTHING / 2) * frame), first, last))
