"""Long sound is cut in pauses: no sample lost, none heard twice, no word torn, no crumbs left."""

from __future__ import annotations

import numpy as np
import pytest

from audio_ops.signal.segment import cut_at_quiet

RATE = 16_000
FRAME = 512


def speech_with_pauses(length_s: float, pauses_s: list[tuple[float, float]]) -> np.ndarray:
    """Speech probabilities: 250 everywhere, 2 in the pauses."""
    speech = np.full(int(np.ceil(length_s * RATE / FRAME)), 250, np.uint8)
    for start_s, stop_s in pauses_s:
        speech[round(start_s * RATE / FRAME) : round(stop_s * RATE / FRAME)] = 2
    return speech


def seams(windows: list[tuple[int, int]]) -> list[float]:
    return [start / RATE for start, _ in windows[1:]]


@pytest.mark.parametrize("length_s", [0.01, 29.99, 30, 30.01, 31, 44.9, 60, 60.2, 61, 90, 1000.3])
@pytest.mark.parametrize("known", ["speech", "waveform", "both", "neither"])
def test_windows_cover_the_sound_once_and_none_is_too_long_or_a_crumb(
    length_s: float, known: str
) -> None:
    samples = round(length_s * RATE)
    noise = np.random.default_rng(0)
    speech = noise.integers(0, 256, -(-samples // FRAME), dtype=np.uint8)
    waveform = noise.standard_normal(samples).astype(np.float32)
    windows = cut_at_quiet(
        samples,
        RATE,
        30.0,
        speech if known in ("speech", "both") else None,
        waveform if known in ("waveform", "both") else None,
    )
    assert [start for start, _ in windows] == [0, *(stop for _, stop in windows[:-1])]
    assert windows[-1][1] == samples
    lengths = [stop - start for start, stop in windows]
    assert max(lengths) <= 30 * RATE
    assert len(windows) == 1 or min(lengths) >= 10 * RATE


def test_a_seam_lies_in_the_middle_of_a_pause() -> None:
    speech = speech_with_pauses(50, [(12.0, 13.0), (21.0, 22.0), (35.0, 36.0)])
    assert seams(cut_at_quiet(50 * RATE, RATE, 30.0, speech)) == pytest.approx([21.5], abs=0.033)


def test_31_seconds_become_two_halves_and_no_rest() -> None:
    speech = speech_with_pauses(31, [(16.0, 16.4), (29.5, 30.0)])
    assert seams(cut_at_quiet(31 * RATE, RATE, 30.0, speech)) == pytest.approx([16.2], abs=0.033)


def test_the_last_long_pause_is_taken_before_a_short_one_after_it() -> None:
    speech = speech_with_pauses(
        90, [(16.0, 19.0), (24.0, 24.6), (28.0, 28.2), (45.0, 46), (68, 69)]
    )
    assert seams(cut_at_quiet(90 * RATE, RATE, 30.0, speech)) == pytest.approx(
        [24.3, 45.5, 68.5], abs=0.033
    )


def test_no_seam_is_inside_speech_when_every_stretch_has_a_pause() -> None:
    starts = np.arange(4.0, 600.0, 4.7)
    pauses = [(start, start + 0.3) for start in starts]
    speech = speech_with_pauses(600, pauses)
    for seam in seams(cut_at_quiet(600 * RATE, RATE, 30.0, speech)):
        assert any(start - 0.02 <= seam <= stop + 0.02 for start, stop in pauses), seam


def test_without_a_pause_the_seam_is_where_the_sound_is_quietest() -> None:
    waveform = np.random.default_rng(0).standard_normal(40 * RATE).astype(np.float32)
    waveform[22 * RATE : 22 * RATE + RATE // 2] *= 0.1
    speech = speech_with_pauses(40, [])
    for known in (speech, None):
        (seam,) = seams(cut_at_quiet(40 * RATE, RATE, 30.0, known, waveform))
        assert 22.0 < seam < 22.5


def test_a_digital_silence_is_cut_in_its_middle() -> None:
    waveform = np.ones(40 * RATE, np.float32)
    waveform[20 * RATE : 24 * RATE] = 0
    assert seams(cut_at_quiet(40 * RATE, RATE, 30.0, None, waveform)) == pytest.approx(
        [22], abs=0.1
    )


def test_four_hours_of_speech_are_cut_alike_each_time() -> None:
    samples = 4 * 3600 * RATE
    noise = np.random.default_rng(0)
    speech = noise.integers(30, 256, samples // FRAME, dtype=np.uint8)  # never a pause
    waveform = np.tile(noise.random(60 * RATE, dtype=np.float32), 240)
    windows = cut_at_quiet(samples, RATE, 30.0, speech, waveform)
    assert 480 <= len(windows) <= 960
    assert windows == cut_at_quiet(samples, RATE, 30.0, speech, waveform)
