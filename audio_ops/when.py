"""`when`: a condition on a clip's columns, in DuckDB's SQL, which says what a task is run on.

Only an expression, and one that says the same of a clip whatever its neighbours, the time and the
machine are: no subquery, aggregate or window, and no function that changes its mind. The database
is empty, sees no file, no network and no variable of Python, and loads no extension.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from audio_ops.errors import ClipError

LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "python_enable_replacements": False,  # else a table's name may be a variable of the caller
    "threads": 1,
}
IMPURE = {  # what DuckDB's parser calls it: what it is
    "SUBQUERY": "a subquery",
    "WINDOW": "a window over other clips",
    "STAR": "a star for several columns",
    "POSITIONAL_REFERENCE": "a column by number",
    "PARAMETER": "a parameter",
}
# Macros carry no stability; these are written in terms of functions that do. And DuckDB 1 calls
# functions that tell of the session consistent.
PURE_FUNCTIONS = """
    SELECT function_name FROM duckdb_functions()
    WHERE (function_type = 'scalar' AND stability = 'CONSISTENT')
        OR (function_type = 'macro'
            AND regexp_matches(function_name, '^(list|array)_|^(if|nullif|split_part)$'))
    EXCEPT SELECT function_name FROM duckdb_functions()
    WHERE function_type = 'aggregate' OR stability <> 'CONSISTENT'
        OR regexp_matches(function_name, '^(current_|get_?(variable|current|env)|txid_|version$)')
"""


class When:
    """One expression over tables of clips. Raises ValueError if it is not one, or not pure."""

    def __init__(self, expression: str):
        self.expression = expression
        self.database = duckdb.connect(":memory:", config=LOCKED)
        self.database.execute("SET GLOBAL TimeZone = 'UTC'")  # else this machine's has a say
        self.database.execute("SET GLOBAL lock_configuration = true")
        self.query = f"SELECT (\n{expression}\n) FROM clips"  # a comment at its end ends there
        try:
            duckdb.SQLExpression(expression)  # refuses two expressions, and brackets to escape by
        except duckdb.Error as error:
            raise ValueError(self._expected(_said(error))) from None
        cursor = self.database.cursor()
        row: Any = cursor.execute("SELECT json_serialize_sql(?)", [self.query]).fetchone()
        parsed = json.loads(row[0])
        if parsed["error"]:
            raise ValueError(self._expected(parsed["error_message"]))
        pure = {name for (name,) in cursor.execute(PURE_FUNCTIONS).fetchall()}
        cursor.close()
        self.names: set[str] = set()
        bound: set[str] = set()  # by a lambda
        for node in _nodes(parsed["statements"][0]["node"]["select_list"]):
            kind = node.get("class")
            if kind in IMPURE:
                raise ValueError(self._expected(f"{IMPURE[kind]} in it"))
            if kind == "FUNCTION" and node["function_name"] not in pure:
                raise ValueError(
                    self._expected(
                        f"{node['function_name']}() in it, which is no function of one clip alone"
                    )
                )
            if kind == "COLUMN_REF":
                first, *rest = node["column_names"]
                self.names.add(rest[0] if first == "clips" and rest else first)
            if kind == "LAMBDA":
                bound |= {n["column_names"][0] for n in _nodes(node["lhs"]) if "column_names" in n}
        self.names -= bound

    def check(self, schema: pa.Schema) -> None:
        """Raise ValueError unless it is true or false of clips with these columns."""
        there = f"the columns there are by then: {', '.join(schema.names)}"
        for name in sorted(self.names):
            # DuckDB would take some unknown names, such as `current_date`, for functions.
            if not any(name.lower() == known.lower() for known in schema.names):
                raise ValueError(self._expected(f"no column {name!r}; {there}"))
        try:
            types = self._types(schema.empty_table())
        except duckdb.Error as error:
            raise ValueError(self._expected(f"{_said(error)}; {there}")) from None
        if types != ["BOOLEAN"]:
            raise ValueError(self._expected(f"{', '.join(types)}; {there}"))

    def __call__(self, clips: pa.Table) -> list[bool | ClipError]:
        """Whether it is true of each clip (null is not); ClipError `when` where it has no value,
        such as a cast of a text that is no number. Nothing but the columns it names is looked at.
        """
        try:
            return [qualifies is True for (qualifies,) in self._rows(clips)]
        except duckdb.Error as error:
            if len(clips) == 1:
                return [ClipError("when", f"{self.expression}: {_said(error)}")]
        return [self(clips.slice(row, 1))[0] for row in range(len(clips))]

    def _rows(self, clips: pa.Table) -> list[tuple[Any, ...]]:
        cursor = self.database.cursor()  # one per call: an actor may be called by two threads
        try:
            return cursor.register("clips", self._needed(clips)).execute(self.query).fetchall()
        finally:
            cursor.close()

    def _types(self, clips: pa.Table) -> list[str]:
        cursor = self.database.cursor()
        try:
            cursor.register("clips", self._needed(clips)).execute(self.query)
            return [str(column[1]) for column in cursor.description or ()]
        finally:
            cursor.close()

    def _needed(self, clips: pa.Table) -> pa.Table:
        """The columns it names, as they are or else in other letters; any one if it names none."""
        have = clips.column_names
        needed = [name for name in have if name in self.names]
        exact = set(needed)
        others = {name.lower() for name in self.names - exact}
        needed += [name for name in have if name.lower() in others and name not in exact]
        return clips.select(needed or have[:1])

    def _expected(self, found: str) -> str:
        return (
            "expected an SQL expression that is true or false of a clip, "
            f"found {self.expression!r}: {found}"
        )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every dict in parsed SQL, from the outside in."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    for inner in tree if isinstance(tree, list) else ():
        yield from _nodes(inner)


def _said(error: duckdb.Error) -> str:
    """What DuckDB says, on one line and without the query, which is not what people wrote."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())
