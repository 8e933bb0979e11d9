"""Voice activity: Silero VAD on onnxruntime, without importing torch.

silero-vad documents its model behind `import silero_vad`, which imports torch. Used here without
that import are the model's file, the names and shapes of its inputs and outputs, and the context
ahead of each frame: see `SileroVADSequence` and `RATE_CONFIG` in silero_vad/sequence_vad.py of
silero-vad 6.2.3. If they change, silero-vad's documented class takes over: the same probabilities,
and torch in memory.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SAMPLE_RATE = 16_000  # Hz, of its input
FRAME_SAMPLES = 512  # 32 ms
_CONTEXT_SAMPLES = 64  # of the previous frame, ahead of each frame
_BLOCK_FRAMES = 512

MODEL = "data/silero_vad_16k_sequence.onnx"  # in the package's folder
STATE = [1, 1, 128]
INPUTS = {"input": [_CONTEXT_SAMPLES + FRAME_SAMPLES], "h": STATE[1:], "c": STATE[1:]}
OUTPUTS = ["speech_probs", "hn", "cn"]


def speech_probability(waveform: np.ndarray) -> np.ndarray:
    """Speech probability of float32 (samples,) at 16 kHz: uint8 (frames,), 255 = certain.

    A frame is 32 ms; the last one is padded with silence. Raises ValueError for another shape.
    """
    if waveform.ndim != 1:
        raise ValueError(f"expected (samples,), got shape {waveform.shape}")
    session = _session()
    if session is None:
        return _as_uint8(_documented_model().audio_forward(waveform))
    frames = -(-len(waveform) // FRAME_SAMPLES)
    found = np.empty(frames, np.uint8)
    hidden = cell = np.zeros(STATE, np.float32)
    for first in range(0, frames, _BLOCK_FRAMES):
        count = min(_BLOCK_FRAMES, frames - first)
        start = first * FRAME_SAMPLES - _CONTEXT_SAMPLES
        sound = np.zeros(_CONTEXT_SAMPLES + count * FRAME_SAMPLES, np.float32)
        here = waveform[max(0, start) : start + len(sound)]
        sound[max(0, -start) :][: len(here)] = here
        windows = np.lib.stride_tricks.sliding_window_view(sound, _CONTEXT_SAMPLES + FRAME_SAMPLES)
        probabilities, hidden, cell = session.run(
            OUTPUTS,
            {"input": np.ascontiguousarray(windows[::FRAME_SAMPLES]), "h": hidden, "c": cell},
        )
        found[first : first + count] = _as_uint8(probabilities.reshape(-1))
    return found


def _as_uint8(probabilities: np.ndarray) -> np.ndarray:
    return np.rint(probabilities * 255).astype(np.uint8)


@cache
def _session() -> onnxruntime.InferenceSession | None:
    """The model, or None where it is not the one that is expected."""
    spec = find_spec("silero_vad")  # finds the package, and does not import it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("expected the package silero-vad to be installed")
    path = Path(spec.submodule_search_locations[0]) / MODEL
    if not path.is_file():
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {it.name: it.shape[1:] for it in session.get_inputs()}
    outputs = [it.name for it in session.get_outputs()]
    return session if (inputs, outputs) == (INPUTS, OUTPUTS) else None


@cache
def _documented_model() -> Any:
    """silero-vad's own `SileroVADSequence`."""
    from silero_vad import load_silero_vad

    warnings.warn(
        f"expected silero-vad to have {MODEL} with the inputs {', '.join(INPUTS)} and the outputs "
        f"{', '.join(OUTPUTS)}, found others: importing torch in every process that detects speech",
        stacklevel=1,
    )
    return load_silero_vad(sequence=True)
