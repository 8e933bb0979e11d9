"""A YAML file -> a `Config`, or a line for each problem."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from audio_ops.tasks import TaskOptions, load_task, task_names
from jobs.config import Config, ConfigError, Range, TaskResources, shown
from jobs.input import Input
from jobs.sources import load_source, source_names
from jobs.sources._paths import holds_credentials
from jobs.stores import GCS_METHODS
from jobs.yaml_values import OTHER_BASE, in_quotes, put, read_yaml, set_value

SECRETS = "storage_options"  # in whose keys values may be secrets
SECRET_KEY = re.compile(
    r"secret|token|passw|passphrase|credential|^key$|access_key|account_key|connection_string|sas",
    re.I,
)
UNSAFE_LOADING = (  # switches with which Ray and torch unpickle objects in data
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_ARROW_EXTENSION_SERIALIZATION_CLOUDPICKLE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)
RESERVED = re.compile(r"_.*|sound_\d+|speech|supersedes|replaces_labels|shard_end|known")
NO_TEXT = "expected a valid string"  # in pydantic's words
ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b.c=value` overrides, fill in `${NAME}`, validate everything.

    Raises ConfigError with a line per problem: file, key, what was expected, what was found.
    """
    try:
        raw, texts = read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a config file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected YAML in UTF-8: {error}") from None
    except ValueError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).split("\n"))) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(raw).__name__}")
    given: dict[str, str] = {}  # by --set
    for override in overrides:
        try:
            key, text = set_value(raw, override, "--set", "a.b.c=value")
        except ValueError as error:
            raise ConfigError(str(error)) from None
        given[key] = text
        texts = {k: t for k, t in texts.items() if k != key and not k.startswith(f"{key}.")}
    problems = list(_literal_secrets(raw))
    raw = _with_environment(raw, "", problems)
    problems += [*_urls_with_credentials(raw), *_unsafe_loading(), *_other_bases(texts)]
    config, found = _validate(raw, texts)
    numbers = [k for k in given if any(line.startswith(f"{k}: {NO_TEXT}") for line in found)]
    if numbers:  # where a text is wanted, a number is one too
        for key in numbers:
            put(raw, key, given[key])
        config, found = _validate(raw, texts)
    problems += found
    if config is None or problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def _literal_secrets(raw: dict[str, Any]) -> Iterator[str]:
    """A config file is copied, mailed and committed: credentials may only be named in it."""
    for section in ("input", "output"):
        options = raw.get(section, {}) if isinstance(raw.get(section), dict) else {}
        stack: list[tuple[tuple[str, ...], Any]] = [
            ((section, "storage_options"), options.get("storage_options"))
        ]
        while stack:
            keys, value = stack.pop()
            if isinstance(value, dict):
                stack += [((*keys, str(key)), inner) for key, inner in value.items()]
            elif SECRET_KEY.search(keys[-1]) and value and not _names_secret(str(value)):
                yield (
                    f"{'.'.join(keys)}: expected a variable of the environment such as "
                    f"${{{keys[-1].upper()}}}, found the secret itself"
                )


def _names_secret(value: str) -> bool:
    """Whether an option does not hold a secret but says where one is: in the environment, in a key file,
    or where one of gcsfs's methods finds it."""
    is_key_file = value.endswith(".json") and os.path.isabs(value)
    return bool(ENVIRONMENT.search(value)) or value in GCS_METHODS or is_key_file


def _urls_with_credentials(raw: dict[str, Any]) -> Iterator[str]:
    """Paths appear in rows and messages, so they may not even get credentials from the environment."""
    sections = {name: value for name, value in raw.items() if isinstance(value, dict)}
    keys = ("path", "audio_root", "inventory", "manifest", "audio_allow")
    named = {f"input.{key}": sections.get("input", {}).get(key) for key in keys}
    named["output.path"] = sections.get("output", {}).get("path")
    for task, options in sections.get("tasks", {}).items():
        named[f"tasks.{task}.model"] = options.get("model") if isinstance(options, dict) else None
    for key, paths in named.items():
        for path in paths if isinstance(paths, list) else [paths]:
            if holds_credentials(str(path)):
                section = "output" if key == "output.path" else "input"
                yield (
                    f"{key}: expected a URL without credentials, which belong into "
                    f"{section}.storage_options, found a password, a signature or a token in it"
                )


def _other_bases(texts: Mapping[str, str]) -> Iterator[str]:
    for key, text in texts.items():
        if OTHER_BASE.fullmatch(text):
            found = "such digits" if SECRETS in key else in_quotes(text, yaml.safe_load(text))
            yield f"{key}: expected a decimal number or a text in quotes, found {found}"


def _words_for_numbers(config: Config, texts: Mapping[str, str]) -> Iterator[str]:
    """A line for each `on` and `no` in place of a number: pydantic would take it for 1 or 0."""
    for key, text in texts.items():
        value: Any = config.model_dump()
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and isinstance(yaml.safe_load(text), bool):
            yield f"{key}: expected a number, found {text}"


