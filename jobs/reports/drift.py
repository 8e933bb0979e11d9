"""Statistics of a run's labels, and their distance from those of the table's earlier rows.

Only labels by the same settings of a task are compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jobs.config import Drift
from jobs.fingerprints import fingerprints
from jobs.reports.kept_totals import RunTotals
from jobs.reports.totals import Totals, ranked, ratio

LABELS_KEPT = 20


def statistics(found: RunTotals) -> dict[str, dict[str, Any]]:
    """Figures of each task: `now` of the labels that it made in the run, `before` of all others that it
    made with its current settings, and the `drift` between the two (see `drift`).

    Every task has `clips`, `failed`, `error_rate` and `mean_score`; a classification `labels`, the
    number of clips by their top label; a recognition `words_per_s` and `suspects`, the number of
    distrusted texts by reason.
    """
    figures: dict[str, dict[str, Any]] = {}
    prints = fingerprints(found.question.settings)
    for task, columns in found.question.tasks.items():
        now, before = (side.of(task, prints[task]) for side in (found.mine, found.others))
        sides = {"now": _figures(now, columns.of), "before": _figures(before, columns.of)}
        sides["drift"] = drift(sides["now"], sides["before"])
        for one in (sides["now"], sides["before"]):
            if "labels" in one:
                one["labels"] = dict(list(one["labels"].items())[:LABELS_KEPT])
        figures[task] = sides
    return figures


def _figures(totals: Totals, columns: Collection[str]) -> dict[str, Any]:
    """The figures of a task with these columns."""
    sums = totals.sums
    clips, failed = int(sums.get("clips", 0)), int(sums.get("failed", 0))
    figures: dict[str, Any] = {
        "clips": clips,
        "failed": failed,
        "mean_score": ratio(sums, "score", "scores"),
        "error_rate": failed / clips if clips else None,
    }
    if "text" in columns:
        figures["words_per_s"] = ratio(sums, "spoken_words", "spoken_s")
    for column, counts in (("label", totals.labels), ("suspect", totals.suspects)):
        if column in columns:
            figures[f"{column}s"] = dict(ranked(counts))
    return figures


def drift(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float | None]:
    """The changes of a task's figures; None if one of the two sides has no value.

    `label_distance` is the total variation distance of the labels' shares, 0 (equal) to 1 (no label
    in common), less the distance that is expected by chance for this number of clips. `score` and
    `error_rate` are absolute differences, `words_per_s` is a relative one: 0.5 is half as many again.
    """
    return {
        "label_distance": _distance(now.get("labels"), before.get("labels")),
        "score": _difference(now["mean_score"], before["mean_score"]),
        "error_rate": _difference(now["error_rate"], before["error_rate"]),
        "words_per_s": _difference(
            now.get("words_per_s"), before.get("words_per_s"), relative=True
        ),
    }


def _distance(now: Mapping[str, int] | None, before: Mapping[str, int] | None) -> float | None:
    if not now or not before:
        return None
    n, m = sum(now.values()), sum(before.values())
    distance = by_chance = 0.0
    for label in now.keys() | before.keys():
        left, right = now.get(label, 0), before.get(label, 0)
        share = (left + right) / (n + m)
        distance += abs(left / n - right / m) / 2
        # The mean of |left/n - right/m| for two samples of one population, by a normal curve.
        by_chance += math.sqrt(2 / math.pi * share * (1 - share) * (1 / n + 1 / m)) / 2
    return max(0.0, distance - by_chance)


def _difference(now: float | None, before: float | None, relative: bool = False) -> float | None:
    if now is None or before is None or (relative and not before):
        return None
    return (now - before) / before if relative else now - before


def beyond(tasks: Mapping[str, Mapping[str, Any]], bounds: Drift) -> Iterator[str]:
    """`task: ...` for each figure that changed by more than the config allows.

    Tasks with fewer than `min_clips` on either side are skipped. A lower error rate is no drift.
    """
    for name, task in tasks.items():
        if min(task["now"]["clips"], task["before"]["clips"]) < bounds.min_clips:
            continue
        for figure, moved in task["drift"].items():
            bound = getattr(bounds, f"max_{figure}")
            size = moved if figure == "error_rate" or moved is None else abs(moved)
            if bound is not None and size is not None and size > bound:
                yield (
                    f"{name}: {figure} moved by {moved:.3f}, expected at most {bound:g} "
                    f"(drift.max_{figure})"
                )
