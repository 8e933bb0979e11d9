"""The headers of a checkpoint's safetensors files, read without torch: whether the files are whole, and
whether their tensors have the sizes that config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audio_ops.inference.checkpoint import INDEX, WEIGHTS, Checkpoint

LFS_POINTER = b"version https://git-lfs"
MAX_HEADER = 100_000_000  # bytes, as safetensors itself has it

Shapes = dict[str, tuple[int, ...]]


def shapes(checkpoint: Checkpoint) -> Shapes:
    """The shape of each tensor by name. {} for a hub id, whose weights need not be on this machine.

    Raises ValueError for a file that is not whole.
    """
    if checkpoint.revision is not None:
        return {}
    files = {WEIGHTS} if checkpoint.has(WEIGHTS) else set(weight_map(checkpoint).values())
    found: Shapes = {}
    for file in sorted(files):
        if path := checkpoint.path(file):
            found |= shapes_in(path)
    return found


def weight_map(checkpoint: Checkpoint) -> dict[str, str]:
    """The file of each tensor of weights that are split into several files."""
    files: dict[str, str] = checkpoint.json(INDEX).get("weight_map") or {}
    return files


def shapes_in(path: Path) -> Shapes:
    """The shape of each tensor in a safetensors file. Raises ValueError if the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if LFS_POINTER.startswith(start) and len(start) == 8:
            raise ValueError(
                f"model: expected weights in {path}, found Git LFS's pointer to them: run "
                f"`git lfs pull` in {path.parent}, or download the checkpoint with `hf download`"
            )
        header = file.read(length) if length <= min(size, MAX_HEADER) else b""
    try:
        tensors: dict[str, Any] = json.loads(header)
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        found = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        end, found = -1, {}
    if 8 + length + end != size:
        whole = f" of {8 + length + end} bytes" if end >= 0 else ""
        raise ValueError(
            f"model: expected a safetensors file{whole}, found {size} bytes that are "
            f"{'a part of it' if whole else 'none'} in {path}: copy it again"
        )
    return found


def check_head(checkpoint: Checkpoint, names: tuple[str, ...]) -> None:
    """Raise ValueError if the weights have none of the tensors `names`, of which a model has one, as if
    it was saved without its head or from inside a wrapper (`module.`, `_orig_mod.`)."""
    found = shapes(checkpoint)
    if not found or not found.keys().isdisjoint(names):
        return
    wrapped = [name for name in found if name.endswith(tuple(f".{head}" for head in names))]
    remedy = (
        f"it has {wrapped[0]}: save the model without what it was wrapped in, or rename the tensors"
        if wrapped
        else "it is a model without its head: take the checkpoint that training wrote at its end"
    )
    raise ValueError(
        f"model: expected {' or '.join(names)} among the weights, found none in "
        f"{checkpoint.source}: {remedy}"
    )


def check_rows(checkpoint: Checkpoint, names: tuple[str, ...], rows: int, key: str) -> None:
    """Raise ValueError if a tensor whose name ends in one of `names` has other than `rows` rows, the
    `key` of config.json: transformers would not load it."""
    for name, shape in shapes(checkpoint).items():
        if name.endswith(names) and shape and shape[0] != rows:
            raise ValueError(
                f"model: expected {rows} rows in {name}, as {key} in config.json says, found "
                f"{shape[0]} in {checkpoint.source}: its files are of two checkpoints, so copy all "
                "of them again from one"
            )
