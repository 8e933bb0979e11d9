"""Models on a store, for clusters that see no hub: fetched once per node."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import posixpath
import socket
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from audio_ops.inference.checkpoint import LOADED_SUFFIXES, Checkpoint, find_checkpoint
from audio_ops.label import Label, context_is_lost, device

BIRTHS_IN_A_ROW = 10  # of a model's process without a label, until the run is given up
LOST_CONTEXT = 72  # exit code of a process whose GPU is of no use to it any more


@dataclass(frozen=True)
class StoredCheckpoint(Checkpoint):
    """A checkpoint in a folder of a store; `name` is this node's copy of it.

    `listing` stands for the files' names, sizes and ETags.
    """

    url: str = ""
    listing: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        return self.url


def environment(threads: int, on_gpu: bool) -> dict[str, str]:
    """What the process of a `LabelHere` has to be started with."""
    # torch tells OpenMP so in the thread that says `set_num_threads`; labels are made in others.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if not on_gpu:
        # Else it would have the node's GPUs, which Ray has given to others.
        variables |= {"CUDA_VISIBLE_DEVICES": ""}
        # torch allocates each activation anew on a CPU. glibc maps it from the kernel, which fills
        # page by page with zeros, and unmaps it at once: a tenth to a third of a wav2vec2 pass.
        # Now glibc keeps what it once had, all in the one arena that holds more than 64 MB.
        variables |= {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
            # Primitives of 1,024 shapes, which oneDNN keeps if not told otherwise, lie strewn over
            # that arena, so that large activations find no room between: wav2vec2-base's process
            # takes half as much again after some hundred lengths of sound. 256 are as fast.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        }
    return variables


class LabelHere(Label):
    """`Label` in a Ray actor on whatever node: the model is fetched if the node has not got it.

    `ledger` is the actor of `start_ledger`; `device` is `cuda` if Ray has given this actor (a part
    of) a GPU. Raises RuntimeError if torch finds none, or if this actor's process was born too often
    without labelling anything: then it is the model, and not a clip.
    """

    ledger: _Ledger

    def __init__(
        self, *, name: str, checkpoint: Checkpoint, device: str, ledger: Any, **settings: Any
    ):
        import ray

        notes = _Ledger(ledger, ray.get_runtime_context().get_actor_id() or "", name)
        births = notes.born()
        if births > BIRTHS_IN_A_ROW:
            raise RuntimeError(
                f"tasks.{name}: the model's process died {births - 1} times in a row without "
                "labelling a clip; what it said last is in Ray's logs (worker-*.err)"
            )
        gc.disable()  # what torch and transformers load is there to stay: a fifth of their start
        if device != "cpu":
            expect_gpu(name)
        files = here(checkpoint)
        super().__init__(name, checkpoint=files, device=device, ledger=notes, **settings)
        gc.freeze()
        gc.enable()

    def __call__(self, table: pa.Table) -> pa.Table:
        since = time.time()
        try:
            labelled = super().__call__(table)
            self.ledger.worked(Work(since, time.time(), self.heard_s, self.padded_s))
            return labelled
        except Exception as error:
            if not context_is_lost(error):
                raise
            traceback.print_exc()
            os._exit(LOST_CONTEXT)  # Ray sends the table again, to a new process


def expect_gpu(task: str) -> None:
    """Raise RuntimeError, with what to do, if torch cannot use the GPU that Ray has counted."""
    import torch

    if device() == "cpu":
        build = torch.version.cuda or torch.version.hip
        raise RuntimeError(
            f"tasks.{task}: expected a GPU on node {socket.gethostname()}, where Ray counts one, "
            f"found none that torch {torch.__version__} can use: "
            + (
                f"check the driver there (`nvidia-smi`; torch is built for {build})"
                if build
                else "install a build of torch for GPUs there"
            )
            + f", or set resources.tasks.{task}.num_gpus: 0 to run on CPUs"
        )


class Work(NamedTuple):
    """What one actor has done: since when and until when (`time.time`), how many seconds of sound
    its model was given, and how many with padding."""

    since: float
    until: float
    heard_s: float
    padded_s: float


class Ledger:
    """`audio_ops.label.Ledger` for all actors of a run, in an actor of its own; and their work."""

    def __init__(self) -> None:
        self.at_hand: dict[str, tuple[Sequence[str], bool]] = {}  # by call
        self.deaths: dict[str, dict[str, int]] = {}  # by call and clip
        self.births: Counter[str] = Counter()  # by actor, since it last labelled something
        # By task and actor; of one that died, its last life.
        self.work: dict[str, dict[str, Work]] = {}

    def born(self, actor: str) -> int:
        self.births[actor] += 1
        return self.births[actor]

    def enter(self, call: str) -> dict[str, int]:
        clips, alone = self.at_hand.pop(call, ((), False))
        deaths = self.deaths.setdefault(call, {})
        for clip in clips:
            deaths[clip] = deaths.get(clip, 0) + 1 if alone else max(deaths.get(clip, 0), 1)
        return deaths

    def at(self, actor: str, call: str, clips: Sequence[str], alone: bool) -> None:
        _, was_alone = self.at_hand.get(call, ((), False))
        if was_alone:
            self.births[actor] = 0
        self.at_hand[call] = clips, alone

    def leave(self, actor: str, call: str) -> None:
        self.births[actor] = 0
        self.at_hand.pop(call, None)
        self.deaths.pop(call, None)

    def worked(self, actor: str, task: str, work: Work) -> None:
        known = self.work.setdefault(task, {})
        known[actor] = work._replace(since=min(work.since, known.get(actor, work).since))

    def all_work(self) -> dict[str, list[Work]]:
        return {task: list(actors.values()) for task, actors in self.work.items()}


def start_ledger() -> Any:
    """A Ray actor of `Ledger` beside the driver, so that what ends models' nodes spares it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    beside = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Ledger).options(scheduling_strategy=here, **beside).remote()


