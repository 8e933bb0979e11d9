"""A config that can't be run says so before anything starts: file, key, expected, found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from runs import ROOT, Job, earmark

from jobs.config import ConfigError
from jobs.config_file import load_config
from jobs.preflight import find_models

SECRET = "wJalrXUtnFEMI"

GOOD: dict[str, Any] = {
    "input": {"path": "/data/recordings"},
    "tasks": {
        "kind": {"task": "audio-classification", "model": "/models/x"},
        "text": {"task": "automatic-speech-recognition", "model": "openai/whisper-tiny"},
    },
    "output": {"path": "/data/labels"},
}
RAW = {"extensions": ["ulaw"], "encoding": "mulaw", "sample_rate": 8000}


def write(folder: Path, content: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(key: str, value: Any) -> dict[str, Any]:
    """GOOD with one value replaced, or added."""
    whole = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = key.split(".")
    section = whole
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return whole


def complaint(folder: Path, content: Any, *overrides: str) -> str:
    path = write(folder, content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert all(line.startswith((f"{path}: ", "--set")) for line in message.splitlines()), message
    return message.replace(f"{path}: ", "")


@pytest.mark.parametrize("raw", [RAW, [RAW, RAW | {"extensions": [".SLN"], "encoding": "s16le"}]])
def test_one_kind_of_headerless_files_is_declared_or_several(tmp_path: Path, raw: Any) -> None:
    found = load_config(write(tmp_path, changed("audio.raw", raw))).audio.raw
    assert [one.extensions for one in found] == [("ulaw",), ("sln",)][: len(found)]
    assert len(found) == (1 if raw is RAW else 2)


def test_a_good_config_loads(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.input.paths == ("/data/recordings",)
    assert list(config.tasks) == ["kind", "text"]
    assert config.audio.max_clip_s == 4 * 3600
    assert config.max_error_fraction == 0.05


def test_a_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    with pytest.raises(ValidationError):
        config.audio.max_clip_s = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("taskz", {}, "taskz: unknown key (did you mean 'tasks'?), expected one of input, "),
        ("audio.max_clip", 3, "audio.max_clip: unknown key (did you mean 'max_clip_s'?)"),
        ("input.storage_option", {}, "(did you mean 'storage_options'?)"),
        ("tasks.kind.topk", 3, "tasks.kind.topk: unknown key (did you mean 'top_k'?)"),
        (
            "resources.tasks.kind.actor",
            1,
            "resources.tasks.kind.actor: unknown key (did you mean 'actors'?)",
        ),
        (
            "resources.tasks.kind.actors",
            {"min": 3, "max": 2},
            "resources.tasks.kind.actors.max: expected at least min (3), found 2",
        ),
        (
            "resources.tasks.kind.actors",
            "many",
            "resources.tasks.kind.actors: expected a number or {min: 1, max: 8}, found 'many'",
        ),
        (
            "resources.tasks.kind.actors",
            {"most": 2, "max": 2},
            "resources.tasks.kind.actors.most: unknown key, expected one of min, max",
        ),
        ("drift.max_label_distance", 2, "drift.max_label_distance: expected less than or equal"),
        ("audio.max_clip_s", "long", "audio.max_clip_s: expected a valid number"),
        ("audio.max_clip_s", "long", "found 'long'"),
        ("audio.max_clip_s", -1, "audio.max_clip_s: expected greater than 0, found -1"),
        ("max_error_fraction", 7, "max_error_fraction: expected less than or equal to 1, found 7"),
        (
            "input.path",
            3,
            "input.path: expected a text, found 3, a number to YAML: write it in quotes",
        ),
        ("input.path", "", "input.path: expected a path or a list of paths, found an empty one"),
        ("input.path", [], "input.path: expected a path or a list of paths, found an empty one"),
        ("input.format", "tape", "input.format: expected one of auto, audiofolder"),
        ("input.format", "tape", "found 'tape'"),
        ("input", ["/data"], "input: expected a valid dictionary or instance of Input"),
        ("tasks", {}, "tasks: expected at least one task by name, found {}"),
        ("tasks", None, "tasks: expected at least one task by name, found None"),
        ("tasks.kind", "x", "tasks.kind: expected keys and values, found 'x'"),
        ("audio.raw", {"extensions": ["x"]}, "audio.raw.0.encoding: expected a value, found none"),
        ("audio.raw", RAW | {"encoding": "ulaw"}, "expected one of mulaw, alaw, s8, "),
        ("audio.raw", RAW | {"encoding": "g722"}, "expected 16000, which g722 always has, found"),
        ("audio.raw", RAW | {"encoding": "vox", "channels": 2}, "channels: expected 1, as vox has"),
        ("audio.raw", RAW | {"sample_rate": 8}, "sample_rate: expected greater than or equal to"),
        ("audio.raw", RAW | {"extensions": []}, "audio.raw.0.extensions: expected "),
        ("tasks.kind.task", "sing", "tasks.kind.task: expected one of audio-classification, "),
        ("tasks.kind.task", "sing", "found 'sing'"),
        ("tasks.Kind", {"task": "x"}, "tasks.Kind: expected a name of small letters"),
        ("tasks.kind.top_k", "all", "tasks.kind.top_k: expected a valid integer"),
        ("tasks.text.timestamps", "page", "found 'page'"),
        ("tasks.text.num_beams", 0, "tasks.text.num_beams: expected greater than or equal to 1"),
        ("resources.tasks.other", {}, "resources.tasks.other: expected one of the tasks (kind, "),
        ("resources.clips_per_block", 0, "resources.clips_per_block: expected greater than"),
    ],
)
def test_a_mistake_names_its_key_what_was_found_and_what_was_expected(
    tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    assert expected in complaint(tmp_path, changed(key, value))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path, {"tasks": GOOD["tasks"]}).splitlines() == [
        "input: expected a value, found none",
        "output: expected a value, found none",
    ]
    no_model = changed("tasks.kind", {"task": "audio-classification"})
    assert complaint(tmp_path, no_model) == "tasks.kind.model: expected a value, found none"


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    wrong = changed("audio.max_clip", 3)
    wrong["tasks"]["kind"]["topk"] = 1
    wrong["output"] = {}
    assert len(complaint(tmp_path, wrong).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input: [", "expected YAML: "),
        ("a: 1\n\tb: 2\n", "in line 2"),
        ("just text", "expected keys and values, found str"),
        ("", "expected keys and values, found NoneType"),
        ("input: !!python/object:os.system {}", "expected YAML: could not determine a constructor"),
        ("tasks: {a: {}, a: {}}", "key 'a' for the second time in line 1"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaint(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: expected a config file: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"input: \xff\xfe")
    with pytest.raises(ConfigError, match="expected YAML in UTF-8"):
        load_config(path)


PLAIN = """input:
  path: /in
