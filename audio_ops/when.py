"""`when`: an SQL expression over a clip's columns, in DuckDB, that decides if a task is run on it.

Its value must depend on the clip alone, not on other clips, the time or the machine: no subquery,
aggregate or window, and no function whose result changes. The database is empty, reaches no file,
network or Python variable, and loads no extension.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import duckdb
import pyarrow as pa

from audio_ops.errors import ClipError

LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "python_enable_replacements": False,  # else a table's name could be a caller's variable
    "threads": 1,
}
REFUSED = {  # by the class of the node in DuckDB's parse tree
    "SUBQUERY": "a subquery",
    "WINDOW": "a window over other clips",
    "STAR": "a star for several columns",
    "POSITIONAL_REFERENCE": "a column by number",
    "PARAMETER": "a parameter",
}
# Macros have no stability: those allowed call functions that are consistent. DuckDB 1 marks as
# consistent some functions that read the session or (`age` of one time) the clock, which are taken
# out by name.
PURE_FUNCTIONS = """
    SELECT function_name FROM duckdb_functions()
    WHERE (function_type = 'scalar' AND stability = 'CONSISTENT')
        OR (function_type = 'macro'
            AND regexp_matches(function_name, '^(list|array)_|^(if|nullif|split_part)$'))
    EXCEPT SELECT function_name FROM duckdb_functions()
    WHERE function_type = 'aggregate' OR stability <> 'CONSISTENT'
        OR regexp_matches(function_name, '^(current_|get_?(variable|current|env)|txid_|(version|age)$)')
"""


class When:
    """An expression, to be evaluated on tables of clips.

    Raises ValueError if it is not one SQL expression, or depends on more than one clip.
    """

    def __init__(self, expression: str):
        self.expression = expression
        self.query = f"SELECT (\n{expression}\n) FROM clips"  # a line break ends a comment
        self.database = duckdb.connect(":memory:", config=LOCKED)
        self.database.execute("SET GLOBAL TimeZone = 'UTC'")  # not the machine's
        self.database.execute("SET GLOBAL lock_configuration = true")
        self.names = self._column_names(self._parse())

    def check(self, schema: pa.Schema) -> None:
        """Raise ValueError unless its value is a boolean for clips with these columns, and its
        constants are of the types that they are compared with."""
        there = f"the columns there are by then: {', '.join(schema.names)}"
        for name in sorted(self.names):
            # DuckDB would take some unknown names, such as `current_date`, for functions.
            if not any(name.lower() == known.lower() for known in schema.names):
                raise self._refusal(f"no column {name!r}; {there}")
        try:
            types = self._types(schema.empty_table())
        except duckdb.Error as error:
            raise self._refusal(f"{_message(error)}; {there}") from None
        if types != ["BOOLEAN"]:
            raise self._refusal(f"{', '.join(types)}; {there}")
        try:
            self._rows(pa.table({field.name: pa.nulls(1, field.type) for field in schema}))
        except duckdb.ConversionException as error:  # of a constant: nulls are of every type
            raise self._refusal(f"{_message(error)}; {there}") from None

    def __call__(self, clips: pa.Table) -> list[bool | ClipError]:
        """Whether it is true, for each clip; null is not.

        A ClipError `when` stands for a clip for which it has no value, such as a cast of text that
        is no number. Reads only the columns that it names.
        """
        try:
            return [qualifies is True for (qualifies,) in self._rows(clips)]
        except duckdb.Error as error:
            if len(clips) == 1:
                return [ClipError("when", f"{self.expression}: {_message(error)}")]
        return [self(clips.slice(row, 1))[0] for row in range(len(clips))]

    def _parse(self) -> Any:
        """The tree of its one expression. Raises ValueError if DuckDB cannot parse it."""
        try:
            duckdb.SQLExpression(self.expression)  # refuses two of them, and unbalanced brackets
        except duckdb.Error as error:
            raise self._refusal(_message(error)) from None
        with closing(self.database.cursor()) as cursor:
            row: Any = cursor.execute("SELECT json_serialize_sql(?)", [self.query]).fetchone()
        parsed = json.loads(row[0])
        if parsed["error"]:
            raise self._refusal(parsed["error_message"])
        return parsed["statements"][0]["node"]["select_list"]

    def _column_names(self, tree: Any) -> set[str]:
        """The columns in a parsed expression. Raises ValueError if it depends on more than them."""
        with closing(self.database.cursor()) as cursor:
            pure = {name for (name,) in cursor.execute(PURE_FUNCTIONS).fetchall()}
        names: set[str] = set()
        parameters: set[str] = set()  # of lambdas
        for node in _nodes(tree):
            kind = node.get("class")
            if kind in REFUSED:
                raise self._refusal(f"{REFUSED[kind]} in it")
            if kind == "FUNCTION" and node["function_name"] not in pure:
                raise self._refusal(
                    f"{node['function_name']}() in it, which is no function of one clip alone"
                )
            if kind == "COLUMN_REF":
                first, *rest = node["column_names"]
                names.add(rest[0] if first == "clips" and rest else first)
            if kind == "LAMBDA":
                lefts = _nodes(node["lhs"])
                parameters |= {it["column_names"][0] for it in lefts if "column_names" in it}
        return names - parameters

    def _rows(self, clips: pa.Table) -> list[tuple[Any, ...]]:
        with closing(self.database.cursor()) as cursor:  # one per call: threads call at once
            return cursor.register("clips", self._needed(clips)).execute(self.query).fetchall()

    def _types(self, clips: pa.Table) -> list[str]:
        with closing(self.database.cursor()) as cursor:
            cursor.register("clips", self._needed(clips)).execute(self.query)
            return [str(column[1]) for column in cursor.description or ()]

    def _needed(self, clips: pa.Table) -> pa.Table:
        """The columns that it names, in their own case or else in another; any column if none."""
        have = clips.column_names
        needed = [name for name in have if name in self.names]
        exact = set(needed)
        others = {name.lower() for name in self.names - exact}
        needed += [name for name in have if name.lower() in others and name not in exact]
        return clips.select(needed or have[:1])

    def _refusal(self, found: str) -> ValueError:
        return ValueError(
            "expected an SQL expression that is true or false of a clip, "
            f"found {self.expression!r}: {found}"
        )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a parse tree, from the outside in."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    for inner in tree if isinstance(tree, list) else ():
        yield from _nodes(inner)


def _message(error: duckdb.Error) -> str:
    """DuckDB's message on one line, without the query, which is not the one in the config."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())
