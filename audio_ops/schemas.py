"""The columns of a clip between decoding and the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from audio_ops.signal.waveforms import WAVEFORM

# Which channels of a sound are labelled: their mean, each by itself, or one, from 1 on.
Channels = Literal["mean", "each"] | int
SOUND = pa.schema(
    [
        ("duration_s", pa.float64()),
        ("sample_rate", pa.int32()),  # Hz, as stored
        ("channels", pa.int32()),
        ("format", pa.string()),
        ("peak_dbfs", pa.float32()),  # null for digital silence
        ("rms_dbfs", pa.float32()),
        ("sound_flags", pa.list_(pa.string())),  # keys of flags.FLAGS
    ]
)
ERROR = pa.schema(
    [
        ("error_stage", pa.string()),  # null, `read` or `decode`
        ("error_kind", pa.string()),  # a key of errors.KINDS
        ("error_message", pa.string()),
    ]
)


def prepared_schema(identity: pa.Schema, rates: Sequence[int]) -> pa.Schema:
    """The columns of `prepare.prepare`: `identity`, SOUND, ERROR, a `sound_{rate}` for each rate in
    Hz, and `speech` (uint8 probabilities as binary, see signal/voice.py)."""
    sounds = [pa.field(f"sound_{rate}", WAVEFORM) for rate in rates]
    return pa.schema([*identity, *SOUND, *ERROR, *sounds, pa.field("speech", pa.binary())])


# Why a task has no labels for a clip: `kind` is a key of errors.KINDS.
TASK_FAILURE = pa.struct([("kind", pa.string()), ("message", pa.string())])


def failure_column(task: str) -> str:
    """The name of a task's TASK_FAILURE column, which travels to the writer and no further."""
    return f"_{task}_failure"
