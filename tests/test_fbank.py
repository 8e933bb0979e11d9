"""Kaldi's filter bank in torch is that of transformers' feature extractors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hearing import RATE, sound
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Speech2TextFeatureExtractor,
)

from audio_ops.fbank import FilterBank
from audio_ops.label import device


def features(extractor: Any, wave: np.ndarray) -> np.ndarray:
    found: np.ndarray = next(
        iter(extractor([wave], sampling_rate=RATE, return_tensors="np").values())
    )
    return found


@pytest.mark.parametrize(
    "make", [ASTFeatureExtractor, SeamlessM4TFeatureExtractor, Speech2TextFeatureExtractor]
)
def test_features_are_the_extractors(make: Callable[[], Any]) -> None:
    for wave in (
        sound(12.0, 300),
        sound(0.5, 90),
        1e-4 * sound(2.0, 3000),
        np.zeros(8000, np.float32),
    ):
        extractor = make()
        expected = features(extractor, wave)
        extractor._extract_fbank_features = FilterBank(extractor, device())
        found = features(extractor, wave)
        assert found.dtype == expected.dtype and found == pytest.approx(expected, abs=1e-4)
