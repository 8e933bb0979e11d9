"""Long sound -> windows that fit a model, cut in pauses."""

from __future__ import annotations

import numpy as np

from audio_ops.signal.waveforms import Waveform

FRAME_S = 0.032  # one speech probability of Silero VAD: 512 samples at 16 kHz
QUIET = 26  # speech probability (uint8) below which a frame is a pause: 0.1
LONG_PAUSE = 16  # frames, 0.5 s: longer pauses are no better for a cut
SMOOTHING = 7  # frames, 0.2 s: dips in the energy within a word are shorter


def cut_at_quiet(
    samples: int,
    sample_rate: int,
    max_s: float,
    speech: np.ndarray | None = None,
    waveform: Waveform | None = None,
) -> list[tuple[int, int]]:
    """Windows `[start, stop)` in samples, of at most `max_s` seconds, that cover the sound.

    speech: Silero's speech probability per 32 ms, uint8 (frames,), 255 = certain.
    waveform: float32 or Pcm16 (samples,), at `sample_rate` Hz.

    Sound of up to `max_s` is one window. Otherwise each cut lies between half of `max_s` and
    `max_s` after the window's start, but at least a third of `max_s` before the end of the sound.
    So no window is shorter than a third of `max_s`, the last words keep some context, and there are
    always several seconds in which to find a pause. (31 s and a `max_s` of 30: the cut lies between
    15 and 21 s.)

    The cut is in the middle of a pause, a run of frames with a speech probability below 0.1: the
    last pause of at least half a second, since later cuts make fewer windows, or else the longest.
    Without any pause it is where the sound (without a waveform, the speech probability) is lowest
    over 0.2 s; with neither, at the end of the span.

    Raises ValueError if `max_s` is shorter than 3 samples.
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
    start, stop = int(np.ceil(first / frame)), int(last / frame)  # complete frames within the span
    pause = None if speech is None else _pause(speech[start:stop])
    if pause is not None:
        return int(np.clip(round((start + pause) * frame), first, last))
    if waveform is not None:
        loudness = _energy(waveform, np.round(np.arange(start, stop + 1) * frame).astype(np.int64))
    elif speech is not None:
        loudness = speech[start:stop].astype(np.float64)
    else:
        return last
    if loudness.size < SMOOTHING:
        return (first + last) // 2
    return int(np.clip(round((start + _quietest(loudness)) * frame), first, last))


def _pause(speech: np.ndarray) -> float | None:
    """The middle, in frames, of the last long pause, or else of the longest one."""
    edges = np.flatnonzero(np.diff(np.r_[False, speech < QUIET, False]))
    begins, ends = edges[::2], edges[1::2]
    if not begins.size:
        return None
    lengths = np.minimum(ends - begins, LONG_PAUSE)
    pause = lengths.size - 1 - int(np.argmax(lengths[::-1]))
    return float((begins[pause] + ends[pause]) / 2)


def _energy(waveform: Waveform, edges: np.ndarray) -> np.ndarray:
    """Sums of squares, float64, of the samples from each edge to the next."""
    squares = np.square(waveform[edges[0] : edges[-1]], dtype=np.float64)
    return np.diff(np.r_[0.0, np.cumsum(squares)][edges - edges[0]])


def _quietest(loudness: np.ndarray) -> float:
    """The middle, in frames, of the quietest run of SMOOTHING frames."""
    smooth = np.convolve(loudness, np.ones(SMOOTHING), "valid")
    # A plateau (digital silence) is cut in its middle. Values count as equal if they differ by no
    # more than the rounding of the cumulative sum.
    equal = np.flatnonzero(smooth <= smooth.min() + 1e-9 * (1 + smooth.max()))
    middle = (equal[0] + equal[-1]) / 2 if np.ptp(equal) == equal.size - 1 else equal[0]
    return float(middle + SMOOTHING / 2)
