"""OpenAI's Whisper in CTranslate2's format -> a checkpoint in transformers' format."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

MULTILINGUAL_VOCABULARY = 51865  # tokens, or more; OpenAI's English-only models have one less

Arrays = Mapping[str, np.ndarray]


def convert_whisper(source: Path, weights: Sequence[Path], target: Path) -> None:
    """Write a transformers checkpoint into `target`, from an English-only or multilingual model.

    `source` has its config.json and tokenizer.json; `weights` are the parts that make its model.bin
    when they are joined byte by byte. Raises ValueError if that is not Whisper in CTranslate2's
    format 6.
    """
    from transformers import WhisperFeatureExtractor
    from transformers.utils import logging

    logging.disable_progress_bar()
    arrays = dict(ctranslate2_arrays(io.BytesIO(b"".join(part.read_bytes() for part in weights))))
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    config = whisper_config(arrays, ids)
    model = whisper_model(config, arrays)
    model.generation_config = generation_config(config, settings, ids)
    model.half().save_pretrained(target)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(target)
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, **tokens}
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def whisper_config(arrays: Arrays, ids: Mapping[str, int]) -> WhisperConfig:
    """The model's sizes, from its weights, and its special tokens; `ids` are those of the added
    tokens."""
    from transformers import WhisperConfig

    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    encoder_layers, decoder_layers = (
        sum(f"{side}/layer_{n}/ffn/linear_0/bias" in arrays for n in range(64))
        for side in ("encoder", "decoder")
    )
    heads = int(arrays["encoder/num_heads"])
    inner = arrays["encoder/layer_0/ffn/linear_0/bias"].size
    end = ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )


def whisper_model(config: WhisperConfig, arrays: Arrays) -> WhisperForConditionalGeneration:
    """The model with its weights."""
    import torch
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration(config)
    state = {name: torch.from_numpy(array.copy()) for name, array in whisper_names(arrays, config)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def generation_config(
    config: WhisperConfig, settings: Mapping[str, Any], ids: Mapping[str, int]
) -> GenerationConfig:
    """How the model generates, from CTranslate2's `settings` and the ids of the added tokens."""
    from transformers import GenerationConfig

    is_multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
    languages = {}
    if is_multilingual:
        language_ids = set(settings["lang_ids"])
        languages = {
            "lang_to_id": {token: id for token, id in ids.items() if id in language_ids},
            "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        }
    return GenerationConfig(
        alignment_heads=settings["alignment_heads"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        is_multilingual=is_multilingual,
        max_initial_timestamp_index=50,
        max_length=448,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        pad_token_id=config.pad_token_id,
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
        suppress_tokens=settings["suppress_ids"],
        **languages,
    )


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


def whisper_names(arrays: Arrays, config: WhisperConfig) -> Iterator[tuple[str, np.ndarray]]:
    """CTranslate2's arrays under transformers' names, its stacked projections split."""
    layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    for side in ("encoder", "decoder"):
        model = f"model.{side}"
        yield f"{model}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"]
        yield from _plain(arrays, f"{side}/layer_norm", f"{model}.layer_norm")
        for number in range(layers[side]):
            yield from _layer(arrays, f"{side}/layer_{number}", f"{model}.layers.{number}")
    for number in (1, 2):
        yield from _plain(arrays, f"encoder/conv{number}", f"model.encoder.conv{number}")
    yield "model.decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"]


def _layer(arrays: Arrays, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    """A transformer layer: self-attention, in the decoder cross-attention, and feed-forward."""
    attention = f"{target}.self_attn"
    yield from _plain(arrays, f"{source}/self_attention/layer_norm", f"{attention}_layer_norm")
    yield from _stacked(arrays, f"{source}/self_attention/linear_0", attention, "qkv")
    yield from _plain(arrays, f"{source}/self_attention/linear_1", f"{attention}.out_proj")
    cross, attention = f"{source}/attention", f"{target}.encoder_attn"
    if f"{cross}/linear_0/weight" in arrays:
        yield from _plain(arrays, f"{cross}/layer_norm", f"{attention}_layer_norm")
        yield from _stacked(arrays, f"{cross}/linear_0", attention, "q")
        yield from _stacked(arrays, f"{cross}/linear_1", attention, "kv")
        yield from _plain(arrays, f"{cross}/linear_2", f"{attention}.out_proj")
    yield from _plain(arrays, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    yield from _plain(arrays, f"{source}/ffn/linear_0", f"{target}.fc1")
    yield from _plain(arrays, f"{source}/ffn/linear_1", f"{target}.fc2")


def _plain(arrays: Arrays, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    """A linear, convolution or normalization layer: its weight and, if it has one, its bias."""
    names = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
    for ours, theirs in names.items():
        if f"{source}/{ours}" in arrays:
            yield f"{target}.{theirs}", arrays[f"{source}/{ours}"]


def _stacked(
    arrays: Arrays, source: str, target: str, names: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The projections of an attention layer, one for each letter of `names`, from their stack."""
    for kind in ("weight", "bias"):
        parts = np.split(arrays[f"{source}/{kind}"], len(names))
        for name, part in zip(names, parts, strict=True):
            if (name, kind) != ("k", "bias"):  # Whisper's keys have none; CTranslate2 stores zeros
                yield f"{target}.{name}_proj.{kind}", part
