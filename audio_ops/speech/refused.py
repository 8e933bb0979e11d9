"""Model types of transformers that take or make sound and that no family runs, with the reasons.

tests/models/test_model_types.py compares this list, the families' and the tasks' model types with
transformers' own mappings: a release with a new type fails until somebody decides.
"""

from __future__ import annotations

from collections.abc import Iterable

from audio_ops.inference.checkpoint import Checkpoint

_ASSISTANT = (
    "it is an assistant that takes sound, images and text, without a request for transcripts of its "
    "own: use a recogniser"
)
_SPEAKS = "it makes speech from text"

# By model type. A sentence that ends with what to use instead, if there is something.
REFUSED: dict[str, str] = {
    "dia": _SPEAKS,
    "pop2piano": "it writes notes for a piano, no words",
    "vibevoice": f"{_SPEAKS}; vibevoice_asr recognises it",
    "dots3_note": _ASSISTANT,
    "gemma3n": _ASSISTANT,
    "gemma4": _ASSISTANT,
    "gemma4_unified": _ASSISTANT,
    "inkling_mm_model": _ASSISTANT,
    "muse_spark": _ASSISTANT,
    "musicflamingo": "it describes music, and has no request for transcripts: use a recogniser",
    "nemotron_h_omni": _ASSISTANT,
    "phi4_multimodal": _ASSISTANT,
    "qwen2_5_omni": _ASSISTANT,
    "qwen2_5_omni_thinker": _ASSISTANT,
    "qwen2_audio": _ASSISTANT,
    "qwen3_omni_moe": _ASSISTANT,
    "qwen3_omni_moe_thinker": _ASSISTANT,
    "nemotron3_diarization": "it says who speaks when, and writes no words",
}


def refusal(checkpoint: Checkpoint, known: Iterable[str]) -> str:
    """Why no family runs the checkpoint: its type's own reason, or the types that families run."""
    found = checkpoint.json("config.json").get("model_type")
    if found is None:
        return (
            "model: expected a checkpoint in transformers' format, found no model_type in config.json "
            f"of {checkpoint.source}, as in those of CTranslate2 (faster-whisper) and MLX: name the "
            "checkpoint that it was converted from"
        )
    reason = REFUSED.get(found) if isinstance(found, str) else None
    if reason is None:
        listed = ", ".join(sorted(known))
        return (
            f"model: expected a speech recognition checkpoint ({listed}), "
            f"found model_type {found!r} in {checkpoint.name}"
        )
    return (
        f"model: expected a speech recognition checkpoint that Earmark runs, found model_type "
        f"{found!r} in {checkpoint.name}: {reason}"
    )
