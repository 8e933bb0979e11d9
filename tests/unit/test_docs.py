"""The pages: what comes from the code is fresh, links lead somewhere, examples load."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
import yaml
from runs import ROOT

from audio_ops.tasks import TaskOptions, load_task, task_names
from jobs.config_file import ENVIRONMENT, load_config
from jobs.table.schema import table_schema

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_what_comes_from_the_code_is_fresh(generator: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == generator.renewed(text), "stale: run `make docs`"


def test_every_generated_part_is_on_exactly_one_page(generator: ModuleType) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS)
    assert sorted(name for _, name, _ in generator.MARKED.findall(pages)) == sorted(generator.PARTS)
    assert pages.count("<!-- generated: ") == pages.count("<!-- end -->") == len(generator.PARTS)


def test_every_key_and_option_is_explained(generator: ModuleType) -> None:
    tables = [
        part() for name, part in generator.PARTS.items() if name.endswith(("keys", "options"))
    ]
    rows = [line for table in tables for line in table.splitlines()[2:]]
    keys = {line.split("`")[1] for line in rows}
    assert (
        len(rows) > 60 and {"path", "columns.audio", "tasks.T.actors", "--set a.b.c=value"} <= keys
    )
    for line in rows:
        assert len(line.rstrip("| ").rpartition(" | ")[2].split()) > 2, line


def test_every_option_of_every_task_is_on_the_page_of_models() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for task in task_names():
        for option in load_task(task).Options.model_fields:
            assert f"| `{option}` |" in text, (task, option)


def test_every_column_is_on_the_page_of_the_table() -> None:
    options: dict[str, TaskOptions] = {
        "A": load_task("automatic-speech-recognition").Options(
            task="automatic-speech-recognition",
            model="m",
            timestamps="word",
            window="guarded",
            reference="text",
        ),
        "B": load_task("audio-classification").Options(
            task="audio-classification", model="m", segments=True, reference="text"
        ),
    }
    for number, name in enumerate(task_names()):
        options[f"C{number}"] = load_task(name).Options.model_construct(task=name, model="m")
    text = (ROOT / "docs" / "table.md").read_text(encoding="utf-8")
    for column in table_schema(options, pa.schema([])).names:
        assert f"`{re.sub('^(A|B|C[0-9]+)_', 'T_', column)}`" in text, column


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in set(anchors(target.read_text(encoding="utf-8"))), link


def anchors(text: str) -> Iterator[str]:
    """The anchors that GitHub gives to a page's headings."""
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^    |`)make (\w+)", text, re.MULTILINE))
    assert named <= targets


EXAMPLES = [
    (name, number, text)
    for name, page in zip(NAMES, PAGES, strict=True)
    for number, text in enumerate(
        re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize(
    "text", [it[2] for it in EXAMPLES], ids=[f"{it[0]}-{it[1]}" for it in EXAMPLES]
)
def test_every_example_loads_as_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """By itself, or in a whole config if it is a single section."""
    for name in ENVIRONMENT.findall(text):
        if name not in os.environ:
            monkeypatch.setenv(name, "x")
    whole = {
        "input": {"path": "/in"},
        "tasks": {"kind": {"task": "audio-classification", "model": "m"}},
        "output": {"path": "/out"},
    }
    example = yaml.safe_load(text)
    config = tmp_path / "example.yaml"
    config.write_text(
        text if whole.keys() <= example.keys() else yaml.safe_dump(whole | example),
        encoding="utf-8",
    )
    assert load_config(config).tasks


def test_every_file_on_the_map_exists() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    [tree] = [block for block in blocks if "\njobs/" in block]
    missing, folder = [], Path()
    for line in tree.splitlines():
        indent, path = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        if not indent:
            folder = Path(path) if path.endswith("/") else Path()
        if not (ROOT / (folder if indent else "") / path).exists():
            missing.append(str((folder if indent else Path()) / path))
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:jobs|audio_ops|tests|configs|docs)/[a-z0-9_/.]*)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]
