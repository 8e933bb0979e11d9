"""`ray job submit` to a real head on loopback: logs, status, a stop half way, and on from there."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from runs import ROOT, Job
from test_lock import pretend_holder

pytestmark = pytest.mark.timeout(900)

CLIPS = 30
PATIENCE_S = 300


class Head(NamedTuple):
    """Where a head has its job server, and where it shows its metrics."""

    address: str
    metrics: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head whose job server asks for the token that conftest.py sets."""
    import requests

    dashboard, metrics, client = free_ports(3)
    settings = {
        "node-ip-address": "127.0.0.1",
        "port": 0,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": 0,  # else one Ray of a machine has a job server, and no other
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "num-cpus": 2,
        "object-store-memory": 256 << 20,
    }
    bin = Path(sys.executable).parent
    said = tmp_path_factory.mktemp("head") / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [bin / "ray", "start", "--head", "--block"]
            + [f"--{name}={value}" for name, value in settings.items()],
            env=os.environ
            | {"RAY_JOB_STOP_WAIT_TIME_S": "120", "RAY_metrics_report_interval_ms": "500"}
            | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"

        def answers() -> bool:
            assert process.poll() is None, said.read_text()
            try:
                requests.get(f"{address}/api/version", timeout=30)  # refused, for it has no token
            except requests.ConnectionError:
                return False
            return True

        until(answers, said.read_text)
        yield Head(address, f"http://127.0.0.1:{metrics}/metrics")
    finally:
        process.terminate()  # it ends its own
        process.wait(60)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture
def job(tmp_path: Path, classifier: Path) -> Job:
    resources = {"clips_per_block": 1, "commit_every_s": 0, "tasks": {"kind": {"actors": 1}}}
    job = Job(tmp_path, classifier, resources=resources)
    job.sounds(CLIPS, seconds=4.0)
    return job


