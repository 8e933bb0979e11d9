"""Checks that a local path means the same storage on every node, and in the next run."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.inference.checkpoint import LOADED_SUFFIXES, Checkpoint
from jobs import ray_compat
from jobs.config import Config, ConfigError
from jobs.resources import CannotRun, Shares, TaskShare
from jobs.sources._paths import absolute, is_local, local_path

SAMPLED_FILES = 64  # of the input, checked on each node
ANSWER_TIMEOUT_S = 120.0
STALE_S = 24 * 3600.0  # older probes are those of killed runs


class Files(NamedTuple):
    """Files that a node must have. `key` is the config's key for them; `found` has each path's size in
    bytes and mtime in ns (None: any)."""

    key: str
    found: dict[str, tuple[int, int | None]]


def refuse_uploads(config: Config, config_path: str | Path, summary_file: str | None) -> None:
    """Raise ConfigError for paths in Ray's temporary copy of a job's upload.

    Ray deletes that copy with the output in it. Clips in it have another path in each upload, so all
    of them would be labelled again. Models may be there, as their content identifies them.
    """
    problems = [
        f"{key}: expected an absolute path or a URL (s3://...) outside of the job's upload, found "
        f"{path!r}, which is {inside}: Ray deletes that copy, and the next job gets another one"
        for key, path in _paths(config, summary_file)
        if is_local(path) and ray_compat.UPLOAD.match(inside := os.path.realpath(absolute(path)))
    ]
    if problems:
        raise ConfigError("\n".join(f"{config_path}: {problem}" for problem in problems))


def _paths(config: Config, summary_file: str | None) -> Iterator[tuple[str, str]]:
    yield "output.path", config.output.path
    for path in config.input.paths:
        yield "input.path", path
    manifest = config.input.manifest or ()
    for path in (manifest,) if isinstance(manifest, str) else manifest:
        yield "input.manifest", path
    if config.input.audio_root is not None:
        yield "input.audio_root", config.input.audio_root
    for path in config.input.audio_allow:
        yield "input.audio_allow", path
    if summary_file is not None:
        yield "--summary", summary_file


def probe_of(table: str, run_id: str) -> str | None:
    """The path of a run's probe in a local table's folder; None if the table is on a store."""
    return f"{table}/_earmark/probe-{run_id}" if is_local(table) else None


@contextmanager
def probing(table: str, run_id: str) -> Iterator[None]:
    """Keep a file of random content in a local table's folder, by which nodes recognise it."""
    probe = probe_of(table, run_id)
    if probe is None:
        yield
        return
    folder = Path(probe).parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("probe-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - STALE_S:
                path.unlink()
    Path(probe).write_text(secrets.token_hex())
    try:
        yield
    finally:
        for path in folder.glob(f"{Path(probe).name}*"):
            with contextlib.suppress(OSError):
                path.unlink()


def expect_probe(probe: str | None) -> None:
    """Raise OSError on a node without the run's probe: it has another folder at the table's path."""
    if probe is not None and not os.path.exists(probe):
        raise OSError(
            errno.ENOENT,
            f"output.path is not shared by node {socket.gethostname()}, so nothing is written there: "
            "no such file",
            probe,
        )


class SeenInput(NamedTuple):
    """Local files of the input that the driver has seen, and the id of its node."""

    driver: str
    paths: tuple[str, ...]


@cache
def expect_input(seen: SeenInput) -> None:
    """Raise OSError on a node, other than the driver's, that has none of these files."""
    import ray

    if not seen.paths or ray.get_runtime_context().get_node_id() == seen.driver:
        return
    if not any(map(os.path.exists, seen.paths)):
        raise OSError(
            errno.ENOENT,
            f"input.path is not shared by node {socket.gethostname()}: no such file",
            seen.paths[0],
        )


def refuse_other_disks(
    config: Config,
    checkpoints: Mapping[str, Checkpoint],
    clips: Files,
    probe: str | None,
    shares: Shares,
) -> None:
    """Raise CannotRun if a node has other storage at the config's local paths.

    Each node but the driver's is asked for what its work needs: `clips`, files of the input; the
    model folders, and the table, of those actors that fit on it. The driver has to find the file
    that the node writes beside the probe. Nodes that join later are checked by `expect_probe` and
    `expect_input`.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]
    nodes = [node for node in nodes if node["Resources"].get("CPU")]
    if not nodes:
        return
    models = {
        name: _model_files(name, checkpoint.local_folders)
        for name, checkpoint in checkpoints.items()
        if checkpoint.local_folders
    }
    last = list(config.tasks)[-1]
    asked = []
    for node in nodes:
        held = [name for name, share in shares.tasks.items() if _fits(node["Resources"], share)]
        files = [clips, *(models[name] for name in held if name in models)]
        asked.append((node, _ask(node["NodeID"], probe if last in held else None, files)))
    until = time.monotonic() + ANSWER_TIMEOUT_S
    problems = [line for node, answer in asked for line in _differences(node, answer, probe, until)]
    if problems:
        raise CannotRun(
            "\n".join(problems) + "\nuse storage that every node mounts at the same path, or a URL "
            "(s3://...)"
        )


def input_files(sources: pa.ChunkedArray) -> Files:
    """A sample of the input's local files, evenly spread over the plan."""
    names = pc.unique(sources)
    rows = np.unique(np.linspace(0, len(names) - 1, SAMPLED_FILES).astype(int))
    found: dict[str, tuple[int, int | None]] = {}
    for source in names.take(pa.array(rows)).to_pylist() if len(names) else ():
        with contextlib.suppress(OSError, ValueError):  # missing here too: its row will say so
            if is_local(source):
                status = os.stat(local_path(source))
                found[local_path(source)] = status.st_size, status.st_mtime_ns
    return Files("input.path", found)


def _model_files(task: str, folders: Sequence[str]) -> Files:
    """A task's model files, of which a node may have copies: their mtimes may differ."""
    paths = [
        path
        for folder in folders
        for path in Path(folder).iterdir()
        if path.suffix in LOADED_SUFFIXES
    ]
    return Files(f"tasks.{task}.model", {str(path): (path.stat().st_size, None) for path in paths})


def _fits(resources: Mapping[str, float], share: TaskShare) -> bool:
    return (
        resources.get("CPU", 0) >= share.num_cpus - 1e-6
        and resources.get("GPU", 0) >= share.num_gpus
    )


def _ask(node_id: str, probe: str | None, files: Sequence[Files]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(look).options(num_cpus=0, scheduling_strategy=there).remote(probe, files)


def look(probe: str | None, files: Sequence[Files]) -> tuple[dict[str, str], str, str]:
    """Check this node: the problems by the config's keys; the file that it has written beside the
    probe, and that file's content, which begins with the probe's (both empty without a probe)."""
    wrong = {}
    for key, found in files:
        for path, (size, mtime_ns) in found.items():
            try:
                status = os.stat(path)
            except OSError as error:
                wrong[key] = f"{path}: {error.strerror}"
                break
            if status.st_size != size or mtime_ns not in (None, status.st_mtime_ns):
                wrong[key] = f"another file at {path} (size or time differ)"
                break
    if probe is None:
        return wrong, "", ""
    answer = f"{probe}.{secrets.token_hex(8)}"
    try:
        content = Path(probe).read_text() + secrets.token_hex()
        Path(answer).write_text(content)
    except OSError as error:
        return {"output.path": f"{error.filename}: {error.strerror}", **wrong}, "", ""
    return wrong, answer, content


def _differences(
    node: Mapping[str, Any], answer: Any, probe: str | None, until: float
) -> Iterator[str]:
    """A line for each path that the node does not share, from its answer to `look`."""
    import ray

    name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    try:
        wrong, written, content = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        raise CannotRun(
            f"{name} did not answer within {ANSWER_TIMEOUT_S:g} s whether it shares the config's local "
            "paths: use a URL (s3://...), or check its disks"
        ) from None
    except ray.exceptions.RayError:
        traceback.print_exc()
        if any(n["NodeID"] == node["NodeID"] and n["Alive"] for n in ray.nodes()):
            raise
        return  # the node has left
    if written and probe is not None:
        try:
            is_ours = content.startswith(Path(probe).read_text())
            if not is_ours or Path(written).read_text() != content:
                wrong["output.path"] = f"another folder at {Path(probe).parent.parent}"
        except OSError as error:
            wrong["output.path"] = f"what it wrote is not here: {error.filename}: {error.strerror}"
    for key, found in wrong.items():
        yield f"{key}: expected storage that {name} shares with this one, found {found}"
