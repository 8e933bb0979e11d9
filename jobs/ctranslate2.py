"""OpenAI's Whisper in CTranslate2's format -> a checkpoint in transformers'."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

MULTILINGUAL_VOCABULARY = 51865  # tokens, or more; OpenAI's English-only models have one less


def convert_whisper(source: Path, weights: Sequence[Path], target: Path) -> None:
    """A CTranslate2 Whisper, English-only or multilingual -> a transformers checkpoint in `target`.

    `source` has its config.json and tokenizer.json; `weights` are the parts that joined byte by
    byte make its model.bin.
    """
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    arrays = dict(ctranslate2_arrays(io.BytesIO(b"".join(part.read_bytes() for part in weights))))
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    end = ids["<|endoftext|>"]
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    layers = {
        side: sum(f"{side}/layer_{n}/ffn/linear_0/bias" in arrays for n in range(64))
        for side in ("encoder", "decoder")
    }
    heads, inner = (
        int(arrays["encoder/num_heads"]),
        arrays["encoder/layer_0/ffn/linear_0/bias"].size,
    )
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    languages = {}
    if vocabulary >= MULTILINGUAL_VOCABULARY:
        spoken = set(settings["lang_ids"])
        languages = {
            "lang_to_id": {token: number for token, number in ids.items() if number in spoken},
            "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        }
    model = WhisperForConditionalGeneration(config)
    state = {name: torch.from_numpy(array.copy()) for name, array in whisper_names(arrays, layers)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    model.generation_config = GenerationConfig(
        alignment_heads=settings["alignment_heads"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        bos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=end,
        is_multilingual=vocabulary >= MULTILINGUAL_VOCABULARY,
        max_initial_timestamp_index=50,
        max_length=448,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        pad_token_id=end,
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
        suppress_tokens=settings["suppress_ids"],
        **languages,
    )
    model.half().save_pretrained(target)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(target)
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, **tokens}
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def ctranslate2_arrays(file: IO[bytes]) -> Iterator[tuple[str, np.ndarray]]:
    """The named arrays of a CTranslate2 `model.bin`, version 6 (ctranslate2/specs/model_spec.py)."""
    dtypes = (np.float32, np.int8, np.int16, np.int32, np.float16)

    def read(layout: str) -> Any:
        values = struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))
        return values[0] if len(values) == 1 else values

    def text() -> str:
        return file.read(read("H"))[:-1].decode()

    version, kind, _, count = read("I"), text(), read("I"), read("I")
    if (version, kind) != (6, "WhisperSpec"):
        raise ValueError(f"expected WhisperSpec in CTranslate2 format 6, found {kind} in {version}")
    for _ in range(count):
        name, rank = text(), read("B")
        shape = [read("I") for _ in range(rank)]
        dtype, size = dtypes[read("B")], read("I")
        yield name, np.frombuffer(file.read(size), dtype).reshape(shape)


def whisper_names(
    arrays: dict[str, np.ndarray], layers: dict[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """CTranslate2's arrays under transformers' names, its stacked projections taken apart."""

    def plain(source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
        names = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
        for ours, theirs in names.items():
            if f"{source}/{ours}" in arrays:
                yield f"{target}.{theirs}", arrays[f"{source}/{ours}"]

    def stacked(source: str, target: str, names: str) -> Iterator[tuple[str, np.ndarray]]:
        for kind in ("weight", "bias"):
            parts = np.split(arrays[f"{source}/{kind}"], len(names))
            for name, part in zip(names, parts, strict=True):
                if (name, kind) != ("k", "bias"):  # Whisper's keys have none: zeros here
                    yield f"{target}.{name}_proj.{kind}", part

    for side in ("encoder", "decoder"):
        model = f"model.{side}"
        yield f"{model}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"]
        yield from plain(f"{side}/layer_norm", f"{model}.layer_norm")
        for number in range(layers[side]):
            source, target = f"{side}/layer_{number}", f"{model}.layers.{number}"
            yield from plain(
                f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm"
            )
            yield from stacked(f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv")
            yield from plain(f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj")
            if side == "decoder":
                cross = f"{source}/attention"
                yield from plain(f"{cross}/layer_norm", f"{target}.encoder_attn_layer_norm")
                yield from stacked(f"{cross}/linear_0", f"{target}.encoder_attn", "q")
                yield from stacked(f"{cross}/linear_1", f"{target}.encoder_attn", "kv")
                yield from plain(f"{cross}/linear_2", f"{target}.encoder_attn.out_proj")
            yield from plain(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            yield from plain(f"{source}/ffn/linear_0", f"{target}.fc1")
            yield from plain(f"{source}/ffn/linear_1", f"{target}.fc2")
    for number in (1, 2):
        yield from plain(f"encoder/conv{number}", f"model.encoder.conv{number}")
    yield "model.decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"]
