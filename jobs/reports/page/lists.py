"""Which clips the page shows: lists of the table's rows, each with a reason to listen to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from jobs.reports.page.database import Database, ReportedTask

# The words of a text, each once; letters where words are not spaced.
WORDS_OF = (
    r"list_distinct(regexp_extract_all(lower({}), "
    r"'[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Thai}}]|[\p{{L}}\p{{M}}\p{{N}}]+'))"
)


@dataclass(frozen=True)
class Wanted:
    """A list before it is filled: the rows that meet `where`, by `order`."""

    group: str
    title: str
    about: str
    where: str
    order: str


@dataclass(frozen=True)
class ClipList:
    """A list of clips: `total` rows of the table belong to it, the first of them are `clip_ids`."""

    group: str
    title: str
    about: str
    total: int
    clip_ids: Sequence[str]


def clip_lists(
    database: Database, tasks: Sequence[ReportedTask], clips: int, seed: int
) -> list[ClipList]:
    """The lists that are not empty, each with at most `clips` rows."""
    found = []
    for wanted in _wanted(database, tasks, seed):
        total = database.row(f"SELECT count(*) AS rows FROM labels WHERE {wanted.where}")["rows"]
        if total:
            rows = database.rows(
                f"SELECT clip_id FROM labels WHERE {wanted.where} "
                f"ORDER BY {wanted.order}, clip_id LIMIT {clips}"
            )
            ids = [row["clip_id"] for row in rows]
            found.append(ClipList(wanted.group, wanted.title, wanted.about, total, ids))
    return found


def chosen(lists: Sequence[ClipList], clips: int) -> dict[str, None]:
    """The ids of at most `clips` rows, in turn the next of each list."""
    ids: dict[str, None] = {}
    for depth in range(max((len(one.clip_ids) for one in lists), default=0)):
        for one in lists:
            if len(ids) < clips and depth < len(one.clip_ids):
                ids[one.clip_ids[depth]] = None
    return ids


def _wanted(database: Database, tasks: Sequence[ReportedTask], seed: int) -> Iterator[Wanted]:
    for task in tasks:
        yield from _of_task(database, task)
    for one, other in combinations(tasks, 2):
        if differ := _disagreement(database, one, other):
            yield differ
    for row in database.rows(
        "SELECT error_kind AS kind, count(*) AS rows FROM labels WHERE error_kind IS NOT NULL "
        "GROUP BY ALL ORDER BY rows DESC, kind"
    ):
        kind = row["kind"].replace("'", "''")
        yield Wanted("errors", row["kind"], "clips that failed", f"error_kind = '{kind}'", "source")
    yield Wanted(
        "sample", "random sample", f"seed {seed}", "true", f"md5(clip_id || '{int(seed)}')"
    )


def _of_task(database: Database, task: ReportedTask) -> Iterator[Wanted]:
    score, measure = task.score, task.error_measure
    if task.reference:
        is_text = task.kind == "recognition"
        title = "most word errors" if is_text else "highest loss"
        about = f"against {task.reference}"
        yield Wanted(task.name, title, about, f"{measure} > 0", f"{measure} DESC")
    if "suspect" in task.of:
        suspect = task.sql("suspect")
        for row in database.rows(
            f"SELECT reason, count(*) AS rows FROM (SELECT unnest({suspect}) AS reason FROM labels) "
            "GROUP BY reason ORDER BY rows DESC, reason"
        ):
            reason = row["reason"].replace("'", "''")
            yield Wanted(
                task.name,
                f"suspect: {row['reason'].replace('_', ' ')}",
                "texts with evidence against them",
                f"list_contains({suspect}, '{reason}')",
                f"{score} ASC NULLS LAST",
            )
    if "score" in task.of:
        yield Wanted(
            task.name, "lowest scores", "by the model itself", f"isfinite({score})", f"{score} ASC"
        )


def _disagreement(database: Database, one: ReportedTask, other: ReportedTask) -> Wanted | None:
    """Where two tasks of a kind differ: texts by the words that they do not have in common, labels,
    if the tasks have some in common, by how sure both are."""
    if one.kind != other.kind:
        return None
    group, title = "disagreement", f"{one.name} against {other.name}"
    if one.kind == "recognition":
        left, right = (WORDS_OF.format(task.sql("text")) for task in (one, other))
        words = f"(len({left}) + len({right}))"
        differ = f"1 - 2 * len(list_intersect({left}, {right})) / nullif({words}, 0)"
        differ = (
            f"CASE WHEN {one.sql('text')} IS NULL OR {other.sql('text')} IS NULL THEN 0 "
            f"ELSE coalesce({differ}, 0) END"
        )
        return Wanted(group, title, "words not in common", f"{differ} > 0", f"{differ} DESC")
    left, right = (task.sql("label") for task in (one, other))
    shared = database.row(
        f"SELECT count(*) AS labels FROM (SELECT DISTINCT {left} AS label FROM labels WHERE "
        f"{left} IS NOT NULL INTERSECT SELECT DISTINCT {right} FROM labels)"
    )["labels"]
    if not shared:
        return None
    sure = f"least({one.score}, {other.score})"
    return Wanted(group, title, "other labels", f"{left} <> {right}", f"{sure} DESC")
