"""Compares the labels of each task that has a `reference` with it, from the table alone.

earmark evaluate TABLE [--by COLUMN ...]
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.exit_codes import OK
from jobs.fingerprints import fingerprints
from jobs.reports.arguments import add_table_arguments, exit_code_of, table_of
from jobs.reports.columns import TaskColumns
from jobs.reports.kept_totals import RunTotals, run_totals
from jobs.reports.labels import connected, quoted
from jobs.reports.totals import (
    COMPARED,
    MEASURE,
    Place,
    Question,
    Totals,
    ranked,
    ratio,
    rows_at,
)
from jobs.table.table import Table

CONFUSIONS = 10
GROUPS_SHOWN, CHARACTERS_SHOWN = 50, 160
GROUPS = 1000  # of a column's values, in the report

Row = dict[str, Any]


def evaluate(table: Table, by: Sequence[str] = ()) -> dict[str, Any]:
    """The report on a table, as JSON values: `tasks` has an entry for each task with a reference.

    A recognition has `wer` and `cer` (the edits of all rows divided by all words or characters),
    `mean_wer` and `mean_cer`, the means of the rows, and the number of rows `without_spaces` between
    words: if these are half of the rows or more, CER is the figure shown. A classification has `accuracy` (of the top label), `macro_f1`,
    `mean_loss` and `confusions`. Both have the number of rows that were `compared`, of those that
    were `not_compared` by reason, these figures `by` the values of columns, and the `worst` rows.
    Figures without rows are None. Of a column with very many values `by` has the GROUPS most
    frequent ones, and `values` tells how many there are.

    `rows_of_other_settings` are those that some task of the table has labelled with other settings
    than it has now.

    Raises ValueError for a column that the table does not have.
    """
    return table.newest(lambda: _evaluate(table, by))


def _evaluate(table: Table, by: Sequence[str]) -> dict[str, Any]:
    names = table.schema().names
    for column in by:
        if column not in names:
            raise ValueError(
                f"--by: expected a column of the table ({', '.join(names)}), found {column!r}"
            )
    found = run_totals(table)
    report = evaluation(table, found)
    with connected(table) as database:
        for task, entry in report["tasks"].items() if by else ():
            _view(database, found.question.tasks[task], by)
            entry |= _by_columns(database, entry["kind"], by)
    return report


def evaluation(table: Table, found: RunTotals) -> dict[str, Any]:
    """The report on a table of which these are the sums."""
    report: dict[str, Any] = {"table": table.path, "tasks": {}}
    prints = tuple(fingerprints(found.question.settings)[task] for task in found.question.tasks)
    report |= {"version": found.version, "rows": found.rows}
    report["rows_of_other_settings"] = sum(
        rows
        for of_row, rows in found.others.prints.items()
        if any(one not in (None, now) for one, now in zip(of_row, prints, strict=True))
    )
    for task, reference in found.question.references.items():
        kind, totals = found.question.tasks[task].kind, found.of(task)
        report["tasks"][task] = {
            "reference": reference,
            "kind": kind,
            **FIGURES[kind](totals.sums),
            **(_confusions(totals) if kind == "classification" else {}),
            "not_compared": dict(ranked(totals.not_compared)),
            "by": {},
            "worst": _worst(table, found.question, task, totals.worst),
        }
    return report


def _recognition(sums: Mapping[str, float]) -> dict[str, Any]:
    """A recogniser's figures from sums over rows, `COMPARED` of `jobs.reports.totals`."""
    counts = ("words", "word_edits", "characters", "character_edits")
    return {
        "compared": int(sums.get("compared", 0)),
        "without_spaces": int(sums.get("without_spaces", 0)),
        "wer": ratio(sums, "word_edits", "words"),
        "cer": ratio(sums, "character_edits", "characters"),
        "mean_wer": ratio(sums, "wer", "compared"),
        "mean_cer": ratio(sums, "cer", "cers"),
        **{name: int(sums[name]) if name in sums else None for name in counts},
    }


def _classification(sums: Mapping[str, float]) -> dict[str, Any]:
    """A classifier's figures from sums over rows."""
    return {
        "compared": int(sums.get("compared", 0)),
        "accuracy": ratio(sums, "correct", "corrects"),
        "mean_loss": ratio(sums, "loss", "compared"),
    }


FIGURES = {"recognition": _recognition, "classification": _classification}


def _confusions(totals: Totals) -> dict[str, Any]:
    wrong = {pair: count for pair, count in totals.pairs.items() if pair[0] != pair[1]}
    return {
        "macro_f1": macro_f1(totals.pairs),
        "confusions": [
            {"reference": reference, "label": label, "rows": count}
            for (reference, label), count in ranked(wrong)[:CONFUSIONS]
        ],
    }


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
    return math.fsum(f1) / len(f1) if f1 else None


