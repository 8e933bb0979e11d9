"""Generates parts of the pages from the code: `make docs`.

The lines of a page between `<!-- generated: NAME -->` and `<!-- end -->` come from the function of that
name in `PARTS`. With `--check` nothing is written, and the exit code is 1 if a page is stale
(tests/unit/test_docs.py).
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from audio_ops.decode.formats import CODECS, CONTAINERS, OTHER_DECODERS, REFUSED  # noqa: E402
from audio_ops.decode.headerless import ENCODINGS  # noqa: E402
from audio_ops.errors import KINDS  # noqa: E402
from audio_ops.flags import FLAGS  # noqa: E402
from audio_ops.speech import families  # noqa: E402
from audio_ops.tasks import TaskOptions, load_task, task_names  # noqa: E402
from jobs import cli, config  # noqa: E402
from jobs.exit_codes import (  # noqa: E402
    BAD_CONFIG,
    DRIFTED,
    FAILED,
    IN_USE,
    OK,
    TOO_MANY_ERRORS,
)
from jobs.sources import load_source, source_names  # noqa: E402

MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

EXIT_CODES = {
    OK: "Every clip found has its row; or the time of `--max-runtime` was over (`stopped` in the summary).",
    FAILED: "The run broke, or made no progress for `resources.stalled_after_s`. Finished work is committed; the same command continues.",
    BAD_CONFIG: "The config, its input, the table's settings or the cluster do not fit. Nothing was started.",
    TOO_MANY_ERRORS: "More than `max_error_fraction` of the run's clips failed (default 5 %). They have their rows.",
    DRIFTED: "The labels drifted beyond the config's bounds. They have their rows.",
    IN_USE: "Another run holds the table, or took it over.",
    128 + signal.SIGHUP: "Stopped by SIGHUP: its terminal was closed. Finished work is committed.",
    128 + signal.SIGINT: "Stopped by SIGINT. Finished work is committed.",
    128 + signal.SIGTERM: "Stopped by SIGTERM. Finished work is committed.",
}
FAMILY_TITLES = {
    "whisper": "Whisper",
    "ctc": "CTC",
    "transducer": "transducers",
    "prompted": "prompted recognisers",
    "seq2seq": "other encoder-decoders",
    "seamless": "SeamlessM4T",
    "kyutai": "Kyutai",
    "voxtral_realtime": "Voxtral Realtime",
}


def recognisers() -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """The model types and the family's own options of each family of recognisers."""
    found = families()
    ordered = sorted(found, key=[*FAMILY_TITLES, *found].index)
    return {name: (found[name].MODEL_TYPES, found[name].OPTIONS) for name in ordered}


def model_types() -> str:
    """The model types that each task runs."""
    rows = [
        ("`automatic-speech-recognition`", title(family), code(types))
        for family, (types, _) in recognisers().items()
    ]
    for name in task_names():
        if types := getattr(load_task(name), "ARCHITECTURES", ()):
            rows.append((f"`{name}`", "", code(types)))
    return table(("`task`", "family", "`model_type` in the checkpoint's `config.json`"), rows)


def task_options() -> str:
    """Options that all tasks have."""
    return options_table(TaskOptions, (TaskOptions,))


def recognition_options() -> str:
    """Options of speech recognition, each with the families that have it."""
    families = recognisers()
    own = {
        option: ", ".join(title(family) for family, (_, has) in families.items() if option in has)
        for _, has in families.values()
        for option in has
    }
    options = load_task("automatic-speech-recognition").Options
    return options_table(options, (options,), ("models", lambda key: own.get(key, "all")))


def classification_options() -> str:
    """Options of `audio-classification`."""
    options = load_task("audio-classification").Options
    return options_table(options, options.__mro__[: options.__mro__.index(TaskOptions)])


def zero_shot_options() -> str:
    """Options of `zero-shot-audio-classification` that other classifiers do not have."""
    options = load_task("zero-shot-audio-classification").Options
    return options_table(options, (options,))


def input_keys() -> str:
    """Keys of `input`, each with the packagings that take it."""
    every = source_names()

    def takers(key: str) -> str:
        having = [name for name in every if key in load_source(name).OPTIONS]
        return code(having) if having else "all"

    return options_table(config.Input, (config.Input,), ("formats", takers))


def audio_keys() -> str:
    """Keys of `audio`."""
    return options_table(config.Audio, (config.Audio,))


def output_keys() -> str:
    """Keys of `output`."""
    return options_table(config.Output, (config.Output,))


def resource_keys() -> str:
    """Keys of `resources`, those of single tasks and `max_error_fraction` included."""
    return options_table(config.Resources, (config.Resources,))


def drift_keys() -> str:
    """Keys of `drift`."""
    return options_table(config.Drift, (config.Drift,))


def other_keys() -> str:
    """Keys of a config that stand alone, without a section."""
    fields = set(config.Config.model_fields) - {
        name
        for name, field in config.Config.model_fields.items()
        if name == "tasks" or section_of(field.annotation)
    }
    return options_table(config.Config, (config.Config,), only=fields)


def error_kinds() -> str:
    """The closed list of `error_kind`."""
    return table(("`error_kind`", "meaning"), ((f"`{kind}`", text) for kind, text in KINDS.items()))


