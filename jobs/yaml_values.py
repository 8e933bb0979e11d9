"""YAML values as they were typed, where YAML 1.1 silently reads something else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

# Numbers that YAML 1.1 reads in bases of 60 and 8.
OTHER_BASE = re.compile(r"[-+]?(\d[\d_]*(:[0-5]?\d)+(\.\d*)?|0[0-7_]+)")
DECIMAL = re.compile(r"[-+]?(\d+|\d+\.\d*|\.\d+)([eE][-+]?\d+)?")
KEY = re.compile(r"\s*(?:- +)?([\w.-]+)\s*:(?:\s+(.))?")
NEEDS_QUOTES = "*&!%@`[]{}|>"  # as the first character of a text
PATHS = re.compile(r"(input|output)\.(path|audio_root|audio_allow)(\.\d+)?|tasks\.\w+\.model")


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which silently takes the last value of a repeated key, with an error for it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"key {key.value!r} for the second time"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> tuple[Any, dict[str, str]]:
    """A document, and the text of each plain value that YAML reads as something else than text, by its
    key (`tasks.kind.language`).

    Raises ValueError with a line per problem. The values, which may be secrets, are in none but those
    of paths.
    """
    loader = UniqueKeys(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        value = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML: {yaml_problem(error, text)}") from None
    finally:
        loader.dispose()
    problems = [*_keys(node, ""), *_comments(node, text)]
    if problems:
        raise ValueError("\n".join(problems))
    return value, dict(_texts(node, ""))


def yaml_problem(error: yaml.YAMLError, text: str = "") -> str:
    """The problem, its place and key, without the line itself (as in `str(error)`): it may hold a
    secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark]
    where = f"{error.problem} in line {marks[0].line + 1}, column {marks[0].column + 1}"
    lines = text.splitlines()
    keys = [(KEY.match(lines[mark.line]), mark) for mark in marks if mark.line < len(lines)]
    for key, mark in keys:
        if key is None:
            continue
        if "flow" in str(error.context) and " #" in lines[mark.line]:
            return f"{where}: {key[1]}: a # after a space begins a comment: write texts with # in quotes"
        # The problem is in this value, not where the line begins, as it is with one further above.
        if (key[2] or " ") in NEEDS_QUOTES and mark.column >= key.start(2):
            return f"{where}: {key[1]}: write a text that begins with {key[2]} in quotes"
        if "mapping values" in str(error.problem):
            return f"{where}: {key[1]}: write a text with a colon and a space in quotes"
    return where


def typed(text: str) -> Any:
    """The value that an argument of the command line means: a number, true, false, null, a list or a
    section if it is written as one, in quotes always a text, and else the text itself."""
    stripped = text.strip()
    try:
        node = yaml.compose(text, UniqueKeys)
        value = yaml.load(text, UniqueKeys)  # a safe loader
    except yaml.YAMLError:
        return text
    if isinstance(value, list | dict):
        return value
    if isinstance(value, str):
        is_quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
        return value if is_quoted and stripped[-1] == stripped[0] else text
    if value is None:
        return None if stripped in ("", "~", "null") else text
    if isinstance(value, bool):
        return value if stripped.lower() in ("true", "false") else text
    is_number = isinstance(value, int | float) and DECIMAL.fullmatch(stripped)
    return value if is_number and not OTHER_BASE.fullmatch(stripped) else text


def set_value(raw: dict[str, Any], argument: str, option: str, form: str) -> tuple[str, str]:
    """Set one value of nested sections to `argument`: keys, joined by dots, and a value (see `typed`).
    Returns the key and the value's text.

    option, form: how the command line has it, for messages. Raises ValueError; the value, which may
    be a secret, is in no message.
    """
    key, equals, text = argument.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"{option}: expected {form}, found {key!r}")
    try:
        put(raw, key, typed(text))
    except ValueError as error:
        raise ValueError(f"{option} {key}: {error}") from None
    return key, text


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set one value of nested sections. Raises ValueError, with the key, if one is no section."""
    *parents, last = key.split(".")
    section: Any = raw
    for number, parent in enumerate(parents, start=1):
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            found = "a list" if isinstance(section, list | tuple) else "a plain value"
            raise ValueError(f"expected a section at {'.'.join(parents[:number])}, found {found}")
    section[last] = value


def in_quotes(text: str, value: Any) -> str:
    """What to do about a value that YAML has not read as text."""
    is_number = isinstance(value, int | float) and str(value) == text
    read_as = "a number to YAML" if is_number else f"which YAML reads as {value!r}"
    return f'{text}, {read_as}: write it in quotes, "{text}"'


def _join(key: str, part: object) -> str:
    return f"{key}.{part}" if key else str(part)


def _children(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for name, inner in node.value:
            if isinstance(name, yaml.ScalarNode):
                yield _join(key, name.value), inner
    elif isinstance(node, yaml.SequenceNode):
        for number, inner in enumerate(node.value):
            yield _join(key, number), inner


def _texts(node: yaml.Node, key: str) -> Iterator[tuple[str, str]]:
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if is_plain and node.value and node.tag != "tag:yaml.org,2002:str":
        yield key, node.value
    for name, inner in _children(node, key):
        yield from _texts(inner, name)


def _keys(node: yaml.Node, key: str) -> Iterator[str]:
    """A line for each key that YAML does not read as text, as `on` and `no`."""
    for name, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if name.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            text = name.value if isinstance(name, yaml.ScalarNode) else "a list or section"
            yield (
                f"{_join(key, text)}: expected a name, found {text}, which YAML reads as something "
                f'else: write it in quotes, "{text}"'
            )
    for name, inner in _children(node, key):
        yield from _keys(inner, name)


def _comments(node: yaml.Node, text: str, key: str = "") -> Iterator[str]:
    """A line for each path that ends where a ` #` begins a comment that looks like more of it."""
    if isinstance(node, yaml.ScalarNode) and node.style is None and PATHS.fullmatch(key):
        line = text.splitlines()[node.end_mark.line] if node.value else ""
        rest = line[node.end_mark.column :].rstrip()
        if re.match(r"\s+#\S", rest) or (rest and os.path.exists(f"{node.value}{rest}")):
            yield (
                f"{key}: expected quotes around a path with ' #', where YAML begins a comment, found "
                f'{node.value}{rest}: write "{node.value}{rest}", or # and a space before a comment'
            )
    for name, inner in _children(node, key):
        yield from _comments(inner, text, name)
