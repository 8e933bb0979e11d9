"""Downmix, resampling and level."""

from __future__ import annotations

import math

import librosa
import numpy as np
import pytest
from sounds import noise, tone

from audio_ops.signal.wave import Level, Resampler, downmix, resample

RATES = [(44100, 16000), (48000, 16000), (8000, 16000), (11025, 48000), (16000, 8000)]


def in_blocks(sound: np.ndarray, rates: tuple[int, int], size: int) -> np.ndarray:
    resampler = Resampler(*rates)
    parts = [part for at in range(0, len(sound), size) for part in resampler(sound[at : at + size])]
    return np.concatenate([*parts, *resampler(np.empty(0, np.float32), last=True)])


def test_stereo_is_averaged_to_mono() -> None:
    for channels in (1, 2, 3, 8):
        sound = noise(0.1, channels=channels)
        np.testing.assert_allclose(downmix(sound), sound.mean(axis=0), atol=1e-7)
        np.testing.assert_array_equal(downmix(np.asfortranarray(sound)), downmix(sound))


def test_downmix_wants_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"expected \(channels, samples\), got shape \(3,\)"):
        downmix(np.zeros(3, np.float32))


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("samples", [1, 2, 1000, 44101])
def test_resampling_is_that_of_librosa(rates: tuple[int, int], samples: int) -> None:
    sound = noise(3)[0, :samples]
    expected = librosa.resample(sound, orig_sr=rates[0], target_sr=rates[1], res_type="soxr_hq")
    found = resample(sound, *rates)
    assert found.dtype == np.float32
    assert len(found) == math.ceil(samples * rates[1] / rates[0])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("size", [1, 777, 10_000])
def test_resampling_ignores_the_block_size(rates: tuple[int, int], size: int) -> None:
    sound = noise(1)[0, : 3000 if size == 1 else None]
    np.testing.assert_allclose(in_blocks(sound, rates, size), resample(sound, *rates), atol=1e-6)


def test_equal_rates_pass_through() -> None:
    sound = tone(1)[0]
    np.testing.assert_array_equal(in_blocks(sound, (16000, 16000), 999), sound)


def test_level_is_measured_over_all_channels() -> None:
    level = Level()
    for block in np.split(tone(1, channels=2), 10, axis=1):
        level.add(block)
    assert level.peak_dbfs == pytest.approx(20 * math.log10(0.5), abs=0.01)
    assert level.rms_dbfs == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.01)
    level.add(np.full((1, 1), -2, np.float32))
    assert level.peak_dbfs == pytest.approx(6.02, abs=0.01)


def test_digital_silence_has_no_level() -> None:
    level = Level()
    level.add(np.zeros((2, 100), np.float32))
    assert (level.peak_dbfs, level.rms_dbfs) == (None, None)
