"""Statistics of a run's labels, and their distance from those of the table's earlier rows.

They are read from the committed rows. Only labels by the same settings of a task are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import Drift
from jobs.fingerprints import fingerprint_of, fingerprints, run_of
from jobs.reports.columns import task_columns
from jobs.table.table import Table

REPORTED = ("label", "score", "text", "suspect", "error")
LABELS_KEPT = 20
ROWS_AT_ONCE = 8192


def statistics(table: Table, run_id: str) -> dict[str, dict[str, Any]]:
    """Figures of each task: `now` of the labels that it made in the run `run_id`, `before` of all others
    that it made with its current settings, and the `drift` between the two (see `drift`).

    Every task has `clips`, `failed`, `error_rate` and `mean_score`; a classification `labels`, the
    number of clips by their top label; a recognition `words_per_s` and `suspects`, the number of
    distrusted texts by reason. Memory grows with the number of labels, not of rows.
    """
    settings = table.settings()
    rows, prints = table.dataset(), fingerprints(settings)
    names = rows.schema.names
    found: dict[str, dict[str, Any]] = {}
    for task, options in settings.get("tasks", {}).items():
        of_task = task_columns(task, options, names).of
        condition = fingerprint_of(task, settings, names) == prints[task]
        read = {name: pc.field(of_task[name]) for name in REPORTED if name in of_task}
        columns = {
            "mine": run_of(task, names) == run_id,
            **{name: pc.field(name) for name in ("duration_s", "error_stage")},
            **read,
        }
        found[task] = _figures(partial(_query, rows, columns, condition), read)
    for sides in found.values():
        sides["drift"] = drift(sides["now"], sides["before"])
        for figures in (sides["now"], sides["before"]):
            if "labels" in figures:
                figures["labels"] = dict(list(figures["labels"].items())[:LABELS_KEPT])
    return found


def _query(
    rows: pa.dataset.Dataset,
    columns: Mapping[str, pc.Expression],
    condition: pc.Expression,
    sql: str,
) -> list[tuple[Any, ...]]:
    """The result of a query on the table `rows`: the rows that meet the condition, with these columns.

    The dataset is scanned here, in small batches: DuckDB would make it read far ahead.
    """
    import duckdb

    batches = rows.scanner(
        columns=dict(columns), filter=condition, batch_size=ROWS_AT_ONCE, batch_readahead=4
    )
    with duckdb.connect(":memory:") as database:
        return database.register("rows", batches.to_reader()).execute(sql).fetchall()


def _figures(
    query: Callable[[str], list[tuple[Any, ...]]], columns: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The figures `now` and `before`, from a query on rows with these columns."""
    expressions = {
        "clips": "count(*)",
        "failed": "count(*) FILTER (error IS NOT NULL OR error_stage IN ('read', 'decode'))",
        "mean_score": "avg(score) FILTER (isfinite(score))",  # else one NaN would be the mean
    }
    if "text" in columns:
        words = "sum(len(regexp_extract_all(text, '\\S+')))"
        expressions["words_per_s"] = (
            f"{words} / nullif(sum(duration_s) FILTER (text IS NOT NULL), 0)"
        )
    none = {name: 0 if name in ("clips", "failed") else None for name in expressions}
    both = {mine: dict[str, Any](none) for mine in (True, False)}
    selected = ", ".join(expressions.values())
    for mine, *row in query(f"SELECT mine, {selected} FROM rows GROUP BY mine"):
        both[mine].update(zip(expressions, row, strict=True))
    for figures in both.values():
        figures["error_rate"] = figures["failed"] / figures["clips"] if figures["clips"] else None
    for column, value in (("label", "label"), ("suspect", "unnest(suspect)")):
        if column in columns:
            for figures in both.values():
                figures[f"{column}s"] = {}
            for mine, what, count in query(  # the most frequent first
                f"SELECT mine, value, count(*) AS rows FROM (SELECT mine, {value} AS value FROM rows) "
                "WHERE value IS NOT NULL GROUP BY mine, value ORDER BY rows DESC, value"
            ):
                both[mine][f"{column}s"][what] = count
    return {"now": both[True], "before": both[False]}


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
