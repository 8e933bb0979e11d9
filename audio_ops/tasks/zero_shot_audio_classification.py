"""Labels for sound in your own words, with CLAP, which embeds sound and text in one space.

The labels and scores of a clip that fits one window are those of transformers' pipeline of the
same name (`transformers/pipelines/zero_shot_audio_classification.py`). Of longer sound transformers
crops 10 s at random; here it is cut into windows whose logits are pooled.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from audio_ops.classification import (
    REPORTING,
    Classes,
    ClassificationOptions,
    Windowing,
    classification_columns,
)
from audio_ops.inference.checkpoint import Checkpoint, load, load_model
from audio_ops.inference.checkpoint_files import check_files
from audio_ops.tasks import Clip, Reporting, WantsSpeech, Window

if TYPE_CHECKING:
    import torch

ARCHITECTURES = {"clap": "ClapModel"}


class Options(ClassificationOptions):
    """Settings of `zero-shot-audio-classification`, named as in transformers' pipeline.

    Scores of `multi_label` are not probabilities. A logit is the cosine similarity of sound and
    text times the model's learnt scale (some 14 to 100), trained with a softmax: 0.5 is where the
    cosine is zero, so most labels that are at all related score above it. Rank with these scores,
    or find a threshold for each label on your own sound.
    """

    candidate_labels: tuple[str, ...] = Field(min_length=1)
    """The labels to choose from, in your own words."""
    hypothesis_template: str = "This is a sound of {}."
    """Makes a text of each label, which takes the place of `{}`."""
    multi_label: bool = False
    """Score each label by itself, as the sigmoid of its logit, instead of the softmax over all."""

    @field_validator("candidate_labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if not all(label.strip() for label in labels):
            raise ValueError(f"expected labels that are not empty, found {list(labels)}")
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"expected each label once, found more than one of {twice}")
        return labels

    @field_validator("hypothesis_template")
    @classmethod
    def _has_one_place(cls, template: str) -> str:
        rest = template.replace("{}", "", 1)
        if rest == template or "{" in rest or "}" in rest:
            raise ValueError(f"expected a text with one {{}} for the label, found {template!r}")
        return template


def check(options: Options, checkpoint: Checkpoint) -> None:
    """Raise ValueError if the checkpoint is not CLAP or the options contradict it."""
    config = checkpoint.json("config.json")
    model_type, found = config.get("model_type"), config.get("architectures") or []
    if ARCHITECTURES.get(model_type or "") not in found:
        raise ValueError(
            "model: expected model_type 'clap' with architecture ClapModel, found "
            f"{model_type!r} with {found} in {checkpoint.name}"
        )
    if len(options.candidate_labels) == 1 and not options.multi_label:
        raise ValueError(
            "candidate_labels: expected two or more to choose from, found one, which a softmax over "
            "all labels scores 1.0 whatever the sound: add labels (`other sounds`, `silence`), or set "
            "multi_label: true for a score that depends on the sound"
        )
    check_files(options, checkpoint, tokenizer=True)
    _check_fusion(checkpoint, config.get("audio_config") or {})
    _windowing(options, checkpoint)
    _check_lengths(options, checkpoint, config.get("text_config") or {})


def _check_fusion(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """ValueError for an extractor that makes four spectrograms beside a model that takes one."""
    truncation = checkpoint.extractor_settings().get("truncation", "fusion")
    if truncation == "fusion" and not config.get("enable_fusion"):
        raise ValueError(
            f"model: expected truncation rand_trunc of the feature extractor, as enable_fusion in "
            f"config.json is not true, found {truncation!r} in {checkpoint.source}: correct it, or take "
            "both files from one checkpoint"
        )


def _check_lengths(options: Options, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """ValueError if a label's text has more tokens than the text encoder has positions."""
    padding = config.get("pad_token_id", 1)
    longest = config.get("max_position_embeddings", 514) - padding - 1  # they begin after its id
    counts = _tokens(options, checkpoint)
    for label, count in zip(options.candidate_labels, counts, strict=True):
        if count > longest:
            raise ValueError(
                f"candidate_labels: expected at most {longest} tokens in a label's text, all that "
                f"this model's text encoder has positions for, found {count} in {_start(label)!r} "
                "with hypothesis_template: shorten it"
            )


