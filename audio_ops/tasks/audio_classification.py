"""Labels for sound from a fixed set: whatever `AutoModelForAudioClassification` loads.

The labels and scores of a clip that fits one window are those of transformers' pipeline of the
same name (`transformers/pipelines/audio_classification.py`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from audio_ops.classification import (
    REPORTING,
    Classes,
    ClassificationOptions,
    Function,
    Kind,
    Windowing,
    classification_columns,
)
from audio_ops.inference.checkpoint import Checkpoint, expect_architecture, load, load_model
from audio_ops.inference.checkpoint_files import check_files
from audio_ops.inference.features import compute_on
from audio_ops.inference.wav2vec2 import FBANK_FRAME, FBANK_HOP, accepts_padding, shortest
from audio_ops.inference.weights import check_head, check_rows
from audio_ops.tasks import Clip, Reporting, WantsSpeech, Window

# transformers' MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, which takes a second to import.
# tests/models/test_audio_classification.py compares the two.
ARCHITECTURES = {
    "audio-spectrogram-transformer": "ASTForAudioClassification",
    "data2vec-audio": "Data2VecAudioForSequenceClassification",
    "hubert": "HubertForSequenceClassification",
    "sew": "SEWForSequenceClassification",
    "sew-d": "SEWDForSequenceClassification",
    "unispeech": "UniSpeechForSequenceClassification",
    "unispeech-sat": "UniSpeechSatForSequenceClassification",
    "wav2vec2": "Wav2Vec2ForSequenceClassification",
    "wav2vec2-bert": "Wav2Vec2BertForSequenceClassification",
    "wav2vec2-conformer": "Wav2Vec2ConformerForSequenceClassification",
    "wavlm": "WavLMForSequenceClassification",
    "whisper": "WhisperForAudioClassification",
}

HEADS = ("classifier.weight", "classifier.dense.weight")  # the last layer's, in all of these
# Attention takes memory by the square of the length: an hour at once does not fit.
DEFAULT_WINDOW_S = 30.0


class Options(ClassificationOptions):
    """Settings of `audio-classification`, named as in transformers' pipeline where it has them."""

    top_k: int | None = Field(default=5, ge=1)
    """How many labels to keep; null for all."""
    function_to_apply: Function | None = None
    """Makes scores of logits. By default the one that fits the model's `problem_type`: sigmoid for
    multi-label, none for regression, softmax for everything else."""


def check(options: Options, checkpoint: Checkpoint) -> None:
    """Raise ValueError if the checkpoint is no classifier or the options contradict it."""
    config = checkpoint.json("config.json")
    if not _is_remote(options, config):
        model_type = config.get("model_type")
        if model_type not in ARCHITECTURES:
            raise ValueError(
                f"model: expected an audio classifier ({', '.join(ARCHITECTURES)}), found "
                f"model_type {model_type!r} in {checkpoint.name}"
            )
        expect_architecture(checkpoint, ARCHITECTURES[model_type])
        check_head(checkpoint, HEADS)
    _check_labels(checkpoint, config)
    if _function(options, config.get("problem_type")) == "softmax" and _outputs(config) == 1:
        raise ValueError(
            "function_to_apply: expected sigmoid or none for a model with one output, found "
            "softmax, which scores every clip 1.0"
        )
    check_files(options, checkpoint, tokenizer=False)
    _windowing(options, checkpoint)


def _check_labels(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """ValueError if config.json does not have a label for each output of the classifier."""
    labels = config.get("id2label")
    count = config.get("num_labels")
    if labels:
        ids = sorted(int(id) for id in labels if str(id).isdigit())
        expected = len(labels) if count is None else count
        if ids != list(range(expected)) or len(labels) != expected:
            raise ValueError(
                f"model: expected id2label in config.json with a label for each id from 0 to "
                f"{expected - 1}, found {len(labels)} labels, of ids {_shown(labels)}, in "
                f"{checkpoint.source}: complete it from the checkpoint that this one was trained from"
            )
    if labels and any(name is None for name in labels.values()):
        raise ValueError(
            f"model: expected id2label in config.json with a name for each id, found null in "
            f"{checkpoint.source}: complete it from the checkpoint that this one was trained from"
        )
    key = "num_labels" if count is not None and not labels else "id2label"
    check_rows(checkpoint, HEADS, _outputs(config), key)


def _shown(labels: dict[str, Any]) -> str:
    return ", ".join([*labels][:5]) + (", ..." if len(labels) > 5 else "")


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 16_000))


def wants_speech(options: Options) -> WantsSpeech:
    """No voice detection: every sound is labelled."""
    return "never"


