"""Tiny random checkpoints of recognisers that are asked, with templates like those of real ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import enlarge
from mistral import tiny_voxtral

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.speech.options import Options
from audio_ops.speech.prompted.kinds import KINDS
from audio_ops.speech.prompted.processors import processor_of
from jobs.bench import checkpoints

TEMPLATE = """
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}AUDIO
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- elif part['type'] == 'language' -%}{{ ' [' + part['language'] + ']' }}
{%- endif -%}
{%- endfor -%}
{%- if not (loop.last and message['role'] == 'assistant') -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
CANARY_TEMPLATE = """
{%- for message in messages -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{ '<|start|><|' + part['source_language'] + '|><|' + part['target_language'] + '|>' }}
{{- '<|pnc|>' if part['punctuation'] else '<|nopnc|>' }}
{%- endif -%}
{%- endfor -%}{%- endfor -%}
"""
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = "<|im_end|>"
LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LANGUAGE_MODEL: dict[str, Any] = {**LAYERS, "num_key_value_heads": 1, "head_dim": 16}
WHISPER_ENCODER: dict[str, Any] = {
    "d_model": 32,
    "hidden_size": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_mel_bins": 80,
}


def byte_tokenizer(special: tuple[str, ...], **settings: Any) -> Any:
    """A byte-level tokenizer without merges, with these special tokens behind the bytes."""
    whole = checkpoints.byte_tokenizer(eos_token=END, pad_token="<|endoftext|>", **settings)
    whole.add_special_tokens({"additional_special_tokens": list(dict.fromkeys((*CHAT, *special)))})
    whole.add_tokens(["<asr_text>"])
    return whole


def save(folder: Path, model: Any, processor: Any, new_tokens: int = 16) -> Path:
    """Save a model that says different things about different sounds, and ends now and then."""
    import torch

    tokenizer = getattr(processor, "tokenizer", processor)
    enlarge(model)
    head = model.get_output_embeddings()
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnop"]
    end = tokenizer.convert_tokens_to_ids(END)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=0.3)
        head.weight.normal_(std=1.0)
        if head.bias is not None:
            head.bias[end] = 4.0
    settings = model.generation_config
    settings.update(
        max_new_tokens=new_tokens,
        no_repeat_ngram_size=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end,
        suppress_tokens=[n for n in range(len(head.weight)) if n not in (*letters, end)],
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_canary(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        CanaryConfig,
        CanaryForConditionalGeneration,
        CanaryProcessor,
        ParakeetFeatureExtractor,
    )

    marks = ("<|start|>", "<|en|>", "<|de|>", "<|fr|>", "<|pnc|>", "<|nopnc|>")
    tokenizer = byte_tokenizer(marks)
    size, ids = len(tokenizer), tokenizer.convert_tokens_to_ids
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    model = CanaryForConditionalGeneration(
        CanaryConfig(
            vocab_size=size,
            encoder_config={**LAYERS, "subsampling_conv_channels": 8, "layerdrop": 0.0},
            decoder_config={
                **LANGUAGE_MODEL,
                "num_key_value_heads": 2,
                "vocab_size": size,
                **special,
            },
            decoder_start_token_id=ids("<|start|>"),
            bos_token_id=ids("<|start|>"),
            **special,
        )
    )
    processor = CanaryProcessor(
        ParakeetFeatureExtractor(), tokenizer, chat_template=CANARY_TEMPLATE
    )
    return save(folder, model, processor)


def tiny_cohere(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        CohereAsrConfig,
        CohereAsrFeatureExtractor,
        CohereAsrForConditionalGeneration,
        CohereAsrProcessor,
    )

    marks = (
        *("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>"),
        *("<|de|>", "<|pnc|>", "<|nopnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"),
    )
    tokenizer = byte_tokenizer(marks)
    torch.manual_seed(seed)
    model = CohereAsrForConditionalGeneration(
        CohereAsrConfig(
            **LAYERS,
            head_dim=16,
            vocab_size=len(tokenizer),
            encoder_config={
                **LAYERS,
                "subsampling_conv_channels": 8,
                "layerdrop": 0.0,
                "num_mel_bins": 128,
            },
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.convert_tokens_to_ids("▁"),
            decoder_start_token_id=tokenizer.convert_tokens_to_ids("▁"),
        )
    )
    processor = CohereAsrProcessor(CohereAsrFeatureExtractor(), tokenizer)
    return save(folder, model, processor)


def tiny_qwen3(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        Qwen3ASRConfig,
        Qwen3ASRFeatureExtractor,
        Qwen3ASRForConditionalGeneration,
        Qwen3ASRProcessor,
    )

    audio = {
        "audio_token": "<|audio_pad|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    tokenizer = byte_tokenizer(tuple(audio.values()), extra_special_tokens=audio)
    torch.manual_seed(seed)
    model = Qwen3ASRForConditionalGeneration(
        Qwen3ASRConfig(
            audio_config={
                **WHISPER_ENCODER,
                "num_mel_bins": 128,
                "output_dim": 32,
                "downsample_hidden_size": 8,
                "n_window_infer": 400,
            },
            text_config={**LANGUAGE_MODEL, "vocab_size": len(tokenizer), "model_type": "qwen3"},
            audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    marks = "<|audio_start|><|audio_pad|><|audio_end|>"
    processor = Qwen3ASRProcessor(
        Qwen3ASRFeatureExtractor(), tokenizer, chat_template=TEMPLATE.replace("AUDIO", marks)
    )
    return save(folder, model, processor)


def tiny_fun_asr(folder: Path, seed: int = 0) -> Path:
    """Without its feature extractor, whose class wants torchaudio, but with its settings."""
    import torch
    from transformers import FunAsrNanoConfig, FunAsrNanoForConditionalGeneration

    mark = "<|object_ref_start|>"
    tokenizer = byte_tokenizer((mark,), chat_template=TEMPLATE.replace("AUDIO", mark))
    torch.manual_seed(seed)
    model = FunAsrNanoForConditionalGeneration(
        FunAsrNanoConfig(
            audio_config={**LAYERS, "num_tp_layers": 1},
            adaptor_config={**LAYERS, "intermediate_size": 8},
            text_config={**LANGUAGE_MODEL, "vocab_size": len(tokenizer), "model_type": "qwen3"},
            audio_token_id=tokenizer.convert_tokens_to_ids(mark),
        )
    )
    settings = {"feature_extractor_type": "FunAsrNanoFeatureExtractor", "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return save(folder, model, tokenizer)


def tiny_granite(folder: Path, plus: bool = False, seed: int = 0) -> Path:
    """Without its feature extractor, whose class wants torchaudio, but with its settings."""
    import torch
    import transformers

    template = "{% for turn in messages %}{{ turn['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    tokenizer = byte_tokenizer(("<|audio|>",), chat_template=template)
    name = "GraniteSpeechPlus" if plus else "GraniteSpeech"
    encoder = {
        "input_dim": 160,
        "num_layers": 2,
        "hidden_dim": 32,
        "num_heads": 2,
        "dim_head": 16,
        "output_dim": 8,
        "context_size": 16,
    }
    projector = {**LAYERS, "encoder_hidden_size": 32}
    if plus:
        encoder |= {"cat_hidden_layers": [1]}
        projector |= {"encoder_hidden_size": 64}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(
        getattr(transformers, f"{name}Config")(
            encoder_config=encoder,
            projector_config={**projector, "model_type": "blip_2_qformer"},
            text_config={
                **LAYERS,
                "num_key_value_heads": 1,
                "vocab_size": len(tokenizer),
                "model_type": "granite",
            },
            audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
            has_lora_adapter=False,
        )
    )
    settings = {"feature_extractor_type": "GraniteSpeechFeatureExtractor", "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return save(folder, model, tokenizer)


def tiny_glmasr(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        GlmAsrConfig,
        GlmAsrForConditionalGeneration,
        GlmAsrProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = byte_tokenizer(("<|pad|>",))
    torch.manual_seed(seed)
    model = GlmAsrForConditionalGeneration(
        GlmAsrConfig(
            audio_config={**WHISPER_ENCODER, "num_key_value_heads": 2, "intermediate_size": 128},
            text_config={
                **LANGUAGE_MODEL,
                "vocab_size": len(tokenizer),
                "model_type": "llama",
                "eos_token_id": tokenizer.eos_token_id,
            },
            audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
        )
    )
    processor = GlmAsrProcessor(
        WhisperFeatureExtractor(), tokenizer, chat_template=TEMPLATE.replace("AUDIO", "<|pad|>")
    )
    return save(folder, model, processor)


def tiny_flamingo(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        WhisperFeatureExtractor,
    )

    tokenizer = byte_tokenizer(("<sound>",))
    torch.manual_seed(seed)
    model = AudioFlamingo3ForConditionalGeneration(
        AudioFlamingo3Config(
            audio_config=WHISPER_ENCODER,
            text_config={
                **LANGUAGE_MODEL,
                "vocab_size": len(tokenizer),
                "model_type": "qwen2",
                "eos_token_id": tokenizer.eos_token_id,
            },
            audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
        )
    )
    processor = AudioFlamingo3Processor(
        WhisperFeatureExtractor(), tokenizer, chat_template=TEMPLATE.replace("AUDIO", "<sound>")
    )
    return save(folder, model, processor)


def tiny_moss(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        MossTranscribeDiarizeConfig,
        MossTranscribeDiarizeFeatureExtractor,
        MossTranscribeDiarizeForConditionalGeneration,
        MossTranscribeDiarizeProcessor,
    )

    marks = ("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>")
    tokenizer = byte_tokenizer(marks)
    torch.manual_seed(seed)
    model = MossTranscribeDiarizeForConditionalGeneration(
        MossTranscribeDiarizeConfig(
            audio_config={**WHISPER_ENCODER},
            text_config={**LANGUAGE_MODEL, "vocab_size": len(tokenizer), "model_type": "qwen3"},
            audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        )
    )
    processor = MossTranscribeDiarizeProcessor(
        MossTranscribeDiarizeFeatureExtractor(),
        tokenizer,
        chat_template=TEMPLATE.replace("AUDIO", "".join(marks)),
    )
    return save(folder, model, processor)


def tiny_vibevoice(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        VibeVoiceAcousticTokenizerFeatureExtractor,
        VibeVoiceAsrConfig,
        VibeVoiceAsrForConditionalGeneration,
        VibeVoiceAsrProcessor,
    )

    marks = ("<|object_ref_start|>", "<|box_start|>", "<|object_ref_end|>", "<|AUDIO_DURATION|>")
    tokenizer = byte_tokenizer(marks)
    ids = tokenizer.convert_tokens_to_ids
    encoder = {
        "hidden_size": 8,
        "num_filters": 2,
        "downsampling_ratios": [2, 2, 4, 5, 5, 8],
        "depths": [1, 1, 1, 1, 1, 1, 1],
    }
    torch.manual_seed(seed)
    model = VibeVoiceAsrForConditionalGeneration(
        VibeVoiceAsrConfig(
            acoustic_tokenizer_encoder_config=encoder,
            semantic_tokenizer_encoder_config=encoder,
            text_config={**LANGUAGE_MODEL, "vocab_size": len(tokenizer), "model_type": "qwen2"},
            audio_token_id=ids("<|box_start|>"),
            audio_bos_token_id=ids("<|object_ref_start|>"),
            audio_eos_token_id=ids("<|object_ref_end|>"),
        )
    )
    processor = VibeVoiceAsrProcessor(
        VibeVoiceAcousticTokenizerFeatureExtractor(),
        tokenizer,
        chat_template=TEMPLATE.replace("AUDIO", "".join(marks)),
    )
    return save(folder, model, processor)


def tiny_nemotron(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        Nemotron3_5TranscribeConfig,
        Nemotron3_5TranscribeForConditionalGeneration,
        Nemotron3_5TranscribeProcessor,
        NemotronAsrStreamingFeatureExtractor,
    )

    marks = ("<|audio|>", "<spk:0>", "<spk:1>")
    tokenizer = byte_tokenizer(marks)
    torch.manual_seed(seed)
    model = Nemotron3_5TranscribeForConditionalGeneration(
        Nemotron3_5TranscribeConfig(
            audio_config={
                "asr_config": LAYERS,
                "diarization_config": {
                    "audio_config": LAYERS,
                    "head_config": {"hidden_size": 16, "audio_hidden_size": 32},
                },
            },
            text_config={
                **LAYERS,
                "model_type": "nemotron_h",
                "num_key_value_heads": 1,
                "head_dim": 16,
                "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
                "num_hidden_layers": 4,
                "vocab_size": len(tokenizer),
                "mamba_num_heads": 4,
                "mamba_head_dim": 16,
                "ssm_state_size": 8,
                "n_groups": 2,
                "n_routed_experts": 4,
                "moe_intermediate_size": 24,
                "moe_shared_expert_intermediate_size": 24,
                "chunk_size": 16,
            },
            word_timestamp_config={**LAYERS, "vocab_size": 20, "blank_token_id": 19},
            audio_token_id=tokenizer.convert_tokens_to_ids("<|audio|>"),
        )
    )
    processor = Nemotron3_5TranscribeProcessor(
        NemotronAsrStreamingFeatureExtractor(feature_size=128),
        tokenizer,
        alignment_tokenizer=tokenizer,
        chat_template=TEMPLATE.replace("AUDIO", "<|audio|>"),
    )
    return save(folder, model, processor)


PROMPTED: dict[str, Callable[[Path], Path]] = {
    "audioflamingo3": tiny_flamingo,
    "canary": tiny_canary,
    "cohere_asr": tiny_cohere,
    "fun_asr_nano": tiny_fun_asr,
    "glmasr": tiny_glmasr,
    "granite_speech": tiny_granite,
    "granite_speech_plus": lambda folder: tiny_granite(folder, plus=True),
    "moss_transcribe_diarize": tiny_moss,
    "nemo_speechlm": tiny_nemotron,
    "qwen3_asr": tiny_qwen3,
    "vibevoice_asr": tiny_vibevoice,
    "voxtral": tiny_voxtral,
}


@functools.cache
def loaded(folder: Path, dtype: str) -> tuple[Any, Any]:
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, dtype=dtype)
    checkpoint = find_checkpoint(str(folder))
    options = Options(task="automatic-speech-recognition", model=str(folder))
    return processor_of(checkpoint, options), model


def page(
    folder: Path, wave: np.ndarray, dtype: str = "float32", **request: Any
) -> tuple[str, float]:
    """The text and the mean probability of the tokens, by the code on the model's page."""
    import torch

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    processor, model = loaded(folder, dtype)
    generate = request.pop("generate", {})
    rate = 24_000 if kind == "vibevoice_asr" else 16_000
    if kind.startswith("granite"):
        asked = request.get("prompt") or KINDS[kind].default_prompt
        turns = [{"role": "user", "content": f"<|audio|>{asked}"}]
        text = processor.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text, [wave], return_tensors="pt")
    elif kind == "cohere_asr":
        inputs = processor(wave, sampling_rate=rate, return_tensors="pt", **request)
        inputs.pop("audio_chunk_index")
    elif kind == "voxtral":
        inputs = processor.apply_transcription_request(
            audio=wave, model_id=str(folder), sampling_rate=rate, format=["WAV"], **request
        )
    else:
        inputs = processor.apply_transcription_request(
            audio=wave, processor_kwargs={"sampling_rate": rate, "return_tensors": "pt"}, **request
        )
    with torch.inference_mode():
        output = model.generate(
            **inputs.to(model.dtype),
            **KINDS[kind].settings,
            **generate,
            return_dict_in_generate=True,
            output_scores=True,
        )
    beams = getattr(output, "beam_indices", None)
    scores = model.compute_transition_scores(
        output.sequences, output.scores, beams, normalize_logits=beams is None
    )[0]
    tokens = output.sequences[0, -len(scores) :]
    ends = (tokens == model.generation_config.eos_token_id).nonzero()[:, 0].tolist()
    scores = scores[: ends[0] + 1 if ends else None]
    formats: dict[str, dict[str, Any]] = {
        "language": {"return_format": "transcription_only"},
        "speakers": {"return_format": "transcription_only"},
        "framed": {"skip_special_tokens": True, "strip_prefix": True},
        "tags": {"skip_special_tokens": True},
        "text": {"skip_special_tokens": True},
    }
    [text] = processor.decode(tokens[None], **formats[KINDS[kind].answer])
    return text.strip(), scores.mean().exp().item()