def sound_flags() -> str:
    """The closed list of `sound_flags`."""
    return table(("flag", "meaning"), ((f"`{flag}`", text) for flag, text in FLAGS.items()))


def exit_codes() -> str:
    """Exit codes of `earmark run`."""
    return table(
        ("exit code", "meaning"), ((str(int(key)), text) for key, text in EXIT_CODES.items())
    )


def formats() -> str:
    """Containers that are decoded."""
    rows = [
        (
            f"`{it.name}`",
            code(it.extensions),
            "libsndfile; FFmpeg for what libsndfile cannot read" if it.sound_chunk else "FFmpeg",
        )
        for it in CONTAINERS
    ]
    return table(("container", "extensions", "decoder"), rows)


def codecs() -> str:
    """FFmpeg's decoders that may run."""
    pauses = code(name for codec, name in OTHER_DECODERS.items() if codec.startswith("amr"))
    return f"{code(CODECS)}, {pauses} for AMR with pauses, and all PCM (`pcm_...`)."


def encodings() -> str:
    """The encodings of sound without a header."""
    return f"{code(ENCODINGS)}."


def refused_formats() -> str:
    """The formats that are recognised and refused, by error kind."""
    kinds = dict.fromkeys(it.kind for it in REFUSED)
    named = {kind: ", ".join(it.name for it in REFUSED if it.kind == kind) for kind in kinds}
    return "\n".join(f"- `{kind}`: {names}." for kind, names in named.items())


def run_options() -> str:
    """Options of `earmark run`, as its help has them."""
    return help_table("run")


def evaluate_options() -> str:
    """Options of `earmark evaluate`."""
    return help_table("evaluate")


def report_options() -> str:
    """Options of `earmark report`."""
    return help_table("report")


def plan_options() -> str:
    """Options of `earmark plan`."""
    return help_table("plan")


def verify_options() -> str:
    """Options of `earmark verify`."""
    return help_table("verify")


def export_options() -> str:
    """Options of `earmark export`."""
    return help_table("export")


def exit_code_options() -> str:
    """Options of `earmark exit-code`."""
    return help_table("exit-code")


PARTS: dict[str, Callable[[], str]] = {
    part.__name__.replace("_", "-"): part
    for part in (
        *(model_types, task_options, recognition_options, classification_options),
        *(zero_shot_options, input_keys, audio_keys, output_keys, resource_keys, drift_keys),
        *(other_keys, error_kinds, sound_flags, exit_codes, formats, codecs, encodings),
        *(
            refused_formats,
            run_options,
            plan_options,
            evaluate_options,
            report_options,
            verify_options,
            export_options,
            exit_code_options,
        ),
    )
}


def options_table(
    model: type[BaseModel],
    described_in: Sequence[type[BaseModel]],
    extra: tuple[str, Callable[[str], str]] | None = None,
    only: Iterable[str] | None = None,
) -> str:
    """A table with a row per field of `model` that has a docstring in a class of `described_in`.

    The keys of sections are `section.key` and, in sections per task, `section.T.key`. `extra` is
    another column: its title and its value for a key.
    """
    described: dict[str, str] = {}
    for one in described_in:
        described = {**field_docs(one), **described}
    rows = []
    for name, field in model.model_fields.items():
        if name not in described or (only is not None and name not in only):
            continue
        if inner := section_of(field.annotation):
            prefix = f"{name}.T" if str(field.annotation).startswith("dict") else name
            rows += [
                (f"{prefix}.{key}", inner.model_fields[key], text)
                for key, text in field_docs(inner).items()
            ]
        else:
            rows.append((name, field, described[name]))
    return table(
        ("key", "default", *([extra[0]] if extra else []), "meaning"),
        (
            (f"`{key}`", default(field), *([extra[1](key)] if extra else []), text)
            for key, field, text in rows
        ),
    )


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, once or per task; None if it is no section."""
    inner = getattr(annotation, "__args__", (annotation,))[-1]
    is_section = isinstance(inner, type) and issubclass(inner, config.Section)
    return inner if is_section and inner is not config.Range else None


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings under a class's own fields, each in one line."""
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    docs = {}
    for field, doc in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


def default(field: Any) -> str:
    """A field's default as YAML has it; "required" if it has none, empty for null."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return ""
    if isinstance(value, tuple) and len(value) > 4:
        return "those of the formats below"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return code([json.dumps(value).strip('"')])


def help_table(command: str) -> str:
    """The options of a command, from its own help."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "1000", "NO_COLOR": "1"}),
        redirect_stdout(printed),
        suppress(SystemExit),  # after the help
    ):
        cli.run([command, "--help"])
    found = re.findall(r"^  (--[^\n]*?)\s{2,}(\S[^\n]*)", printed.getvalue(), re.MULTILINE)
    return table(("option", "meaning"), ((f"`{option}`", text) for option, text in found))


def title(family: str) -> str:
    return FAMILY_TITLES.get(family, family)


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def renewed(page: str) -> str:
    """A page with its parts generated again. Raises KeyError for an unknown part."""
    return MARKED.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", page)


def main() -> int:
    stale = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := renewed(page)) != page:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(new, encoding="utf-8")
    check = "--check" in sys.argv[1:]
    print(f"{'stale, run `make docs`' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(bool(check and stale))


if __name__ == "__main__":
    sys.exit(main())
