"""In bfloat16, as on GPUs, every recogniser's text is what its page's code writes in bfloat16, and nothing
but sound is rounded: ids made of rounded numbers would be other ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    each_made_once,
    tiny_ctc,
    tiny_moonshine,
    tiny_seamless,
    tiny_speech2text,
    tiny_speech_encoder_decoder,
    tiny_whisper,
)
from hearing import labeller, sound
from kyutai import kyutai_page, tiny_kyutai
from mistral import realtime_page, tiny_voxtral_realtime
from prompted import PROMPTED, page
from recognisers import tiny_moonshine_streaming, tiny_speecht5, tiny_transducer
from test_ctc import pipeline_of

from audio_ops.inference import cpu_bfloat16
from audio_ops.speech import families
from audio_ops.speech.ctc import MODEL_TYPES as CTC
from audio_ops.speech.transducer import MODEL_TYPES as TRANSDUCERS
from audio_ops.tasks import Clip

Made = Callable[[str], Path]
MAKERS: dict[str, Callable[[Path], Path]] = {
    **{kind: lambda folder, kind=kind: tiny_ctc(folder, kind) for kind in CTC},
    **{kind: lambda folder, kind=kind: tiny_transducer(folder, kind) for kind in TRANSDUCERS},
    **PROMPTED,
    "kyutai_speech_to_text": tiny_kyutai,
    "moonshine": tiny_moonshine,
    "moonshine_streaming": tiny_moonshine_streaming,
    "seamless_m4t": lambda folder: tiny_seamless(folder, 1),
    "seamless_m4t_v2": lambda folder: tiny_seamless(folder, 2),
    "speech-encoder-decoder": tiny_speech_encoder_decoder,
    "speech_to_text": tiny_speech2text,
    "speecht5": tiny_speecht5,
    "voxtral_realtime": tiny_voxtral_realtime,
    "whisper": tiny_whisper,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cohere_asr": {"language": "en"},
    "whisper": {"language": "de"},
    "seamless_m4t": {"tgt_lang": "eng"},
    "seamless_m4t_v2": {"tgt_lang": "eng"},
}
SOUNDS = [sound(1.0, 200), sound(2.37, 900)]


def test_every_type_is_here() -> None:
    assert set(MAKERS) == {kind for family in families().values() for kind in family.MODEL_TYPES}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return each_made_once(tmp_path_factory, lambda folder, name: MAKERS[name](folder))


def oracle(name: str, folder: Path) -> Callable[[np.ndarray], str]:
    """Texts in bfloat16, by the code on the page or by transformers' pipeline."""
    pages: dict[str, Any] = {
        "kyutai_speech_to_text": kyutai_page,
        "voxtral_realtime": realtime_page,
        **dict.fromkeys(PROMPTED, page),
    }
    options = OPTIONS.get(name, {})
    if name in pages:
        return lambda wave: pages[name](folder, wave, dtype="bfloat16", **options)[0]
    pipe = pipeline_of(folder, "bfloat16")
    is_generative = name not in (*CTC, *TRANSDUCERS)
    task = {"task": "transcribe"} if name == "whisper" else {}
    call = {"generate_kwargs": {"num_beams": 1, **options, **task}} if is_generative else {}
    return lambda wave: pipe(wave.copy(), **call)["text"].strip()


@pytest.mark.parametrize("name", MAKERS)
def test_the_text_is_the_pages_in_the_same_number_format(
    name: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Packed weights round otherwise: see test_bfloat16.py.
    monkeypatch.setattr(cpu_bfloat16, "applies_to", lambda *_: False)
    folder = made(name)
    model = labeller(folder, dtype="bfloat16", **OPTIONS.get(name, {}))
    expected = oracle(name, folder)
    for wave in SOUNDS:
        (found,) = model.label([Clip(wave, len(wave) / model.model.sample_rate)])
        assert isinstance(found, dict), found
        assert found["text"] == expected(wave) != ""
