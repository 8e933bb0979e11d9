"""A model in transformers' format: found and identified before anything heavy is imported, loaded
in the actor that needs it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_ops.inference import cpu_bfloat16
from audio_ops.inference.dtype import torch_dtype

if TYPE_CHECKING:
    from audio_ops.tasks import TaskOptions

# Files that `from_pretrained` may read. Pickled weights are never loaded, so they are not part of it.
LOADED_SUFFIXES = {".json", ".txt", ".model", ".safetensors", ".tiktoken", ".jinja", ".py"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that exists: a local folder, or a hub id pinned to one commit.

    `name` and `revision` are what `from_pretrained(name, revision=revision)` takes; `revision`
    is None for a folder.
    """

    name: str
    revision: str | None = None

    def json(self, file: str) -> dict[str, Any]:
        """The parsed JSON file of that name inside the checkpoint, {} if it has none."""
        path = self.path(file)
        return json.loads(path.read_text(encoding="utf-8")) if path else {}

    def path(self, file: str) -> Path | None:
        """The local path of one file of the checkpoint (fetched from the hub if need be)."""
        if self.revision is None:
            path = Path(self.name) / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, file, revision=self.revision))
        except EntryNotFoundError:
            return None

    def has(self, file: str) -> bool:
        """Whether the checkpoint has a file of that name, which is not fetched.

        Of a hub id without a connection: whether the hub's cache has it.
        """
        if self.revision is None:
            return (Path(self.name) / file).is_file()
        from huggingface_hub import file_exists, try_to_load_from_cache
        from huggingface_hub.errors import OfflineModeIsEnabled

        if isinstance(try_to_load_from_cache(self.name, file, revision=self.revision), str):
            return True
        try:
            return bool(file_exists(self.name, file, revision=self.revision))
        except OfflineModeIsEnabled:
            return False

    @property
    def source(self) -> str:
        """Where it comes from, for people: the folder, hub id or URL that the config names."""
        return self.name

    def extractor_settings(self) -> dict[str, Any]:
        """The feature extractor's JSON, wherever transformers would find it.

        Raises ValueError if the checkpoint has none.
        """
        # transformers 5 nests it in the processor's file, and prefers that one.
        nested: dict[str, Any] | None = self.json("processor_config.json").get("feature_extractor")
        settings = nested or self.json("preprocessor_config.json")
        if not settings:
            raise ValueError(
                "model: expected a feature extractor (preprocessor_config.json or "
                f"processor_config.json), found none in {self.source}: copy the file from the "
                "checkpoint that this one was trained from"
            )
        return settings

    def digest(self) -> str:
        """The identity of weights and settings: the hub's commit, or SHA-256 over a folder's files.

        Every byte that `from_pretrained` may read is hashed (about 2 GB/s), so a checkpoint that
        was trained on under the same name is another checkpoint, and a copy of it is the same.
        """
        if self.revision is not None:
            return f"{self.name}@{self.revision}"
        whole = hashlib.sha256()
        folder = Path(self.name)
        for path in sorted(p for p in folder.iterdir() if p.suffix in LOADED_SUFFIXES):
            with path.open("rb") as file:
                content = (
                    hashlib.file_digest(file, "sha256")
                    if hasattr(hashlib, "file_digest")
                    else _digest(file)
                )
            whole.update(f"{path.name}\0{content.hexdigest()}\n".encode())
        return f"sha256:{whole.hexdigest()[:32]}"


def _digest(file: Any) -> Any:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest


def find_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find a local folder, or else a hub id at `revision` (default: its main branch).

    Raises FileNotFoundError, with both places, if there is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"expected a folder with a transformers checkpoint, found no config.json in {folder}"
            )
        if revision is not None:
            raise FileNotFoundError(
                f"{folder} is a local folder, which has no revisions: found revision {revision!r}"
            )
        return Checkpoint(str(folder.resolve()))
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise FileNotFoundError(f"expected a model folder, found nothing at {folder}")
    from huggingface_hub import hf_hub_download

    try:
        config = Path(hf_hub_download(model, "config.json", revision=revision))
    except Exception as error:  # the hub's client raises its own, requests' and OS errors
        raise FileNotFoundError(
            f"expected a model folder or a hub id, found no folder {folder} and the hub gave no "
            f"config.json for {model!r} at revision {revision or 'main'!r}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    return Checkpoint(model, config.parent.name)  # .../snapshots/<commit>/config.json


def load(auto: Any, checkpoint: Checkpoint, options: TaskOptions, **settings: Any) -> Any:
    """The checkpoint's tokenizer, processor, ... by the transformers class `auto`."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return auto.from_pretrained(
        checkpoint.name,
        revision=checkpoint.revision,
        trust_remote_code=options.trust_remote_code,
        **settings,
    )


def load_model(
    auto: Any, checkpoint: Checkpoint, options: TaskOptions, device: str, **settings: Any
) -> Any:
    """The checkpoint as a model of the class `auto` on `device`, in `options.dtype`, ready to infer.

    Raises ValueError if it lacks weights: transformers would warn and fill in random ones.
    """
    import torch

    dtype = torch_dtype(options.dtype, device)
    if dtype == torch.float32:  # else a GPU convolves with 10 bits of mantissa: scores off by 1e-4
        torch.backends.cudnn.allow_tf32 = False
    # cuDNN's attention is planned anew for each shape in each thread: for every step of a decoder.
    torch.backends.cuda.enable_cudnn_sdp(False)
    model, info = load(
        auto,
        checkpoint,
        options,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        **settings,
    )
    # Used in training alone, and left out of some checkpoints.
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise ValueError(
            f"model: expected all weights of {type(model).__name__}, found none for "
            f"{', '.join(missing[:5])} in {checkpoint.name}"
        )
    # Not to a dtype: that would round the buffers which transformers keeps in float32 (positions).
    model = model.to(device).eval()
    if cpu_bfloat16.pays(dtype, device):
        cpu_bfloat16.speed_up(model)
    return model
