"""Whether a feature extractor's settings are those of the model beside it, from JSON files alone.

With the settings of another model every clip would fail or, as from a Whisper that gets sound at half its
rate, have a wrong text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from audio_ops.inference.checkpoint import Checkpoint

WAVEFORM = "Wav2Vec2FeatureExtractor"
# By model type, for the types that have one class alone.
EXTRACTORS = {
    **dict.fromkeys(("data2vec-audio", "hubert", "sew", "sew-d", "unispeech"), WAVEFORM),
    **dict.fromkeys(("unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm"), WAVEFORM),
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "clap": "ClapFeatureExtractor",
    "lasr_ctc": "LasrFeatureExtractor",
    "parakeet_ctc": "ParakeetFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}

OF_ANOTHER = "copy the extractor's file from the checkpoint that this one was trained from"

# A setting of the extractor and its value, a key of config.json and the value that goes with it.
Pair = tuple[str, Any, str, Any]


def check_extractor(checkpoint: Checkpoint) -> None:
    """Raise ValueError if the feature extractor is one of another model, or makes features of another
    size than the model takes."""
    settings, config = checkpoint.extractor_settings(), checkpoint.json("config.json")
    model_type = str(config.get("model_type"))
    expected, found = EXTRACTORS.get(model_type), settings.get("feature_extractor_type")
    if expected and found not in (None, expected):
        raise ValueError(
            f"model: expected feature_extractor_type {expected}, which a {model_type} has, found "
            f"{found!r} in {checkpoint.source}: {OF_ANOTHER}"
        )
    for key, value, model_key, wanted in _pairs(model_type, settings, config):
        if value != wanted:
            raise ValueError(
                f"model: expected a feature extractor with {key} {wanted:g}, as {model_key} in "
                f"config.json says, found {value:g} in {checkpoint.source}: {OF_ANOTHER}"
            )


def _pairs(model_type: str, settings: dict[str, Any], config: dict[str, Any]) -> Iterator[Pair]:
    """What has to be equal. Defaults are those of transformers' classes."""
    if model_type == "whisper":
        yield "feature_size", settings.get("feature_size", 80), *_of(config, "num_mel_bins", 80)
        samples = settings.get("chunk_length", 30) * settings.get("sampling_rate", 16_000)
        frames = samples / settings.get("hop_length", 160)
        positions = 2 * config.get("max_source_positions", 1500)
        key = "chunk_length * sampling_rate / hop_length"
        yield key, frames, "twice max_source_positions", positions
    if model_type == "audio-spectrogram-transformer":
        yield "num_mel_bins", settings.get("num_mel_bins", 128), *_of(config, "num_mel_bins", 128)
        yield "max_length", settings.get("max_length", 1024), *_of(config, "max_length", 1024)
    if model_type == "wav2vec2-bert":
        size = settings.get("num_mel_bins", 80) * settings.get("stride", 2)
        wanted = _of(config, "feature_projection_input_dim", 160)
        yield "num_mel_bins * stride", size, *wanted
    if model_type == "clap":
        audio = config.get("audio_config") or {}
        yield "feature_size", settings.get("feature_size", 64), *_of(audio, "num_mel_bins", 64)
    if model_type in ("lasr_ctc", "parakeet_ctc"):
        default = 80 if model_type == "parakeet_ctc" else 128
        encoder = config.get("encoder_config") or {}
        wanted = _of(encoder, "num_mel_bins", default)
        yield "feature_size", settings.get("feature_size", default), *wanted


def _of(config: dict[str, Any], key: str, default: int) -> tuple[str, Any]:
    return key, config.get(key, default)