output: {path: /out}
tasks:
  kind:
    task: audio-classification
    model: m
"""


def test_set_replaces_and_adds_values(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    overrides = ("audio.max_clip_s=2.5", "input.path=[/a, /b]", "tasks.kind.top_k=null")
    config = load_config(path, overrides)
    assert config.audio.max_clip_s == 2.5
    assert config.input.paths == ("/a", "/b")
    assert config.tasks["kind"].model_dump()["top_k"] is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("audio.max_clip_s", "--set: expected a.b.c=value, found 'audio.max_clip_s'"),
        ("audio..x=1", "--set: expected a.b.c=value"),
        ("max_error_fraction.x=1", "max_error_fraction"),
        ("input.path.x=1", "--set input.path.x: expected a section at input.path, found"),
        ("tasks.kind.model.a.b=1", "expected a section at tasks.kind.model, found a plain value"),
        ("audio.max_clip=1", "audio.max_clip: unknown key"),
        ("audio.max_clip_s=[", "audio.max_clip_s: expected a valid number"),
    ],
)
def test_a_wrong_set_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in complaint(tmp_path, GOOD, override)


@pytest.mark.parametrize(
    "text",
    [
        *("IN/take #3", "[old]/*.wav", "{a,b}.tar", "shard-{000000..000123}.tar", "*.wav", "a: b"),
        *("no", "on", "yes", "null.wav", "1:30", "0123456", "1234567", "12e4567", "1_000", "1.50"),
        *("2024-01-31", "# all", "@x", "'half", "C:\\a", "a=b", " b ", "true", "0x1f", "é"),
    ],
)
def test_a_text_is_set_as_it_is_typed(tmp_path: Path, text: str) -> None:
    """Whatever YAML would make of it."""
    path = write(tmp_path, GOOD)
    config = load_config(path, [f"input.path={text}", f"tasks.kind.revision={text}"])
    assert config.input.paths == (text,)
    assert config.tasks["kind"].revision == text
    for quoted in (json.dumps(text), "'" + text.replace("'", "''") + "'"):
        assert load_config(path, [f"tasks.kind.revision={quoted}"]).tasks["kind"].revision == text


def test_what_is_no_text_is_set_as_what_it_is(tmp_path: Path) -> None:
    overrides = [
        *("audio.max_clip_s=010", "resources.clips_per_block=1_000", "resources.prepare_cpus=.5"),
        *("output.keep=[a, b]", "tasks.kind.top_k=null", "input.storage_options.anon=true"),
        *("input.storage_options.port=9000", "input.storage_options.version=0123"),
        "resources.tasks={kind: {num_cpus: 2}}",
    ]
    config = load_config(write(tmp_path, GOOD), overrides)
    assert (config.audio.max_clip_s, config.resources.clips_per_block) == (10.0, 1000)
    assert (config.resources.prepare_cpus, config.output.keep) == (0.5, ("a", "b"))
    assert config.input.storage_options == {"anon": True, "port": 9000, "version": "0123"}
    assert config.resources.tasks["kind"].num_cpus == 2


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "model: ",
            "revision: no\n    model: ",
            'kind.revision: expected a text, found no, which YAML reads as False: write it in quotes, "no"',
        ),
        (
            "model: ",
            "revision: 1234567\n    model: ",
            "kind.revision: expected a text, found 1234567, a number to YAML: write it in quotes",
        ),
        (
            "model: ",
            "revision: 0123456\n    model: ",
            "kind.revision: expected a decimal number or a text in quotes, found 0123456, which YAML reads as 42798",
        ),
        (
            "model: ",
            "revision: 2024-01-31\n    model: ",
            "kind.revision: expected a text, found 2024-01-31, which YAML reads as",
        ),
        ("tasks:", "output.keep: [on]\ntasks:", "output.keep"),
        (
            "tasks:",
            "audio: {max_clip_s: 1:30}\ntasks:",
            "audio.max_clip_s: expected a decimal number or a text in quotes, found 1:30, which YAML reads as 90",
        ),
        (
            "tasks:",
            "audio: {max_clip_s: on}\ntasks:",
            "audio.max_clip_s: expected a number, found on",
        ),
        (
            "  kind:",
            "  no:",
            'tasks.no: expected a name, found no, which YAML reads as something else: write it in quotes, "no"',
        ),
        ("path: /in", "path: /in #3", "input.path: expected quotes around a path with ' #'"),
        (
            "path: /in",
            "path: [/in #3\n  ]",
            "input.path.0: expected quotes around a path with ' #'",
        ),
        (
            "path: /in",
            "path: *.wav",
            "in line 2, column 10: path: write a text that begins with * in quotes",
        ),
        ("path: /in", "path: [old]/a.wav", "path: write a text that begins with [ in quotes"),
        ("path: /in", "path: /in: b", "path: write a text with a colon and a space in quotes"),
    ],
)
def test_what_yaml_makes_of_a_value_in_silence_is_said(
    tmp_path: Path, before: str, after: str, expected: str
) -> None:
    text = PLAIN.replace(before, after, 1)
    assert text != PLAIN
    assert expected in complaint(tmp_path, text)


@pytest.mark.parametrize(
    "url", ["memory://out", "http://host/out", "hdfs://host/out", "r2://b/out"]
)
def test_a_store_that_no_table_can_be_written_to_is_refused(tmp_path: Path, url: str) -> None:
    found = complaint(tmp_path, GOOD, f"output.path={url}")
    assert "output.path: expected a local folder, or a URL that begins with s3://" in found
    for known in ("s3://b/out", "gs://b/out", "az://b/out", "abfs://b@me.dfs.core.windows.net/out"):
        load_config(write(tmp_path, GOOD), [f"output.path={known}"])


def test_an_empty_variable_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the current folder."""
    monkeypatch.setenv("OUT", "")
    found = complaint(tmp_path, GOOD, "output.path=${OUT}")
    assert "output.path: expected a folder or URL, found nothing" in found


