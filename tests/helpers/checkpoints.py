"""Tiny checkpoints of real architectures with random weights, made when they are needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import pytest

Name = TypeVar("Name", bound=Hashable)
LANGUAGES = ("en", "de", "fr", "ar")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def each_made_once(
    folders: pytest.TempPathFactory, make: Callable[[Path, Name], Path]
) -> Callable[[Name], Path]:
    """The checkpoint of a name, made by `make(folder, name)` when it is first asked for."""

    @functools.cache
    def checkpoint(name: Name) -> Path:
        return make(folders.mktemp("model"), name)

    return checkpoint


def whisper_tokens() -> list[str]:
    """The tokens after the 256 bytes in a tiny Whisper vocabulary, in OpenAI's order."""
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in LANGUAGES),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]


def byte_vocabulary() -> dict[str, int]:
    """A byte-level BPE vocabulary without merges: one token per byte, in a fixed order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}


def tiny_whisper(
    folder: Path,
    multilingual: bool = True,
    timestamps: bool = False,
    seed: int = 2,
    **generation: object,
) -> Path:
    """A random Whisper with a real tokenizer, feature extractor and generation config.

    Its window is 30 s, and it generates up to 24 random tokens, different ones for different
    sounds, in one of four languages. Unlike a trained one it generates timestamps unless they are
    suppressed. `generation` overrides entries of its generation config.
    """
    import torch
    from tokenizers import AddedToken
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    vocabulary = byte_vocabulary()
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    special = [token for token in whisper_tokens() if token != "<|endoftext|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})  # type: ignore[dict-item]
    tokenizer.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", special=False) for n in range(1501)])
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in whisper_tokens()}
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        init_std=0.8,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    settings: dict[str, object] = dict(
        max_length=28,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[i for token, i in ids.items() if token != "<|endoftext|>"]
        + ([] if timestamps else list(range(ids["<|notimestamps|>"] + 1, len(tokenizer)))),
        begin_suppress_tokens=[end],
        is_multilingual=multilingual,
        alignment_heads=[[0, 0], [1, 1]],
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
    if multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")}
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**{**settings, **generation})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def tiny_classifier(
    folder: Path,
    model_type: str,
    labels: tuple[str, ...] = ("dog", "cat", "rain", "music", "speech", "engine", "bird"),
    seed: int = 2,
    **config: object,
) -> Path:
    """A random audio classifier of any architecture, with its feature extractor.

    `config` overrides entries of its config. Different sounds get clearly different scores.
    """
    import torch
    from transformers import (
        ASTFeatureExtractor,
        AutoConfig,
        AutoModelForAudioClassification,
        SeamlessM4TFeatureExtractor,
        Wav2Vec2FeatureExtractor,
        WhisperFeatureExtractor,
    )

    shape: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "classifier_proj_size": 16,
    }
    if model_type == "whisper":
        shape |= {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
        shape |= {"decoder_layers": 1, "decoder_attention_heads": 2, "encoder_ffn_dim": 48}
        shape |= {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    elif model_type == "wav2vec2-bert":
        shape |= {"feature_projection_input_dim": 160, "add_adapter": False}
    elif model_type != "audio-spectrogram-transformer":
        shape |= {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 4}
        shape |= {"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}
        if model_type != "data2vec-audio":
            shape |= {"num_conv_pos_embeddings": 16}
    torch.manual_seed(seed)
    model = AutoModelForAudioClassification.from_config(
        AutoConfig.for_model(
            model_type,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            **{**shape, **config},
        )
    )
    with torch.no_grad():  # initial weights are so small that all sounds would score the same
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(std=1.5 * (parameter[0].numel() ** -0.5))
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if model_type == "whisper":
        WhisperFeatureExtractor().save_pretrained(folder)
    elif model_type == "wav2vec2-bert":
        SeamlessM4TFeatureExtractor().save_pretrained(folder)
    elif model_type == "audio-spectrogram-transformer":
        ASTFeatureExtractor().save_pretrained(folder)
    else:
        is_masked = getattr(model.config, "feat_extract_norm", "layer") == "layer"
        Wav2Vec2FeatureExtractor(return_attention_mask=is_masked).save_pretrained(folder)
    return folder


def tiny_clap(folder: Path, fused: bool = False, seed: int = 0) -> Path:
    """A random CLAP with a byte-level tokenizer and its 10 s, 48 kHz feature extractor."""
    import torch
    from transformers import (
        ClapAudioConfig,
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapTextConfig,
        RobertaTokenizer,
    )

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary = {token: index for index, token in enumerate(special)}
    vocabulary |= {token: index + len(special) for token, index in byte_vocabulary().items()}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[])
    text = ClapTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=130,
    )
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=8,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        hidden_size=64,
        enable_fusion=fused,
        fusion_type="aff_2d" if fused else None,
    )
    torch.manual_seed(seed)
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=16)  # type: ignore[arg-type]
    model = ClapModel(config)
    with torch.no_grad():  # initial weights are so small that all sounds would score the same
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                parameter.normal_(std=1.5 * (parameter[0].numel() ** -0.5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc").save_pretrained(folder)
    return folder


def enlarge(model: object) -> None:
    """Enlarge initial weights, with which all sounds would have the same output."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(std=1.5 * (parameter[0].numel() ** -0.5))
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


