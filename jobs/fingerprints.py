"""What a task's labels depend on: its settings, and their hash in every row that it has labelled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.speech.whisper.prompt import left_to_checkpoint
from audio_ops.tasks import TaskOptions, load_task
from jobs.config import Config
from jobs.table.schema import fingerprint_column, run_column

# To be raised when the code gives other labels for the same sound, model and settings.
LABEL_VERSION = 1
# Model types whose labels in half precision were wrong: a misread language or rounded positions.
CHANGED_IN_HALF_PRECISION = {"moonshine", "parakeet_ctc", "wav2vec2-conformer", "whisper"}
# Model types whose texts of long windows were cut off at a limit that was too low.
CUT_OFF = {"qwen3_asr"}
# Options that came after the first tables with a task, by task.
LATER_OPTIONS = {
    "automatic-speech-recognition": ("target_language", "punctuation", "prompt", "prompt_column"),
}
# To be raised when the code compares labels with their references in another way.
REFERENCE_VERSION = 3
# Conditions on levels, which are those of the mean of a sound's channels since version 2.
_BY_LEVEL = re.compile(r"\b(peak|rms)_dbfs\b")
# By task: the last change of its labels. Tables that were made before have no entry, or an earlier one.
CHANGED_LABELS = {"automatic-speech-recognition": "suspects are found by segment, 3"}
# Keys of settings that every task depends on, and of what a table keeps beside its tasks' settings.
_COMMON_KEYS = ("label_version", "audio", "keep")
_TABLE_KEYS = ("layout", "left", "taken_over")
COLUMN_OPTIONS = ("reference", "prompt_column")  # each names a column that the task reads
LAYOUT = 2  # of tables whose rows have a fingerprint for each task


def settings(config: Config, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Everything that can change a label, as JSON values, without batch sizes, pools and paths."""
    return {
        "label_version": LABEL_VERSION,
        "audio": _audio_settings(config),
        "keep": sorted(config.output.keep),
        "tasks": {
            name: _options(options) | {"model": checkpoints[name].digest()}
            for name, options in config.tasks.items()
        },
        **_versions(config, checkpoints),
    }


def _options(options: TaskOptions) -> dict[str, Any]:
    """A task's options. Tables from before `LATER_OPTIONS` have none of these, and their defaults
    continue them."""
    chosen = options.model_dump(mode="json", exclude={"model", "revision"})
    fields = type(options).model_fields
    return {
        name: value
        for name, value in chosen.items()
        if name not in LATER_OPTIONS.get(options.task, ()) or value != fields[name].default
    }


