"""Compares the labels of each task that has a `reference` with it, from the table alone.

earmark evaluate TABLE [--by COLUMN ...]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from jobs.fingerprints import fingerprint_of, fingerprints
from jobs.reports.arguments import add_table_arguments, open_table
from jobs.reports.columns import TaskColumns, task_columns
from jobs.reports.labels import connected, quoted
from jobs.table.table import Table

WORST, CONFUSIONS = 20, 10
GROUPS_SHOWN, CHARACTERS_SHOWN = 50, 160

RECOGNITION = """
    count(wer) AS compared,
    count(wer) FILTER (compared_by = 'characters') AS without_spaces,
    sum(edits.word_edits) / nullif(sum(edits.words), 0) AS wer,
    sum(edits.character_edits) / nullif(sum(edits.characters), 0) AS cer,
    avg(wer) AS mean_wer,
    avg(cer) AS mean_cer,
    CAST(sum(edits.words) AS BIGINT) AS words,
    CAST(sum(edits.word_edits) AS BIGINT) AS word_edits,
    CAST(sum(edits.characters) AS BIGINT) AS characters,
    CAST(sum(edits.character_edits) AS BIGINT) AS character_edits
"""
CLASSIFICATION = """
    count(loss) AS compared,
    avg(CAST(correct AS INT)) AS accuracy,
    avg(loss) AS mean_loss
"""

Row = dict[str, Any]


def evaluate(table: Table, by: Sequence[str] = ()) -> dict[str, Any]:
    """The report on a table, as JSON values: `tasks` has an entry for each task with a reference.

    A recognition has `wer` and `cer` (the edits of all rows divided by all words or characters),
    `mean_wer` and `mean_cer`, the means of the rows, and the number of rows `without_spaces` between
    words: if these are half of the rows or more, CER is the figure shown. A classification has `accuracy` (of the top label), `macro_f1`,
    `mean_loss` and `confusions`. Both have the number of rows that were `compared`, of those that
    were `not_compared` by reason, these figures `by` the values of columns, and the `worst` rows.
    Figures without rows are None.

    Raises ValueError for a column that the table does not have.
    """
    report: dict[str, Any] = {"table": table.path, "tasks": {}}
    labels = table.dataset()  # of which only the columns named are read
    names = labels.schema.names
    for column in by:
        if column not in names:
            raise ValueError(
                f"--by: expected a column of the table ({', '.join(names)}), found {column!r}"
            )
    settings = table.settings()
    with connected(table) as database:
        compared = {
            task: options
            for task, options in settings.get("tasks", {}).items()
            if options.get("reference")
        }
        report |= {"version": table.version, "rows": labels.count_rows()}
        report["rows_of_other_settings"] = _rows_of_other_settings(labels, settings, compared)
        for task, options in compared.items():
            columns = task_columns(task, options, names)
            _view(database, columns, options["reference"], by)
            compare = _recognition if columns.kind == "recognition" else _classification
            report["tasks"][task] = {"reference": options["reference"], **compare(database, by)}
    return report


def _rows_of_other_settings(
    labels: Any, settings: Mapping[str, Any], tasks: Collection[str]
) -> int:
    """The rows that some of these tasks have labelled with other settings than now."""
    names, is_other = labels.schema.names, pc.scalar(False)
    for task in tasks:
        of_row = fingerprint_of(task, settings, names)
        is_other = is_other | pc.coalesce(of_row != fingerprints(settings)[task], pc.scalar(False))
    return int(labels.count_rows(filter=is_other)) if tasks else 0


def macro_f1(pairs: Mapping[tuple[str, str], int]) -> float | None:
    """The unweighted mean of F1 over all true and predicted labels, as in scikit-learn.

    `pairs` counts (true label, predicted label); None if it is empty.
    """
    true: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    for (reference, label), count in pairs.items():
        true[reference] += count
        predicted[label] += count
    both = true + predicted
    f1 = [2 * pairs.get((label, label), 0) / count for label, count in both.items()]
    return sum(f1) / len(f1) if f1 else None


def _view(database: Any, of_task: TaskColumns, reference: str, by: Sequence[str]) -> None:
    """Create a view `task` of the table, with the task's columns, null where a table made by an
    earlier version has none."""
    columns = {name: quoted(column) for name, column in of_task.of.items()}
    places = ("clip_id", "source", "member", "offset_s", "channel", "error_stage")
    columns |= {name: name for name in places} | {"reference": quoted(reference)}
    columns |= {f"by_{n}": quoted(column) for n, column in enumerate(by)}
    columns = {"compared_by": "NULL", "reference_error": "NULL", **columns}
    view = ", ".join(f"{column} AS {quoted(name)}" for name, column in columns.items())
    database.execute(f"CREATE OR REPLACE TEMP VIEW task AS SELECT {view} FROM labels")


def _recognition(database: Any, by: Sequence[str]) -> dict[str, Any]:
    [figures] = _rows(database, f"SELECT {RECOGNITION} FROM task")
    return {
        "kind": "recognition",
        **figures,
        "not_compared": _not_compared(database, "wer", bad_reference="reference_error IS NOT NULL"),
        "by": {c: _rows(database, _by(n, "wer", RECOGNITION)) for n, c in enumerate(by)},
        "worst": _worst(
            database,
            "text, wer, cer, compared_by",
            "CASE compared_by WHEN 'characters' THEN cer ELSE wer END",
        ),
    }


def _classification(database: Any, by: Sequence[str]) -> dict[str, Any]:
    [figures] = _rows(database, f"SELECT {CLASSIFICATION} FROM task")
    pairs = _pairs(database)["None"]
    wrong = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]})
    groups = {c: _rows(database, _by(n, "loss", CLASSIFICATION)) for n, c in enumerate(by)}
    for number, column in enumerate(by):
        of_group = _pairs(database, f"by_{number}")
        for group in groups[column]:
            group["macro_f1"] = macro_f1(of_group[repr(group["value"])])
    return {
        "kind": "classification",
        **figures,
        "macro_f1": macro_f1(pairs),
        "confusions": [
            {"reference": reference, "label": label, "rows": count}
            for (reference, label), count in wrong.most_common(CONFUSIONS)
        ],
        "not_compared": _not_compared(
            database, "loss", unknown_reference="reference_error IS NOT NULL"
        ),
        "by": groups,
        "worst": _worst(database, "label, loss", "loss"),
    }


def _pairs(database: Any, group: str = "NULL") -> dict[str, dict[tuple[str, str], int]]:
    """The number of rows by (true label, predicted label), by the repr of the group's value."""
    found: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for row in _rows(
        database,
        f"SELECT {group} AS value, reference_label, label, count(*) AS rows FROM task "
        "WHERE reference_label IS NOT NULL GROUP BY ALL ORDER BY rows DESC, reference_label, label",
    ):
        found[repr(row["value"])][row["reference_label"], row["label"]] = row["rows"]
    return found


