"""cluster.yaml and configs/kuberay/: what Ray's launcher and KubeRay take, and nothing that is open."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from runs import ROOT

from jobs.label import main

KINDS = ("rayjob", "raycronjob")
KUBERAY = [ROOT / "configs" / "kuberay" / f"{kind}.yaml" for kind in KINDS]


def launcher() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return content


def job(path: Path) -> dict[str, Any]:
    """The RayJob in a file, its own or the one that it makes every night."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert document["apiVersion"] == "ray.io/v1"
    spec: dict[str, Any] = document["spec"]
    return spec["jobTemplate"] if document["kind"] == "RayCronJob" else spec


def test_rays_launcher_takes_the_file() -> None:
    config = prepare_config(launcher())
    validate_config(config)
    groups = {name: kind for name, kind in config["available_node_types"].items() if name != "head"}
    assert set(groups) == {"decode", "gpu"}
    for group in groups.values():
        assert 0 <= group["min_workers"] < group["max_workers"] <= config["max_workers"]
    market = groups["gpu"]["node_config"]["InstanceMarketOptions"]
    assert market == {"MarketType": "spot"}


def test_machines_have_a_role_and_no_keys_and_their_metadata_is_their_own() -> None:
    for kind in launcher()["available_node_types"].values():
        machine = kind["node_config"]
        assert machine["IamInstanceProfile"]
        metadata = machine["MetadataOptions"]
        assert metadata == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])
    assert "aws_access_key" not in (ROOT / "cluster.yaml").read_text().lower()


def test_nobody_comes_in_but_by_ssh_from_one_range() -> None:
    [rule] = launcher()["provider"]["security_group"]["IpPermissions"]
    assert rule["FromPort"] == rule["ToPort"] == 22
    for addresses in rule["IpRanges"]:
        assert ipaddress.ip_network(addresses["CidrIp"]).prefixlen >= 16


def test_every_ray_asks_for_the_token_and_the_dashboard_is_local() -> None:
    config = launcher()
    starts = [
        command
        for group in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[group]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_runs_a_config_that_there_is_with_options_that_there_are(
    path: Path, tmp_path: Path
) -> None:
    python, m, module, config, *options = job(path)["entrypoint"].partition(";")[0].split()
    assert (python, m, module) == ("python", "-m", "jobs.label")
    assert (ROOT / config).is_file()
    options[-1] = str(tmp_path / "summary.json")
    assert main(["/nowhere.yaml", *options]) == 2  # an unknown option would raise SystemExit


def test_kuberay_starts_a_run_again_that_failed_and_none_that_found_the_table_held(
    tmp_path: Path,
) -> None:
    entrypoints = {job(path)["entrypoint"] for path in KUBERAY}
    [entrypoint] = entrypoints
    summary = tmp_path / "summary.json"
    _, _, then = entrypoint.replace("/tmp/summary.json", str(summary)).partition(";")
    then = then.replace("python ", f"{sys.executable} ", 1)
    for code, wanted in {0: 0, 1: 1, 2: 2, 3: 3, 75: 0, None: 1}.items():
        if code is None:
            summary.unlink()
        else:
            summary.write_text(json.dumps({"exit_code": code, "run_id": "r", "error": "why"}))
        done = subprocess.run(then, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == wanted, (code, done)
        assert "why" in done.stdout if code is not None else "found none" in done.stderr


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberays_cluster_asks_for_a_token_and_goes_when_the_run_ends(path: Path) -> None:
    spec = job(path)
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 6 * 3600
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"decode", "gpu"}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    for pod in (cluster["headGroupSpec"], *groups.values()):
        inner = pod["template"]["spec"]
        assert inner["serviceAccountName"] == "earmark"
        [container] = inner["containers"]
        assert container["securityContext"]["runAsNonRoot"] is True
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
    [gpu] = groups["gpu"]["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_every_night_is_the_same_run() -> None:
    one, nightly = map(job, KUBERAY)
    assert one == nightly
