"""Checkpoints in transformers' format: found and identified without torch, loaded in the actor that
needs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from audio_ops.inference import cpu_bfloat16
from audio_ops.inference.dtype import torch_dtype
from audio_ops.inference.light_import import import_meta_kernels, postponed
from audio_ops.inference.merge import merge_adapter, without_adapter

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXTRACTORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "spm_char.model"),
)
# In place of what `config.json` says: outputs are read by name, only these, and all machines have the
# attention that transformers chooses by itself.
OUTPUTS = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "attn_implementation": None,
}
# Of the files that `from_pretrained` may read. Pickled weights are never loaded.
LOADED_SUFFIXES = {".json", ".txt", ".model", ".safetensors", ".tiktoken", ".jinja", ".py"}


class LoadOptions(Protocol):
    """The options of a task that decide how its checkpoint is loaded; see `TaskOptions`."""

    @property
    def dtype(self) -> str: ...

    @property
    def trust_remote_code(self) -> bool: ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that exists: a local folder, or a hub id pinned to one commit.

    name, revision: the arguments of `from_pretrained`; `revision` is None for a folder.
    """

    name: str
    revision: str | None = None

    def json(self, file: str) -> dict[str, Any]:
        """The content of one of the checkpoint's JSON files, {} if it has no such file.

        Raises ValueError if that is no JSON object.
        """
        path = self.path(file)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))  # as transformers reads it
        except ValueError:
            content = None
        if not isinstance(content, dict):
            start = path.read_bytes()[:40]
            raise ValueError(
                f"model: expected a JSON object in {file} of {self.source}, in UTF-8 without a byte "
                f"order mark, found {start!r}: copy the file again"
            )
        return content

    def path(self, file: str) -> Path | None:
        """The local path of a file, fetched from the hub if needed; None if it does not exist."""
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
        """True if the checkpoint has a file of that name, without fetching it.

        For a hub id in offline mode: True if the hub's cache has it.
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
        """Where it comes from, for messages: the folder, hub id or URL in the config."""
        return self.name

    @property
    def local_folders(self) -> tuple[str, ...]:
        """The folders that every machine which loads it must have."""
        return (self.name,) if self.revision is None else ()

    def part(self, auto: Any) -> Checkpoint:
        """The checkpoint from which the transformers class `auto` is loaded."""
        return self

    def extractor_settings(self) -> dict[str, Any]:
        """The feature extractor's settings, from the file in which transformers would find them.

        Raises ValueError if there are none, or if their rate is none.
        """
        # transformers 5 nests them in the processor's file, and prefers that one.
        nested: dict[str, Any] | None = self.json("processor_config.json").get("feature_extractor")
        settings = nested or self.json("preprocessor_config.json")
        if not settings:
            raise ValueError(
                "model: expected a feature extractor (preprocessor_config.json or "
                f"processor_config.json), found none in {self.source}: copy the file from the "
                "checkpoint that this one was trained from"
            )
        rate = str(settings.get("sampling_rate", 16_000))
        if not rate.isdecimal() or int(rate) == 0:
            raise ValueError(
                f"model: expected sampling_rate of the feature extractor in Hz, found {rate} in "
                f"{self.source}: correct it"
            )
        return settings

    def digest(self) -> str:
        """Identifies the weights and settings: the hub's commit, or SHA-256 over a folder's files.

        Hashes every byte that `from_pretrained` may read (about 2 GB/s), so it changes with further
        training under the same name, and stays for a copy.
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
                    else _sha256(file)
                )
            whole.update(f"{path.name}\0{content.hexdigest()}\n".encode())
        return f"sha256:{whole.hexdigest()[:32]}"


