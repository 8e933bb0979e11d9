"""The files that a checkpoint must have, checked before a run starts, without importing torch.

transformers makes an empty tokenizer if its files are missing, and then all texts are ''.
"""

from __future__ import annotations

from typing import Any

from audio_ops.inference.adapter import check_adapter
from audio_ops.inference.checkpoint import AdaptedCheckpoint, Checkpoint, LoadOptions
from audio_ops.inference.extractor import check_extractor
from audio_ops.inference.weights import INDEX, WEIGHTS, shapes, weight_map

Alternatives = tuple[tuple[str, ...], ...]  # sets of files, each of which suffices

FAST: Alternatives = (("tokenizer.json",),)
BPE: Alternatives = (*FAST, ("vocab.json", "merges.txt"))
PIECES: Alternatives = (*FAST, ("sentencepiece.bpe.model",))
LETTERS: Alternatives = (("vocab.json",),)
# By class, without "Fast": `vocab_files_names` of transformers' classes.
TOKENIZERS: dict[str, Alternatives] = {
    "WhisperTokenizer": BPE,
    "RobertaTokenizer": BPE,
    "BartTokenizer": BPE,
    "GPT2Tokenizer": BPE,
    "Qwen2Tokenizer": BPE,
    "TokenizersBackend": FAST,
    "MistralCommonBackend": (("tekken.json",),),
    "SeamlessM4TTokenizer": PIECES,
    "MBartTokenizer": PIECES,
    "MBart50Tokenizer": PIECES,
    "XLMRobertaTokenizer": PIECES,
    "LasrTokenizer": (*FAST, ("spiece.model",)),
    "ParakeetTokenizer": FAST,
    "BertTokenizer": (*FAST, ("vocab.txt",)),
    "T5Tokenizer": (*FAST, ("spiece.model",)),
    "Wav2Vec2CTCTokenizer": LETTERS,
    "Wav2Vec2PhonemeCTCTokenizer": LETTERS,
    "SpeechT5Tokenizer": (("spm_char.model",),),
    "Speech2TextTokenizer": (("vocab.json", "sentencepiece.bpe.model"),),
    **dict.fromkeys(("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"), ((),)),
}
ANY: Alternatives = (*BPE, ("vocab.txt",), *PIECES[1:], ("spiece.model",), ("tokenizer.model",))
# The class if neither tokenizer_config.json nor config.json names one: transformers'
# TOKENIZER_MAPPING_NAMES, with which tests/models/test_missing_files.py compares it.
DEFAULTS = {
    "audioflamingo3": "Qwen2Tokenizer",
    "canary": "TokenizersBackend",
    "clap": "RobertaTokenizer",
    "cohere_asr": "TokenizersBackend",
    "data2vec-audio": "Wav2Vec2CTCTokenizer",
    "fun_asr_nano": "Qwen2Tokenizer",
    "glmasr": "TokenizersBackend",
    "granite_speech5_ctc": "ParakeetTokenizer",
    "hubert": "Wav2Vec2CTCTokenizer",
    "lasr_ctc": "LasrTokenizer",
    "moss_transcribe_diarize": "Qwen2Tokenizer",
    "nemo_speechlm": "TokenizersBackend",
    "nemotron3_5_asr": "ParakeetTokenizer",
    "nemotron_asr_streaming": "ParakeetTokenizer",
    "parakeet_ctc": "ParakeetTokenizer",
    "parakeet_rnnt": "ParakeetTokenizer",
    "parakeet_tdt": "ParakeetTokenizer",
    "qwen3_asr": "Qwen2Tokenizer",
    "seamless_m4t": "SeamlessM4TTokenizer",
    "seamless_m4t_v2": "SeamlessM4TTokenizer",
    "speech_to_text": "Speech2TextTokenizer",
    "speecht5": "SpeechT5Tokenizer",
    "unispeech": "Wav2Vec2CTCTokenizer",
    "unispeech-sat": "Wav2Vec2CTCTokenizer",
    "voxtral": "MistralCommonBackend",
    "voxtral_realtime": "MistralCommonBackend",
    "wav2vec2": "Wav2Vec2CTCTokenizer",
    "wav2vec2-bert": "Wav2Vec2CTCTokenizer",
    "wav2vec2-conformer": "Wav2Vec2CTCTokenizer",
    "whisper": "WhisperTokenizer",
}
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def check_files(options: LoadOptions, checkpoint: Checkpoint, tokenizer: bool) -> None:
    """Raise ValueError if the checkpoint lacks its feature extractor, its weights or, if the task
    needs one, its `tokenizer`, or if these are of another model or quantized. The message says what is
    missing and where to get it."""
    if not options.trust_remote_code:
        check_extractor(checkpoint)
    _check_not_quantized(checkpoint)
    if tokenizer:
        _check_tokenizer(options, checkpoint)
    base = checkpoint.base if isinstance(checkpoint, AdaptedCheckpoint) else checkpoint
    _check_weights(base)
    shapes(base)
    if isinstance(checkpoint, AdaptedCheckpoint):
        check_adapter(checkpoint)


