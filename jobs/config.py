"""YAML -> frozen, validated models. The only place with defaults, but for those of one task,
which stand in the task's own file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from audio_ops.checkpoint import Checkpoint, find_checkpoint
from audio_ops.tasks import TaskOptions, load_task, task_names
from jobs.sources import load_source, source_names

AUDIO_EXTENSIONS = (
    *("wav", "wave", "w64", "rf64", "bwf", "flac", "aif", "aiff", "aifc", "au", "snd", "caf"),
    *("mp3", "mp2", "ogg", "oga", "opus", "spx", "aac", "m4a", "m4b", "wma", "amr", "ac3"),
    *("mp4", "m4v", "mov", "webm", "mkv", "mka", "avi", "ts", "mpg", "mpeg", "3gp", "flv", "wmv"),
)
SECRET_KEY = re.compile(r"secret|token|passw|credential|^key$|access_key|account_key|sas", re.I)
ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(Exception):
    """A run that cannot start as it is written: one line per problem. Exit code 2."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(Section):
    """Where the audio is."""

    path: str | tuple[str, ...]
    """A file, folder or glob, local or any fsspec URL, or a list of them."""
    format: str = "files"
    """How the audio is packaged: a file in `jobs/sources/`."""
    extensions: tuple[str, ...] = AUDIO_EXTENSIONS
    """Which files of a folder are taken. Files that `path` names itself always are."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec, e.g. `endpoint_url`, `anon`."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @field_validator("path")
    @classmethod
    def _not_empty(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not path or (isinstance(path, tuple) and "" in path):
            raise ValueError("expected a path or a list of paths, found an empty one")
        return path

    @field_validator("extensions")
    @classmethod
    def _bare(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(extension.lower().lstrip(".") for extension in extensions)


class Audio(Section):
    """Limits on the sound."""

    max_clip_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    """Longer recordings become an error row (`too_long`)."""


class Output(Section):
    """Where the labels go."""

    path: str
    keep: tuple[str, ...] = ()
    """Columns of the source that each row carries along."""
    storage_options: dict[str, Any] | None = None
    """As for the input, and the input's own if left out."""


class TaskResources(Section):
    """What one task's actors get. Whatever is left out is worked out from the cluster."""

    actors: Annotated[int, Field(ge=1)] | None = None
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per actor."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs per actor; may be a fraction."""
    batch_s: Annotated[float, Field(gt=0)] | None = None
    """Padded seconds of audio in one forward pass."""


class Resources(Section):
    """The run's shares of the cluster."""

    tasks: dict[str, TaskResources] = {}
    prepare_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per worker that reads and decodes."""
    clips_per_block: Annotated[int, Field(ge=1)] | None = None
    """How many clips travel together, and so how often something can be committed."""
    commit_every_s: Annotated[float, Field(ge=0)] = 5.0


class Config(Section):
    """One run."""

    input: Input
    audio: Audio = Audio()
    tasks: dict[str, SerializeAsAny[TaskOptions]]
    output: Output
    resources: Resources = Resources()
    max_error_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Exit code 3 if more than this share of a run's clips fail."""

    @property
    def output_options(self) -> dict[str, Any]:
        options = self.output.storage_options
        return self.input.storage_options if options is None else options


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b.c=value` overrides, fill in `${NAME}`, validate everything.

    Raises ConfigError with a line per problem: file, key, what was expected, what was found.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a config file: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    problems = list(_literal_secrets(raw))
    raw = _with_environment(raw, "", problems)
    config, found = _validate(raw)
    problems += found
    if config is None or problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def find_models(config: Config, path: str | Path) -> dict[str, Checkpoint]:
    """Each task's checkpoint, checked against what the task is asked to do. Raises ConfigError."""
    checkpoints, problems = {}, []
    for name, options in config.tasks.items():
        try:
            checkpoints[name] = find_checkpoint(options.model, options.revision)
        except FileNotFoundError as error:
            problems.append(f"tasks.{name}.model: {error}")
            continue
        try:
            load_task(options.task).check(options, checkpoints[name])
        except ValueError as error:
            problems.append(f"tasks.{name}.{error}")
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return checkpoints


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set: expected a.b.c=value, found {override!r}")
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"--set {key}: expected a section above it, found a plain value there")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: expected a YAML value: {error}") from None


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
            elif SECRET_KEY.search(keys[-1]) and value and not ENVIRONMENT.search(str(value)):
                yield (
                    f"{'.'.join(keys)}: expected a variable of the environment such as "
                    f"${{{keys[-1].upper()}}}, found the secret itself"
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


def _validate(raw: dict[str, Any]) -> tuple[Config | None, list[str]]:
    problems: list[str] = []
    tasks = raw.get("tasks")
    options: dict[str, TaskOptions] = {}
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        try:
            options[name] = _task_options(name, task)
        except ValidationError as error:
            kind = load_task(task["task"]).Options
            problems += _problems(error, kind, ("tasks", name))
        except ValueError as error:
            problems.append(f"tasks.{name}{error}")
    if "tasks" in raw and not tasks:
        problems.append(f"tasks: expected at least one task by name, found {tasks!r}")
    config = None
    try:
        config = Config.model_validate(raw | {"tasks": options} if isinstance(tasks, dict) else raw)
    except ValidationError as error:
        problems = _problems(error, Config, ()) + problems
    if config is not None:
        if config.input.format not in source_names():
            problems.append(
                f"input.format: expected one of {', '.join(source_names())}, "
                f"found {config.input.format!r}"
            )
        else:
            offered = load_source(config.input.format).COLUMNS
            problems += [
                f"output.keep: expected columns of the source ({', '.join(offered.names)}), "
                f"found {column!r}"
                for column in config.output.keep
                if column not in offered.names
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
        raise ValueError(f": expected keys and values, found {task!r}")
    if task.get("task") not in task_names():
        raise ValueError(
            f".task: expected one of {', '.join(task_names())}, found {task.get('task')!r}"
        )
    return load_task(task["task"]).Options.model_validate(task)


def _problems(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> list[str]:
    """Pydantic's findings as `key: expected ..., found ...`."""
    lines = {}
    for detail in error.errors(include_url=False):
        # A union reports each member, with the member's name behind the key: one line is enough.
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
        elif key not in lines:
            expected = detail["msg"].removeprefix("Input should be ")
            found = "a value" if "storage_options" in where else repr(detail["input"])
            lines[key] = f"expected {expected}, found {found}"
    return [f"{key}: {line}" for key, line in lines.items()]


def _fields(model: type[BaseModel], where: Sequence[str]) -> list[str]:
    """The keys that the section at `where` knows."""
    for part in where:
        field = model.model_fields.get(part)
        annotation: Any = field.annotation if field else model
        if annotation == dict[str, TaskResources]:
            annotation = TaskResources
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
