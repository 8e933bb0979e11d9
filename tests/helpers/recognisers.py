"""Tiny random checkpoints of the recognisers that came after Whisper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import enlarge, letter_tokenizer, talk, train_letters

PIECES = [
    *("<unk>", "<pad>"),
    *(f"▁{a}{b}" for a in "abcd" for b in "wxyz"),
    *"efghij",
    *(".", ",", "<en-US>", "<de-DE>"),
]
BLANK_BIAS = 3.0
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "subsampling_conv_channels": 8,
    "layerdrop": 0.0,
}


def piece_tokenizer(pieces: list[str], pad: str) -> Any:
    """A Parakeet tokenizer of these pieces, those in angle brackets special."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import ParakeetTokenizer

    tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    special = [piece for piece in pieces if piece.startswith("<")]
    return ParakeetTokenizer(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=pad,
        additional_special_tokens=[one for one in special if one not in ("<unk>", pad)],
    )


def _vary(model: Any, extractor: Any) -> None:
    """Scale what a transducer's joint network gets, so that both sound and tokens count, and let it
    choose the blank half the time."""
    import torch
    from hearing import RATE, sound

    blank = model.config.blank_token_id
    inputs = extractor(sound(6.0, 500), sampling_rate=RATE, return_tensors="pt")
    network = model.decoder
    with torch.no_grad():
        frames = model.eval().get_audio_features(**inputs).pooler_output[0]
        _normalise(model.encoder_projector, frames)
        network.embedding.weight.normal_(std=2.0)
        states, _ = network.lstm(network.embedding.weight[:, None])
        _normalise(network.decoder_projector, network.decoder_projector(states[:, 0]))
        model.joint.head.bias.zero_()
        model.joint.head.bias[:2] = -100.0
        model.joint.head.bias[blank] = BLANK_BIAS


def _normalise(layer: Any, outputs: Any) -> None:
    """Make a linear layer's outputs vary by 1 around 0, given those of now."""
    mean, deviation = outputs.mean(0), outputs.std(0)
    layer.weight.div_(deviation[:, None])
    layer.bias.sub_(mean).div_(deviation)


def tiny_transducer(folder: Path, model_type: str, seed: int = 0) -> Path:
    """A random transducer that emits blanks and tokens, different ones for different sounds."""
    import torch
    import transformers
    from transformers import AutoConfig

    is_parakeet = model_type.startswith("parakeet")
    pieces = [*PIECES, "<blank>"]
    blank = len(pieces) - 1
    kind = "ForTDT" if model_type == "parakeet_tdt" else "ForRNNT"
    encoder_type = "parakeet_encoder" if is_parakeet else "nemotron_asr_streaming_encoder"
    shape: dict[str, Any] = {
        "vocab_size": len(pieces),
        "blank_token_id": blank,
        "pad_token_id": 1 if model_type == "parakeet_tdt" else blank,
        "decoder_hidden_size": 32,
        "num_decoder_layers": 2,
        "max_symbols_per_step": 3,
        "encoder_config": {"model_type": encoder_type, **ENCODER},
    }
    if model_type == "nemotron3_5_asr":
        shape |= {"num_prompts": 8, "default_prompt_id": 5, "prompt_intermediate_size": 48}
    torch.manual_seed(seed)
    auto = getattr(transformers, f"AutoModel{kind}")
    model = auto.from_config(AutoConfig.for_model(model_type, **shape))
    enlarge(model)
    extractor = (
        transformers.ParakeetFeatureExtractor()
        if is_parakeet
        else transformers.NemotronAsrStreamingFeatureExtractor()
    )
    _vary(model, extractor)
    generation = model.generation_config
    generation.decoder_start_token_id = blank
    if kind == "ForTDT":
        durations = range(len(pieces), len(pieces) + len(model.config.durations))
        generation.suppress_tokens = list(durations)
    model.save_pretrained(folder)
    tokenizer = piece_tokenizer(pieces, "<pad>" if kind == "ForTDT" else "<blank>")
    if is_parakeet:
        transformers.ParakeetProcessor(
            extractor,
            tokenizer,
            decoder_type=kind[3:].lower(),
        ).save_pretrained(folder)
        return folder
    if model_type == "nemotron3_5_asr":
        transformers.Nemotron3_5AsrProcessor(
            extractor,
            tokenizer,
            prompt_dictionary={"en-US": 0, "de-DE": 1, "auto": 5},
            num_prompts=8,
        ).save_pretrained(folder)
    else:
        transformers.NemotronAsrStreamingProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def tiny_moonshine_streaming(folder: Path, seed: int = 1) -> Path:
    """A random streaming Moonshine with a real feature extractor and a tokenizer of letters."""
    import torch
    from transformers import (
        AutoTokenizer,
        MoonshineStreamingConfig,
        MoonshineStreamingForConditionalGeneration,
        MoonshineStreamingProcessor,
        Wav2Vec2FeatureExtractor,
    )

    size = letter_tokenizer(folder)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    encoder = {**shape, "num_key_value_heads": 2, "num_hidden_layers": 2}
    encoder |= {"sliding_windows": [[16, 4], [16, 0]]}
    torch.manual_seed(seed)
    model = MoonshineStreamingForConditionalGeneration(
        MoonshineStreamingConfig(
            encoder_config=encoder,
            vocab_size=size,
            num_hidden_layers=2,
            num_key_value_heads=2,
            pad_token_id=0,
            decoder_start_token_id=1,
            **shape,
        )
    )
    talk(model)
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    MoonshineStreamingProcessor(extractor, AutoTokenizer.from_pretrained(folder)).save_pretrained(
        folder
    )
    return folder


def tiny_speecht5(folder: Path, seed: int = 0) -> Path:
    """A random SpeechT5 for recognition with a tokenizer of letters."""
    import torch
    from transformers import (
        SpeechT5Config,
        SpeechT5FeatureExtractor,
        SpeechT5ForSpeechToText,
        SpeechT5Tokenizer,
    )

    pieces = folder / "spm_char.model"
    train_letters(pieces, special=4, pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    tokenizer = SpeechT5Tokenizer(str(pieces))
    torch.manual_seed(seed)
    model = SpeechT5ForSpeechToText(
        SpeechT5Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            conv_dim=(16,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
        )
    )
    talk(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SpeechT5FeatureExtractor().save_pretrained(folder)
    return folder