CTC_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")


def tiny_ctc(
    folder: Path,
    model_type: str,
    seed: int = 0,
    languages: dict[str, str] | None = None,
    **config: object,
) -> Path:
    """A random CTC model of any architecture, with its feature extractor and tokenizer.

    `config` overrides entries of its config. `languages` makes it an MMS: for each code an adapter
    and a vocabulary of those letters; the first is the default.
    """

    import torch
    from safetensors.torch import save_file
    from transformers import (
        AutoConfig,
        AutoModelForCTC,
        SeamlessM4TFeatureExtractor,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
    )

    if model_type in ("granite_speech5_ctc", "lasr_ctc", "parakeet_ctc"):
        return _tiny_log_mel(folder, model_type, seed)
    folder.mkdir(parents=True, exist_ok=True)
    alphabets = languages or {"": "abcdefghijk'"}
    vocabularies = {
        code: {token: index for index, token in enumerate((*CTC_SPECIAL, *letters))}
        for code, letters in alphabets.items()
    }
    first, vocabulary = next(iter(vocabularies.items()))
    path = folder / "vocab.json"
    path.write_text(json.dumps(vocabularies if languages else vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(path), target_lang=first or None)
    shape: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": len(vocabulary),
        "pad_token_id": 0,
    }
    if model_type == "wav2vec2-bert":
        shape |= {"feature_projection_input_dim": 160, "add_adapter": False}
    else:
        kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
        shape |= {"conv_dim": (16,) * 7, "conv_kernel": kernels, "conv_stride": strides}
        shape |= {"num_conv_pos_embedding_groups": 4, "feat_extract_dropout": 0.0}
        if model_type != "data2vec-audio":
            shape |= {"num_conv_pos_embeddings": 16}
    if languages:
        shape |= {"adapter_attn_dim": 8}
    torch.manual_seed(seed)
    settings = AutoConfig.for_model(model_type, **{**shape, **config})
    model = AutoModelForCTC.from_config(settings)
    enlarge(model)
    _stutter(model.lm_head)
    for code in vocabularies if languages else ():
        save_file(model._get_adapters(), folder / f"adapter.{code}.safetensors")
        if code == first:
            weights = {name: weight.clone() for name, weight in model._get_adapters().items()}
        enlarge(model)
        _stutter(model.lm_head)
    if languages:  # as in MMS, the model's own weights are those of the default
        for name, parameter in model._get_adapters().items():
            parameter.data.copy_(weights[name])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model_type == "wav2vec2-bert":
        SeamlessM4TFeatureExtractor().save_pretrained(folder)
    else:
        is_masked = getattr(model.config, "feat_extract_norm", "layer") == "layer"
        Wav2Vec2FeatureExtractor(return_attention_mask=is_masked).save_pretrained(folder)
    return folder


def _stutter(head: object) -> None:
    """Make a head emit blanks and word delimiters between letters, and no other special token."""
    import torch

    with torch.no_grad():
        head.weight.mul_(3.0)  # type: ignore[attr-defined]
        head.bias.zero_()  # type: ignore[attr-defined]
        head.bias[0] = 2.0  # type: ignore[attr-defined]
        head.bias[1:4] = -100.0  # type: ignore[attr-defined]
        head.bias[4] = 2.5  # type: ignore[attr-defined]


