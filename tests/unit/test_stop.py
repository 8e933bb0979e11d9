"""A signal or the end of its time stops a run also while it plans, which may take hours."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Job

from jobs.stop import Stop, outlasting_the_terminal


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Else these runs would rightly ignore that a terminal closes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "options", "why", "code"),
    [
        (signal.SIGTERM, {}, "SIGTERM", 143),
        (signal.SIGINT, {}, "SIGINT", 130),
        (signal.SIGHUP, {}, "SIGHUP", 129),
        (None, {"max_runtime_s": 1.5}, "max_runtime", 0),
    ],
    ids=["sigterm", "ctrl-c", "terminal closed", "max-runtime"],
)
def test_a_run_that_plans_stops_at_once(
    tmp_path: Path,
    classifier: Path,
    number: signal.Signals | None,
    options: dict[str, Any],
    why: str,
    code: int,
) -> None:
    store = socket.create_server(("127.0.0.1", 0))  # takes requests, and never answers one
    url = f"http://127.0.0.1:{store.getsockname()[1]}"
    options_of_store = {"endpoint_url": url, "anon": True}
    job = Job(
        tmp_path, classifier, input={"path": "s3://calls/", "storage_options": options_of_store}
    )
    if number:
        threading.Timer(1.5, os.kill, (os.getpid(), number)).start()
    before = signal.getsignal(signal.SIGALRM)
    with store:
        result = job.run(summary_file=str(tmp_path / "summary.json"), **options)
    assert result.code == code, result.text
    assert f"stopped ({why}) before anything was labelled" in result.text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["exit_code"], summary["stopped"]) == (code, why)
    assert not job.table.exists()
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_nohup_keeps_its_promise_and_other_threads_get_no_signals() -> None:
    for ignored in (True, False):
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert (stop.code, stop.why) == ((0, "") if ignored else (129, "SIGHUP"))


def test_a_run_may_be_started_from_any_thread(tmp_path: Path, classifier: Path) -> None:
    job = Job(tmp_path, classifier, input={"path": str(tmp_path / "nowhere")})
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(job.run(max_runtime_s=60).code))
    thread.start()
    thread.join()
    assert codes == [2]


def test_processes_of_ray_outlast_the_terminal() -> None:
    script = ["sh", "-c", "kill -HUP $$; echo alive"]
    with Stop() as stop:
        with outlasting_the_terminal():
            os.kill(os.getpid(), signal.SIGHUP)
            done = subprocess.run(script, capture_output=True, text=True)
        assert (done.stdout, stop.code) == ("alive\n", 129)
    assert subprocess.run(script).returncode == -signal.SIGHUP
