"""Where mypy checks that each task fulfils the contract. No run imports this file."""

from __future__ import annotations

from audio_ops.tasks import (
    Task,
    audio_classification,
    automatic_speech_recognition,
    zero_shot_audio_classification,
)

RECOGNITION: Task[automatic_speech_recognition.Options] = automatic_speech_recognition
CLASSIFICATION: Task[audio_classification.Options] = audio_classification
ZERO_SHOT: Task[zero_shot_audio_classification.Options] = zero_shot_audio_classification
TASKS = (RECOGNITION, CLASSIFICATION, ZERO_SHOT)
