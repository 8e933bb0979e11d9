"""In half precision a model is what transformers loads: what it keeps in float32 stays so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import tiny_classifier, tiny_ctc
from hearing import RATE, labeller, sound
from test_families import ASR, FAMILIES, Family, recogniser

from audio_ops.inference import cpu_bfloat16
from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.speech import ctc
from audio_ops.speech.frames import LOG_MEL
from audio_ops.tasks import Clip, load_task
from audio_ops.tasks.audio_classification import ARCHITECTURES

ROTARY = {"position_embeddings_type": "rotary"}
MMS = {"languages": {"deu": "abcd", "fra": "efghij"}}


def maker(make: Callable[..., Path], *arguments: Any, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: make(folder, *arguments, **options)


MODELS = {
    **FAMILIES,
    **{kind: Family(maker(tiny_ctc, kind), ASR, {}, {}) for kind in ctc.MODEL_TYPES},
    "rotary": Family(maker(tiny_ctc, "wav2vec2-conformer", **ROTARY), ASR, {}, {}),
    "mms": Family(maker(tiny_ctc, "wav2vec2", **MMS), ASR, {"target_lang": "fra"}, {}),
    **{
        f"classifier of {kind}": Family(
            maker(tiny_classifier, kind, **config), "audio-classification", {}, {}
        )
        for kind in ARCHITECTURES
        for config in [ROTARY if kind == "wav2vec2-conformer" else {}]
    },
}
KEPT_IN_FLOAT32 = {
    *("rotary", *LOG_MEL, "parakeet_tdt", "moonshine", "canary", "qwen3_asr"),
    *("voxtral", "voxtral_realtime"),
    "classifier of wav2vec2-conformer",
}


@pytest.fixture(autouse=True)
def as_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights are no parameters, and round otherwise: see test_bfloat16.py."""
    monkeypatch.setattr(cpu_bfloat16, "applies_to", lambda *_: False)


def tensors(model: Any) -> dict[str, torch.dtype]:
    """The number format of every parameter and buffer."""
    own = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.dtype for name, tensor in own}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_has_the_number_format_that_transformers_gives_it(
    name: str, tmp_path: Path
) -> None:
    make, task, options, _ = MODELS[name]
    checkpoint = find_checkpoint(str(make(tmp_path)))
    for dtype in (torch.bfloat16, torch.float16):
        settings = {"model": str(tmp_path), "dtype": str(dtype).removeprefix("torch."), **options}
        chosen = load_task(task).Options(task=task, **settings)
        model: Any = Label("it", chosen, checkpoint, device="cpu").model
        ours = getattr(model, "family", model).model
        plain = tensors(type(ours).from_pretrained(tmp_path, dtype=dtype))
        found = tensors(ours)
        assert found and found == {name: plain[name] for name in found}
        assert (torch.float32 in found.values()) is (name in KEPT_IN_FLOAT32)


SAYING = {
    "conformer, rotary": MODELS["rotary"],
    "parakeet": MODELS["parakeet_ctc"],
    "wav2vec2-bert": MODELS["wav2vec2-bert"],
    "moonshine": recogniser(FAMILIES["moonshine"].make),
    "speech_to_text": FAMILIES["speech_to_text"],
    "whisper": FAMILIES["whisper"],
}
LENGTHS = ((20.3, 200), (28.3, 900))  # seconds, Hz: the farthest positions are rounded most


# Texts in bfloat16: test_texts_in_bfloat16.py.
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.chaos), "float16"])
@pytest.mark.parametrize("name", SAYING)
def test_long_sound_gets_the_pipelines_text_in_the_same_number_format(
    name: str, dtype: str, tmp_path: Path
) -> None:
    from transformers import pipeline

    family = SAYING[name]
    folder = family.make(tmp_path)
    call = family.call if "generate_kwargs" in family.call else {}
    pipe: Any = partial(
        pipeline(ASR, model=str(folder), dtype=getattr(torch, dtype), device=available_device()),
        **call,
    )
    sounds = [sound(*length) for length in LENGTHS]
    label = labeller(folder, dtype=dtype, **family.options)
    for wave in sounds:
        (found,) = label.label([Clip(wave, len(wave) / RATE)])
        expected = pipe(wave.copy())["text"].strip()
        assert len(expected) > 5
        assert found["text"] == expected