def _check_not_quantized(checkpoint: Checkpoint) -> None:
    """Raise ValueError for weights of 8 bits or fewer: some methods need a GPU, all of them a package,
    and none allows `dtype`."""
    quantized = checkpoint.json("config.json").get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"model: expected weights that are not quantized, found quantization_config ({method}) in "
            f"config.json of {checkpoint.source}: take the checkpoint that it was quantized from, whose "
            "weights `dtype` makes smaller"
        )


def _check_weights(checkpoint: Checkpoint) -> None:
    if checkpoint.has(WEIGHTS):
        return
    shards = sorted(set(weight_map(checkpoint).values()))
    # Only for a folder: an offline driver's cache need not hold the weights of a hub id.
    is_folder = checkpoint.revision is None
    missing = [shard for shard in shards if not checkpoint.has(shard)]
    if is_folder and missing:
        raise ValueError(
            f"model: expected all files that {INDEX} names, found none of the name "
            f"{', '.join(missing[:3])} in {checkpoint.source}: copy them again"
        )
    pickled = [file for file in PICKLED if checkpoint.has(file)]
    if not shards and (pickled or is_folder):
        raise ValueError(
            f"model: expected {WEIGHTS} or {INDEX}, found "
            f"{f'only {pickled[0]}, a pickle,' if pickled else 'neither'} in {checkpoint.source}: "
            f"copy it again if it has one; a pytorch_model.bin is converted with: "
            f"{_conversion(checkpoint)}"
        )


def _conversion(checkpoint: Checkpoint) -> str:
    """The command that converts a pickle to safetensors, in the checkpoint's folder or a copy."""
    architecture = (checkpoint.json("config.json").get("architectures") or ["AutoModel"])[0]
    folder, fetch = checkpoint.source, ""
    if checkpoint.revision is not None:
        folder = checkpoint.name.rpartition("/")[2]
        fetch = f"hf download {checkpoint.name} --revision {checkpoint.revision} --local-dir {folder} && "
    elif "://" in folder:
        folder = "FOLDER"  # a local copy, to be uploaded again
    return (
        f'{fetch}python -c "from transformers import {architecture} as M; '
        f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
    )


def _check_tokenizer(options: LoadOptions, checkpoint: Checkpoint) -> None:
    settings, config = checkpoint.json("tokenizer_config.json"), checkpoint.json("config.json")
    if options.trust_remote_code and "AutoTokenizer" in (settings.get("auto_map") or {}):
        return
    enough = _alternatives(settings, config)
    if any(all(map(checkpoint.has, files)) for files in enough):
        return
    known = dict.fromkeys(file for files in enough for file in files)
    found = [file for file in known if checkpoint.has(file)]
    expected = ", or ".join(" and ".join(files) for files in enough)
    base = config.get("_name_or_path") or "BASE"
    raise ValueError(
        f"model: expected a tokenizer ({expected}), found "
        f"{f'only {found[0]}' if found else 'none'} in {checkpoint.source}: copy it from the "
        f"checkpoint that this one was trained from, or with: "
        f'python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{base}').save_pretrained('FOLDER')\""
    )


def _alternatives(settings: dict[str, Any], config: dict[str, Any]) -> Alternatives:
    """The tokenizer files that suffice, by the class that transformers would choose.

    settings, config: tokenizer_config.json and config.json, in transformers' order of precedence.
    """
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = named or DEFAULTS.get(config.get("model_type", ""))
    if name is None:  # then only a file that describes the tokenizer by itself will do
        return (*FAST, ("tokenizer.model",))
    return TOKENIZERS.get(name.removesuffix("Fast"), ANY)
