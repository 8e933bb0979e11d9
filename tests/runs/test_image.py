"""configs/kuberay/Dockerfile: what the image holds is what KubeRay's files expect of it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
import yaml
from runs import ROOT

DOCKERFILE = ROOT / "configs" / "kuberay" / "Dockerfile"
KUBERAY = sorted((ROOT / "configs" / "kuberay").glob("*.yaml"))


class Step(NamedTuple):
    """An instruction of a Dockerfile with its arguments."""

    name: str
    arguments: str


def steps() -> list[Step]:
    lines = [
        line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"
    ]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [step.arguments for step in steps() if step.name == name]


def copied() -> dict[str, str]:
    """Where in the image each file or folder of the repository lies."""
    [workdir] = arguments("WORKDIR")
    found = {}
    for argument in arguments("COPY"):
        *sources, target = shlex.split(argument)
        place = PurePosixPath(workdir) / target
        for source in sources:
            found[source] = str(place / source if target.endswith("/") else place)
    return found


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def job(path: Path) -> dict[str, Any]:
    """The RayJob in a file, its own or the one that it makes every night."""
    spec: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
    return spec.get("jobTemplate", spec)


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


def test_every_file_that_is_copied_exists_and_the_whole_house_is_copied() -> None:
    found = copied()
    assert all((ROOT / source).exists() for source in found)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    find = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    house = {pattern.rstrip("*") for pattern in find}
    project = settings["project"]
    wanted = {project["readme"], *project["license-files"], "pyproject.toml"}
    in_house = {
        name for name in wanted if name.partition("/")[0] in house
    }  # copied with its folder
    assert house | (wanted - in_house) <= set(found)


def test_dependencies_are_those_that_are_pinned() -> None:
    seen: set[str] = set()
    installs = 0
    for step in steps():
        if step.name == "COPY":
            seen |= set(shlex.split(step.arguments)[:-1])
        for command in step.arguments.split("&&") if step.name == "RUN" else ():
            if "pip install" not in command:
                continue
            installs += 1
            options = shlex.split(command)
            if "--no-deps" not in options:
                assert options[options.index("--constraint") + 1] == "constraints.txt"
                assert {"constraints.txt", "pyproject.toml"} <= seen
                assert any(option.endswith("[cluster]") for option in options)  # Ray's job server
    assert installs == 2
    [image] = arguments("FROM")
    comment = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[0]
    assert image == f"python:{re.search(r'Python ([0-9.]+)', comment)[1]}-slim"  # type: ignore[index]


def test_nothing_runs_as_root_and_kubernetes_can_tell() -> None:
    """`runAsNonRoot` is checked by number: of a user's name the kubelet knows nothing."""
    user = arguments("USER")[-1]
    assert user.isdigit() and int(user) > 0
    assert f"--uid {user} " in " ".join(arguments("RUN"))
    assert [step.name for step in steps()][-1] == "USER"


def test_models_are_cached_in_a_volume_that_the_user_may_write() -> None:
    [volume], [user] = arguments("VOLUME"), arguments("USER")
    assert f"XDG_CACHE_HOME={volume}" in arguments("ENV")
    assert f"install --directory --owner={user} {volume}" in " ".join(arguments("RUN"))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_the_image_fits_what_kuberay_runs_in_it(path: Path) -> None:
    spec = job(path)
    build = re.search(r"docker build -t (\S+) -f (\S+) \.", DOCKERFILE.read_text(encoding="utf-8"))
    assert build and ROOT / build[2] == DOCKERFILE
    assert {container["image"] for container in containers(spec)} == {build[1]}
    working_dir = yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"]
    assert [working_dir] == arguments("WORKDIR")
    _, _, module, config, *_ = spec["entrypoint"].split()
    for needed in (module.split(".")[0], config.split("/")[0]):
        assert copied()[needed] == f"{working_dir}/{needed}"
    assert spec["rayClusterSpec"]["rayVersion"] == pins()["ray"]