def _tiny_log_mel(folder: Path, model_type: str, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import (
        AutoConfig,
        AutoModelForCTC,
        LasrFeatureExtractor,
        LasrTokenizer,
        ParakeetFeatureExtractor,
        ParakeetTokenizer,
    )

    from audio_ops.inference.granite import Granite5Features

    is_lasr = model_type == "lasr_ctc"
    words = [*(f"▁{a}{b}" for a in "abc" for b in "xyz"), *"defghij"]
    pieces = ["<pad>", "</s>", "<unk>", *words] if is_lasr else ["<unk>", *words, "<pad>"]
    encoder = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    if model_type == "granite_speech5_ctc":
        encoder |= {"vocab_size": len(pieces), "context_size": 16, "num_hidden_layers": 4}
    else:
        encoder |= {"subsampling_conv_channels": 8, "layerdrop": 0.0}
    torch.manual_seed(seed)
    model = AutoModelForCTC.from_config(
        AutoConfig.for_model(
            model_type,
            vocab_size=len(pieces),
            pad_token_id=pieces.index("<pad>"),
            encoder_config=encoder,
        )
    )
    enlarge(model)
    if model_type != "parakeet_ctc":
        sounds: object = LasrFeatureExtractor() if is_lasr else Granite5Features({}, "cpu")
        _tell_frames_apart(model, sounds)
        _tell_frames_apart(model, sounds)  # Granite's head also serves a layer in the middle
    model.save_pretrained(folder)
    tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    if is_lasr:
        LasrFeatureExtractor().save_pretrained(folder)
        LasrTokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0).save_pretrained(
            folder
        )
        return folder
    ParakeetTokenizer(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    if model_type == "parakeet_ctc":
        ParakeetFeatureExtractor().save_pretrained(folder)
    else:  # its class wants torchaudio
        settings = {"feature_extractor_type": "GraniteSpeech5FeatureExtractor", "num_mel_bins": 80}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _tell_frames_apart(model: Any, extractor: Any) -> None:
    """Scale a CTC head so that each token's score varies by 1 around 0 in time."""
    import torch
    from hearing import RATE, sound

    inputs = extractor([sound(6.0, 500)], sampling_rate=RATE, return_tensors="pt")
    head = model.ctc_head
    with torch.no_grad():
        scores = model.eval()(input_features=inputs["input_features"]).logits[0]
        deviation = scores.std(0)
        head.weight.div_(deviation.view(-1, *(1 for _ in head.weight.shape[1:])))
        head.bias.sub_(scores.mean(0)).div_(deviation)
        head.bias[model.config.pad_token_id] += 1.0


def letter_tokenizer(folder: Path) -> int:
    """Save a tokenizer of <pad> 0, <s> 1, </s> 2, <unk> 3, space and letters; return its size."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens = ("<pad>", "<s>", "</s>", "<unk>", "Ġ", *LETTERS)
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return len(tokens)


def tiny_moonshine(folder: Path, seed: int = 0) -> Path:
    """A random Moonshine with a real feature extractor and a tokenizer of letters."""
    import torch
    from transformers import (
        MoonshineConfig,
        MoonshineForConditionalGeneration,
        Wav2Vec2FeatureExtractor,
    )

    size = letter_tokenizer(folder)
    torch.manual_seed(seed)
    model = MoonshineForConditionalGeneration(
        MoonshineConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=48,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            pad_token_id=0,
        )
    )
    talk(model)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    return folder


def train_letters(file: Path, special: int, **ids: int) -> None:
    """Write a SentencePiece model of `special` tokens, space and letters."""
    import sentencepiece

    with file.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([LETTERS]),
            model_writer=out,
            model_type="char",
            vocab_size=special + 1 + len(LETTERS),
            minloglevel=2,
            **ids,
        )


def tiny_speech2text(folder: Path, seed: int = 0) -> Path:
    """A random Speech2Text with a real feature extractor and a SentencePiece tokenizer."""
    import torch
    from transformers import (
        Speech2TextConfig,
        Speech2TextFeatureExtractor,
        Speech2TextForConditionalGeneration,
        Speech2TextTokenizer,
    )

    pieces = folder / "sentencepiece.bpe.model"
    train_letters(pieces, special=3)
    vocabulary = ("<pad>", "<s>", "</s>", "<unk>", "▁", *LETTERS)
    tokens = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
    Speech2TextTokenizer(str(folder / "vocab.json"), str(pieces)).save_pretrained(folder)
    size = len(tokens)
    torch.manual_seed(seed)
    model = Speech2TextForConditionalGeneration(
        Speech2TextConfig(
            vocab_size=size,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            conv_channels=48,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
        )
    )
    talk(model)
    model.save_pretrained(folder)
    Speech2TextFeatureExtractor().save_pretrained(folder)
    return folder


def tiny_speech_encoder_decoder(folder: Path, norm: str = "layer", seed: int = 0) -> Path:
    """A random wav2vec2 encoder with that feature norm, and a random BART decoder."""
    import torch
    from transformers import (
        BartConfig,
        SpeechEncoderDecoderConfig,
        SpeechEncoderDecoderModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
    )

    size = letter_tokenizer(folder)
    encoder = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    decoder = BartConfig(  # type: ignore[call-arg]
        vocab_size=size,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=None,
    )
    torch.manual_seed(seed)
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = SpeechEncoderDecoderModel(config=config)
    talk(model)
    generation = model.generation_config
    generation.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    model.save_pretrained(folder)
    is_masked = norm == "layer"
    Wav2Vec2FeatureExtractor(return_attention_mask=is_masked).save_pretrained(folder)
    return folder


def tiny_seamless(
    folder: Path, version: int, seed: int = 0, languages: tuple[str, ...] = ("eng", "arb", "fra")
) -> Path:
    """A random SeamlessM4T, version 1 or 2: speech encoder, text decoder and tokenizer."""
    import torch
    from transformers import (
        GenerationConfig,
        SeamlessM4TConfig,
        SeamlessM4TFeatureExtractor,
        SeamlessM4TForSpeechToText,
        SeamlessM4TProcessor,
        SeamlessM4TTokenizer,
        SeamlessM4Tv2Config,
        SeamlessM4Tv2ForSpeechToText,
    )

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    codes = [f"__{code}__" for code in languages]
    vocabulary = {
        token: index for index, token in enumerate(("<pad>", "<unk>", "<s>", "</s>", *letters))
    }
    tokenizer = SeamlessM4TTokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=codes, tgt_lang=languages[-1]
    )
    shape: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "speech_encoder_layers": 2,
        "speech_encoder_attention_heads": 2,
        "speech_encoder_intermediate_size": 48,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 48,
        "t2u_encoder_layers": 1,
        "t2u_decoder_layers": 1,
        "t2u_encoder_attention_heads": 2,
        "t2u_decoder_attention_heads": 2,
        "t2u_encoder_ffn_dim": 32,
        "t2u_decoder_ffn_dim": 32,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_start_token_id": 3,
    }
    torch.manual_seed(seed)
    model = (
        SeamlessM4Tv2ForSpeechToText(SeamlessM4Tv2Config(**shape))  # type: ignore[arg-type]
        if version == 2
        else SeamlessM4TForSpeechToText(SeamlessM4TConfig(**shape))  # type: ignore[arg-type]
    )
    talk(model)
    model.generation_config = GenerationConfig(
        no_repeat_ngram_size=2,
        text_decoder_lang_to_code_id={
            code: tokenizer.convert_tokens_to_ids(f"__{code}__") for code in languages
        },
        max_new_tokens=24,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
    )
    model.save_pretrained(folder)
    SeamlessM4TProcessor(SeamlessM4TFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def talk(model: object) -> None:
    """Set weights and generation settings so that different sounds get different words."""
    import torch

    enlarge(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
            if "embed_tokens" in name or "shared" in name:
                parameter.normal_(std=0.05)  # larger ones make each token predict itself
    settings = model.generation_config  # type: ignore[attr-defined]
    settings.update(max_new_tokens=24, no_repeat_ngram_size=2)