def _by(number: int, measure: str, figures: str) -> str:
    return (
        f"SELECT by_{number} AS value, {figures} FROM task WHERE {measure} IS NOT NULL "
        "GROUP BY value ORDER BY compared DESC, value"
    )


def _not_compared(database: Any, measure: str, **reasons: str) -> dict[str, int]:
    """The number of rows without a `measure`, by the first reason that applies."""
    reasons = {
        "no_reference": "reference IS NULL",
        "failed": "error IS NOT NULL OR error_stage IN ('read', 'decode')",
        **reasons,
    }
    cases = " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in reasons.items())
    rows = _rows(
        database,
        f"SELECT CASE {cases} ELSE 'not_run' END AS reason, count(*) AS rows FROM task "
        f"WHERE {measure} IS NULL GROUP BY reason ORDER BY rows DESC, reason",
    )
    return {row["reason"]: row["rows"] for row in rows}


def _worst(database: Any, columns: str, measure: str) -> list[Row]:
    found = _rows(
        database,
        f"SELECT clip_id, source, member, offset_s, channel, reference, {columns} FROM task "
        f"WHERE {measure} > 0 ORDER BY {measure} DESC, clip_id LIMIT {WORST}",
    )
    for row in found:
        if row["channel"] is None:
            del row["channel"]
    return found


