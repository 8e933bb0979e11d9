"""`earmark` itself: its help, its version and commands that there are not."""

from __future__ import annotations

import re

import pytest
from runs import earmark

from jobs.cli import COMMANDS, run
from jobs.versions import package_version


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == run(["help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: earmark")
    assert all(re.search(rf"\n    {name}\s", printed) for name in COMMANDS)


def test_version_is_that_of_the_package() -> None:
    done = earmark("--version")
    assert (done.returncode, done.stdout) == (0, f"earmark {package_version('earmark')}\n")


@pytest.mark.parametrize(
    ("name", "answer"),
    [("verfy", "did you mean 'verify'?"), ("label", "found 'label'"), ("x", "found 'x'")],
)
def test_an_unknown_command_is_answered_with_the_nearest_one(name: str, answer: str) -> None:
    done = earmark(name, "table")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "expected a command (run, plan, evaluate, verify, report, export, exit-code), found"
        in done.stderr
    )
    assert done.stderr.endswith(f"{answer}\n")


def test_options_without_a_command_are_refused() -> None:
    done = earmark("--relabel")
    assert done.returncode == 2 and "usage: earmark" in done.stderr
