"""The rooms of the house and what may not pass between them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from runs import ROOT
from sounds import encode, tone

from audio_ops.tasks import TaskOptions, load_task, task_names
from jobs.cli import COMMANDS
from jobs.sources import load_source, source_names

AUDIO_OPS = sorted((ROOT / "audio_ops").rglob("*.py"))
HEAVY = ("torch", "transformers", "silero_vad", "librosa", "ray")
DECODERS = {"av", "soundfile", "soxr", "onnxruntime"}


def python(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", AUDIO_OPS, ids=lambda p: str(p.relative_to(ROOT / "audio_ops")))
def test_audio_ops_imports_neither_ray_nor_jobs(path: Path) -> None:
    assert not {"ray", "jobs", "deltalake", "fsspec"} & set(imported(path))


def test_audio_ops_imports_without_ray_and_without_anything_heavy() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in AUDIO_OPS
    ]
    script = (
        "import importlib, sys; sys.modules['ray'] = sys.modules['jobs'] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        f"print(sorted({set(HEAVY) - {'ray'}!r} & sys.modules.keys()))"
    )
    assert python(script, *modules) == "[]"


def test_a_decode_worker_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(tone(0.5, 44_100, 2), 44_100, "wav"))
    (tmp_path / "b.mp3").write_bytes(encode(tone(40.0, 8_000), 8_000, "mp3"))
    script = """
import sys
import pyarrow as pa
from jobs.config import Audio
from jobs.input import Input
from jobs.pipeline import blocks
from jobs.planning.committed import NOTHING_COMMITTED
from jobs.planning.plan import plan
from jobs.sources import files
from jobs.workers.read import ReadSettings, read
input = Input(path=sys.argv[1], format="files")
todo = plan(files.find(input, print), NOTHING_COMMITTED).todo
audio = Audio(max_clip_s=100.0)
tables = list(read(todo, ReadSettings(input, audio, (16_000, 48_000), "always")))
assert sum(len(table) for table in tables) == 2
assert {kind for table in tables for kind in table["error_kind"].to_pylist()} == {None}
assert all(table["speech"].null_count == 0 for table in tables)
print(sorted({"torch", "transformers", "silero_vad", "librosa"} & sys.modules.keys()))
"""
    assert python(script, tmp_path) == "[]"


def test_starting_the_job_imports_nothing_heavy() -> None:
    script = f"import sys, jobs.cli, jobs.label; print(sorted({set(HEAVY)!r} & sys.modules.keys()))"
    assert python(script) == "[]"


PRINTS_HELP = """
import contextlib, io, sys
from jobs.cli import run
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
    run([*sys.argv[1:], "--help"])
assert printed.getvalue().startswith("usage: earmark")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_neither_ray_nor_torch_nor_a_decoder(command: str) -> None:
    script = f"{PRINTS_HELP}print(sorted({DECODERS.union(HEAVY)!r} & sys.modules.keys()))"
    assert python(script, command) == "[]"


def test_help_imports_no_command() -> None:
    script = (
        f"{PRINTS_HELP}print(*sorted(n for n in sys.modules if n.startswith(('jobs', 'audio'))))"
    )
    assert (
        python(script) == "jobs jobs.cli jobs.console jobs.exit_codes jobs.own_folder jobs.versions"
    )


def test_the_command_line_imports_no_decoder() -> None:
    script = f"import sys, jobs.cli, jobs.label; print(sorted({DECODERS!r} & sys.modules.keys()))"
    assert python(script) == "[]"


def imports_of_audio_ops(path: Path) -> set[str]:
    """The modules of audio_ops that a file imports at its top, for types as well."""
    found: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        for node in ast.walk(statement) if isinstance(statement, ast.If) else [statement]:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {
                    f"{node.module}",
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                }
    return {name for name in found if name.startswith("audio_ops.")}


def test_what_decodes_and_prepares_imports_in_no_circle_and_nothing_of_the_models() -> None:
    from graphlib import TopologicalSorter

    folder = ROOT / "audio_ops"
    paths = [folder / f"{name}.py" for name in ("errors", "flags", "schemas", "prepare")]
    paths += [*(folder / "decode").glob("*.py"), *(folder / "signal").glob("*.py")]
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imports_of_audio_ops(path)
        for path in paths
    }
    TopologicalSorter(graph).prepare()  # raises CycleError
    parts = {name.split(".")[1] for found in graph.values() for name in found}
    assert parts <= {"errors", "flags", "schemas", "decode", "signal"}


@pytest.mark.parametrize("name", task_names())
def test_a_task_holds_what_the_contract_asks_for(name: str) -> None:
    """That each one fulfils the protocol is mypy's to check, where `TASKS` is defined."""
    from audio_ops.tasks._contract import TASKS

    task = load_task(name)
    assert task in TASKS
    assert issubclass(task.Options, TaskOptions)
    assert task.Options.model_config["extra"] == "forbid"
    assert task.Options.model_config["frozen"]
    for function in ("check", "sample_rate", "wants_speech", "columns", "reporting"):
        assert callable(getattr(task, function)), function
    options = task.Options.model_construct(task=name, model="x")
    assert task.wants_speech(options) in ("never", "long", "always")
    columns = task.columns(options)
    assert columns and all(isinstance(type_, pa.DataType) for type_ in columns.values())
    assert "error" not in columns
    reporting = task.reporting(options)
    named = {reporting.label, reporting.text, reporting.score, reporting.suspect} - {None}
    assert named and named <= columns.keys()
    for method in ("windows", "padded_s", "__call__", "join"):
        assert callable(getattr(task.Model, method)), method


@pytest.mark.parametrize("name", source_names())
def test_a_source_holds_what_the_contract_asks_for(name: str) -> None:
    """That each one fulfils the protocol is mypy's to check, where `SOURCES` is defined."""
    from jobs.sources._contract import SOURCES

    source = load_source(name)
    assert source in SOURCES
    assert isinstance(source.SHARDED, bool)
    assert callable(source.find) and callable(source.clips)


def test_families_of_recognisers_hold_what_the_contract_asks_for() -> None:
    """That each one fulfils the protocol is mypy's to check, where `FAMILIES` is defined."""
    from audio_ops.speech import families
    from audio_ops.speech._contract import FAMILIES
    from audio_ops.speech.options import Options

    assert set(families().values()) == set(FAMILIES)
    types = [name for family in FAMILIES for name in family.MODEL_TYPES]
    assert len(types) == len(set(types))
    for family in FAMILIES:
        assert set(family.OPTIONS) <= Options.model_fields.keys()
        assert "none" in family.TIMESTAMPS


def test_every_file_of_the_house_is_installed() -> None:
    import tomllib

    from setuptools import find_namespace_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = settings["tool"]["setuptools"]
    find = setuptools["packages"]["find"]
    every = [path for house in ("jobs", "audio_ops") for path in (ROOT / house).rglob("*.*")]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in every if path.suffix == ".py"
    }
    packages = find_namespace_packages(str(ROOT), exclude=find["exclude"], include=find["include"])
    assert folders == set(packages)
    data = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert {path for path in every if path.suffix not in (".py", ".pyc")} <= data
