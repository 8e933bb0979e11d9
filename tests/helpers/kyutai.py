"""A tiny random checkpoint of Kyutai's recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import enlarge

# As in real vocabularies: the token 0 ends the padding ahead of a word, and 3 is the padding.
PIECES = [
    *("<unk>", "<s>", "</s>", "<pad>"),
    *("▁a", "▁be", "▁see", "▁day", "c", "d.", "e", "f"),
    "<text start>",
]


def kyutai_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE({piece: n for n, piece in enumerate(PIECES)}, []))
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<text start>"],
    )


def tiny_kyutai(folder: Path, seed: int = 0) -> Path:
    """A random Kyutai recogniser with a random codec, which says something of each frame."""
    import torch
    from transformers import (
        KyutaiSpeechToTextConfig,
        KyutaiSpeechToTextFeatureExtractor,
        KyutaiSpeechToTextForConditionalGeneration,
        KyutaiSpeechToTextProcessor,
    )

    tokenizer = kyutai_tokenizer()
    size, codes = len(tokenizer), 16
    codec = {
        "model_type": "mimi",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_filters": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "codebook_size": codes,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "upsample_groups": 16,
        "sliding_window": 64,
    }
    torch.manual_seed(seed)
    model = KyutaiSpeechToTextForConditionalGeneration(
        KyutaiSpeechToTextConfig(
            vocab_size=size,
            codebook_vocab_size=codes + 1,
            num_codebooks=4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            head_dim=16,
            ffn_dim=48,
            sliding_window=64,
            max_position_embeddings=128,
            audio_bos_token_id=codes,
            audio_pad_token_id=size + 4 * (codes + 1),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.convert_tokens_to_ids("<text start>"),
            codec_config=codec,
        )
    )
    enlarge(model)
    with torch.no_grad():
        model.model.embed_tokens.embed_tokens.weight.normal_(std=1.0)
        model.lm_head.weight.normal_(std=0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
    model.generation_config.suppress_tokens = [1, 2, size - 1]
    model.generation_config.no_repeat_ngram_size = 2
    model.save_pretrained(folder)
    extractor = KyutaiSpeechToTextFeatureExtractor(audio_delay_seconds=0.5)
    KyutaiSpeechToTextProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def kyutai_page(folder: Path, wave: np.ndarray, dtype: str = "float32") -> tuple[str, float]:
    """The text and the mean probability of its tokens, by the code on the model's page."""
    import torch
    from transformers import AutoProcessor, KyutaiSpeechToTextForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model: Any = KyutaiSpeechToTextForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    inputs = processor(audio=wave, sampling_rate=24_000)
    output = model.generate(**inputs, return_dict_in_generate=True, output_scores=True)
    [text] = processor.batch_decode(output.sequences, skip_special_tokens=True)
    scores = model.compute_transition_scores(
        output.sequences, output.scores, normalize_logits=True
    )[0]
    special = torch.tensor(processor.tokenizer.all_special_ids)
    is_text = ~torch.isin(output.sequences[0, -len(scores) :], special)
    return text.strip(), scores[is_text].mean().exp().item()
