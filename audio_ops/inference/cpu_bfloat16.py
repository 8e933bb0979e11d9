"""Faster attention and linear layers in bfloat16 on CPUs with AVX512-BF16 but without AMX: AMD from
Zen 4 on, Intel's Cooper Lake.

Used beyond the docs of torch 2.13 and transformers 5.23, tested in tests/models/test_bfloat16.py:

- `torch.ops.mkldnn._reorder_linear_weight` and `_linear_pointwise`, as torch's inductor calls them
  when it freezes a model (`pack_linear_weight` and `pack_linear` in
  torch/_inductor/fx_passes/mkldnn_fusion.py). Without them linear layers stay as they are.
- `_attn_implementation` of a model's config (transformers/configuration_utils.py). Without it
  attention stays transformers' own.
- the arguments of `sdpa_attention_forward` (transformers/integrations/sdpa_attention.py), which
  `_attention_forward` has to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ATTENTION = "blocked"  # its name for transformers
ROWS = 16  # for which a layer's weights are packed: a decoder's batch
SCORES_AT_ONCE = 768 << 10  # 1.5 MB of them, which fit in a core's caches


def applies_to(dtype: torch.dtype, device: str) -> bool:
    """True if `speed_up` makes models of that dtype faster on that device."""
    import torch

    has = torch.cpu.get_capabilities()
    dots_alone = bool(has.get("avx512_bf16")) and not has.get("amx_bf16")
    return device == "cpu" and dtype == torch.bfloat16 and dots_alone


def speed_up(model: Any) -> None:
    """Replace a transformers model's attention by `blocked_attention`, and pack its linear layers.

    The model has to be in eval mode, with its final weights.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(ATTENTION, _attention_forward)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
    # MMS replaces some of its layers' weights later.
    if getattr(model.config, "adapter_attn_dim", None) is None and can_pack():
        pack(model)


def padded_count(count: int) -> int:
    """The number of rows to which `count` rows are padded, at most a sixteenth more.

    Up to 32 it is `count`; then one of 16 steps between powers of two; from 512 on in steps of 32.

    oneDNN compiles a product for each shape and keeps the code, about a quarter of a megabyte,
    until the process ends, whatever the size of its primitive cache. Clips have any length, so
    products get a few rows of padding, which are cut off the result.
    """
    step = 1 << min(max(0, count.bit_length() - 5), 5)
    return -(-count // step) * step


def can_pack() -> bool:
    """True if this torch has the operators that `pack` calls."""
    import torch

    names = ("_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


def pack(model: torch.nn.Module) -> None:
    """Store the weights of all plain linear layers in the layout in which oneDNN multiplies them.

    torch reorders them in each call, which for the few rows of a decoder's step takes longer than
    the product. The results are the same to the bit.
    """
    import torch

    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear):
            super().__init__()
            self.bias = linear.bias
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

        @property
        def weight(self) -> torch.Tensor:  # WavLM reads it
            return self.packed.to_dense()

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            rows = states.reshape(-1, self.in_features)
            count, padded = len(rows), padded_count(len(rows))
            if padded > count:
                rows = torch.nn.functional.pad(rows, (0, 0, 0, padded - count))
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], None
            )
            return product[:count].view(*states.shape[:-1], self.out_features)

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, Packed(child))


def blocked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`softmax(scaling * query @ key.T) @ value`, in blocks of queries that fit in the caches.

    query: (batch, heads, queries, width).
    key, value: (batch, heads, keys, width).
    mask: broadcastable to (batch, heads, queries, keys); true for a key to attend to, or a number
        that is added to its score.

    Returns (batch, heads, queries, width) in the dtype of `query`.

    torch's own kernel has MKL multiply bfloat16, which on these CPUs first converts it to float32:
    twice as long for an encoder, and five times as long for a decoder's single queries.
    """
    import torch

    if mask is not None:  # may differ between clips: one by one
        masks = mask.expand(len(query), *mask.shape[1:])
        clips = zip(query, key, value, masks, strict=True)
        return torch.stack([_attend_rows(q, k, v, scaling, m) for q, k, v, m in clips])
    rows, keys, values = (part.flatten(0, 1) for part in (query, key, value))
    return _attend_rows(rows, keys, values, scaling, None).unflatten(0, query.shape[:2])


def _attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`blocked_attention` for (rows, queries, width): a row is one head of one clip."""
    import torch
    from torch.nn.functional import pad

    rows, queries, _ = query.shape
    keys = key.shape[1]
    query, key = query * scaling, key.transpose(1, 2)
    if mask is not None:
        mask = mask.expand(rows, queries, keys)
    if queries > 1:  # for a decoder's single query a copy of all keys would take too long
        query = pad(query, (0, 0, 0, padded_count(queries) - queries))
        key = pad(key, (0, padded_count(keys) - keys))
        value = pad(value, (0, 0, 0, padded_count(keys) - keys))
    all_queries, all_keys = query.shape[1], key.shape[2]
    queries_at_once = min(all_queries, max(1, SCORES_AT_ONCE // all_keys))
    rows_at_once = max(1, SCORES_AT_ONCE // (queries_at_once * all_keys))
    attended = torch.empty_like(query)
    for row in range(0, rows, rows_at_once):
        some = slice(row, row + rows_at_once)
        for first in range(0, all_queries, queries_at_once):
            part = some, slice(first, first + queries_at_once)
            scores = query[part] @ key[some]
            if all_keys > keys:
                scores[..., keys:] = -torch.inf
            if mask is not None:
                masks = mask[part]
                masked = scores[:, : masks.shape[1], :keys]
                if mask.dtype == torch.bool:
                    masked.masked_fill_(~masks, torch.finfo(scores.dtype).min)
                else:
                    masked += masks
            attended[part] = scores.softmax(-1) @ value[some]
    return attended[:, :queries]


def _attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """`blocked_attention` with the signature of transformers' `sdpa_attention_forward`, which it
    calls for causal masks that are not in `attention_mask`, grouped queries, and biases."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        (causal and attention_mask is None and query.shape[2] > 1)
        or query.shape[1] != key.shape[1]
        or any(others.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    ):
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            is_causal=is_causal,
            **others,
        )
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    attended = blocked_attention(query, key, value, scaling, attention_mask)
    return attended.transpose(1, 2).contiguous(), None