def _tokens(options: Options, checkpoint: Checkpoint) -> list[int]:
    """The tokens of each label's text, those that begin and end it included."""
    texts = [options.hypothesis_template.format(label) for label in options.candidate_labels]
    path = checkpoint.path("tokenizer.json")
    if path is None:  # an older tokenizer, of two files
        from transformers import AutoTokenizer

        return [len(ids) for ids in load(AutoTokenizer, checkpoint, options)(texts).input_ids]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def _start(label: str) -> str:
    return label if len(label) <= 60 else f"{label[:57]}..."


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 48_000))


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
    """A loaded CLAP and the embeddings of the label texts.

    Raises ValueError if the checkpoint lacks some of the model's weights.
    """

    is_generative = False
    equal_lengths = False  # every window is repeated or padded to the model's full input

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        import torch
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

        self.extractor = load(AutoFeatureExtractor, checkpoint, options)
        self.log_mel = LogMel(self.extractor, device)
        tokenizer = load(AutoTokenizer, checkpoint, options)
        self.model = load_model(ClapModel, checkpoint, options, device)
        self.device, self.dtype = device, self.model.dtype

        texts = [options.hypothesis_template.format(label) for label in options.candidate_labels]
        tokens = tokenizer(texts, return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            texts_embedded = self.model.get_text_features(**tokens).pooler_output.float()
            # (embedding, labels), so that embedded sound @ text is the logits
            self.text = texts_embedded.T * self.model.logit_scale_a.float().exp()
        del self.model.text_model, self.model.text_projection

        self.sample_rate = sample_rate(options, checkpoint)
        self.windowing = _windowing(options, checkpoint)
        self.classes = Classes(
            options.candidate_labels,
            "sigmoid" if options.multi_label else "softmax",
            "multi_label" if options.multi_label else "single_label",
            options,
            self.sample_rate,
        )

    def windows(self, clip: Clip) -> list[Window]:
        """Windows of `window_s`. Raises ClipError `too_short` if there is no sample."""
        return self.windowing(len(clip.waveform))

    def padded_s(self, samples: int) -> float:
        """Seconds that a window takes: always the model's full input."""
        return float(self.extractor.max_length_s)

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[np.ndarray]:
        """Float32 logits (labels,) for each window: scaled cosine similarities."""
        import torch

        features = self.log_mel(waveforms).to(self.dtype)
        # On a CPU two at a time, whose activations fit in the caches: saves a sixth of the time.
        at_once = len(features) if features.is_cuda else 2
        with torch.inference_mode():
            logits = torch.cat([self._logits(part) for part in features.split(at_once)])
        return list(logits.cpu().numpy())

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, 1 or 4, frames, mels) -> float32 (batch, labels)."""
        import torch

        # An extractor that fuses marks one clip of every batch as longer, so transformers' pipeline,
        # which goes clip by clip, fuses each of them. Models without fusion ignore it.
        shape = (len(features), 1)
        is_longer = torch.full(shape, self.log_mel.is_fused, dtype=torch.bool, device=self.device)
        embeddings = self.model.get_audio_features(features, is_longer=is_longer).pooler_output
        return embeddings.float() @ self.text

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        """The columns from the windows' pooled logits."""
        return self.classes.columns(clip, windows, outputs)


class LogMel:
    """`ClapFeatureExtractor` for sound of at most its full length, in torch on `device`.

    In float64 like the original (`transformers/models/clap/feature_extraction_clap.py`), whose
    numpy loop over frames takes twice as long. float32 would be off by 0.05 dB in the bands that a
    pure tone leaves empty.
    """

    def __init__(self, extractor: Any, device: str):
        import torch

        self.extractor = extractor
        self.device = device
        self.is_fused = extractor.truncation == "fusion"
        filters = extractor.mel_filters if self.is_fused else extractor.mel_filters_slaney
        self.filters = torch.from_numpy(filters).double().to(device)  # (bins, mels)
        self.window = torch.hann_window(extractor.fft_window_size, dtype=torch.float64).to(device)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """Float32 (batch, 1 or 4, frames, mels) in dB; 4 equal ones for fused models."""
        import torch

        # One by one: on a CPU a batch of float64 spectra, which does not fit in the caches, takes
        # twice the time.
        decibels = torch.stack([self.decibels(waveform) for waveform in waveforms]).unsqueeze(1)
        return decibels.expand(-1, 4, -1, -1) if self.is_fused else decibels

    def decibels(self, waveform: np.ndarray) -> torch.Tensor:
        """Float32 (frames, mels) in dB of one waveform, padded to the full length."""
        import torch

        padded = self.padded(waveform, self.extractor.nb_max_samples)
        spectrum = torch.stft(
            torch.from_numpy(padded).to(self.device).double(),
            self.extractor.fft_window_size,
            self.extractor.hop_length,
            window=self.window,
            return_complex=True,
        )  # (bins, frames)
        power = spectrum.real.square() + spectrum.imag.square()
        return (10 * (power.T @ self.filters).clamp(min=1e-10).log10()).float()

    def padded(self, waveform: np.ndarray, length: int) -> np.ndarray:
        """A waveform repeated and padded with zeros to `length` samples, as the extractor does."""
        repeats = length // len(waveform)
        if self.extractor.padding == "repeat":
            waveform = np.tile(waveform, repeats + 1)[:length]
        elif self.extractor.padding == "repeatpad":
            waveform = np.tile(waveform, repeats)
        return np.pad(waveform, (0, length - len(waveform)))


def _windowing(options: Options, checkpoint: Checkpoint) -> Windowing:
    """Raises ValueError if the options contradict the model."""
    extractor = checkpoint.extractor_settings()
    rate = sample_rate(options, checkpoint)
    longest = int(extractor.get("max_length_s", 10) * rate)
    return Windowing.of(options, rate, shortest=1, default=longest, limited=True)