@dataclass(frozen=True, kw_only=True)
class AdaptedCheckpoint(Checkpoint):
    """A base model, whose are `name` and `revision`, and the PEFT adapter to be merged into it.

    The tokenizer and the feature extractor are the adapter's, if they are saved beside it.
    """

    base: Checkpoint
    adapter: Checkpoint

    @classmethod
    def of(cls, base: Checkpoint, adapter: Checkpoint) -> AdaptedCheckpoint:
        return cls(base.name, base.revision, base=base, adapter=adapter)

    def json(self, file: str) -> dict[str, Any]:
        return self._owner(file).json(file)

    def path(self, file: str) -> Path | None:
        return self._owner(file).path(file)

    def has(self, file: str) -> bool:
        return self._owner(file).has(file)

    def part(self, auto: Any) -> Checkpoint:
        name = auto.__name__
        files = [TOKENIZERS[0]] if name.endswith(("Tokenizer", "Processor")) else []
        files += [EXTRACTORS[0]] if name.endswith(("FeatureExtractor", "Processor")) else []
        owners = [self._owner(file) for file in files]
        is_adapters = bool(owners) and all(owner is self.adapter for owner in owners)
        return self.adapter if is_adapters else self.base

    def _owner(self, file: str) -> Checkpoint:
        """Whose file of that name counts."""
        marks = TOKENIZERS[:1] if file in TOKENIZERS else EXTRACTORS if file in EXTRACTORS else ()
        return self.adapter if any(self.adapter.has(mark) for mark in marks) else self.base

    @property
    def source(self) -> str:
        return self.adapter.source

    @property
    def local_folders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.local_folders, *self.adapter.local_folders)))

    def digest(self) -> str:
        both = f"{self.base.digest()}\0{self.adapter.digest()}"
        return f"adapter:sha256:{hashlib.sha256(both.encode()).hexdigest()[:32]}"


def _sha256(file: BinaryIO) -> Any:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest


def find_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find a local folder, or else a hub id at `revision` (by default its main branch), and the base
    model of an adapter in there.

    Raises FileNotFoundError, with the places searched, if there is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
            raise FileNotFoundError(
                "expected a folder with a transformers checkpoint, found no config.json in "
                f"{folder}{_but(folder)}"
            )
        if revision is not None:
            raise FileNotFoundError(
                f"{folder} is a local folder, which has no revisions: found revision {revision!r}"
            )
        return with_adapter(Checkpoint(str(folder.resolve())), find_checkpoint)
    if folder.is_file():
        raise FileNotFoundError(
            "expected a folder with a transformers checkpoint (config.json, model.safetensors, ...), "
            f"found a file at {folder}: name its folder, or the checkpoint that it was made from"
        )
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise FileNotFoundError(f"expected a model folder, found nothing at {folder}")
    return with_adapter(_on_the_hub(model, revision), find_checkpoint)


def _but(folder: Path) -> str:
    """What a folder without a checkpoint has instead, and what to do."""
    configs = [path for level in ("*", "*/*") for path in folder.glob(f"{level}/config.json")]
    if inner := sorted((path.parent for path in configs), key=lambda path: path.stat().st_mtime):
        return f", but in {', '.join(map(str, inner[:-4:-1]))}: name that folder"
    files = sorted(path.name for path in folder.iterdir() if path.is_file())[:3]
    of_others = f", but {', '.join(files)}: name a checkpoint in transformers' format"
    return of_others if files else ", which has no files"


