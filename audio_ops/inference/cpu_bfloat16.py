"""Attention and linear layers in bfloat16, which torch computes slowly on CPUs that have its dot
products but no AMX: AMD from Zen 4 on, Intel's Cooper Lake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "in_blocks"
ROWS = 16  # for which a layer's weights are laid out: a decoder's batch
SCORES_AT_ONCE = 768 << 10  # 1.5 MB of them: what a core's caches hold


def pays(dtype: torch.dtype, device: str) -> bool:
    """Whether `speed_up` is for a model of that number format on that device."""
    import torch

    has = torch.cpu.get_capabilities()
    dots_alone = bool(has.get("avx512_bf16")) and not has.get("amx_bf16")
    return device == "cpu" and dtype == torch.bfloat16 and dots_alone


def speed_up(model: Any) -> None:
    """Let a transformers model, ready to infer, attend `in_blocks` and pack its weights."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _forward)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
    if getattr(model.config, "adapter_attn_dim", None) is None:  # MMS exchanges some of them later
        pack(model)


def rounded(count: int) -> int:
    """At least `count`: itself up to 32, then one of sixteen numbers from a power of two to the next,
    from 512 on a multiple of 32.

    oneDNN keeps the code of a product for each shape that it meets, about a quarter of a megabyte,
    until the process ends, whatever its cache of primitives may hold. Clips have any length, so a
    product gets a few more rows, which are left out of the result.
    """
    step = 1 << min(max(0, count.bit_length() - 5), 5)
    return -(-count // step) * step


def pack(model: torch.nn.Module) -> None:
    """Lay the weights of all plain linear layers out as oneDNN multiplies them.

    torch does that in each call, which for the few rows of a decoder's step takes longer than the
    product. The results are the same to the bit. As torch's inductor does it when it freezes a
    model (`packed_linear` in torch/_inductor/fx_passes/mkldnn_fusion.py).
    """
    import torch

    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear):
            super().__init__()
            self.bias = linear.bias
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

        @property
        def weight(self) -> torch.Tensor:  # WavLM multiplies with it by itself
            return self.packed.to_dense()

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            rows = states.reshape(-1, self.in_features)
            count, more = len(rows), rounded(len(rows))
            if more > count:
                rows = torch.nn.functional.pad(rows, (0, 0, 0, more - count))
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], None
            )
            return product[:count].view(*states.shape[:-1], self.out_features)

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, Packed(child))


def in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`softmax(scaling * query @ key.T) @ value`, in blocks of queries that stay in the caches.

    `query` is `(batch, heads, queries, width)`, `key` and `value` are `(batch, heads, keys, width)`,
    `mask` can be broadcast to `(batch, heads, queries, keys)`: true for a key that counts, or a
    number to add to its score. Returns `(batch, heads, queries, width)`.

    torch's own kernel has MKL multiply bfloat16, which on these CPUs first makes float32 of it:
    twice as long for an encoder, and five times as long for a decoder's single queries.
    """
    import torch

    if mask is not None:  # has a shape of its own: clip by clip
        masks = mask.expand(len(query), *mask.shape[1:])
        clips = zip(query, key, value, masks, strict=True)
        return torch.stack([_in_blocks(q, k, v, scaling, m) for q, k, v, m in clips])
    rows, keys, values = (part.flatten(0, 1) for part in (query, key, value))
    return _in_blocks(rows, keys, values, scaling, None).unflatten(0, query.shape[:2])


def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`in_blocks` for `(rows, queries, width)`, a row being a head of a clip."""
    import torch
    from torch.nn.functional import pad

    rows, queries, _ = query.shape
    keys = key.shape[1]
    query, key = query * scaling, key.transpose(1, 2)
    if mask is not None:
        mask = mask.expand(rows, queries, keys)
    if queries > 1:  # a decoder's steps are few, and a copy of all its keys would cost them much
        query = pad(query, (0, 0, 0, rounded(queries) - queries))
        key = pad(key, (0, rounded(keys) - keys))
        value = pad(value, (0, 0, 0, rounded(keys) - keys))
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


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, which computes all but plain attention over all keys itself."""
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
    return in_blocks(query, key, value, scaling, attention_mask).transpose(1, 2).contiguous(), None
