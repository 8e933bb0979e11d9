"""The size of the house: short functions, files and classes, few parameters, no import circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

from runs import ROOT

FILE_LINES, CLASS_LINES, FUNCTION_LINES, MEDIAN_LINES, PARAMETERS = 450, 200, 60, 9, 5
Function = ast.FunctionDef | ast.AsyncFunctionDef
FILES = sorted(path for folder in ("jobs", "audio_ops") for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(*kinds: type) -> Iterator[tuple[str, ast.AST]]:
    """Every node of these kinds, with `file:line name` for messages."""
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, kinds):
                name = getattr(node, "name", "")
                yield f"{path.relative_to(ROOT)}:{node.lineno} {name}", node  # type: ignore[attr-defined]


def body_lines(function: Function) -> int:
    """Lines from the first statement behind the docstring to the last; 0 for a docstring alone."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def positional(function: Function) -> int:
    """How many arguments can be passed by position, without `self` and `cls`."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, modules: set[str]) -> set[str]:
    """The house's modules that a file imports where it is loaded or for its types: not those that
    a function imports when it is called."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(parsed(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules or {node.module or ""}
            found |= {node.module or ""} if inner - modules else set()
        waiting += ast.iter_child_nodes(node)
    return (found & modules) - {module_name(path)}


def test_files_are_short() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = [
        f"{path.relative_to(ROOT)}: {size}" for path, size in sizes.items() if size > FILE_LINES
    ]
    assert not long, f"expected at most {FILE_LINES} lines in a file, found\n" + "\n".join(long)


def test_classes_are_short() -> None:
    long = [
        f"{name}: {size}"
        for name, node in nodes(ast.ClassDef)
        if (size := node.end_lineno - node.lineno + 1) > CLASS_LINES  # type: ignore[attr-defined]
    ]
    assert not long, f"expected at most {CLASS_LINES} lines in a class, found\n" + "\n".join(long)


def test_functions_are_short() -> None:
    sizes = {name: body_lines(node) for name, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)}  # type: ignore[arg-type]
    long = [f"{name}: {size}" for name, size in sizes.items() if size > FUNCTION_LINES]
    assert not long, f"expected at most {FUNCTION_LINES} lines in a function, found\n" + "\n".join(
        long
    )
    assert median(sizes.values()) <= MEDIAN_LINES


def test_functions_take_few_positional_parameters() -> None:
    many = [
        f"{name}: {count}"
        for name, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if (count := positional(node)) > PARAMETERS  # type: ignore[arg-type]
    ]
    assert not many, f"expected at most {PARAMETERS} positional parameters, found\n" + "\n".join(
        many
    )


def test_no_import_runs_in_a_circle_not_even_for_types() -> None:
    modules = {module_name(path) for path in FILES}
    graph = {module_name(path): imported(path, modules) for path in FILES}
    circles: list[str] = []
    while True:  # takes one edge out of each circle, to report them all
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = list(reversed(error.args[1]))  # graphlib lists from the imported module on
            circles.append(" -> ".join(circle))
            graph[circle[0]].discard(circle[1])
        else:
            break
    assert not circles, "expected no import circles, found\n" + "\n".join(circles)


def test_no_error_is_made_of_parts_of_a_text() -> None:
    """A kind travels in a field of its own, never in a message that is split again."""
    texts = {"split", "rsplit", "partition", "rpartition", "splitlines"}
    offenders = [
        name
        for name, node in nodes(ast.Call)
        if getattr(node.func, "id", getattr(node.func, "attr", "")) == "ClipError"  # type: ignore[attr-defined]
        and any(
            isinstance(inner, ast.Call) and getattr(inner.func, "attr", "") in texts
            for inner in ast.walk(node)
        )
    ]
    assert not offenders, (
        "expected a kind and a message, found a text that is split:\n" + "\n".join(offenders)
    )
