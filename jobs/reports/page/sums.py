"""A table summed up: counts, distributions, suspects, calibration and runs, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from audio_ops.errors import KINDS
from audio_ops.flags import FLAGS
from jobs.reports.drift import drift
from jobs.reports.labels import quoted
from jobs.reports.page.database import Database, ReportedTask, Row

BINS = 40
CALIBRATION_BINS = 10
LABELS_SHOWN, CONFUSED_LABELS, RUNS_SHOWN = 25, 12, 60
# Of tasks that declare no text, label or suspects, or have no reference.
NONE = dict.fromkeys(("words", "words_per_s", "suspects", "suspect_clips", "calibration", "matrix"))
WORDS = r"len(regexp_extract_all({}, '\S+'))"  # 3 µs for a text of 12 words: counted once


def overall(database: Database) -> Row:
    """What the table holds: `clips`, `hours`, clips by outcome, sources, first and last label."""
    return database.row(
        """
        SELECT count(*) AS clips, coalesce(sum(duration_s), 0) / 3600 AS hours,
            count(*) FILTER (status = 'ok') AS ok,
            count(*) FILTER (status = 'partial') AS partial,
            count(*) FILTER (status = 'error') AS failed,
            max(labelled_at) AS last, min(labelled_at) AS first,
            approx_quantile(duration_s, 0.5) AS median_s, max(duration_s) AS longest_s
        FROM labels
        """
    )


def errors(database: Database) -> list[Row]:
    """The kinds of errors, the most frequent first, each with an example."""
    found = database.rows(
        """
        SELECT error_kind AS kind, count(*) AS clips,
            min_by({'source': source, 'member': member, 'message': error_message}, clip_id)
                AS example
        FROM labels WHERE error_kind IS NOT NULL
        GROUP BY error_kind ORDER BY clips DESC, kind
        """
    )
    return [{**row, "meaning": KINDS.get(row["kind"], "")} for row in found]


def flags(database: Database) -> list[Row]:
    """What is odd about sounds, the most frequent first."""
    found = database.rows(
        """
        SELECT flag, count(*) AS clips FROM
            (SELECT unnest(CAST(sound_flags AS VARCHAR[])) AS flag FROM labels)
        GROUP BY flag ORDER BY clips DESC, flag
        """
    )
    return [{**row, "meaning": FLAGS.get(row["flag"], "")} for row in found]


def histogram(
    database: Database,
    expression: str,
    bounds: tuple[float, float] | None = None,
    of: str = "labels",
) -> Row | None:
    """How an expression over a table is distributed: the `edges` of equal bins, and the `counts` in each.

    Without bounds the bins reach from 0, or the lowest value, to the 99th percentile, and the last
    one has all that is above (`open_end`). None if there is no finite value.
    """
    finite = f"isfinite(CAST(({expression}) AS DOUBLE))"
    open_end = False
    if bounds is None:
        found = database.row(
            f"SELECT min({expression}) AS low, max({expression}) AS high, "
            f"approx_quantile({expression}, 0.99) AS most FROM {of} WHERE {finite}"
        )
        if found["low"] is None:
            return None
        low = min(0.0, found["low"])
        high = max(nice(found["most"] - low), 1e-9) + low
        open_end = found["high"] > high
        bounds = (low, high)
    low, high = bounds
    width = (high - low) / BINS
    rows = database.rows(
        f"SELECT CAST(greatest(0, least({BINS - 1}, floor((({expression}) - ({low!r})) / {width!r}))) "
        f"AS INT) AS bin, count(*) AS clips FROM {of} WHERE {finite} GROUP BY ALL"
    )
    counts = [0] * BINS
    for row in rows:
        counts[row["bin"]] = row["clips"]
    if not any(counts):
        return None
    return {"edges": [low + n * width for n in range(BINS + 1)], "counts": counts, "open": open_end}


def nice(value: float) -> float:
    """The value, rounded up to 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(step * power for step in steps if step * power >= value * (1 - 1e-9))


