"""Prompted recognisers: what differs between the model types. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from audio_ops.speech.languages import TWO_LETTERS

# Language codes, from the modules of the processors, which import torch:
# tests/models/test_prompted.py compares them.
CANARY = (
    *("bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it", "lv", "lt"),
    *("mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk"),
)
COHERE = ("ar", "de", "el", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "vi", "zh")
FUN_ASR = ("zh", "en", "ja")
QWEN3 = {
    **{"ar": "Arabic", "yue": "Cantonese", "zh": "Chinese", "cs": "Czech", "da": "Danish"},
    **{"nl": "Dutch", "en": "English", "fil": "Filipino", "fi": "Finnish", "fr": "French"},
    **{"de": "German", "el": "Greek", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian"},
    **{"it": "Italian", "ja": "Japanese", "ko": "Korean", "mk": "Macedonian", "ms": "Malay"},
    **{"fa": "Persian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian"},
    **{"es": "Spanish", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "vi": "Vietnamese"},
}
VOXTRAL = tuple(TWO_LETTERS.split())  # which mistral-common checks requests against


@dataclass(frozen=True)
class Kind:
    """What is particular to one model type.

    architecture: the class that transformers loads it with.
    max_s: the longest window, by `source`.
    options: those of `language`, `target_language`, `punctuation` and `prompt` that its request has.
    languages: the codes that it takes; none if it takes none.
    default_language: the one that its processor takes without any.
    default_prompt: what a chat asks for without any.
    request: how its page asks: the processor's `apply_transcription_request`, that of Mistral's, the
        processor's call, or a chat template.
    answer: what it writes: a text, or with a language, with speakers and times, or with speakers alone.
    padded_s: of sound in steps of which its processor pads each window; 0 for none.
    equal_lengths: no mask undoes padding, so that a batch has windows of one length.
    new_tokens: its page's limit, for a checkpoint that sets none.
    tokens_per_s: of a window's sound, on top of them: else a long window's text would be cut off.
    settings: further arguments of `generate`.
    """

    architecture: str
    max_s: float
    source: str
    options: tuple[str, ...] = ("prompt",)
    languages: tuple[str, ...] = ()
    default_language: str | None = None
    default_prompt: str | None = None
    request: Literal["transcription", "mistral", "call", "chat"] = "transcription"
    answer: Literal["text", "framed", "language", "speakers", "tags"] = "text"
    padded_s: float = 0.0
    equal_lengths: bool = False
    new_tokens: int = 256
    tokens_per_s: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


KINDS = {
    "audioflamingo3": Kind(
        "AudioFlamingo3ForConditionalGeneration",
        30.0,
        "its page: it takes windows of 30 s (and up to 20 of them, of which its 500 tokens could not tell)",
        answer="framed",
        padded_s=30.0,
        new_tokens=500,
    ),
    "canary": Kind(
        "CanaryForConditionalGeneration",
        40.0,
        "chunk_len_in_secs of NeMo's chunked inference for it, and https://arxiv.org/abs/2509.14128",
        options=("language", "target_language", "punctuation"),
        languages=CANARY,
        default_language="en",
    ),
    "cohere_asr": Kind(
        "CohereAsrForConditionalGeneration",
        35.0,
        "max_audio_clip_s of its feature extractor",
        options=("language", "punctuation"),
        languages=COHERE,
        request="call",
    ),
    "fun_asr_nano": Kind(
        "FunAsrNanoForConditionalGeneration",
        30.0,
        "max_single_segment_time of the voice detector in its own examples (modelscope/FunASR)",
        options=("language", "prompt"),
        languages=FUN_ASR,
        equal_lengths=True,
    ),
    "glmasr": Kind(
        "GlmAsrForConditionalGeneration",
        30.0,
        "its encoder takes 30 s at a time, which its makers' own service takes at the most",
        padded_s=30.0,
        new_tokens=500,
    ),
    **{
        model_type: Kind(
            f"{name}ForConditionalGeneration",
            30.0,
            "no page says: it was trained on corpora of utterances (https://arxiv.org/abs/2505.08699)",
            request="chat",
            default_prompt="can you transcribe the speech into a written format?",
            equal_lengths=True,
            new_tokens=200,
        )
        for model_type, name in (
            ("granite_speech", "GraniteSpeech"),
            ("granite_speech_plus", "GraniteSpeechPlus"),
        )
    },
    "moss_transcribe_diarize": Kind(
        "MossTranscribeDiarizeForConditionalGeneration",
        5400.0,
        "its card: 90 minutes in one pass, so that its speakers are the same throughout "
        "(https://arxiv.org/abs/2601.01554)",
        answer="speakers",
        padded_s=30.0,
        new_tokens=65_536,
    ),
    "nemo_speechlm": Kind(
        "Nemotron3_5TranscribeForConditionalGeneration",
        3600.0,
        "its card: recordings up to an hour, so that its speakers are the same throughout",
        answer="tags",
        equal_lengths=True,
        new_tokens=512,
        tokens_per_s=5.0,  # with the sound's 12.5 a second within its context of 65,536
    ),
    "qwen3_asr": Kind(
        "Qwen3ASRForConditionalGeneration",
        180.0,
        "the limit of Qwen's own service (https://pypi.org/project/qwen3-asr-toolkit)",
        options=("language", "prompt"),
        languages=tuple(QWEN3),
        answer="language",
        new_tokens=512,
        tokens_per_s=8.0,
    ),
    "vibevoice_asr": Kind(
        "VibeVoiceAsrForConditionalGeneration",
        3600.0,
        "its card: an hour in one pass, so that its speakers are the same throughout",
        answer="speakers",
        new_tokens=32_768,
        settings={"sample": False},  # else it adds noise to the sound's latents
    ),
    "voxtral": Kind(
        "VoxtralForConditionalGeneration",
        1800.0,
        "its page: up to 30 minutes for transcription (of 32k tokens, sound takes 12.5 a second)",
        options=("language",),
        languages=VOXTRAL,
        request="mistral",
        padded_s=30.0,
        new_tokens=500,
        tokens_per_s=8.0,
    ),
}