def _unsafe_loading() -> Iterator[str]:
    for name in UNSAFE_LOADING:
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            yield (
                f"{name}: expected it to be unset in the environment, as it lets data run code: unset it"
            )


def _with_environment(value: Any, key: str, problems: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _with_environment(inner, f"{key}.{name}" if key else str(name), problems)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_with_environment(inner, f"{key}.{n}", problems) for n, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = [name for name in ENVIRONMENT.findall(value) if name not in os.environ]
    problems += [f"{key}: expected ${name} in the environment, found none" for name in missing]
    return ENVIRONMENT.sub(lambda match: os.environ.get(match[1], ""), value)


def _validate(raw: dict[str, Any], texts: Mapping[str, str]) -> tuple[Config | None, list[str]]:
    """The config, if there is one, and a line per problem. texts: see `read_yaml`."""
    problems: list[str] = []
    tasks = raw.get("tasks")
    options: dict[str, TaskOptions] = {}
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        try:
            options[name] = _task_options(name, task)
        except ValidationError as error:
            kind = load_task(task["task"]).Options
            problems += _problems(error, kind, ("tasks", name), texts)
        except ValueError as error:
            problems.append(f"tasks.{name}{error}")
    if "tasks" in raw and not tasks:
        problems.append(f"tasks: expected at least one task by name, found {tasks!r}")
    config = None
    try:
        config = Config.model_validate(raw | {"tasks": options} if isinstance(tasks, dict) else raw)
    except ValidationError as error:
        problems = _problems(error, Config, (), texts) + problems
    if config is not None:
        problems += _words_for_numbers(config, texts)
        if config.input.format not in ("auto", *source_names()):
            problems.append(
                f"input.format: expected one of auto, {', '.join(source_names())}, "
                f"found {config.input.format!r}"
            )
        elif config.input.format != "auto":
            problems += options_of_others(config.input)
        problems += [
            f"output.keep: expected other names than Earmark's own, found {column!r}"
            for column in config.output.keep
            if RESERVED.fullmatch(column)
        ]
        problems += [
            f"resources.tasks.{name}: expected one of the tasks "
            f"({', '.join(config.tasks)}), found {name!r}"
            for name in config.resources.tasks
            if name not in (tasks or {})
        ]
    return config, problems


def _task_options(name: Any, task: Any) -> TaskOptions:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            ": expected a name of small letters, digits and _ (it begins the columns' names), "
            f"found {name!r}"
        )
    if not isinstance(task, dict):
        raise ValueError(f": expected keys and values, found {shown(task)}")
    if task.get("task") not in task_names():
        raise ValueError(
            f".task: expected one of {', '.join(task_names())}, found {task.get('task')!r}"
        )
    return load_task(task["task"]).Options.model_validate(task)


def options_of_others(input: Input) -> list[str]:
    """A line for each option that is set and that the input's packaging does not take."""
    taken = {"path", "format", "storage_options", *load_source(input.format).OPTIONS}
    given = {
        f"{key}.{inner}" if inner else key
        for key in input.model_fields_set
        for inner in (input.columns.model_fields_set if key == "columns" else [""])
    }
    return [
        f"input.{key}: expected nothing, for format {input.format} takes no such option"
        for key in sorted(given - taken)
    ]


def _problems(
    error: ValidationError,
    model: type[BaseModel],
    prefix: tuple[str, ...],
    texts: Mapping[str, str],
) -> list[str]:
    """Pydantic's findings as `key: expected ..., found ...`."""
    lines = {}
    for detail in error.errors(include_url=False):
        # A union reports each member, with the member's name after the key: one line is enough.
        where = tuple(str(part) for part in detail["loc"] if not str(part).startswith("tuple["))
        if where and where[-1] in ("str", "float", "int"):
            where = where[:-1]
        key = ".".join((*prefix, *where))
        if detail["type"] == "extra_forbidden":
            known = _fields(model, where[:-1])
            close = difflib.get_close_matches(where[-1], known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            lines[key] = f"unknown key{hint}, expected one of {', '.join(known)}"
        elif detail["type"] == "missing":
            lines[key] = "expected a value, found none"
        elif detail["type"] == "value_error":
            lines[key] = str(detail["ctx"]["error"])
        elif detail["type"] == "string_type" and key in texts:
            lines[key] = f"expected a text, found {in_quotes(texts[key], detail['input'])}"
        elif key not in lines:
            expected = detail["msg"].removeprefix("Input should be ")
            expected = expected.replace("a valid tuple", "a list")
            found = "a value" if "storage_options" in where else shown(detail["input"])
            lines[key] = f"expected {expected}, found {found}"
    return [f"{key}: {line}" for key, line in lines.items()]


def _fields(model: type[BaseModel], where: Sequence[str]) -> list[str]:
    """The keys that the section at `where` knows."""
    for part in where:
        field = model.model_fields.get(part)
        annotation: Any = field.annotation if field else model
        if annotation == dict[str, TaskResources]:
            annotation = TaskResources
        elif annotation == Range | None:
            annotation = Range
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