def of_task(database: Database, task: ReportedTask) -> Row:
    """A task's figures: how its labels, scores, texts and suspects are distributed."""
    score = task.score
    found = database.row(
        f"""
        SELECT count(*) FILTER ({task.failed}) AS failed,
            count(*) FILTER (NOT {task.failed} AND {task.sql(_what(task))} IS NOT NULL) AS labelled,
            avg({score}) FILTER (isfinite({score})) AS mean_score,
            min({score}) FILTER (isfinite({score})) AS low, max({score}) FILTER (isfinite({score})) AS high
        FROM labels
        """
    )
    found = {**NONE, "labels": [], "label_count": 0, **found}
    is_share = found["low"] is None or (found["low"] >= 0 and found["high"] <= 1)
    found["scores"] = histogram(database, score, bounds=(0.0, 1.0) if is_share else None)
    if "label" in task.of:
        found |= labels(database, task)
    if "text" in task.of:
        spoken = count_words(database, task)
        found["words_per_s"] = histogram(database, "words / duration_s", of=spoken)
        found["words"] = database.row(f"SELECT sum(words) AS words FROM {spoken}")["words"] or 0
    if "suspect" in task.of:
        found["suspects"] = database.rows(
            f"SELECT reason, count(*) AS clips FROM (SELECT unnest({task.sql('suspect')}) AS reason "
            "FROM labels) GROUP BY reason ORDER BY clips DESC, reason"
        )
        found["suspect_clips"] = database.row(
            f"SELECT count(*) AS clips FROM labels WHERE len({task.sql('suspect')}) > 0"
        )["clips"]
    if task.reference:
        found["calibration"] = calibration(database, task) if is_share else []
        found["matrix"] = matrix(database, task)
    return found


def count_words(database: Database, task: ReportedTask) -> str:
    """The name of a table with the `run`, `duration_s` and number of `words` of each text."""
    name, text = quoted(f"words of {task.name}"), task.sql("text")
    database.connection.execute(
        f"CREATE TEMP TABLE IF NOT EXISTS {name} AS SELECT {task.run} AS run, nullif(duration_s, 0) AS "
        f"duration_s, {WORDS.format(text)} AS words FROM labels WHERE {text} IS NOT NULL"
    )
    return name


def _what(task: ReportedTask) -> str:
    """The declared column that a labelled clip has."""
    return "text" if "text" in task.of else "label"


def labels(database: Database, task: ReportedTask) -> Row:
    """The most frequent labels, and how many there are."""
    label = task.sql("label")
    counted = (
        f"SELECT {label} AS label, count(*) AS clips, "
        "coalesce(sum(duration_s), 0) / 3600 AS hours FROM labels"
    )
    found = database.rows(
        f"{counted} WHERE {label} IS NOT NULL GROUP BY {label} ORDER BY clips DESC, label "
        f"LIMIT {LABELS_SHOWN}"
    )
    count = database.row(f"SELECT count(DISTINCT {label}) AS labels FROM labels")["labels"]
    return {"labels": found, "label_count": count}


def calibration(database: Database, task: ReportedTask) -> list[Row]:
    """Ten bins of the score: the mean `score` of each, and what share was right (`right`).

    Of a recognition the share of the reference's words that are right (1 - WER, at least 0); of a
    classification the share of clips with the right label.
    """
    score = task.score
    if not {"edits", "correct"} & task.of.keys():  # of an earlier version
        return []
    if task.kind == "recognition":
        edits = task.sql("edits")
        wrong, words = f"sum({edits}.word_edits)", f"sum({edits}.words)"
        right = f"CASE WHEN {words} > 0 THEN greatest(0, 1 - {wrong} / {words}) END"
        known = f"{task.sql('wer')} IS NOT NULL"
    else:
        right = f"avg(CAST({task.sql('correct')} AS INT))"
        known = f"{task.sql('correct')} IS NOT NULL"
    last = CALIBRATION_BINS - 1
    return database.rows(
        f"SELECT CAST(least({last}, floor({score} * {CALIBRATION_BINS})) AS INT) AS bin, "
        f"avg({score}) AS score, {right} AS right, count(*) AS clips FROM labels "
        f"WHERE {known} AND isfinite({score}) GROUP BY ALL ORDER BY 1"
    )


def calibration_error(bins: Sequence[Row]) -> float | None:
    """The expected calibration error: the mean distance of score and share right, by clips."""
    known = [row for row in bins if row["right"] is not None]
    clips = sum(row["clips"] for row in known)
    if not clips:
        return None
    return float(sum(row["clips"] * abs(row["score"] - row["right"]) for row in known) / clips)