def _versions(config: Config, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """By kind of change, the tasks whose labels differ from those of earlier versions of the code, or
    depend on more than their options: each with a value to compare."""
    tasks = config.tasks.items()
    corrected = [
        name
        for name, options in tasks
        if options.dtype != "float32"
        and checkpoints[name].json("config.json").get("model_type") in CHANGED_IN_HALF_PRECISION
    ]
    cut_off = [
        name
        for name, options in tasks
        if checkpoints[name].json("config.json").get("model_type") in CUT_OFF
        and getattr(options, "max_new_tokens", None) is None
    ]
    by_level = [name for name, options in tasks if _BY_LEVEL.search(options.when or "")]
    compared = [name for name, options in tasks if getattr(options, "reference", None)]
    versions = {
        "half_precision_version": dict.fromkeys(corrected, 2),
        "limit_version": dict.fromkeys(cut_off, 2),
        "level_version": dict.fromkeys(by_level, 2),
        "reference_version": dict.fromkeys(compared, REFERENCE_VERSION),
        "task_version": {
            name: CHANGED_LABELS[options.task]
            for name, options in tasks
            if options.task in CHANGED_LABELS
        },
        "left_to_checkpoint": {
            name: left
            for name, options in tasks
            if (left := left_to_checkpoint(options, checkpoints[name]))
        },
    }
    return {kind: names for kind, names in versions.items() if names}


def _audio_settings(config: Config) -> dict[str, Any]:
    """The keys of `audio` that change labels.

    Tables from before `on_damage` and `max_damage` have neither. Their labels are those of sounds
    without damage, which the defaults label alike, so that the defaults continue them.
    """
    kept = config.audio.model_dump(mode="json", include={"max_clip_s"})
    rules = config.audio.model_dump(mode="json", include={"on_damage", "max_damage"})
    defaults = {name: type(config.audio).model_fields[name].default for name in rules}
    if config.audio.on_damage == "error":
        rules.pop("max_damage")
    if config.audio.channels != "mean":
        kept["channels"] = config.audio.channels
    kept |= {name: value for name, value in rules.items() if value != defaults[name]}
    raw = [one.model_dump(mode="json") for one in config.audio.raw]
    return kept | ({"raw": raw} if raw else {})


def records(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task all that its labels depend on: its part of the settings and, as `reads`, the
    fingerprints of the tasks whose columns it reads."""
    tasks, found = settings.get("tasks", {}), dict[str, dict[str, Any]]()
    kinds = settings.keys() - {*_COMMON_KEYS, *_TABLE_KEYS, "tasks"}  # of `_versions`
    for name, others in reads(tasks).items():
        own = {kind: {name: settings[kind][name]} for kind in kinds if name in settings[kind]}
        own |= {key: settings[key] for key in _COMMON_KEYS if key in settings}
        own |= {"tasks": {name: tasks[name]}}
        if others:
            own["reads"] = {other: fingerprint(found[other]) for other in others}
        found[name] = own
    return found


def fingerprints(settings: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of each task of some settings."""
    return {name: fingerprint(record) for name, record in records(settings).items()}


def reads(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """By task the earlier ones whose columns its `when`, `reference` or `prompt_column` names."""
    found: dict[str, list[str]] = {}
    for name, options in tasks.items():
        keys = ("when", *COLUMN_OPTIONS)
        text = "\n".join(str(options[key]) for key in keys if options.get(key))
        found[name] = [
            other
            for other in found
            if any(_names(text, column) for column in label_names(other, tasks[other]))
        ]
    return found


def _names(text: str, column: str) -> bool:
    """Whether a text contains a column's name, in any case, as in SQL."""
    return bool(re.search(rf"(?<!\w){re.escape(column)}(?!\w)", text, re.IGNORECASE))


def label_names(name: str, options: Mapping[str, Any]) -> list[str]:
    """The columns of a task, by its options in a table's settings; none if this version lacks it."""
    try:
        task = load_task(options["task"])
    except (KeyError, ModuleNotFoundError):
        return []
    columns = task.columns(task.Options.model_construct(**options))
    return [f"{name}_{column}" for column in (*columns, "error")]


def table_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run with settings `now` gives to a table that had `before` ({}: a new one).

    Besides the run's own, they have `left`, the records of tasks that are in the table but no longer
    in the config, and `taken_over`, see there.
    """
    left = {**before.get("left", {}), **records(before)}
    whole = {
        **now,
        "layout": LAYOUT,
        "left": {name: record for name, record in left.items() if name not in now.get("tasks", {})},
        "taken_over": taken_over(before),
    }
    return {key: value for key, value in whole.items() if value or key not in _TABLE_KEYS}


def taken_over(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The fingerprint of each task, by the single `fingerprint` that earlier versions of Earmark gave to a
    row with all its tasks."""
    if settings.get("tasks") and "layout" not in settings:
        return {fingerprint(settings): fingerprints(settings)}
    return dict(settings.get("taken_over", {}))


def fingerprint_of(task: str, settings: Mapping[str, Any], names: Collection[str]) -> pc.Expression:
    """The fingerprint of a task's labels in each row of a table with these settings and columns;
    null where there are none. Rows of earlier versions have one for all tasks."""
    nothing = pc.scalar(pa.scalar(None, pa.string()))
    column = fingerprint_column(task)
    found = pc.field(column) if column in names else nothing
    if "fingerprint" in names:
        for old, of_tasks in taken_over(settings).items():
            if task in of_tasks:
                is_old = pc.equal(pc.field("fingerprint"), old)
                found = pc.coalesce(found, pc.if_else(is_old, of_tasks[task], nothing))
    return found


def run_of(task: str, names: Collection[str]) -> pc.Expression:
    """The id of the run that made a task's labels, where `fingerprint_of` is not null."""
    column = run_column(task)
    run_id = pc.field("run_id")
    return pc.coalesce(pc.field(column), run_id) if column in names else run_id


def changes(table: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, list[str]]:
    """The lines of `difference` for each task of the run that has another fingerprint in the table; none
    for one that only reads a changed task."""
    before, found = {**table.get("left", {}), **records(table)}, dict[str, list[str]]()
    for name, record in records(run).items():
        old = before.get(name)
        if old is not None and fingerprint(old) != fingerprint(record):
            found[name] = difference(*(_without_prints(name, one) for one in (old, record)))
    return found


def _without_prints(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "reads": {name: sorted(record.get("reads", ()))}}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of settings, as 16 hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def difference(table: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """`key: ... in the table, ... in this run` for each setting that differs."""
    left, right = dict(_flat(table)), dict(_flat(run))
    return [
        f"{key}: {left.get(key, 'absent')} in the table, {right.get(key, 'absent')} in this run"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [
            pair
            for name, inner in value.items()
            for pair in _flat(inner, f"{key}.{name}" if key else name)
        ]
    return [(key, json.dumps(value))]
