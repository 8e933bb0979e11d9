"""YAML -> frozen, validated models. The only place with defaults, but for those of one task,
which stand in the task's own file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.schemas import SOUND
from audio_ops.tasks import TaskOptions, load_task, task_names
from jobs.input import Input, Section
from jobs.sources import PLACE, NoSuchColumn, load_source, source_names
from jobs.sources._paths import holds_credentials

SECRET_KEY = re.compile(
    r"secret|token|passw|passphrase|credential|^key$|access_key|account_key|connection_string|sas",
    re.I,
)
UNSAFE_LOADING = (  # switches with which Ray and torch unpickle what stands in data
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_ARROW_EXTENSION_SERIALIZATION_CLOUDPICKLE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)
RESERVED = re.compile(r"_.*|sound_\d+|speech|supersedes|replaces_labels|shard_end|known")
ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(Exception):
    """A run that cannot start as it is written: one line per problem. Exit code 2."""


class Audio(Section):
    """Limits on the sound."""

    max_clip_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    """Longer recordings become an error row (`too_long`)."""
    decode_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Decoding may take so long, plus the duration of the clip; longer is an error row (`timeout`)."""
    decode_memory_mb: Annotated[int, Field(ge=64)] = 6144
    """Memory that decoding may take beyond what its process starts with; more is an error row
    (`memory`). Four hours at 16 kHz take 1,000. Enforced on Linux alone."""


class Output(Section):
    """Where the labels go."""

    path: str
    """Folder of the table, local or any fsspec URL."""
    keep: tuple[str, ...] = ()
    """Columns of the source that each row carries along."""
    storage_options: Annotated[dict[str, Any] | None, Field(repr=False)] = None
    """Passed to fsspec; the input's own if left out."""


class Range(Section):
    """A pool of actors that grows and shrinks with the work and with the cluster."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, max: int, info: ValidationInfo) -> int:
        if max < info.data.get("min", 1):
            raise ValueError(f"expected at least min ({info.data['min']}), found {max}")
        return max


class TaskResources(Section):
    """Resources of one task's actors. Whatever is left out is worked out from the cluster."""

    actors: Range | None = None
    """Number of actors, or `{min: 1, max: 8}` for a pool that grows and shrinks."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per actor."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs per actor; may be a fraction. With 0 the model runs on CPUs and its process sees no GPU;
    with more the run ends if torch can use none."""
    batch_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds of audio in one forward pass, padding included; by default as many as the device gains
    from."""

    @field_validator("actors", mode="before")
    @classmethod
    def _number_or_range(cls, actors: Any) -> Any:
        if isinstance(actors, int) and not isinstance(actors, bool):
            return {"min": actors, "max": actors}
        if actors is not None and not isinstance(actors, dict):
            raise ValueError(f"expected a number or {{min: 1, max: 8}}, found {_shown(actors)}")
        return actors


class Resources(Section):
    """The run's shares of the cluster."""

    tasks: dict[str, TaskResources] = Field(default_factory=dict)
    """Resources of single tasks, by the task's name."""
    prepare_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per worker that reads and decodes; by default a quarter on clusters without GPUs or under
    8 CPUs, else 1."""
    clips_per_block: Annotated[int, Field(ge=1)] | None = None
    """Clips in one block: they travel together, and are committed together."""
    in_flight_mb: Annotated[int, Field(ge=1)] | None = None
    """Sound that may travel between the stages, on all nodes that the run starts with together, and
    in proportion on those that join; by default 64 per CPU, 512 where there are GPUs. Reading
    waits for free capacity, but one block is always let through, which may be one long recording."""
    object_store_mb: Annotated[int, Field(ge=80)] | None = None
    """Size of Ray's object store, which holds that sound, if the run starts Ray itself; by default
    30 % of the machine's memory."""
    commit_every_s: Annotated[float, Field(ge=0)] = 5.0
    """Shortest time between two commits."""
    stalled_after_s: Annotated[float, Field(gt=0)] = 2 * 3600.0
    """A run in which no stage takes or hands on a block for so long ends with exit code 1 and names
    what it waits for. Choose more than the longest clip takes."""


