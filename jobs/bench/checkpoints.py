"""Checkpoints of published sizes with random weights, for measuring speed only.

They are created once and stay in the user's cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.bench import testbed
from jobs.models import cache, made_once

END, START, SOUND = "<|end|>", "<|start|>", "<|sound|>"
# The prompts of Canary and Qwen3-ASR, as long as theirs.
CANARY = "{{ '<|start|>' + 'a' * 8 }}"
QWEN3 = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] }}"
    "{% for part in message['content'] %}"
    "{{ '<|sound|>' if part['type'] == 'audio' else part['text'] or '' }}"
    "{% endfor %}{% endfor %}{{ 'assistant' if add_generation_prompt else '' }}"
)


def checkpoint(name: str) -> Path:
    """A checkpoint of a published model's size with random weights, for measuring speed only: one of
    `MAKERS`, of which `nothing` is a classifier that costs almost nothing.
    """

    def make(folder: Path) -> None:
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(0)
        for part in MAKERS[name]():
            part.save_pretrained(folder)

    return made_once(cache() / f"random-{name}", make)


def labels(count: int) -> dict[str, Any]:
    """The entries of a model's config for a classifier of `count` labels."""
    return {
        "id2label": {n: f"label {n}" for n in range(count)},
        "label2id": {f"label {n}": n for n in range(count)},
    }


def _wav2vec2_base() -> tuple[Any, ...]:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**labels(12)))
    return model, Wav2Vec2FeatureExtractor()


def _nothing() -> tuple[Any, ...]:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    config = Wav2Vec2Config(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        conv_dim=(8,),
        conv_kernel=(1600,),
        conv_stride=(1600,),
        num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=1,
        classifier_proj_size=8,
        **labels(2),
    )
    return Wav2Vec2ForSequenceClassification(config), Wav2Vec2FeatureExtractor()


def _ast() -> tuple[Any, ...]:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    return ASTForAudioClassification(ASTConfig(**labels(527))), ASTFeatureExtractor()


def _clap() -> tuple[Any, ...]:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[])
    # The settings of laion/clap-htsat-unfused.
    extractor = ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
    return ClapModel(ClapConfig()), tokenizer, extractor


def byte_tokenizer(**settings: Any) -> Any:
    """A tokenizer of bytes, without merges, with transformers' `settings`."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def _tokenizer() -> Any:
    """A tokenizer for texts that nobody reads, as the weights are random."""
    marks = {"audio_token": SOUND, "audio_bos_token": START, "audio_eos_token": END}
    return byte_tokenizer(
        eos_token=END,
        pad_token=END,
        bos_token=START,
        unk_token="<|unknown|>",
        extra_special_tokens=marks,
    )


def _parakeet_tdt() -> tuple[Any, ...]:
    """nvidia/parakeet-tdt-0.6b-v3. Half of its steps are blanks, of two frames each."""
    import torch
    from transformers import (
        ParakeetFeatureExtractor,
        ParakeetForTDT,
        ParakeetProcessor,
        ParakeetTDTConfig,
    )

    model = ParakeetForTDT(ParakeetTDTConfig(encoder_config={"num_mel_bins": 128}))
    blank, durations = model.config.blank_token_id, len(model.config.durations)
    with torch.no_grad():
        bias = model.joint.head.bias
        bias.zero_()
        bias[blank], bias[-durations + 2] = 0.75, 5.0
    model.generation_config.decoder_start_token_id = blank
    model.generation_config.suppress_tokens = list(range(blank + 1, blank + 1 + durations))
    tokenizer = _tokenizer()
    extractor = ParakeetFeatureExtractor(feature_size=128)
    return model, ParakeetProcessor(extractor, tokenizer, decoder_type="tdt")


def _canary() -> tuple[Any, ...]:
    """nvidia/canary-1b-flash: 32 layers that encode, 4 that decode."""
    from transformers import (
        CanaryConfig,
        CanaryForConditionalGeneration,
        CanaryProcessor,
        ParakeetFeatureExtractor,
    )

    tokenizer = _tokenizer()
    special: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    start: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id}
    size: dict[str, Any] = {"vocab_size": 5248}
    decoder: dict[str, Any] = {"num_hidden_layers": 4, **size, **special, **start}
    config = CanaryConfig(
        decoder_config=decoder,
        decoder_start_token_id=start["bos_token_id"],
        **size,
        **special,
        **start,
    )
    model = CanaryForConditionalGeneration(config)
    extractor = ParakeetFeatureExtractor(feature_size=128)
    return _endless(model), CanaryProcessor(extractor, tokenizer, chat_template=CANARY)


def _qwen3_asr() -> tuple[Any, ...]:
    """Qwen/Qwen3-ASR-0.6B."""
    from transformers import (
        Qwen3ASRConfig,
        Qwen3ASRFeatureExtractor,
        Qwen3ASRForConditionalGeneration,
        Qwen3ASRProcessor,
    )

    tokenizer = _tokenizer()
    ids: dict[str, Any] = {
        "audio_token_id": tokenizer.convert_tokens_to_ids(SOUND),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    audio: dict[str, Any] = {"d_model": 896, "encoder_attention_heads": 14, "encoder_ffn_dim": 3584}
    audio |= {"encoder_layers": 18, "output_dim": 1024}
    text: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 3072, "model_type": "qwen3"}
    text |= {"num_hidden_layers": 28, "tie_word_embeddings": True}
    model = Qwen3ASRForConditionalGeneration(
        Qwen3ASRConfig(audio_config=audio, text_config=text, **ids)
    )
    extractor = Qwen3ASRFeatureExtractor()
    return _endless(model), Qwen3ASRProcessor(extractor, tokenizer, chat_template=QWEN3)


def _whisper_turbo() -> tuple[Any, ...]:
    """openai/whisper-large-v3-turbo, with the files of Whisper base for its tokens."""
    from transformers import (
        AutoTokenizer,
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    base = testbed.whisper_base()
    config = WhisperConfig.from_pretrained(base)
    shape: dict[str, Any] = {"d_model": 1280, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120}
    shape |= {"encoder_attention_heads": 20, "decoder_attention_heads": 20, "num_mel_bins": 128}
    config.update(shape | {"encoder_layers": 32, "decoder_layers": 4})
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(base)
    model.generation_config.update(alignment_heads=None)
    extractor = WhisperFeatureExtractor(feature_size=128)
    return _endless(model), WhisperProcessor(extractor, AutoTokenizer.from_pretrained(base))


def _endless(model: Any) -> Any:
    """The model in bfloat16, as most are published, never ending a text by itself."""
    import torch

    model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]
    return model.to(torch.bfloat16)


MAKERS = {
    "wav2vec2-base": _wav2vec2_base,
    "ast": _ast,
    "clap": _clap,
    "nothing": _nothing,
    "parakeet-tdt-0.6b": _parakeet_tdt,
    "canary-1b-flash": _canary,
    "qwen3-asr-0.6b": _qwen3_asr,
    "whisper-large-v3-turbo": _whisper_turbo,
}