def test_a_comment_behind_a_path_is_one_unless_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "take # 3").mkdir()
    text = PLAIN.replace("/in", f"{tmp_path}/take # 4")
    assert load_config(write(tmp_path, text)).input.paths == (f"{tmp_path}/take",)
    assert "input.path: expected quotes" in complaint(tmp_path, text.replace("# 4", "# 3"))
    secret = PLAIN.replace("path: /in", "path: /in\n  storage_options: {key: 0123}")
    assert "0123" not in complaint(tmp_path, secret)


def test_variables_of_the_environment_fill_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET", "recordings")
    monkeypatch.setenv("LIMIT", "7.5")
    path = write(
        tmp_path,
        changed("input.path", ["s3://${BUCKET}/in", "/plain"])
        | {"audio": {"max_clip_s": "${LIMIT}"}},
    )
    config = load_config(path)
    assert config.input.paths == ("s3://recordings/in", "/plain")
    assert config.audio.max_clip_s == 7.5


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    message = complaint(tmp_path, changed("input.path", ["/a", "s3://${NO_SUCH_THING}/in"]))
    assert message == "input.path.1: expected $NO_SUCH_THING in the environment, found none"


@pytest.mark.parametrize("section", ["input", "output"])
@pytest.mark.parametrize(
    "options",
    [
        {"key": SECRET},
        {"secret": SECRET},
        {"token": SECRET},
        {"sas_token": SECRET},
        {"password": SECRET},
        {"passphrase": SECRET},
        {"account_key": SECRET},
        {"connection_string": SECRET},
        {"client_kwargs": {"aws_secret_access_key": SECRET}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_literal_secret_is_refused_and_not_printed(
    tmp_path: Path, section: str, options: dict[str, Any]
) -> None:
    wrong = changed(f"{section}.storage_options", options)
    for beside in ({}, {"taskz": 1}, {"audio": {"max_clip_s": "x"}}):
        message = complaint(tmp_path, wrong | beside)
        assert f"{section}.storage_options." in message
        assert "${" in message
        assert SECRET not in message


@pytest.mark.parametrize("token", ["anon", "google_default", "cloud", "/etc/keys/labeller.json"])
def test_where_credentials_are_is_no_secret(tmp_path: Path, token: str) -> None:
    path = write(tmp_path, changed("input.storage_options", {"token": token}))
    assert load_config(path).input.storage_options == {"token": token}


@pytest.mark.parametrize("section", ["input", "output"])
def test_a_password_in_a_url_is_refused_and_not_printed(tmp_path: Path, section: str) -> None:
    message = complaint(tmp_path, changed(f"{section}.path", f"sftp://me:{SECRET}@host/x"))
    assert f"{section}.path: expected a URL without credentials" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "text",
    [
        f'input:\n  path: x\n  storage_options:\n    secret: "{SECRET}\n',  # no closing quote
        f"input:\n  path: x\n  storage_options:\n    secret: {SECRET}: oops: x\n",
        f"input: [{{path: x, storage_options: {{secret: {SECRET}}}}}]",
        f"input: {{path: x, storage_options: {SECRET}}}",
        f"input: {{path: {{secret: {SECRET}}}}}",
        f"input: {{path: x, secret: {SECRET}}}",
        f"input: {{path: x}}\nstorage_options: {{secret: {SECRET}}}",
        f"input: {{path: x}}\ntasks: [{{secret: {SECRET}}}]",
        f"input: {{path: x}}\ntasks: {{a: [{SECRET}]}}",
    ],
)
def test_no_message_repeats_a_secret_that_stands_in_the_wrong_place(
    tmp_path: Path, text: str
) -> None:
    assert SECRET not in complaint(tmp_path, text)


def test_a_secret_from_the_environment_is_used_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    path = write(tmp_path, changed("input.storage_options", {"secret": "${MY_SECRET}"}))
    assert load_config(path).input.storage_options == {"secret": SECRET}
    wrong = changed("input.storage_options", {"secret": "${MY_SECRET}"}) | {"taskz": 1}
    assert SECRET not in complaint(tmp_path, wrong)
    wrong = {"input": [wrong["input"]]}
    assert SECRET not in complaint(tmp_path, wrong)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_that_is_shipped_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.config_file import ENVIRONMENT

    for name in ENVIRONMENT.findall(path.read_text(encoding="utf-8")):
        if name not in os.environ:
            monkeypatch.setenv(name, f"/{name.lower()}")
    assert load_config(path).tasks


def test_a_model_folder_that_is_not_there_is_named(tmp_path: Path, classifier: Path) -> None:
    job = Job(tmp_path, tmp_path / "nowhere")
    with pytest.raises(ConfigError) as caught:
        find_models(load_config(job.config), job.config)
    assert str(caught.value) == (
        f"{job.config}: tasks.kind.model: expected a model folder, found nothing at "
        f"{tmp_path / 'nowhere'}"
    )


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"tasks\.kind\.model: .*found no config\.json in"):
        find_models(load_config(job.config), job.config)


def test_a_model_that_cannot_do_the_task_is_refused(tmp_path: Path, classifier: Path) -> None:
    tasks = {"text": {"task": "automatic-speech-recognition", "model": str(classifier)}}
    job = Job(tmp_path, classifier, tasks=tasks)
    with pytest.raises(ConfigError, match=r"tasks\.text\.model: expected .*, found "):
        find_models(load_config(job.config), job.config)


def test_a_hub_id_without_a_hub_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, Path("nobody/no-such-model"))
    with pytest.raises(ConfigError, match=r"expected a model folder or a hub id"):
        find_models(load_config(job.config), job.config)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (["kind_label"], r"^output\.keep, tasks.kind: .* kind_label twice: rename a task"),
        (["Clip_ID"], r"^output\.keep: .* Clip_ID and clip_id that every table has \(whose case"),
        (
            ["path", "Path"],
            r"^output\.keep: .* Path and path \(whose case .*: keep it under another",
        ),
    ],
)
def test_columns_of_one_name_are_refused(
    tmp_path: Path, classifier: Path, kept: list[str], told: str
) -> None:
    from audio_ops.tasks import TaskOptions
    from jobs.table.schema import TableMismatch, table_schema

    config = load_config(Job(tmp_path, classifier).config)
    tasks: dict[str, TaskOptions] = {"kind": config.tasks["kind"]}
    import pyarrow as pa

    with pytest.raises(TableMismatch, match=told):
        table_schema(tasks, pa.schema([(name, pa.string()) for name in kept]))


def test_a_wrong_config_exits_with_2_before_ray_starts(tmp_path: Path) -> None:
    path = write(tmp_path, changed("audio.max_clip", 3))
    state = tmp_path / "state"
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path / "ray"), "XDG_STATE_HOME": str(state)}
    done = earmark("run", path, env=environment)
    assert done.returncode == 2
    assert f"error: {path}: audio.max_clip: unknown key" in done.stdout + done.stderr
    assert not (tmp_path / "ray").exists()