class Drift(Section):
    """How far the labels of a run may be from those of the table's earlier runs: beyond one of
    these bounds the exit code is 4. Figures without a bound (the default) are in the summary alone."""

    min_clips: Annotated[int, Field(ge=1)] = 200
    """With fewer clips of this run, or of the earlier ones, nothing is compared."""
    max_label_distance: Annotated[float, Field(ge=0, le=1)] | None = None
    """Total variation distance of a classification's labels: 0 is equal, 1 none in common."""
    max_score: Annotated[float, Field(ge=0)] | None = None
    """Change of the mean score, up or down."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rise of the share of clips that fail: 0.1 is from 2 % to 12 %."""
    max_words_per_s: Annotated[float, Field(ge=0)] | None = None
    """Relative change of a recognition's words per second, up or down: 0.3 is 30 %."""


class Config(Section):
    """One run."""

    input: Input
    audio: Audio = Audio()
    tasks: dict[str, SerializeAsAny[TaskOptions]]
    output: Output
    resources: Resources = Resources()
    drift: Drift = Drift()
    max_error_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Exit code 3 if more than this share of the run's clips fail."""

    @property
    def output_options(self) -> dict[str, Any]:
        options = self.output.storage_options
        return self.input.storage_options if options is None else options

    @property
    def model_options(self) -> dict[str, Any]:
        """For models on a store: the input's, or if it has none the output's."""
        return self.input.storage_options or self.output_options


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b.c=value` overrides, fill in `${NAME}`, validate everything.

    Raises ConfigError with a line per problem: file, key, what was expected, what was found.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)  # a safe loader
    except OSError as error:
        raise ConfigError(f"{path}: expected a config file: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: expected YAML: {_yaml_problem(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected YAML in UTF-8: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    problems = list(_literal_secrets(raw))
    raw = _with_environment(raw, "", problems)
    problems += [*_urls_with_credentials(raw), *_unsafe_loading()]
    config, found = _validate(raw)
    problems += found
    if config is None or problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which would take the last of two values for one key in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"key {key.value!r} for the second time"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where. Not the line itself, as `str(error)` has it: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


def find_models(config: Config, path: str | Path) -> dict[str, Checkpoint]:
    """Each task's checkpoint, checked against what the task is asked to do. Raises ConfigError."""
    from jobs.models import find_model

    checkpoints, problems = {}, []
    for name, options in config.tasks.items():
        try:
            checkpoints[name] = find_model(options.model, options.revision, config.model_options)
        except FileNotFoundError as error:
            problems.append(f"tasks.{name}.model: {error}{_looked_in(options.model)}")
            continue
        try:
            load_task(options.task).check(options, checkpoints[name])
        except ValueError as error:
            problems.append(f"tasks.{name}.{error}")
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return checkpoints


def _looked_in(model: str) -> str:
    """Where a relative folder was looked for: under `ray job submit` in the upload."""
    is_relative = "://" not in model and not model.startswith(("/", "~"))
    return f" (relative to {os.getcwd()})" if is_relative else ""


def find_source(
    config: Config, path: str | Path, say: Callable[[str], None]
) -> tuple[Config, pa.Schema]:
    """The config with `format: auto` settled, and the columns of the source that rows carry along:
    those to keep, and those that a task compares its labels with. Raises ConfigError.
    """
    from jobs.sources._auto import recognise
    from jobs.sources._paths import absolute

    wanted = dict.fromkeys(config.output.keep, "output.keep")
    before = columns_before(config, pa.schema([]))
    for name, options in config.tasks.items():
        reference = getattr(options, "reference", None)
        if reference and reference not in before[name].names:  # else a task's own label, say
            wanted.setdefault(reference, f"tasks.{name}.reference")
    try:
        if config.input.format == "auto":
            name, line = recognise(config.input, config.output.path)
            say(line)
            config = config.model_copy(
                update={"input": config.input.model_copy(update={"format": name})}
            )
        if problems := _options_of_others(config.input):
            raise ValueError("\n".join(problems))
        output = f"{absolute(config.output.path)}/"
        for folder in map(absolute, config.input.paths):
            if config.input.format == "parquet" and output.startswith(f"{folder}/"):
                raise ValueError(
                    f"output.path: expected a folder outside of {folder}, "
                    "for all Parquet files in there are input"
                )
        kept = load_source(config.input.format).columns(config.input, list(wanted))
        check_columns(config, kept)
        return config, kept
    except NoSuchColumn as error:
        raise ConfigError(f"{path}: {wanted[error.name]}: {error}") from None
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: input.path: {error}") from None
    except ValueError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).split("\n"))) from None


def columns_before(config: Config, kept: pa.Schema) -> dict[str, pa.Schema]:
    """What a task can know of a clip: the columns that it has by the time the task gets it."""
    have: list[Any] = [("clip_id", pa.string()), *PLACE, *SOUND, *kept]
    before = {}
    for name, options in config.tasks.items():
        before[name] = pa.schema(have)
        columns = {**load_task(options.task).columns(options), "error": pa.string()}
        have += [(f"{name}_{column}", type_) for column, type_ in columns.items()]
    return before


def check_columns(config: Config, kept: pa.Schema) -> None:
    """Raise ValueError if a task's `when` or `reference` does not fit the columns there are."""
    problems = []
    for name, before in columns_before(config, kept).items():
        options = config.tasks[name]
        if options.when is not None:
            from audio_ops.when import When

            try:
                When(options.when).check(before)
            except ValueError as error:
                problems.append(f"tasks.{name}.when: {error}")
        reference = getattr(options, "reference", None)
        is_text = "wer" in load_task(options.task).columns(options)
        if reference and is_text and not _is_text(before.field(reference).type):
            problems.append(
                f"tasks.{name}.reference: expected a column of text, found {reference!r}, which "
                f"is {before.field(reference).type}"
            )
    if problems:
        raise ValueError("\n".join(problems))


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _options_of_others(input: Input) -> list[str]:
    """Complaints of options that are set and that the input's packaging does not take."""
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
        problem = _yaml_problem(error)
        raise ConfigError(f"--set {key}: expected a YAML value: {problem}") from None


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


def _urls_with_credentials(raw: dict[str, Any]) -> Iterator[str]:
    """Paths stand in rows and messages, so credentials in them may not come from outside either."""
    sections = {name: value for name, value in raw.items() if isinstance(value, dict)}
    named = {
        "input.path": sections.get("input", {}).get("path"),
        "input.audio_root": sections.get("input", {}).get("audio_root"),
        "output.path": sections.get("output", {}).get("path"),
    }
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


def _unsafe_loading() -> Iterator[str]:
    for name in UNSAFE_LOADING:
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            yield (
                f"{name}: expected it not to be set in the environment, for it lets data run code: "
                f"unset it"
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
        if config.input.format not in ("auto", *source_names()):
            problems.append(
                f"input.format: expected one of auto, {', '.join(source_names())}, "
                f"found {config.input.format!r}"
            )
        elif config.input.format != "auto":
            problems += _options_of_others(config.input)
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
        raise ValueError(f": expected keys and values, found {_shown(task)}")
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
            found = "a value" if "storage_options" in where else _shown(detail["input"])
            lines[key] = f"expected {expected}, found {found}"
    return [f"{key}: {line}" for key, line in lines.items()]


def _shown(value: Any) -> str:
    """A value in a message; what may have secrets inside it is not shown."""
    if isinstance(value, dict):
        return "keys and values"
    return "a list" if isinstance(value, list | tuple) else repr(value)


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
