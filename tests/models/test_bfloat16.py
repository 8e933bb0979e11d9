"""Attention in blocks and packed weights give torch's own results, and models the same labels."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import tiny_ctc
from hearing import sound
from test_families import FAMILIES
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from audio_ops.inference import cpu_bfloat16
from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.cpu_bfloat16 import applies_to, blocked_attention, can_pack, pack
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.tasks import Clip, load_task

FEW = 100  # scores at once, so that all is cut


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("at_once", [1, FEW, 5000, cpu_bfloat16.SCORES_AT_ONCE])
@pytest.mark.parametrize("queries", [1, 2, 50])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_it_is_torchs_own(
    masked: str | None, queries: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_bfloat16, "SCORES_AT_ONCE", at_once)
    query, key, value = drawn(3, 4, queries, 8), drawn(3, 4, 50, 8), 2 * drawn(3, 4, 50, 8)
    mask = None
    if masked:  # the three clips have so many keys
        mask = (torch.arange(50) < torch.tensor([50, 7, 33])[:, None])[:, None, None]
        if masked == "float":
            mask = torch.where(mask, 0.0, -1e9) + drawn(1, 4, queries, 50)
    found = blocked_attention(query, key, value, 0.3, mask)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


def test_a_mask_may_serve_all_clips() -> None:
    query, key, value = drawn(2, 3, 6, 8), drawn(2, 3, 6, 8), drawn(2, 3, 6, 8)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    assert (blocked_attention(query, key, value, 1.0, mask) - expected).abs().max() < 1e-5


def test_heads_that_share_keys_are_left_to_transformers() -> None:
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    query, key, value = drawn(2, 4, 6, 8), drawn(2, 2, 6, 8), drawn(2, 2, 6, 8)
    found, _ = cpu_bfloat16._attention_forward(
        module, query, key, value, None, scaling=1.0, is_causal=False
    )
    shared = (part.repeat_interleave(2, dim=1) for part in (key, value))
    expected = scaled_dot_product_attention(query, *shared, scale=1.0)
    assert (found.transpose(1, 2) - expected).abs().max() < 1e-5


def test_transformers_attention_has_no_arguments_that_blocked_attention_would_ignore() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    handled = {"module", "query", "key", "value", "attention_mask", "scaling", "is_causal"}
    left_to_transformers = {"position_bias", "cache"}
    without_effect = {"dropout", "kwargs"}  # when a model infers
    found = set(inspect.signature(sdpa_attention_forward).parameters)
    assert found == handled | left_to_transformers | without_effect


def test_torch_has_the_operators_that_pack_weights() -> None:
    expected = "see pack_linear_weight in torch/_inductor/fx_passes/mkldnn_fusion.py"
    assert can_pack(), expected
    schema = str(torch.ops.mkldnn._linear_pointwise.default._schema)
    assert "Tensor X, Tensor W, Tensor? B, str attr" in schema, (schema, expected)


def test_a_transformers_config_names_its_attention(tmp_path: Path) -> None:
    options = load_task(FAMILIES["ctc"].task).Options(
        task=FAMILIES["ctc"].task, model=str(FAMILIES["ctc"].make(tmp_path)), dtype="float32"
    )
    label = Label("it", options, find_checkpoint(options.model), device=available_device())
    attention = label.model.family.model.config._attn_implementation  # type: ignore[attr-defined]
    assert attention == "sdpa", "without this name `speed_up` leaves attention to transformers"


def test_in_bfloat16_it_is_hardly_further_from_the_truth_than_torchs_own() -> None:
    exact = [drawn(n, 4, 600, 64)[:1] for n in (1, 2, 3)]
    short = [part.bfloat16() for part in exact]
    truth = scaled_dot_product_attention(*exact)
    found = blocked_attention(*short, 64**-0.5)
    assert found.dtype == torch.bfloat16
    ours, torchs = (
        (one.float() - truth).abs().mean() for one in (found, scaled_dot_product_attention(*short))
    )
    assert ours < 1.5 * torchs


@pytest.mark.parametrize(
    ("has", "dtype", "device", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16, "cpu", True),
        ({"avx512_bf16": True}, torch.float32, "cpu", False),
        ({"avx512_bf16": True}, torch.bfloat16, "cuda", False),
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16, "cpu", False),
        ({}, torch.bfloat16, "cpu", False),  # a Mac, which knows neither
    ],
)
def test_it_is_for_cpus_that_have_dot_products_of_bfloat16_alone(
    has: dict[str, bool],
    dtype: torch.dtype,
    device: str,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert applies_to(dtype, device) is expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_multiply_the_same(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias), torch.nn.Linear(40, 8, bias))
    model.to(dtype)
    weight, inputs = (
        model[0].weight,
        [drawn(*shape, 24).to(dtype) for shape in ((1,), (2, 5), (70,))],
    )
    with torch.inference_mode():
        expected = [model(rows) for rows in inputs]
        pack(model)
        found = [model(rows) for rows in inputs]
    assert not any(isinstance(layer, torch.nn.Linear) for layer in model)
    assert torch.equal(model[0].weight, weight)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= (0.01 if dtype == torch.bfloat16 else 1e-6)


def test_lengths_make_few_shapes() -> None:
    """Each of them costs memory for good."""
    found = [cpu_bfloat16.padded_count(count) for count in range(1, 3001)]
    assert all(count <= more <= count * 17 / 16 for count, more in enumerate(found, 1))
    assert len(set(found)) < 200

    products = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(name in str(call) for name in ("matmul", "linear")):
                products.add((str(call), *(part.shape for part in args[:2])))
            return call(*args, **(kwargs or {}))

    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    pack(model)
    lengths = range(33, 700)
    with torch.inference_mode(), Watch():
        for length in lengths:
            states = model(drawn(1, length, 8))[None]
            blocked_attention(states, states, states, 1.0)
    kinds = {product[0] for product in products}
    assert len(kinds) == 2
    assert len(products) == 3 * len({cpu_bfloat16.padded_count(length) for length in lengths})


MODELS = {
    **{name: (family.make, family.task, family.options) for name, family in FAMILIES.items()},
    "masked": (  # its batches are padded, with a mask
        lambda folder: tiny_ctc(folder, "hubert", feat_extract_norm="layer"),
        FAMILIES["ctc"].task,
        {},
    ),
    "mms": (
        lambda folder: tiny_ctc(folder, "wav2vec2", languages={"deu": "abcd", "fra": "efgh"}),
        FAMILIES["ctc"].task,
        {"target_lang": "fra"},
    ),
    "wavlm": (lambda folder: tiny_ctc(folder, "wavlm"), FAMILIES["ctc"].task, {}),
}
BY_THEMSELVES = {"clap", "speech_to_text", "wavlm"}  # their attention is their own


@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_same_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, task, options = MODELS[name]
    folder = make(tmp_path)

    def said() -> list[Any]:
        chosen = load_task(task).Options(
            task=task,
            model=str(folder),
            dtype="float32",
            **{"top_k": 5, **options} if "classification" in task else options,
        )
        label = Label(
            "it", chosen, find_checkpoint(str(folder)), device=available_device(), batch_s=1e6
        )
        rate = label.model.sample_rate
        waves = [sound(s * rate / 16_000, hz) for s, hz in ((1.0, 200), (2.4, 900), (0.4, 3000))]
        return label.label([Clip(wave, len(wave) / rate) for wave in waves])

    expected = said()
    shapes = []

    def watched(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(query.shape)
        return blocked_attention(query, *rest)

    monkeypatch.setattr(cpu_bfloat16, "SCORES_AT_ONCE", FEW)
    monkeypatch.setattr(cpu_bfloat16, "applies_to", lambda *_: True)
    monkeypatch.setattr(cpu_bfloat16, "blocked_attention", watched)
    found = said()
    for one, other in zip(found, expected, strict=True):
        assert same(one, other)
    assert bool(shapes) is (name not in BY_THEMSELVES)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == pytest.approx(other, abs=1e-4) if isinstance(one, float) else one == other)