def columns(options: Options) -> dict[str, pa.DataType]:
    """See `classification_columns`."""
    return classification_columns(options)


def reporting(options: Options) -> Reporting:
    """Reports read the top label and its score."""
    return REPORTING


class Model:
    """A loaded audio classifier.

    Raises ValueError if the checkpoint lacks some of the classifier's weights.
    """

    is_generative = False

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        self.extractor = compute_on(device, load(AutoFeatureExtractor, checkpoint, options))
        self.model = load_model(AutoModelForAudioClassification, checkpoint, options, device)
        self.device, self.dtype = device, self.model.dtype

        config = checkpoint.json("config.json")
        self.sample_rate = sample_rate(options, checkpoint)
        self.windowing = _windowing(options, checkpoint)
        self.fixed_samples = _fixed_samples(config, checkpoint.extractor_settings())
        self.equal_lengths = self.fixed_samples is None and not accepts_padding(
            self.model, config, device
        )
        # The pipeline feeds single clips with the extractor's defaults. There a mask of ones
        # changes nothing, and batches of unequal length need a mask.
        self.padding: dict[str, Any] = {}
        if self.fixed_samples is None:
            self.padding = {"padding": True}
            if not self.equal_lengths:
                self.padding["return_attention_mask"] = True

        loaded = self.model.config
        names = [str(loaded.id2label[index]) for index in range(loaded.num_labels)]
        function = _function(options, loaded.problem_type)
        kind = _kind(function, loaded.problem_type, len(names))
        self.classes = Classes(names, function, kind, options, self.sample_rate)

    def windows(self, clip: Clip) -> list[Window]:
        """Windows of `window_s`. Raises ClipError `too_short` below the model's receptive field,
        where transformers' pipeline crashes or, with AST, labels mere padding.
        """
        return self.windowing(len(clip.waveform))

    def padded_s(self, samples: int) -> float:
        """Seconds that a window takes: the whole input if its length is fixed."""
        return (self.fixed_samples or samples) / self.sample_rate

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[np.ndarray]:
        """Float32 logits (labels,) for each window."""
        import torch

        inputs = self.extractor(
            list(waveforms),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
            **self.padding,
        ).to(self.device, self.dtype)
        with torch.inference_mode():
            logits = self.model(**inputs).logits
        return list(logits.float().cpu().numpy())

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        """The columns from the windows' pooled logits."""
        return self.classes.columns(clip, windows, outputs)


def _is_remote(options: Options, config: dict[str, Any]) -> bool:
    auto_map = config.get("auto_map") or {}
    return options.trust_remote_code and "AutoModelForAudioClassification" in auto_map


def _outputs(config: dict[str, Any]) -> int:
    return len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)


def _function(options: Options, problem_type: str | None) -> Function:
    defaults: dict[str | None, Function] = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
    }
    return options.function_to_apply or defaults.get(problem_type, "softmax")


def _kind(function: Function, problem_type: str | None, outputs: int) -> Kind:
    """The kind of the outputs; also by `function`, as many multi-label checkpoints lack a type."""
    if problem_type == "regression" or (outputs == 1 and function == "none"):
        return "regression"
    if function == "none":
        is_multi = problem_type == "multi_label_classification"
        return "multi_label" if is_multi else "single_label"
    return "multi_label" if function == "sigmoid" else "single_label"


def _fixed_samples(config: dict[str, Any], extractor: dict[str, Any]) -> int | None:
    """Samples of the model's input, if its extractor pads and cuts to a fixed length."""
    model_type = config.get("model_type")
    if model_type == "whisper":
        return int(extractor.get("chunk_length", 30) * extractor.get("sampling_rate", 16_000))
    if model_type == "audio-spectrogram-transformer":
        return FBANK_FRAME + FBANK_HOP * (int(extractor.get("max_length", 1024)) - 1)
    return None


def _shortest(config: dict[str, Any]) -> int:
    """The fewest samples from which the model makes one frame."""
    if config.get("model_type") == "whisper":
        return 1
    if config.get("model_type") == "audio-spectrogram-transformer":
        return FBANK_FRAME
    return shortest(config)


def _windowing(options: Options, checkpoint: Checkpoint) -> Windowing:
    """Raises ValueError if the options contradict the model."""
    config = checkpoint.json("config.json")
    rate = sample_rate(options, checkpoint)
    fixed = _fixed_samples(config, checkpoint.extractor_settings())
    return Windowing.of(
        options,
        rate,
        shortest=_shortest(config),
        default=fixed or math.floor(DEFAULT_WINDOW_S * rate),
        limited=fixed is not None,
    )