def _on_the_hub(model: str, revision: str | None) -> Checkpoint:
    """A hub id with a model or an adapter, at one commit. Raises FileNotFoundError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        try:
            found = Path(hf_hub_download(model, "config.json", revision=revision))
        except EntryNotFoundError:
            found = Path(hf_hub_download(model, ADAPTER_CONFIG, revision=revision))
    except Exception as error:  # the hub's client raises its own errors, HTTP errors and OSErrors
        raise FileNotFoundError(
            f"expected a model folder or a hub id, found no folder {Path(model).expanduser()} and the "
            f"hub gave no config.json for {model!r} at revision {revision or 'main'!r}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    return Checkpoint(model, found.parent.name)  # .../snapshots/<commit>/config.json


def with_adapter(found: Checkpoint, find: Callable[[str, str | None], Checkpoint]) -> Checkpoint:
    """The checkpoint as it is, or one of a PEFT adapter with its base model, which `find` finds.

    As for transformers, the base model of an adapter in a folder with a whole model is that model.
    Raises FileNotFoundError if there is no base model.
    """
    path = found.path(ADAPTER_CONFIG)
    if path is None:
        return found
    is_whole = found.has("config.json") and (found.has(WEIGHTS) or found.has(INDEX))
    if found.revision is None and is_whole:
        return AdaptedCheckpoint.of(found, found)
    try:
        said = found.json(ADAPTER_CONFIG)
    except ValueError as error:
        raise FileNotFoundError(str(error).removeprefix("model: ")) from None
    named, revision = said.get("base_model_name_or_path"), said.get("revision")
    where = f"as base_model_name_or_path in {ADAPTER_CONFIG} of the adapter {found.source}"
    if not named:
        raise FileNotFoundError(f"expected a base model {where}, found {named!r}: name it there")
    try:
        base = find(named, revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected the base model {named!r}, named {where}: {error}"
        ) from None
    if isinstance(base, AdaptedCheckpoint):
        raise FileNotFoundError(
            f"expected a base model without an adapter of its own, found {named!r} {where}: merge that "
            "one first (peft's merge_and_unload)"
        )
    return AdaptedCheckpoint.of(base, found)


def expect_architecture(checkpoint: Checkpoint, expected: str) -> None:
    """Raise ValueError for a checkpoint of another architecture: it would load too, with random weights
    where it has none."""
    found = checkpoint.json("config.json").get("architectures") or []
    if expected not in found:
        raise ValueError(
            f"model: expected architecture {expected}, found {found} in {checkpoint.name}"
        )


def load(auto: Any, checkpoint: Checkpoint, options: LoadOptions, **settings: Any) -> Any:
    """Load a part of the checkpoint (tokenizer, processor, ...) with the transformers class `auto`.

    settings: further arguments of `from_pretrained`.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    part = checkpoint.part(auto)

    def from_pretrained() -> Any:
        # A checkpoint's own code may do with the postponed modules whatever it wants.
        with nullcontext() if options.trust_remote_code else postponed():
            return auto.from_pretrained(
                part.name,
                revision=part.revision,
                trust_remote_code=options.trust_remote_code,
                **settings,
            )

    if options.trust_remote_code:
        import_meta_kernels()
    try:
        return from_pretrained()
    except NotImplementedError:  # a kernel that torch has in Python alone
        if not import_meta_kernels():
            raise
        return from_pretrained()


def load_model(
    auto: Any, checkpoint: Checkpoint, options: LoadOptions, device: str, **settings: Any
) -> Any:
    """Load the model with the class `auto`, on `device`, in `options.dtype`, in eval mode.

    Raises ValueError if weights are missing, which transformers would replace by random ones.
    """
    import torch

    dtype = torch_dtype(options.dtype, device)
    if dtype == torch.float32:  # else GPUs convolve with 10 bits of mantissa: scores differ by 1e-4
        torch.backends.cudnn.allow_tf32 = False
    # cuDNN plans its attention for each new shape in each thread, so for every step of a decoder.
    torch.backends.cuda.enable_cudnn_sdp(False)
    settings = OUTPUTS | settings
    settings |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if isinstance(checkpoint, AdaptedCheckpoint) and checkpoint.base == checkpoint.adapter:
        with without_adapter(checkpoint.base.name) as folder:
            model, info = load(auto, Checkpoint(folder), options, **settings)
    else:
        model, info = load(auto, checkpoint, options, **settings)
    # Used only in training, and not in all checkpoints.
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise ValueError(
            f"model: expected all weights of {type(model).__name__}, found none for "
            f"{', '.join(missing[:5])} in {checkpoint.name}"
        )
    if isinstance(checkpoint, AdaptedCheckpoint):
        model = merge_adapter(model, checkpoint.adapter.name, checkpoint.adapter.revision)
    # To no dtype: that would round buffers that transformers keeps in float32 (positions).
    model = model.to(device).eval()
    if cpu_bfloat16.applies_to(dtype, device):
        cpu_bfloat16.speed_up(model)
    return model
