"""What surrounds the process: no home, nobody at stdout, a temporary folder with a long name, part of a
CPU, a RAY_ADDRESS at which there is no cluster."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, Job, command

from jobs import ray_address, ray_compat
from jobs.console import Console, Lasting
from jobs.resources import CannotRun


def said_by(console: Console, *lines: str) -> str:
    """What it prints, with these lines, to its stdout."""
    reader, writer = os.pipe()
    before = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        with console:
            for line in lines:
                console.say(line)
            os.write(1, b"a library's words")
    finally:
        os.dup2(before, 1)
        os.close(before)
    with os.fdopen(reader) as printed:
        return printed.read()


@pytest.mark.parametrize("home", [None, "/proc/nowhere", "/dev/null"])
def test_without_a_home_the_log_is_among_the_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as in containers with random uids
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    console = Console("run")
    said = said_by(console, "a line")
    assert re.search(
        rf"^no log in the home folder .*: log: {re.escape(str(console.log))}\na line\n$", said
    )
    assert console.log.is_relative_to(tmp_path) and "a library's words" in console.log.read_text()


def test_where_nothing_can_be_written_there_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    assert said_by(Console("run"), "a line").endswith("log: /dev/null\na line\n")


@pytest.mark.parametrize("stdout", ["closed pipe", "full disk", "closed"])
def test_a_run_to_whose_words_nobody_listens_ends_as_any_other(
    tmp_path: Path, classifier: Path, stdout: str
) -> None:
    """Here with a mistake, for exit code 2."""
    job = Job(tmp_path, classifier)
    job.write(input={"path": str(tmp_path / "nowhere")})
    summary = tmp_path / "summary.json"
    arguments = [*command("run", job.config, "--summary", summary)]
    if stdout == "closed":
        done = subprocess.run(["sh", "-c", '"$@" >&- 2>&- <&-', "sh", *arguments], timeout=300)
    elif stdout == "full disk":
        with open("/dev/full", "w") as full:
            done = subprocess.run(arguments, stdout=full, stderr=full, timeout=300)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(arguments, stdout=writer, stderr=writer, timeout=300)
        os.close(writer)
    assert done.returncode == 2
    document = json.loads(summary.read_text())
    assert document["exit_code"] == 2 and "nowhere" in document["error"]
    if stdout != "closed":
        assert f"{tmp_path / 'nowhere'}" in Path(document["log"]).read_text()


def test_a_submitted_run_whose_log_finds_no_room_ends_as_any_other(
    tmp_path: Path, classifier: Path
) -> None:
    """Here with a log of the table that is damaged, of which the run's log gets the traceback."""
    job = Job(tmp_path, classifier)
    job.sound("a.wav", 300)
    (job.table / "_delta_log").mkdir(parents=True)
    (job.table / "_delta_log" / f"{0:020}.json").write_text("none")
    call = f"ulimit -f 0; exec {sys.executable} -m jobs.label {job.config}"
    done = subprocess.run(["bash", "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "error: expected a table that can be read" in done.stdout
    assert not done.stderr


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    shown = io.BytesIO()
    stream = Lasting(io.TextIOWrapper(shown, "ascii"))
    print("ü · 2 × “x” \udcff", file=stream)  # type: ignore[call-overload]
    assert shown.getvalue() == rb"\xfc \xb7 2 \xd7 \u201cx\u201d \udcff" + b"\n"


def test_a_report_to_which_nobody_listens_ends_with_its_exit_code(tmp_path: Path) -> None:
    verify = " ".join(command("verify", tmp_path / "nowhere"))
    shell = f"{verify} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", shell], timeout=300).returncode == 2


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_no_ray_address_is_a_ray_of_ones_own(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_address.ray_address() is None


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "[::1]:6379", "ray://head:10001"])
def test_ray_addresses_that_are_joined(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_address.ray_address() == address


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "https://ray.example", "head", "a:b", "h:99999"]
)
def test_a_ray_address_that_is_none_is_refused_before_clips_are_looked_for(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    result = Job(tmp_path, classifier).run()
    assert result.code == 2
    assert "RAY_ADDRESS: expected" in result.text and f"found {address}" in result.text.replace(
        "'", ""
    )
    assert ("ray job submit --address http" in result.text) == address.startswith("http")
    assert "looking for clips" not in result.text


def test_a_cluster_that_does_not_answer_is_named_at_once_and_given_up(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray_address.expect_answer(address, pytest.fail)
    monkeypatch.setattr("jobs.ray_address.PATIENCE_S", 1.5)
    monkeypatch.setenv("RAY_ADDRESS", address)
    result = Job(tmp_path, classifier).run()
    assert result.code == 2
    first, last, *_ = result.text.splitlines()
    assert address in first and "RAY_ADDRESS" in first
    assert "found none within 1.5 s (Connection refused)" in last
    with pytest.raises(CannotRun, match="found none"):
        ray_address.expect_answer("no-such-host.invalid:6379", lambda _: None)


def test_a_head_that_is_gone_is_seen_and_a_run_that_waits_for_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.ray_address.LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("jobs.ray_address.GONE_AFTER_S", 0.2)
    monkeypatch.setattr("jobs.ray_address.LAST_COMMIT_S", 0.2)
    gone: list[Exception] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = ray_address.HeadWatch(
            f"127.0.0.1:{server.getsockname()[1]}", gone.append, gone.append
        )
        watch._thread.join(0.5)
        assert watch.is_there() and not gone
    watch._thread.join(60)
    assert gone == [watch.error] * 2 and not watch.is_there()


@pytest.mark.parametrize(
    ("file", "content", "cpus"),
    [
        ("cpu.max", "50000 100000\n", 1),
        ("cpu.max", "100000 100000\n", None),
        ("cpu.max", "max 100000\n", None),
        ("cpu/cpu.cfs_quota_us", "25000\n", 1),
        ("cpu/cpu.cfs_quota_us", "-1\n", None),
        ("nothing", "", None),
    ],
)
def test_part_of_a_cpu_is_one(tmp_path: Path, file: str, content: str, cpus: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / file).write_text(content)
    assert ray_compat.part_of_a_cpu(str(tmp_path)) == cpus


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_gets_a_short_folder_that_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    for folder, why in ((long, "too long"), (Path("/nowhere"), "no folder that can be written")):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv(name, str(folder))
        [line] = ray_compat.fit_to_machine()
        assert line.startswith(f"{name} is {why}")
        assert len(os.environ["RAY_TMPDIR"]) < 10
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/tmp")
    assert ray_compat.fit_to_machine() == []
