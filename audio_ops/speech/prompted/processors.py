"""Processors of prompted recognisers, those included whose feature extractors want torchaudio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from audio_ops.inference.checkpoint import Checkpoint, load
from audio_ops.inference.fun_asr import FunAsrFeatures
from audio_ops.inference.granite import GraniteFeatures
from audio_ops.speech.options import Options

PROCESSOR = "processor_config.json"


def processor_of(checkpoint: Checkpoint, options: Options) -> Any:
    """The checkpoint's processor."""
    from transformers import AutoProcessor, AutoTokenizer

    make = MADE_HERE.get(checkpoint.json("config.json")["model_type"])
    if make is None:
        return load(AutoProcessor, checkpoint, options)
    return make(checkpoint, load(AutoTokenizer, checkpoint, options))


def _fun_asr(checkpoint: Checkpoint, tokenizer: Any) -> Any:
    from transformers import BatchFeature, FunAsrNanoProcessor, SequenceFeatureExtractor

    features = FunAsrFeatures(checkpoint.extractor_settings(), "cpu")

    class Extractor(SequenceFeatureExtractor):
        model_input_names = ("input_features", "input_features_mask")

        def __call__(self, audio: Any, **_: Any) -> Any:
            import torch

            [waveform] = audio
            frames = features.frames(waveform)[None]
            mask = torch.ones(frames.shape[:2], dtype=torch.long)
            return BatchFeature({"input_features": frames, "input_features_mask": mask})

    named = checkpoint.json(PROCESSOR).get("audio_token")
    return FunAsrNanoProcessor(
        Extractor(1, features.sampling_rate, 0.0),
        tokenizer,
        chat_template=tokenizer.chat_template,
        **({"audio_token": named} if named else {}),
    )


def _granite(checkpoint: Checkpoint, tokenizer: Any) -> Any:
    import math

    from transformers import BatchFeature, GraniteSpeechProcessor, SequenceFeatureExtractor

    settings = checkpoint.extractor_settings()
    features = GraniteFeatures(settings, "cpu")
    window = int(settings.get("projector_window_size") or 15)
    tokens = window // int(settings.get("projector_downsample_rate") or 5)

    class Extractor(SequenceFeatureExtractor):
        model_input_names = ("input_features",)

        def __call__(self, audio: Any, **_: Any) -> Any:
            import torch

            [waveform] = audio
            frames = features.frames(waveform)[None]
            size = math.ceil(frames.shape[1] / window) * tokens
            mask = torch.ones((1, size), dtype=torch.bool)
            return BatchFeature(
                {
                    "input_features": frames,
                    "audio_embed_sizes": [size],
                    "input_features_mask": mask,
                }
            )

    named = checkpoint.json(PROCESSOR).get("audio_token")
    return GraniteSpeechProcessor(
        Extractor(1, features.sampling_rate, 0.0),
        tokenizer,
        chat_template=tokenizer.chat_template,
        **({"audio_token": named} if named else {}),
    )


def _nemotron(checkpoint: Checkpoint, tokenizer: Any) -> Any:
    from transformers import Nemotron3_5TranscribeProcessor, NemotronAsrStreamingFeatureExtractor

    names = ("audio_token", "default_transcription_prompt", "subsampling_factor")
    settings = checkpoint.json(PROCESSOR)
    return Nemotron3_5TranscribeProcessor(
        NemotronAsrStreamingFeatureExtractor.from_dict(checkpoint.extractor_settings()),
        tokenizer,
        alignment_tokenizer=tokenizer,  # of words' times alone, which need torchaudio
        chat_template=tokenizer.chat_template,
        **{name: settings[name] for name in names if name in settings},
    )


# Those that transformers does not make without torchaudio, or not without a folder within the checkpoint.
MADE_HERE: dict[str, Callable[[Checkpoint, Any], Any]] = {
    "fun_asr_nano": _fun_asr,
    "granite_speech": _granite,
    "granite_speech_plus": _granite,
    "nemo_speechlm": _nemotron,
}
