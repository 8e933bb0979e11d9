"""Finds each task's model; fetches models on a store, once per node, for clusters without a hub."""

from __future__ import annotations

import hashlib
import os
import posixpath
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from audio_ops.inference.checkpoint import (
    ADAPTER_CONFIG,
    LOADED_SUFFIXES,
    AdaptedCheckpoint,
    Checkpoint,
    find_checkpoint,
    with_adapter,
)
from jobs.own_folder import own_folder
from jobs.sources._paths import stored_file
from jobs.stores import store_of


@dataclass(frozen=True)
class StoredCheckpoint(Checkpoint):
    """A checkpoint in a folder of a store; `name` is this node's copy of it.

    `listing` is a digest of the files' names and versions.
    """

    url: str = ""
    listing: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        return self.url

    @property
    def local_folders(self) -> tuple[str, ...]:
        return ()  # each node fetches it


def find_model(model: str, revision: str | None, options: Mapping[str, Any]) -> Checkpoint:
    """A local folder, a hub id, or a URL of a folder, which is fetched. Raises FileNotFoundError."""
    if "://" not in model:
        return find_checkpoint(model, revision)
    if revision is not None:
        raise FileNotFoundError(f"{model} is a folder, which has no revisions: found {revision!r}")
    return with_adapter(fetch(model, options), lambda name, at: find_model(name, at, options))


def on_this_node(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its files on this node, fetched if it is on a store.

    Raises FileNotFoundError if a local folder is not there, RuntimeError if files on a store have
    changed since the run began.
    """
    if isinstance(checkpoint, AdaptedCheckpoint):
        return AdaptedCheckpoint.of(on_this_node(checkpoint.base), on_this_node(checkpoint.adapter))
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
    """Copy the files that `from_pretrained` may read into the cache, unless they are there.

    Raises FileNotFoundError if the folder holds no checkpoint or cannot be listed.
    """
    try:
        fs, root = store_of(url, options)
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None
    root = root.rstrip("/")
    fs.invalidate_cache()
    try:
        infos = fs.ls(root, detail=True)
    except Exception as error:  # clients of stores raise their own errors
        raise FileNotFoundError(f"expected a model folder at {url}: {error}") from None
    files = sorted(
        (info["name"], stored_file(info["name"], info).version)
        for info in infos
        if info["type"] == "file" and posixpath.splitext(info["name"])[1] in LOADED_SUFFIXES
    )
    names = [name for name, _ in files]
    if not any(f"{root}/{file}" in names for file in ("config.json", ADAPTER_CONFIG)):
        raise FileNotFoundError(
            f"expected a folder with a transformers checkpoint, found no config.json in {url}"
        )
    listing = hashlib.sha256(repr((url, files)).encode()).hexdigest()[:32]
    folder = cache() / "models" / listing

    def copy(target: Path) -> None:
        for name, _ in files:
            fs.get_file(name, str(target / posixpath.basename(name)))

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of several actors on a node one fetches
        made_once(folder, copy)
    return StoredCheckpoint(str(folder), None, url, listing, dict(options))


def cache() -> Path:
    """The folder of fetched models and the demo's: `$XDG_CACHE_HOME/earmark`, `~/.cache/earmark` or, if
    nothing can be written there, one among the machine's temporary files."""
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "earmark"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return own_folder()


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