def _view(database: Any, of_task: TaskColumns, by: Sequence[str]) -> None:
    """Create a view `task` of the table, with the task's columns, null where a table made by an
    earlier version has none."""
    columns = {name: quoted(column) for name, column in of_task.of.items()}
    columns |= {f"by_{n}": quoted(column) for n, column in enumerate(by)}
    columns = {"compared_by": "NULL", **columns}
    view = ", ".join(f"{column} AS {quoted(name)}" for name, column in columns.items())
    database.execute(f"CREATE OR REPLACE TEMP VIEW task AS SELECT {view} FROM labels")


def _by_columns(database: Any, kind: str, by: Sequence[str]) -> dict[str, Any]:
    """The figures `by` the values of columns, and how many `values` these have."""
    found: dict[str, Any] = {"by": {}, "values": {}}
    sums = ", ".join(f"{sum} AS {name}" for name, sum in COMPARED[kind].items())
    for number, column in enumerate(by):
        database.execute(
            f"CREATE OR REPLACE TEMP TABLE sums AS SELECT by_{number} AS value, {sums} FROM task "
            f"WHERE {MEASURE[kind]} IS NOT NULL GROUP BY value"
        )
        [row] = _rows(database, "SELECT count(*) AS rows FROM sums")
        found["values"][column] = row["rows"]
        database.execute(
            "CREATE OR REPLACE TEMP TABLE sums AS SELECT * FROM sums "
            f"ORDER BY compared DESC, value LIMIT {GROUPS}"
        )
        pairs = _pairs(database, number) if kind == "classification" else {}
        groups = found["by"][column] = []
        for group in _rows(database, "SELECT * FROM sums ORDER BY compared DESC, value"):
            value = group.pop("value")
            known = {name: figure for name, figure in group.items() if figure is not None}
            groups.append({"value": value, **FIGURES[kind](known)})
            if kind == "classification":
                groups[-1]["macro_f1"] = macro_f1(pairs[repr(value)])
    return found


def _pairs(database: Any, number: int) -> dict[str, dict[tuple[str, str], int]]:
    """The number of rows by (true label, predicted label), by the repr of the value of the column with
    this number, for the values in `sums`."""
    found: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for row in _rows(
        database,
        "SELECT value, reference_label, label, count(*) AS rows FROM task JOIN sums "
        f"ON by_{number} IS NOT DISTINCT FROM value WHERE reference_label IS NOT NULL "
        "AND label IS NOT NULL GROUP BY ALL",
    ):
        found[repr(row["value"])][row["reference_label"], row["label"]] = row["rows"]
    return found


def _worst(table: Table, question: Question, task: str, places: Sequence[Place]) -> list[Row]:
    """The rows at these places, with what was compared."""
    columns = question.tasks[task]
    names: tuple[str, ...] = ("label", "loss")
    if columns.kind == "recognition":
        names = ("text", "wer", "cer", "compared_by")
    read = {name: name for name in ("clip_id", "source", "member", "offset_s", "channel")}
    read |= {"reference": question.references[task]}
    read |= {name: columns.of.get(name, "") for name in names}
    found = []
    for row in rows_at(table, places, list(read.values())):
        one = {name: row.get(column) for name, column in read.items()}
        if one["channel"] is None:
            del one["channel"]
        found.append(one)
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
            yield from _group_lines(column, groups, task["values"][column])
        if task.get("confusions"):
            yield "  confusions:"
        for pair in task.get("confusions", ()):
            reference, label = _shown(pair["reference"]), _shown(pair["label"])
            yield f"    {pair['rows']:,} × {reference} taken for {label}"
        yield from _worst_lines(task)
    if report["tasks"] and report["rows_of_other_settings"]:
        yield f"{report['rows_of_other_settings']:,} rows were labelled with other settings"


def _group_lines(column: str, groups: Sequence[Row], values: int) -> Iterator[str]:
    yield f"  by {column}:"
    for group in groups[:GROUPS_SHOWN]:
        rows = f"{group['compared']:,} rows"
        yield f"    {_shown(group['value'])} · {rows} · {_figures(group)}"
    if values > GROUPS_SHOWN:
        yield f"    and {values - GROUPS_SHOWN:,} more"


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
    """Print the report; returns the exit code: 0, 2 if there is no such table or column, or 1 if it
    cannot be read."""
    return exit_code_of(args.table, lambda: _print_report(table_of(args), args.by))


def _print_report(table: Table, by: Sequence[str]) -> int:
    report = evaluate(table, by)
    if not report["tasks"]:
        tasks = ", ".join(table.settings()["tasks"])
        print(f"nothing to compare: none of the tasks ({tasks}) has a reference")
    for line in lines(report):
        print(line)
    return OK
