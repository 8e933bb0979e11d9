"""A checkpoint whose files contradict each other is refused before Ray starts, with the file and the
remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_ctc
from test_half_precision import MODELS
from test_missing_files import checked, made, refusal
from test_zero_shot import labels, pipeline_of, sound

Change = Callable[[Path], None]


def said(file: str, **keys: Any) -> Change:
    """Other values for keys of a JSON file; None removes the key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8")) | keys
        content = {
            key: value for key, value in content.items() if key not in keys or value is not None
        }
        (folder / file).write_text(json.dumps(content), encoding="utf-8")

    return change


def said_instead(file: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).write_text(content, encoding="utf-8")

    return change


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pointed(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)


def renamed(prefix: str, head: str | None = None) -> Change:
    """The tensors with another name, without `head`."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        kept = {prefix + name: one for name, one in weights.items() if not head or head not in name}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def marked(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8"), encoding="utf-8-sig")


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


LABELS = {
    str(n): name for n, name in enumerate(("dog", "cat", "rain", "music", "speech", "engine"))
}
NAMELESS = {str(n): None for n in range(7)}
VOCABULARY = {token: n for n, token in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", *"abc"))}
GENERATION = "generation_config.json"
EXTRACTOR = "preprocessor_config.json"
QUANTIZED = {"quant_method": "bitsandbytes", "load_in_8bit": True}
CASES: dict[str, tuple[str, Change, str]] = {
    "weights cut off": ("ctc", cut, "a part of it in .*model.safetensors: copy it again"),
    "weights a pointer": ("whisper", pointed, "Git LFS's pointer .*git lfs pull"),
    "weights empty": ("clap", emptied, "a safetensors file, found 0 bytes that are none in"),
    "no JSON": (
        "whisper",
        said_instead(GENERATION, "<!doctype html>"),
        f"a JSON object in {GENERATION} .*doctype html",
    ),
    "Whisper's vocabulary": (
        "whisper",
        said("config.json", vocab_size=1800),
        "expected 1800 rows in model.decoder.embed_tokens.weight, as vocab_size .* found 1769",
    ),
    "Whisper's start": (
        "whisper",
        said(GENERATION, decoder_start_token_id=None),
        f"expected decoder_start_token_id in {GENERATION}, .* cannot start, found none",
    ),
    "Whisper's end": (
        "whisper",
        said(GENERATION, eos_token_id=None),
        f"expected eos_token_id in {GENERATION}, .* runs on, found none",
    ),
    "start of a decoder": (
        "moonshine",
        said(GENERATION, decoder_start_token_id=None, bos_token_id=None),
        "expected decoder_start_token_id or bos_token_id in",
    ),
    "start beyond": (
        "encoder_decoder",
        said(GENERATION, decoder_start_token_id=31),
        f"token ids from 0 to 30, .*found 31 as {GENERATION}: decoder_start_token_id",
    ),
    "Seamless' languages": (
        "seamless_v2",
        said(GENERATION, text_decoder_lang_to_code_id={"eng": 256022}),
        "found 256022 as .*text_decoder_lang_to_code_id",
    ),
    "a CTC head": (
        "ctc",
        said("config.json", vocab_size=32),
        "expected 32 rows in lm_head.weight, as vocab_size .* found 17",
    ),
    "a CTC vocabulary": (
        "ctc",
        said_instead("vocab.json", json.dumps(VOCABULARY)),
        "a token for each of the model's 17 outputs, found 8 in the tokenizer",
    ),
    "a CTC blank": (
        "ctc",
        said("tokenizer_config.json", pad_token="[PAD]"),
        "expected the blank, .* 17 outputs, found '\\[PAD\\]' with id None",
    ),
    "two CTC blanks": (
        "ctc",
        said("config.json", pad_token_id=16),
        "expected one blank, found id 16 .* and id 0 as pad_token '<pad>'",
    ),
    "Parakeet's blank": (
        "parakeet_ctc",
        said("config.json", pad_token_id=0),
        "expected one blank, found id 0 .* and id 17 as pad_token '<pad>'",
    ),
    "a classifier's labels": (
        "classifier of hubert",
        said("config.json", id2label=LABELS, label2id=None),
        "expected 6 rows in classifier.weight, as id2label in config.json says, found 7",
    ),
    "labels with a gap": (
        "classifier of whisper",
        said("config.json", id2label=LABELS | {"7": "bird"}, label2id=None),
        "id from 0 to 6, found 7 labels, of ids 0, 1, 2, 3, 4, ",
    ),
    "labels and their number": (
        "classifier of wav2vec2",
        said("config.json", num_labels=9),
        "id from 0 to 8, found 7 labels",
    ),
    "labels of no name": (
        "classifier of wav2vec2",
        said("config.json", id2label=NAMELESS, label2id=None),
        "expected id2label in config.json with a name for each id, found null",
    ),
    "no labels": (
        "classifier of wav2vec2",
        said("config.json", id2label=None, label2id=None),
        "expected 2 rows in classifier.weight, as id2label in config.json says, found 7",
    ),
    "a byte order mark": ("ctc", marked, "config.json of .* in UTF-8 without a byte order mark"),
    "weights without a CTC head": (
        "ctc",
        renamed("", "lm_head"),
        "expected lm_head.weight or .* found none in .* a model without its head",
    ),
    "wrapped weights": (
        "classifier of hubert",
        renamed("module."),
        "found none in .*: it has module.classifier.weight: save the model without",
    ),
    "quantized weights": (
        "whisper",
        said("config.json", quantization_config=QUANTIZED),
        "not quantized, found quantization_config \\(bitsandbytes\\) in config.json",
    ),
    "a CTC vocabulary of text": (
        "ctc",
        said_instead("vocab.json", json.dumps({t: str(n) for t, n in VOCABULARY.items()})),
        "a whole number for each token, found '5' for 'a'",
    ),
    "no rate": ("ctc", said(EXTRACTOR, sampling_rate=0), "sampling_rate .* in Hz, found 0"),
    "another extractor": (
        "ctc",
        said(EXTRACTOR, feature_extractor_type="WhisperFeatureExtractor"),
        "expected feature_extractor_type Wav2Vec2FeatureExtractor, .* found 'WhisperF",
    ),
    "AST's extractor": (
        "classifier of audio-spectrogram-transformer",
        said(EXTRACTOR, feature_extractor_type="Wav2Vec2FeatureExtractor"),
        "expected feature_extractor_type ASTFeatureExtractor, .* found 'Wav2Vec2F",
    ),
    "AST's length": (
        "classifier of audio-spectrogram-transformer",
        said(EXTRACTOR, max_length=512),
        "with max_length 1024, as max_length in config.json says, found 512",
    ),
    "large-v3's bands": (
        "whisper",
        said(EXTRACTOR, feature_size=128),
        "with feature_size 80, as num_mel_bins in config.json says, found 128",
    ),
    "a Whisper's window": (
        "classifier of whisper",
        said(EXTRACTOR, chunk_length=15),
        "hop_length 3000, as twice max_source_positions in config.json says, found 1500",
    ),
    "half a Whisper's rate": ("whisper", said(EXTRACTOR, sampling_rate=8000), "found 1500"),
    "a stride": (
        "classifier of wav2vec2-bert",
        said(EXTRACTOR, stride=1),
        "num_mel_bins \\* stride 160, as feature_projection_input_dim .* found 80",
    ),
    "Parakeet's bands": (
        "parakeet_ctc",
        said(EXTRACTOR, feature_size=128),
        "with feature_size 80, as num_mel_bins in config.json says, found 128",
    ),
    "CLAP's bands": (
        "clap",
        said(EXTRACTOR, feature_size=32),
        "with feature_size 64, as num_mel_bins in config.json says, found 32",
    ),
    "CLAP's fusion": (
        "clap",
        said(EXTRACTOR, truncation="fusion"),
        "expected truncation rand_trunc .* found 'fusion'",
    ),
    "AST's labels": (
        "classifier of audio-spectrogram-transformer",
        said("config.json", id2label=LABELS, label2id=None),
        "expected 6 rows in classifier.dense.weight",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_files_that_contradict_each_other_are_refused(name: str, tmp_path: Path) -> None:
    model, change, message = CASES[name]
    folder = made(tmp_path, MODELS[model])
    checked(folder, MODELS[model])
    change(folder)
    found = refusal(folder, MODELS[model])
    assert re.search(message, found), found
    assert str(folder) in found and "tasks.it.model: expected" in found


def test_a_language_without_its_adapter_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, MODELS["mms"])
    (folder / "adapter.fra.safetensors").unlink()
    assert "expected adapter.fra.safetensors in" in refusal(folder, MODELS["mms"])


def test_a_default_language_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, MODELS["mms"])
    said("tokenizer_config.json", target_lang="tlh")(folder)
    family = MODELS["mms"]._replace(options={})
    assert "one of deu, fra, which vocab.json has, found 'tlh'" in refusal(folder, family)


def test_an_adapter_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Each language has a vocabulary of its own, and the head in its adapter is as large."""
    folder = made(tmp_path, MODELS["mms"])
    other = tiny_ctc(tmp_path / "other", "wav2vec2", languages={"fra": "abcdefghijklmnop"})
    (other / "adapter.fra.safetensors").rename(folder / "adapter.fra.safetensors")
    assert "a token for each of the model's 21 outputs, found" in refusal(folder, MODELS["mms"])