def _rows(database: Any, query: str, *values: Any) -> list[Row]:
    # Through Arrow, because DuckDB's own rows need pytz if they contain a time.
    found: list[Row] = database.sql(query, params=list(values)).to_arrow_table().to_pylist()
    return found


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as text."""
    for name, task in report["tasks"].items():
        reasons = ", ".join(
            f"{count:,} {reason.replace('_', ' ')}"
            for reason, count in task["not_compared"].items()
        )
        yield (
            f"{name} against {task['reference']}: {task['compared']:,} of {report['rows']:,} rows "
            f"compared{f' ({reasons})' if reasons else ''}"
        )
        yield f"  {_figures(task)}"
        for column, groups in task["by"].items():
            yield from _group_lines(column, groups)
        if task.get("confusions"):
            yield "  confusions:"
        for pair in task.get("confusions", ()):
            reference, label = _shown(pair["reference"]), _shown(pair["label"])
            yield f"    {pair['rows']:,} × {reference} taken for {label}"
        yield from _worst_lines(task)
    if report["tasks"] and report["rows_of_other_settings"]:
        yield f"{report['rows_of_other_settings']:,} rows were labelled with other settings"


def _group_lines(column: str, groups: Sequence[Row]) -> Iterator[str]:
    yield f"  by {column}:"
    for group in groups[:GROUPS_SHOWN]:
        rows = f"{group['compared']:,} rows"
        yield f"    {_shown(group['value'])} · {rows} · {_figures(group)}"
    if groups[GROUPS_SHOWN:]:
        yield f"    and {len(groups) - GROUPS_SHOWN:,} more"


def _worst_lines(task: Mapping[str, Any]) -> Iterator[str]:
    is_text = task["kind"] == "recognition"
    if task["worst"]:
        yield f"  highest {_error_rate(task) if is_text else 'loss'}:"
    for row in task["worst"]:
        measure = "cer" if row.get("compared_by") == "characters" else "wer"
        value = _percent(row[measure]) if is_text else f"{row['loss']:.2f}"
        place = row["source"] + (f" {row['member']}" if row["member"] else "")
        at = f" at {row['offset_s']:g} s" if row["offset_s"] else ""
        at += f", channel {row['channel']}" if "channel" in row else ""
        yield f"    {value} · {place}{at}"
        yield f"      reference: {_shown(row['reference'])}"
        label = "text" if is_text else "label"
        yield f"      {label}: {_shown(row[label])}"


def _error_rate(figures: Mapping[str, Any]) -> str:
    """The error rates that count for the compared rows: WER, CER, or both."""
    unspaced, compared = figures["without_spaces"], figures["compared"]
    names = ["WER"] * (unspaced < compared or not compared) + ["CER"] * (unspaced > 0)
    return " or ".join(names)


def _figures(figures: Row) -> str:
    if "wer" in figures:
        return _error_rates(figures)
    parts = []
    if figures["accuracy"] is not None:
        parts.append(f"accuracy {_percent(figures['accuracy'])}")
    if figures["macro_f1"] is not None:
        parts.append(f"macro-F1 {figures['macro_f1']:.3f}")
    if figures["mean_loss"] is not None:
        parts.append(f"mean loss {figures['mean_loss']:.3f}")
    return " · ".join(parts) or "nothing to compare"


def _error_rates(figures: Row) -> str:
    unspaced, compared = figures["without_spaces"], figures["compared"]
    wer, cer = f"WER {_percent(figures['wer'])}", f"CER {_percent(figures['cer'])}"
    words = f" ({figures['word_edits'] or 0:,} edits in {figures['words'] or 0:,} words)"
    characters = (
        f" ({figures['character_edits'] or 0:,} edits in {figures['characters'] or 0:,} characters)"
    )
    if not unspaced:
        return f"{wer}{words} · {cer} · mean WER of a row {_percent(figures['mean_wer'])}"
    mean = f"mean CER of a row {_percent(figures['mean_cer'])}"
    if unspaced == compared:
        return f"{cer}{characters} · {mean} · no WER, as words are not spaced"
    note = f"{unspaced:,} rows without spaces, where each letter counts as a word"
    if 2 * unspaced >= compared:
        return f"{cer}{characters} · {wer} · {mean} · {note}"
    return f"{wer}{words} · {cer} · mean WER of a row {_percent(figures['mean_wer'])} · {note}"


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"


def _shown(value: Any) -> str:
    """A value on one line, without characters that control a terminal."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[:CHARACTERS_SHOWN]}…"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark evaluate`."""
    add_table_arguments(parser)
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        action="append",
        default=[],
        help="also by the values of a column; may be given several times",
    )


def run_from(args: argparse.Namespace) -> int:
    """Print the report; returns the exit code: 0, or 2 if there is no such table or column."""
    try:
        table = open_table(args)
        report = evaluate(table, args.by)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not report["tasks"]:
        tasks = ", ".join(table.settings()["tasks"])
        print(f"nothing to compare: none of the tasks ({tasks}) has a reference")
    for line in lines(report):
        print(line)
    return 0
