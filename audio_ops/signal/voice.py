"""Voice activity: Silero VAD on onnxruntime, without the torch that its own package imports."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime

SAMPLE_RATE = 16_000  # Hz, of its input
FRAME_SAMPLES = 512  # 32 ms
_CONTEXT_SAMPLES = 64  # of the previous frame, ahead of each frame
_BLOCK_FRAMES = 512


def speech_probability(waveform: np.ndarray) -> np.ndarray:
    """Speech probability of float32 (samples,) at 16 kHz: uint8 (frames,), 255 = certain.

    A frame is 32 ms; the last one is padded with silence. Raises ValueError for another shape.
    """
    if waveform.ndim != 1:
        raise ValueError(f"expected (samples,), got shape {waveform.shape}")
    frames = -(-len(waveform) // FRAME_SAMPLES)
    found = np.empty(frames, np.uint8)
    hidden = cell = np.zeros((1, 1, 128), np.float32)
    for first in range(0, frames, _BLOCK_FRAMES):
        count = min(_BLOCK_FRAMES, frames - first)
        start = first * FRAME_SAMPLES - _CONTEXT_SAMPLES
        sound = np.zeros(_CONTEXT_SAMPLES + count * FRAME_SAMPLES, np.float32)
        here = waveform[max(0, start) : start + len(sound)]
        sound[max(0, -start) :][: len(here)] = here
        windows = np.lib.stride_tricks.sliding_window_view(sound, _CONTEXT_SAMPLES + FRAME_SAMPLES)
        probabilities, hidden, cell = _session().run(
            ["speech_probs", "hn", "cn"],
            {"input": np.ascontiguousarray(windows[::FRAME_SAMPLES]), "h": hidden, "c": cell},
        )
        found[first : first + count] = np.rint(probabilities.reshape(-1) * 255)
    return found


@cache
def _session() -> onnxruntime.InferenceSession:
    spec = find_spec("silero_vad")  # finds the package, and does not import it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("expected the package silero-vad to be installed")
    folder = Path(spec.submodule_search_locations[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(folder / "data" / "silero_vad_16k_sequence.onnx"),
        options,
        providers=["CPUExecutionProvider"],
    )
