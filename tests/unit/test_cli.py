"""`earmark` itself: its help, its version and commands that there are not."""

from __future__ import annotations

import re
import signal
import socket
import subprocess

import pytest
from runs import command, earmark

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


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["run", "c.yaml", "--sumary", "x"], "--sumary x (did you mean --summary?)"),
        (["export", "t", "o", "--as=csv", "--tsk=t"], "--tsk=t (did you mean --task?)"),
        (["verify", "t", "--zzzzz"], "unknown arguments: --zzzzz\n"),
        (["evaluate", "t", "u"], "unknown arguments: u\n"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest_one(
    arguments: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(arguments)
    told = capsys.readouterr().err
    assert end.value.code == 2 and answer in told
    assert told.startswith(f"usage: earmark {arguments[0]} ")


def test_options_without_a_command_are_refused() -> None:
    done = earmark("--relabel")
    assert done.returncode == 2 and "usage: earmark" in done.stderr


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    """While it waits for a store that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        endpoint = f"endpoint_url=http://127.0.0.1:{store.getsockname()[1]}"
        options = (
            option for value in (endpoint, "anon=true") for option in ("--storage-option", value)
        )
        reading = subprocess.Popen(
            command("exit-code", "s3://bucket/x.json", *options),
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # not as in background
        )
        store.settimeout(60)
        connection, _ = store.accept()
        with reading, connection:
            reading.send_signal(signal.SIGINT)
            _, told = reading.communicate(timeout=60)
    assert (reading.returncode, told) == (130, b"")
