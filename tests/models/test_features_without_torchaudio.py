"""Granite's and Fun-ASR's features are those that transformers' extractors compute with torchaudio 2.11."""

from __future__ import annotations

from typing import Any

import pytest
from hearing import sound

from audio_ops.inference.fun_asr import FunAsrFeatures
from audio_ops.inference.granite import Granite5Features, GraniteFeatures

# Of `sound(seconds, 300)`: the shape, every eighth part's first number, the mean and the deviation.
EXPECTED: dict[tuple[type, float], tuple[tuple[int, int], list[float], float, float]] = {
    (Granite5Features, 1.0): (
        (50, 320),
        [1.2845, 0.0913, 0.642, -0.0737, 0.8873, 0.0649, 0.7159, -0.1209],
        0.49539,
        0.5132,
    ),
    (Granite5Features, 0.51): (
        (26, 320),
        [1.2845, 0.0282, 0.9655, -0.0281, 0.9566, 0.0235, 0.8784, -0.1137],
        0.50711,
        0.52608,
    ),
    (GraniteFeatures, 1.0): (
        (50, 160),
        [1.2845, 1.0558, 0.642, 0.9378, 0.8873, 1.1151, 0.7159, 0.9434],
        0.99174,
        0.17269,
    ),
    (FunAsrFeatures, 1.0): (
        (17, 560),
        [-7.0789, 1.2856, 1.3649, -0.862, -0.3536, -2.1683, -3.5259, -6.0624],
        -1.30525,
        3.03659,
    ),
    (FunAsrFeatures, 0.51): (
        (9, 560),
        [-7.0789, 2.4979, 1.6348, 0.7063, -0.6837, -2.0169, -3.2234, -3.3213],
        -1.1267,
        2.9366,
    ),
    (GraniteFeatures, 0.51): (
        (26, 160),
        [1.2845, 1.0574, 0.9655, 0.902, 0.9566, 0.9837, 0.8784, 0.9594],
        1.01397,
        0.18922,
    ),
}


@pytest.mark.parametrize(("kind", "seconds"), EXPECTED)
def test_features_are_torchaudios(kind: Any, seconds: float) -> None:
    shape, numbers, mean, deviation = EXPECTED[kind, seconds]
    found = kind({}, "cpu").frames(sound(seconds, 300))
    assert tuple(found.shape) == shape
    some = found.flatten()[:: found.numel() // 8]
    assert some.tolist() == pytest.approx(numbers, abs=1e-4)
    assert found.mean().item() == pytest.approx(mean, abs=1e-5)
    assert found.std().item() == pytest.approx(deviation, abs=1e-5)


def test_features_of_a_clip_do_not_depend_on_its_neighbours() -> None:
    extract, short = Granite5Features({}, "cpu"), sound(0.51, 300)
    (alone,) = extract([short])["input_features"]
    together = extract([short, sound(1.0, 900)])
    assert together["attention_mask"].sum(1).tolist() == [26, 50]
    assert (together["input_features"][0, :26] - alone).abs().max() == 0
