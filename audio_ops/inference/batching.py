"""Windows of unequal length -> micro-batches under a budget of padded seconds of sound."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def micro_batches(
    padded_s: Sequence[float],
    budget_s: float,
    groups: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Batches of indices, longest items first, of one group and at most `budget_s` padded seconds.

    A batch costs its longest item times its size, because all others are padded to that length. An
    item over the budget gets a batch of its own. Items of equal length keep their order, so the
    batches depend on nothing but the arguments.
    """
    by_group: dict[Hashable, list[int]] = {}
    for index in range(len(padded_s)):
        by_group.setdefault(groups[index] if groups else None, []).append(index)
    batches: list[list[int]] = []
    for indices in by_group.values():
        indices.sort(key=lambda index: -padded_s[index])
        batch: list[int] = []
        for index in indices:
            if batch and padded_s[batch[0]] * (len(batch) + 1) > budget_s:
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    return batches
