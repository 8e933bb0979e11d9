"""Private names of other packages are used in the compat modules alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from runs import ROOT

# Each use in them names the place upstream, and has a test of its own.
COMPAT = {
    "jobs/ray_compat.py",
    "audio_ops/inference/torch_compat.py",
    "audio_ops/inference/transformers_compat.py",
    "audio_ops/inference/cpu_bfloat16.py",
}
# Documented, though they begin with an underscore.
DOCUMENTED = {
    "_replace",  # typing.NamedTuple
    "_asdict",
    "_fields",
    "_exit",  # os
    "_name_",
    "_value_",
}
HOUSE = ("jobs", "audio_ops")
OWN = {"self", "cls"}
FILES = sorted(path for folder in HOUSE for path in (ROOT / folder).rglob("*.py"))


def is_private(name: str) -> bool:
    """One underscore in front; `__name__` and the like are documented by Python."""
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a file defines itself: functions, classes, methods, attributes, fields."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in OWN:
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def private_uses(path: Path) -> Iterator[str]:
    """`file:line name` of each private name of another package, or of another module of ours."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = own_names(tree)
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [it.name for it in node.names if any(map(is_private, it.name.split(".")))]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{it.name}" for it in node.names]
            found = [name for name in names if any(map(is_private, name.split(".")))]
            found = [name for name in found if name.split(".")[0] not in HOUSE]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            is_self = isinstance(node.value, ast.Name) and node.value.id in OWN
            if not is_self and node.attr not in own | DOCUMENTED:
                found = [ast.unparse(node)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "setattr",
            "hasattr",
            "delattr",
        ):
            found = [
                f"{ast.unparse(node)}"
                for name in node.args[1:2]
                if isinstance(name, ast.Constant)
                and isinstance(name.value, str)
                and is_private(name.value)
                and name.value not in own
            ]
        yield from (f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in found)  # type: ignore[attr-defined]


def test_private_names_of_other_packages_are_used_in_the_compat_modules_alone() -> None:
    uses = [
        use
        for path in FILES
        if str(path.relative_to(ROOT)) not in COMPAT
        for use in private_uses(path)
    ]
    assert not uses, "expected no private names outside the compat modules, found\n" + "\n".join(
        uses
    )
