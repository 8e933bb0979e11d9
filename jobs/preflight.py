"""All that is checked before Ray starts, against stores and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.schemas import SOUND
from audio_ops.tasks import load_task
from jobs.config import Config, ConfigError
from jobs.config_file import options_of_others
from jobs.fingerprints import COLUMN_OPTIONS, settings
from jobs.models import find_model
from jobs.planning.due import Wanted
from jobs.sources import NoSuchColumn, Source, load_source
from jobs.sources._auto import recognise
from jobs.sources._paths import absolute
from jobs.table.schema import IDENTITY, table_schema
from jobs.table.storage import Storage


@dataclass(frozen=True)
class Run:
    """A checked run: a config whose packaging is known, and what follows from it."""

    id: str
    config_path: str
    config: Config
    checkpoints: Mapping[str, Checkpoint]  # by task
    kept: pa.Schema  # columns of the source that rows carry
    schema: pa.Schema  # of the table
    settings: Mapping[str, Any]  # all that could change a label, see `fingerprints.settings`
    wanted: Wanted
    relabel: bool | Collection[str]  # the changed tasks whose labels may be replaced; all, or none
    sample: int | None  # clips to label instead of all
    drop: Collection[str] = ()  # tasks whose columns the table is to lose

    @property
    def source(self) -> Source:
        return load_source(self.config.input.format)

    def may_relabel(self, task: str) -> bool:
        """Whether the task's labels may be replaced if they were made with other settings."""
        return self.relabel if isinstance(self.relabel, bool) else task in self.relabel


def preflight(
    run_id: str,
    config_path: str,
    config: Config,
    say: Callable[[str], None],
    *,
    relabel: bool | Collection[str] = False,
    retry_errors: bool = False,
    sample: int | None = None,
    drop: Collection[str] = (),
) -> Run:
    """Check a config against its checkpoints and its input.

    Raises ConfigError, or TableMismatch if two columns of the table would have one name.
    """
    if not isinstance(relabel, bool) and (unknown := sorted(set(relabel) - set(config.tasks))):
        raise ConfigError(
            f"--relabel: expected tasks of {config_path} ({', '.join(config.tasks)}), found "
            f"{', '.join(unknown)}"
        )
    if still := sorted(set(drop) & set(config.tasks)):
        raise ConfigError(
            f"--drop: expected tasks that are no longer in {config_path}, found {', '.join(still)}"
        )
    check_output(config, config_path)
    checkpoints = find_models(config, config_path)
    config, kept = find_source(config, config_path, say)
    made_with = settings(config, checkpoints)
    return Run(
        run_id,
        config_path,
        config,
        checkpoints,
        kept,
        table_schema(config.tasks, kept),
        made_with,
        Wanted.of(made_with, retry_errors=retry_errors, together=bool(sample)),
        relabel,
        sample,
        drop,
    )


def check_output(config: Config, path: str | Path) -> None:
    """Raise ConfigError if there can be no table at `output.path`."""
    try:
        Storage(config.output.path, config.output_options).delta_path  # noqa: B018
    except ValueError as error:
        raise ConfigError(f"{path}: output.path: {error}") from None


def find_models(config: Config, path: str | Path) -> dict[str, Checkpoint]:
    """Each task's checkpoint, checked against what the task is asked to do. Raises ConfigError."""
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
    """The folder in which a relative path was looked for: under `ray job submit` the upload."""
    is_relative = "://" not in model and not model.startswith(("/", "~"))
    return f" (relative to {os.getcwd()})" if is_relative else ""


def find_source(
    config: Config, path: str | Path, say: Callable[[str], None]
) -> tuple[Config, pa.Schema]:
    """The config with the packaging in place of `format: auto`, and the columns of the source that
    rows carry: those to keep, and those that a task reads. Raises ConfigError.
    """
    wanted = dict.fromkeys(config.output.keep, "output.keep")
    before = columns_before(config, pa.schema([]))
    for name, options in config.tasks.items():
        for key in COLUMN_OPTIONS:
            column = getattr(options, key, None)
            if column and column not in before[name].names:  # else a task's own label, say
                wanted.setdefault(column, f"tasks.{name}.{key}")
    hint = ""
    try:
        if config.input.format == "auto":
            input, line = recognise(config.input, config.output.path)
            say(line)
            if input.format == "files":
                hint = "; a list of the files has columns of its own: name it in input.path"
            config = config.model_copy(update={"input": input})
        if problems := options_of_others(config.input):
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
        return _with_headerless(config), kept
    except NoSuchColumn as error:
        raise ConfigError(f"{path}: {wanted[error.name]}: {error}{hint}") from None
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: input.path: {error}") from None
    except ValueError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).split("\n"))) from None


def _with_headerless(config: Config) -> Config:
    """The config with the extensions of `audio.raw` among those of the input."""
    input = config.input
    more = [name for raw in config.audio.raw for name in raw.extensions]
    if not more or "extensions" not in load_source(input.format).OPTIONS:
        return config
    extensions = tuple(dict.fromkeys([*input.extensions, *more]))
    return config.model_copy(update={"input": input.model_copy(update={"extensions": extensions})})


def columns_before(config: Config, kept: pa.Schema) -> dict[str, pa.Schema]:
    """The columns that a clip has by the time each task gets it."""
    have: list[Any] = [*IDENTITY, *SOUND, *kept]
    before = {}
    for name, options in config.tasks.items():
        before[name] = pa.schema(have)
        columns = {**load_task(options.task).columns(options), "error": pa.string()}
        have += [(f"{name}_{column}", type_) for column, type_ in columns.items()]
    return before


def check_columns(config: Config, kept: pa.Schema) -> None:
    """Raise ValueError if a task's `when`, `reference` or `prompt_column` does not fit the columns there are."""
    problems = []
    for name, before in columns_before(config, kept).items():
        options = config.tasks[name]
        if options.when is not None:
            from audio_ops.when import When

            try:
                When(options.when).check(before)
            except ValueError as error:
                problems.append(f"tasks.{name}.when: {error}")
        reporting = load_task(options.task).reporting(options)
        for key in COLUMN_OPTIONS:
            column = getattr(options, key, None)
            must_be_text = key != "reference" or reporting.reference_is_text
            if column and must_be_text and not _is_text(before.field(column).type):
                problems.append(
                    f"tasks.{name}.{key}: expected a column of text, found {column!r}, which "
                    f"is {before.field(column).type}"
                )
    if problems:
        raise ValueError("\n".join(problems))


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)