def test_a_label_longer_than_the_text_encoder_is_refused(tmp_path: Path) -> None:
    """In tokens, those of the template and those that begin and end a text included."""
    folder, clap = made(tmp_path, MODELS["clap"]), MODELS["clap"]
    around = len("This is a sound of .") + 2
    longest, longer = "x" * (128 - around), "y" * (129 - around)
    wave = sound(1)
    (found,) = labels(folder, wave, candidate_labels=["dog", longest])
    expected = pipeline_of(folder)(wave, candidate_labels=["dog", longest])
    assert found["scores"] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    message = refusal(folder, clap._replace(options={"candidate_labels": ["dog", longer]}))
    assert "candidate_labels: expected at most 128 tokens" in message
    assert f"found 129 in '{'y' * 57}...'" in message


def test_a_single_label_is_refused_unless_it_is_scored_by_itself(tmp_path: Path) -> None:
    folder, clap = made(tmp_path, MODELS["clap"]), MODELS["clap"]
    message = refusal(folder, clap._replace(options={"candidate_labels": ["dog"]}))
    assert "candidate_labels: expected two or more" in message and "multi_label: true" in message
    scores = [
        one["score"]
        for one in labels(
            folder, sound(1), sound(2, 900), candidate_labels=["dog"], multi_label=True
        )
    ]
    assert 0 < min(scores) < max(scores) < 1
