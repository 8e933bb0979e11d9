"""Features in torch are those of transformers' feature extractors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hearing import RATE, sound
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Speech2TextFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)

from audio_ops.inference.features import FilterBank, Normed, compute_on, normalize_batch
from audio_ops.inference.runner import available_device
from audio_ops.inference.transformers_compat import replace_filter_bank

SOUNDS = (
    sound(12.0, 300),
    sound(0.5, 90),
    1e-4 * sound(2.0, 3000),
    np.zeros(8000, np.float32),
)


def features(extractor: Any, *waves: np.ndarray, **settings: Any) -> dict[str, np.ndarray]:
    found = extractor(list(waves), sampling_rate=RATE, return_tensors="pt", **settings)
    return {name: values.cpu().numpy() for name, values in found.items()}


@pytest.mark.parametrize(
    "make", [ASTFeatureExtractor, SeamlessM4TFeatureExtractor, Speech2TextFeatureExtractor]
)
def test_features_are_the_extractors(make: Callable[[], Any]) -> None:
    for wave in SOUNDS:
        extractor = make()
        expected = next(iter(features(extractor, wave).values()))
        is_replaced = replace_filter_bank(
            extractor, lambda original: FilterBank(original, available_device())
        )
        assert is_replaced, "transformers has renamed its filter bank: features come from numpy"
        found = next(iter(features(extractor, wave).values()))
        assert found.dtype == expected.dtype and found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize(
    ("waves", "mask"), [(SOUNDS, True), (SOUNDS[-1:], None), ((SOUNDS[0], SOUNDS[0] ** 3), False)]
)
def test_normed_sound_is_the_extractors(
    waves: tuple[np.ndarray, ...], mask: bool | None, do_normalize: bool
) -> None:
    original = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    settings = {"padding": True} | ({} if mask is None else {"return_attention_mask": mask})
    expected = features(original, *(0.01 + wave for wave in waves), **settings)
    extractor = compute_on(available_device(), original)
    assert isinstance(extractor, Normed)
    found = features(extractor, *(0.01 + wave for wave in waves), **settings)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-4)


def test_a_batch_is_normed_on_a_gpu_like_clip_by_clip_on_a_cpu() -> None:
    waves = [0.01 + wave for wave in SOUNDS]
    expected = Normed(Wav2Vec2FeatureExtractor(return_attention_mask=True), "cpu")(waves)
    values = torch.zeros_like(expected["input_values"])
    for row, wave in zip(values, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    lengths = torch.tensor([len(wave) for wave in waves])
    normalize_batch(values, lengths, expected["attention_mask"].bool())
    torch.testing.assert_close(values, expected["input_values"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("other", [{"padding_value": 1.0}, {"padding_side": "left"}])
def test_what_pads_in_another_way_is_left_alone(other: dict[str, Any]) -> None:
    extractor = Wav2Vec2FeatureExtractor(**other)
    assert compute_on(available_device(), extractor) is extractor