def until(reached: Callable[[], object], what: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s: {what()}"
        time.sleep(0.1)


def submit(client: Any, job: Job, arguments: str = "") -> tuple[str, Callable[[], str]]:
    """As `make submit` does; the id, and what the job has said so far."""
    ids: list[str] = []
    refusals: list[str] = []

    def is_taken() -> bool:
        try:
            ids.append(
                client.submit_job(
                    entrypoint=f"python -m jobs.label {job.config} {arguments}",
                    runtime_env={"working_dir": str(ROOT)},
                )
            )
        except RuntimeError as error:
            if "No available agent" not in str(error):  # else the head is still starting
                raise
            refusals.append(str(error))
        return bool(ids)

    until(is_taken, lambda: refusals[-1])
    return ids[0], lambda: client.get_job_logs(ids[0])


@pytest.mark.chaos
def test_a_job_that_was_stopped_half_way_goes_on_when_it_is_submitted_again(
    head: Head, job: Job
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(head.address)
    clips = 4 * CLIPS  # while the signal goes through the head and its agent, many are done
    job.sounds(clips, seconds=4.0)
    id, said = submit(client, job)
    until(lambda: job.committed() >= 6, said)
    client.stop_job(id)
    until(lambda: client.get_job_status(id).is_terminal(), said)
    assert client.get_job_status(id) == JobStatus.STOPPED
    assert "stopped (SIGTERM): the same command continues" in said()
    first = job.rows()  # and a plain reader sees nothing but them
    assert 4 <= len(first) < clips
    assert f"labelled {len(first)} clips" in said()

    job.write(resources={})  # whatever is left in one go
    id, said = submit(client, job)
    until(lambda: client.get_job_status(id).is_terminal(), said)
    assert client.get_job_status(id) == JobStatus.SUCCEEDED, said()
    left = clips - len(first)
    assert f"{clips} found = {len(first)} already done + {left} labelled + 0 failed" in said()
    rows = job.rows()
    assert len(rows) == clips
    assert all(rows[source] == row for source, row in first.items())


def test_the_status_of_a_job_follows_the_exit_code_of_the_run(head: Head, job: Job) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(head.address)
    job.write(tasks={"kind": job.sections["tasks"]["kind"] | {"topk": 3}})
    id, said = submit(client, job)
    until(lambda: client.get_job_status(id).is_terminal(), said)
    assert client.get_job_status(id) == JobStatus.FAILED
    assert client.get_job_info(id).driver_exit_code == 2
    assert "did you mean 'top_k'" in said()


def recipes() -> list[str]:
    """The commands for schedulers in docs/running.md that submit to a cluster: Airflow's and cron's."""
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    [airflow] = re.findall(r'bash_command="""\n(.*?)"""', page, re.S)
    [cron] = re.findall(r"^    0 2 \* \* \*  (.* job submit .*)$", page, re.M)
    return [airflow.replace("\\\\\n", "\\\n"), cron.replace("\\%", "%")]


@pytest.mark.parametrize(
    "number", [pytest.param(0, marks=pytest.mark.chaos), 1], ids=["airflow", "cron"]
)
def test_schedulers_get_the_exit_code_of_a_run_that_they_submit(
    head: Head, job: Job, number: int
) -> None:
    """`ray job submit` itself ends with 0 or 1."""
    recipe = recipes()[number]
    for ours, theirs in {
        "s3://bucket/runs/{{ run_id }}-{{ ti.try_number }}": f"{job.folder}/summary",
        "/mnt/runs": str(job.folder),
        "/srv/earmark": str(ROOT),
        ".venv/bin/": f"{Path(sys.executable).parent}/",
        "http://head:8265": head.address,
        "mine.yaml": f"{job.config} --relabel",
    }.items():
        recipe = recipe.replace(ours, theirs)
    if number:
        job.write(tasks={"kind": job.sections["tasks"]["kind"] | {"topk": 3}})
    else:
        pretend_holder(job.folder)
    done = subprocess.run(["bash", "-c", recipe], capture_output=True, text=True, timeout=600)
    assert done.returncode == (2 if number else 75), done.stdout + done.stderr


def test_paths_in_the_upload_are_refused_for_it_is_deleted(head: Head, job: Job) -> None:
    """Relative ones, and absolute ones that lead there."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.address)
    arguments = (
        "--set output.path=labels --set input.path=[$PWD/configs,s3://bucket/calls] "
        "--set input.audio_root=. --summary ended.json"
    )
    id, said = submit(client, job, arguments)
    until(lambda: client.get_job_status(id).is_terminal(), said)
    assert client.get_job_info(id).driver_exit_code == 2, said()
    expected = "expected an absolute path or a URL (s3://...) outside of the job's upload, found "
    upload = r"(/\S+/working_dir_files/\w+)"
    for key, end in {
        "output.path": f"'labels', which is {upload}/labels",
        "input.path": f"'{upload}/configs', which is {upload}/configs",
        "input.audio_root": f"'\\.', which is {upload}",
        "--summary": f"'ended.json', which is {upload}/ended.json",
    }.items():
        assert re.search(f"{key}: {re.escape(expected)}{end}: Ray deletes", said()), (key, said())
    assert said().count(expected) == 4


def test_a_job_server_wants_the_token(head: Head) -> None:
    import requests

    answer = requests.get(f"{head.address}/api/jobs/", timeout=30)
    assert answer.status_code in (401, 403)


@pytest.mark.chaos
def test_prometheus_sees_a_run_and_every_panel_of_grafana_has_something_to_show(
    head: Head, job: Job
) -> None:
    from ray.job_submission import JobSubmissionClient

    (job.audio / "bad.wav").write_text("no sound")
    client = JobSubmissionClient(head.address)
    id, said = submit(client, job)
    seen: dict[str, float] = {}
    wanted = {
        'ray_earmark_clips_total{stage="read",status="ok"}',
        'ray_earmark_clips_total{stage="read",status="error"}',
        'ray_earmark_clips_total{stage="kind",status="ok"}',
        'ray_earmark_clips_total{stage="write",status="ok"}',
        'ray_earmark_audio_seconds_total{stage="write"}',
        'ray_earmark_heard_seconds_total{stage="kind"}',
        'ray_earmark_padded_seconds_total{stage="kind"}',
        'ray_earmark_stage_seconds_count{stage="kind"}',
    }

    def all_are_seen() -> bool:
        for name, value in scraped(head.metrics):
            seen[name] = max(seen.get(name, 0.0), value)
        return wanted <= seen.keys()

    until(all_are_seen, lambda: f"{wanted - seen.keys()}\n{said()}")
    heard, padded = (
        seen[f'ray_earmark_{which}_seconds_total{{stage="kind"}}'] for which in ("heard", "padded")
    )
    assert 0 < heard <= padded
    until(lambda: client.get_job_status(id).is_terminal(), said)

    dashboard = json.loads((ROOT / "configs" / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    there = {name.partition("{")[0] for name in seen}
    assert len(queries) >= 6 and names <= there, names - there


def scraped(address: str) -> Iterator[tuple[str, float]]:
    """Earmark's metrics, with the labels that are its own."""
    import requests

    for line in requests.get(address, timeout=30).text.splitlines():
        name, _, labels = line.partition(" ")[0].partition("{")
        if name.startswith("ray_earmark_"):
            own = [f'{k}="{v}"' for k, v in re.findall(r'(stage|status)="([^"]*)"', labels)]
            yield f"{name}{{{','.join(own)}}}", float(line.rpartition(" ")[2])


def test_what_is_uploaded_is_small(tmp_path: Path) -> None:
    """Only what runs: neither the environment nor tests, the demo's output or git's own files."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    excludes = [*get_runtime_env_default_excludes(), "tests", "demo"]  # as `make submit` has it
    create_package(str(ROOT), package, include_gitignore=True, excludes=excludes)
    assert package.stat().st_size < 2 << 20
    with zipfile.ZipFile(package) as uploaded:
        folders = {name.partition("/")[0] for name in uploaded.namelist()}
    assert {"jobs", "audio_ops", "configs"} <= folders
    assert not {".git", ".venv", "tests", "demo"} & folders