class _Ledger:
    """One task's way to the ledger, from one actor."""

    def __init__(self, ledger: Any, actor: str, task: str):
        self.ledger, self.actor, self.task = ledger, actor, task

    def born(self) -> int:
        return _answer(self.ledger.born.remote(self.actor))

    def enter(self, call: str) -> dict[str, int]:
        return _answer(self.ledger.enter.remote(f"{self.task} {call}"))

    def at(self, call: str, clips: Sequence[str], alone: bool) -> None:
        noted = self.ledger.at.remote(self.actor, f"{self.task} {call}", clips, alone)
        if clips:  # a death may follow, and must find it noted
            _answer(noted)

    def leave(self, call: str) -> None:
        self.ledger.leave.remote(self.actor, f"{self.task} {call}")

    def worked(self, work: Work) -> None:
        self.ledger.worked.remote(self.actor, self.task, work)


def end_ledger(ledger: Any) -> dict[str, list[Work]]:
    """What each task's actors have done, or nothing if nobody knows any more."""
    import ray

    try:
        work: dict[str, list[Work]] = ray.get(ledger.all_work.remote(), timeout=30)
    except ray.exceptions.RayError:
        traceback.print_exc()
        return {}
    ray.kill(ledger)  # it would outlive a run that has joined another's Ray
    return work


def _answer(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def find_model(model: str, revision: str | None, options: Mapping[str, Any]) -> Checkpoint:
    """A local folder, a hub id, or a URL of a folder, which is fetched. Raises FileNotFoundError."""
    if "://" not in model:
        return find_checkpoint(model, revision)
    if revision is not None:
        raise FileNotFoundError(f"{model} is a folder, which has no revisions: found {revision!r}")
    return fetch(model, options)


def here(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its files on this node. Raises FileNotFoundError if they aren't."""
    if not isinstance(checkpoint, StoredCheckpoint):
        if checkpoint.revision is None and not os.path.isdir(checkpoint.name):
            raise FileNotFoundError(
                f"expected the model's folder on node {socket.gethostname()} as well, found nothing "
                f"at {checkpoint.name}"
            )
        return checkpoint
    fetched = fetch(checkpoint.url, checkpoint.options)
    if fetched.listing != checkpoint.listing:
        raise RuntimeError(f"{checkpoint.url} has changed since the run began")
    return fetched


def fetch(url: str, options: Mapping[str, Any]) -> StoredCheckpoint:
    """Copy what `from_pretrained` may read into the cache, unless a copy of just these is there."""
    import fsspec

    fs, root = fsspec.url_to_fs(url.rstrip("/"), **options)
    fs.invalidate_cache()
    try:
        infos = fs.ls(root, detail=True)
    except OSError as error:
        raise FileNotFoundError(f"expected a model folder at {url}: {error}") from None
    files = sorted(
        (info["name"], info["size"], str(info.get("ETag") or info.get("mtime") or ""))
        for info in infos
        if info["type"] == "file" and posixpath.splitext(info["name"])[1] in LOADED_SUFFIXES
    )
    if f"{root}/config.json" not in [name for name, *_ in files]:
        raise FileNotFoundError(
            f"expected a folder with a transformers checkpoint, found no config.json in {url}"
        )
    listing = hashlib.sha256(repr((url, files)).encode()).hexdigest()[:32]
    folder = cache() / "models" / listing

    def copy(target: Path) -> None:
        for name, *_ in files:
            fs.get_file(name, str(target / posixpath.basename(name)))

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several actors on a node one fetches
        made_once(folder, copy)
    return StoredCheckpoint(str(folder), None, url, listing, dict(options))


def cache() -> Path:
    """Where fetched models and the demo's are kept: `$XDG_CACHE_HOME/earmark`, `~/.cache/earmark`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "earmark"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` if it does not exist. It appears whole or not at all, and of
    several callers at once the first one wins."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        make(whole)
        try:
            whole.rename(folder)
        except OSError:  # a folder that is not empty is not replaced: another caller was first
            if not folder.is_dir():
                raise
    return folder
