"""Paths, URLs and configs that cannot be meant: told of before a run, with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import Job

from jobs.cli import run
from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.sources import BadInput
from jobs.sources._walk import Search, find_files


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.wav", "sub/b.wav", "take|2"]),
        ("**", ["a.wav", "sub/b.wav", "take|2"]),
        ("[an]*", ["a.wav"]),
        ("*.txt", ["notes.txt"]),  # its extension is named
        ("n*", ["notes.txt"]),  # nothing else matches
        ("[!n]*", ["a.wav", "sub/b.wav", "take|2"]),  # its name tells nothing
    ],
)
def test_a_glob_passes_over_what_a_folder_would(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    for name in ("a.wav", "notes.txt", "take|2", "sub/b.wav", "sub/c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    search = Search((".wav",), {}, print)
    found = find_files([f"{tmp_path}/{pattern}"], search)
    assert [str(Path(file.source).relative_to(tmp_path)) for file in found] == expected
    assert not set(search.passed_over) & {Path(name).suffix for name in expected}


@pytest.mark.parametrize("name", ["x.wav", "*.wav", "{x,y}.wav"])
def test_a_path_in_a_folder_that_may_not_be_entered_is_no_missing_one(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    me = os.geteuid()
    try:
        if me == 0:  # whom no mode keeps out
            os.seteuid(65534)
        with pytest.raises(BadInput, match=r"that may be read, found .*Permission denied"):
            find_files([f"{tmp_path}/closed/{name}"], Search((".wav",), {}, print))
    finally:
        os.seteuid(me)


# --- stores and folders -----------------------------------------------------------------------------


def planned(job: Job, *sets: str) -> int:
    return run(["plan", str(job.config), *(part for each in sets for part in ("--set", each))])


@pytest.mark.parametrize("key", ["input.path", "output.path", "tasks.kind.model"])
@pytest.mark.parametrize(
    ("url", "message"),
    [("gs://bucket/x", "install gcsfs"), ("abfs://c/x", "adlfs"), ("s3://", "a bucket")],
)
def test_a_url_that_cannot_be_opened_is_refused(
    tmp_path: Path,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    url: str,
    message: str,
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(1)
    assert planned(job, f"{key}={url}") == 2
    out = capsys.readouterr().out
    assert f"{job.config}: {key}: expected" in out and message in out, out


def test_what_s3_does_not_take_is_refused(
    tmp_path: Path,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    job = Job(tmp_path, classifier)
    assert planned(job, "input.path=s3://not a bucket/x") == 2
    assert planned(job, "input.path=s3://bucket/x", "input.storage_options={endpoint: x}") == 2
    out = capsys.readouterr().out
    assert "input.path: expected a URL that S3 knows" in out
    assert "input.storage_options: expected options of" in out and "'endpoint'" in out


def test_a_store_without_credentials_asks_for_them(
    tmp_path: Path,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "BOTO_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    job = Job(tmp_path, classifier)
    region = "input.storage_options={client_kwargs: {region_name: eu-north-1}}"
    assert planned(job, "input.path=s3://bucket/x", region) == 2
    out = capsys.readouterr().out
    assert "input.storage_options: expected credentials for s3://bucket/x" in out and "anon" in out


def test_a_hub_that_does_not_answer_is_one_line(
    tmp_path: Path,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    job, closed = Job(tmp_path, classifier), "{endpoint: 'http://127.0.0.1:9'}"
    dataset = "hf://datasets/a/b/c.json"
    assert planned(job, f"input.path={dataset}", f"input.storage_options={closed}") == 1
    assert run(["exit-code", dataset, "--storage-option", "endpoint=http://127.0.0.1:9"]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("error: ") and "ConnectError" in line


COMMANDS: dict[str, Callable[[Job, str], list[str]]] = {
    "plan": lambda job, at: ["plan", str(job.config), "--set", f"output.path={at}"],
    "run": lambda job, at: ["run", str(job.config), "--set", f"output.path={at}"],
    "verify": lambda job, at: ["verify", at],
    "evaluate": lambda job, at: ["evaluate", at],
    "report": lambda job, at: ["report", at],
    "export": lambda job, at: ["export", at, str(job.folder / "out"), "--as", "csv"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_is_no_table(
    tmp_path: Path, classifier: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    job = Job(tmp_path, classifier)
    path = job.sound("a.wav", 300)
    for at in (path, path / "below"):
        assert run(COMMANDS[command](job, str(at))) == 2
        told = "".join(capfd.readouterr())
        assert f"expected a folder, found a file at {path}" in told, told


# --- YAML -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "absent"),
    [
        ("input:\n  path: [a #3, b]\noutput: {path: x}\n", "path: a # after a space", "output"),
        ("input: {path: a}\n---\ninput: {path: b}\n", "another document", "in quotes"),
        (
            "input: {path: a, extensions: wav}\n",
            "input.extensions: expected a list, found",
            "tuple",
        ),
    ],
)
def test_problems_of_yaml_are_told_where_they_are(
    tmp_path: Path, text: str, message: str, absent: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "c.yaml")
    line = next(line for line in str(error.value).split("\n") if message in line)
    assert absent not in line
