"""Tiny random checkpoints of Mistral's recognisers, with tokenizers as mistral-common reads them."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import enlarge

# The places of the special tokens in the files of real checkpoints; the rest are fillers.
SPECIAL = {
    **{0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]"},
    **{6: "[/AVAILABLE_TOOLS]", 7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]"},
    **{
        10: "[IMG]",
        11: "<pad>",
        12: "[IMG_BREAK]",
        13: "[IMG_END]",
        14: "[PREFIX]",
        15: "[MIDDLE]",
    },
    **{16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]"},
    **{24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]"},
    34: "[TRANSCRIBE]",
}
BYTES = len(range(max(SPECIAL) + 1))  # the id of the byte 0
AUDIO: dict[str, Any] = {
    "sampling_rate": 16_000,
    "frame_rate": 12.5,
    "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
}
STREAMING = {
    "transcription_format": "streaming",
    "transcription_delay_ms": 480.0,
    "streaming_look_ahead_ms": 2.5,
    "streaming_look_back_ms": 52.5,
    "streaming_n_left_pad_tokens": 32,
}
HEARD = 4.0
LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def tekken(folder: Path, **audio: Any) -> Any:
    """A tokenizer of bytes, in `folder`."""
    from transformers.tokenization_mistral_common import MistralCommonBackend

    special = [SPECIAL.get(n, f"<SPECIAL_{n}>") for n in range(BYTES)]
    content = {
        "config": {
            "pattern": r"[^\s]+|\s+",
            "num_vocab_tokens": 256,
            "default_vocab_size": BYTES + 256,
            "default_num_special_tokens": BYTES,
            "version": "v7",
        },
        "vocab": [
            {"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode(), "token_str": None}
            for n in range(256)
        ],
        "special_tokens": [
            {"rank": n, "token_str": name, "is_control": True} for n, name in enumerate(special)
        ],
        "audio": {**AUDIO, **audio},
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    return MistralCommonBackend.from_pretrained(folder)


def save(folder: Path, model: Any, processor: Any, *special: str, **settings: Any) -> Path:
    """Save a model that writes letters or these special tokens, different ones for different sounds."""
    import torch

    enlarge(model)
    names = {name: n for n, name in SPECIAL.items()}
    kept = [*(BYTES + ord(letter) for letter in " abcdefghijklmnop"), *(names[s] for s in special)]
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=0.3)
        model.lm_head.weight.normal_(std=1.0)
        # What is heard counts for more than what was written.
        model.model.multi_modal_projector.linear_2.weight.mul_(HEARD)
    model.generation_config.update(
        pad_token_id=names["<pad>"],
        eos_token_id=names["</s>"],
        no_repeat_ngram_size=2,
        suppress_tokens=[n for n in range(BYTES + 256) if n not in kept],
        **settings,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_voxtral(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        VoxtralConfig,
        VoxtralForConditionalGeneration,
        VoxtralProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = tekken(folder, chunk_length_s=30.0)
    torch.manual_seed(seed)
    model = VoxtralForConditionalGeneration(
        VoxtralConfig(
            audio_config={
                **LAYERS,
                "num_key_value_heads": 2,
                "intermediate_size": 128,
                "num_mel_bins": 128,
            },
            text_config={**LAYERS, "model_type": "llama", "vocab_size": BYTES + 256},
            audio_token_id=24,
        )
    )
    processor = VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    return save(folder, model, processor, "</s>", max_new_tokens=16)


def tiny_voxtral_realtime(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        VoxtralRealtimeConfig,
        VoxtralRealtimeFeatureExtractor,
        VoxtralRealtimeForConditionalGeneration,
        VoxtralRealtimeProcessor,
    )

    tokenizer = tekken(folder, **STREAMING)
    torch.manual_seed(seed)
    model = VoxtralRealtimeForConditionalGeneration(
        VoxtralRealtimeConfig(
            audio_config={**LAYERS, "num_mel_bins": 128, "sliding_window": 60},
            text_config={**LAYERS, "vocab_size": BYTES + 256, "tie_word_embeddings": False},
            tie_word_embeddings=False,
        )
    )
    processor = VoxtralRealtimeProcessor(VoxtralRealtimeFeatureExtractor(), tokenizer)
    return save(folder, model, processor, "[STREAMING_PAD]", "[STREAMING_WORD]", "</s>")


@functools.cache
def loaded(folder: Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoProcessor, VoxtralRealtimeForConditionalGeneration

    model = VoxtralRealtimeForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return AutoProcessor.from_pretrained(folder), model


def realtime_page(folder: Path, wave: np.ndarray, dtype: str = "float32") -> tuple[str, float]:
    """The text and the mean probability of its tokens, by the code on Voxtral Realtime's page."""
    processor, model = loaded(folder, dtype)
    inputs = processor(wave, sampling_rate=16_000, return_tensors="pt")
    output = model.generate(
        **inputs.to(model.dtype), return_dict_in_generate=True, output_scores=True
    )
    [text] = processor.batch_decode(output.sequences, skip_special_tokens=True)
    scores = model.compute_transition_scores(
        output.sequences, output.scores, normalize_logits=True
    )[0]
    is_text = output.sequences[0, -len(scores) :] >= BYTES
    return text.strip(), scores[is_text].mean().exp().item()