def matrix(database: Database, task: ReportedTask) -> Row | None:
    """Reference labels by labels, of those that are most frequent; None for texts."""
    if "reference_label" not in task.of:
        return None
    pairs = database.rows(
        f"SELECT {task.sql('reference_label')} AS reference, {task.sql('label')} AS label, "
        f"count(*) AS clips FROM labels WHERE {task.sql('reference_label')} IS NOT NULL "
        f"AND {task.sql('label')} IS NOT NULL GROUP BY ALL"
    )
    totals: dict[str, int] = {}
    for pair in pairs:
        for name in {pair["reference"], pair["label"]}:
            totals[name] = totals.get(name, 0) + pair["clips"]
    if len(totals) < 2:
        return None
    names = sorted(totals, key=lambda name: (-totals[name], name))[:CONFUSED_LABELS]
    clips = {(pair["reference"], pair["label"]): pair["clips"] for pair in pairs}
    rows = [[clips.get((true, label), 0) for label in names] for true in names]
    return {"names": names, "rows": rows, "of": len(totals)}


def runs(database: Database, tasks: Sequence[ReportedTask]) -> list[Row]:
    """The runs whose labels the table holds, the first one first: for each task that it labelled with
    `clips`, `failed`, `error_rate`, `mean_score`, `labels`, `words_per_s`, and their `drift` from the
    last run before it that had the task."""
    by_task = {task.name: _by_run(database, task) for task in tasks}
    found: dict[str, Row] = {}
    for name, by_run in by_task.items():
        for run_id, figures in by_run.items():
            begun = figures.pop("begun")
            run = found.setdefault(
                run_id, {"run_id": run_id, "begun": begun, "clips": 0, "tasks": {}}
            )
            run["begun"] = min(run["begun"], begun)
            run["clips"] = max(run["clips"], figures["clips"])
            run["tasks"][name] = figures
    ordered = sorted(found.values(), key=lambda run: (run["begun"], run["run_id"]))
    last: dict[str, Row] = {}
    for run in ordered:
        for name, figures in run["tasks"].items():
            if name in last:
                figures["drift"] = drift(figures, last[name])
            last[name] = figures
    return ordered


def _by_run(database: Database, task: ReportedTask) -> Mapping[str, Row]:
    score = task.score
    # A row is written again for another task, and has the time of that: a run's id begins with its own.
    begun = f"strptime(left({task.run}, 15), '%Y%m%dT%H%M%S')"
    columns = [
        f"{task.run} AS run",
        "count(*) AS clips",
        f"count(*) FILTER ({task.failed}) AS failed",
        f"avg({score}) FILTER (isfinite({score})) AS mean_score",
        f"coalesce(try({begun}), min(labelled_at)::TIMESTAMP) AS begun",
    ]
    found = {
        row.pop("run"): row | {"error_rate": row["failed"] / row["clips"]}
        for row in database.rows(
            f"SELECT {', '.join(columns)} FROM labels WHERE {task.has_run} GROUP BY {task.run}"
        )
    }
    if "text" in task.of:
        for row in database.rows(
            "SELECT run, sum(words) / sum(duration_s) AS words_per_s "
            f"FROM {count_words(database, task)} GROUP BY run"
        ):
            found[row["run"]]["words_per_s"] = row["words_per_s"]
    if "label" in task.of:
        label = task.sql("label")
        for row in database.rows(
            f"SELECT {task.run} AS run, {label} AS label, count(*) AS clips FROM labels "
            f"WHERE {task.has_run} AND {label} IS NOT NULL GROUP BY ALL"
        ):
            found[row["run"]].setdefault("labels", {})[row["label"]] = row["clips"]
    return found


def summed_up(database: Database, tasks: Sequence[ReportedTask]) -> dict[str, Any]:
    """Everything that the page says of the whole table, but comparisons with references."""
    found = runs(database, tasks)
    return {
        "overall": overall(database) | {"runs": len(found)},
        "errors": errors(database),
        "flags": flags(database),
        "durations": histogram(database, "duration_s"),
        "tasks": {task.name: of_task(database, task) for task in tasks},
        "runs": found[-RUNS_SHOWN:],
    }
