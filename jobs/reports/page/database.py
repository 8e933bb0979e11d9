"""A table's rows in DuckDB, and the columns of its tasks as the page reports them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from jobs.reports.columns import task_columns
from jobs.reports.labels import connected, quoted
from jobs.table.schema import fingerprint_column, run_column
from jobs.table.table import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportedTask:
    """A task of the table as the page reports it.

    `of` maps what the task declares (`label`, `text`, `score`, `suspect`, its other columns, `error`)
    to columns of the table, those that it has.
    """

    name: str
    task: str
    kind: Literal["recognition", "classification"]
    of: Mapping[str, str]
    reference: str | None
    options: Mapping[str, Any]
    marks: Mapping[str, str]  # the columns with the fingerprint and the run of its labels, if any

    def sql(self, name: str) -> str:
        """A declared column for a query, NULL where the table has none."""
        return quoted(self.of[name]) if name in self.of else "NULL"

    @property
    def score(self) -> str:
        """The score for a query, as a number in any case."""
        return f"CAST({self.sql('score')} AS DOUBLE)"

    @property
    def run(self) -> str:
        """The id of the run that made the labels, for a query. Earlier versions wrote one for the row."""
        own = [quoted(self.marks["run_id"])] if "run_id" in self.marks else []
        return f"coalesce({', '.join([*own, 'run_id'])})"

    @property
    def has_run(self) -> str:
        """The condition that the task has labelled the clip, or failed on it."""
        marks = (self.marks.get(name) for name in ("fingerprint", "fingerprint_of_row"))
        prints = [quoted(mark) for mark in marks if mark]
        return f"coalesce({', '.join(prints)}) IS NOT NULL" if prints else "true"

    @property
    def failed(self) -> str:
        """The condition that the task has no labels of a clip because something failed."""
        stage = "coalesce(error_stage IN ('read', 'decode'), false)"
        return f"({self.sql('error')} IS NOT NULL OR {stage})"

    @property
    def error_measure(self) -> str:
        """What is compared with the reference: WER (CER where words are not spaced), or the loss."""
        if self.kind == "classification":
            return self.sql("loss")
        wer, cer = self.sql("wer"), self.sql("cer")
        return f"CASE {self.sql('compared_by')} WHEN 'characters' THEN {cer} ELSE {wer} END"


class Database:
    """Answers queries on the view `labels`: the committed rows."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def rows(self, query: str, *values: Any) -> list[Row]:
        """The result of a query, by column."""
        # Through Arrow, because DuckDB's own rows need pytz if they contain a time.
        found: list[Row] = (
            self.connection.sql(query, params=list(values)).to_arrow_table().to_pylist()
        )
        return found

    def row(self, query: str, *values: Any) -> Row:
        """The only row of a query's result."""
        [row] = self.rows(query, *values)
        return row


@contextmanager
def opened(table: Table) -> Iterator[Database]:
    """A database of the table's rows."""
    with connected(table) as connection:
        yield Database(connection)


def reported_tasks(table: Table) -> Sequence[ReportedTask]:
    """The tasks that the table's labels were made with."""
    names = table.schema().names
    tasks = []
    for name, options in table.settings()["tasks"].items():
        columns = task_columns(name, options, names)
        marks = {
            "run_id": run_column(name),
            "fingerprint": fingerprint_column(name),
            "fingerprint_of_row": "fingerprint",  # of earlier versions
        }
        marks = {key: column for key, column in marks.items() if column in names}
        reference = options.get("reference")
        reference = reference if reference in names else None
        tasks.append(
            ReportedTask(name, options["task"], columns.kind, columns.of, reference, options, marks)
        )
    return tasks
