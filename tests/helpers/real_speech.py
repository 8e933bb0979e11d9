"""Recorded prompts in several languages, and Whisper base's texts of them in several number formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from hearing import RATE
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from audio_ops.label import Label
from audio_ops.signal.voice import speech_probability
from audio_ops.speech.transcript import WindowTranscript
from audio_ops.speech.whisper.segments import Generation, SegmentReader, WindowState
from audio_ops.tasks import Clip
from jobs.bench.testbed import prompts

NEAR_TIE = 0.5  # nats between two tokens that rounding may exchange
PRODUCTS = {
    functional.linear,
    functional.scaled_dot_product_attention,
    torch.conv1d,
    torch.matmul,
}


class HalfPrecisionOfGpus(TorchFunctionMode):
    """Computes products in half precision as GPUs do, sums in float32 that are rounded after, where a
    CPU has no instructions for it and takes four (bfloat16) to ten times (float16) as long: 10 s for
    Whisper base's encoder."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = next((x for x in args if isinstance(x, torch.Tensor)), None)
        if func not in PRODUCTS or first is None or first.is_cuda or first.dtype not in _emulated():
            return func(*args, **kwargs)
        wide = {name: _in_float32(value) for name, value in kwargs.items()}
        return func(*map(_in_float32, args), **wide).to(first.dtype)


@cache
def _emulated() -> list[torch.dtype]:
    """The number formats that this CPU has no instructions for."""
    has = torch.cpu.get_capabilities()
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return [
        dtype
        for name, dtype in formats.items()
        if not (has.get(f"avx512_{name}") or has.get(f"amx_{name}"))
    ]


def _in_float32(value: Any) -> Any:
    is_narrow = isinstance(value, torch.Tensor) and value.dtype in _emulated()
    return value.float() if is_narrow else value


def prompt(language: str, name: str) -> Path:
    """The recording of a prompt, `conf-onlyone` say."""
    return next(prompts(language).rglob(f"{name}.wav"))


def clip_of(*sounds: np.ndarray | Path, speech: bool = False) -> Clip:
    """The sounds, one behind the other, as a clip; with the probabilities of speech on demand."""
    parts = [librosa.load(x, sr=RATE)[0] if isinstance(x, Path) else x for x in sounds]
    sound = np.concatenate(parts).astype(np.float32)
    return Clip(sound, len(sound) / RATE, speech_probability(sound) if speech else None)


@dataclass(frozen=True)
class Recording(SegmentReader):
    """Reads segments, and keeps what was generated first for each text."""

    generated: dict[str, list[int]] = field(default_factory=dict)
    first: dict[int, list[int]] = field(default_factory=dict)  # by the identity of a window's state

    def extend(self, state: WindowState, generation: Generation) -> None:
        if not state.seek:
            self.first[id(state)] = generation.tokens
        super().extend(state, generation)

    def transcript(self, state: WindowState) -> WindowTranscript:
        transcript = super().transcript(state)
        self.generated[transcript.text.strip()] = self.first[id(state)]
        return transcript


def recorded(label: Label) -> Label:
    """A labeller with Whisper of which `gap` knows the tokens."""
    family: Any = label.model.family  # type: ignore[attr-defined]
    family.reader = Recording(family.settings, family.tokenizer)
    return label


def gap(
    exact: Label, other: Label, clip: Clip, text: str, wanted: Mapping[str, Any]
) -> tuple[float, str]:
    """How much likelier, in nats, the float32 model finds its own token where the texts part, and the
    two tokens. Both models are `recorded`."""
    family: Any = exact.model.family  # type: ignore[attr-defined]
    end = family.settings.end
    theirs = [*family.reader.generated[wanted["text"]], end]
    ours = [*other.model.family.reader.generated[text], end]  # type: ignore[attr-defined]
    same = next(n for n, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) == 2)
    marks = ["<|startoftranscript|>", f"<|{wanted['language']}|>", "<|transcribe|>"]
    if family.settings.timestamps == "none":
        marks.append("<|notimestamps|>")
    start = family.tokenizer.convert_tokens_to_ids(marks)
    features = family.extractor(clip.waveform, sampling_rate=RATE, return_tensors="pt")
    device = family.model.device
    with torch.inference_mode():
        tokens = torch.tensor([[*start, *ours[:same]]], device=device)
        logits = family.model(**features.to(device), decoder_input_ids=tokens).logits
    part = theirs[same], ours[same]
    words = [family.tokenizer.decode([token], decode_with_timestamps=True) for token in part]
    return float(logits[0, -1, part[0]] - logits[0, -1, part[1]]), " / ".join(words)
