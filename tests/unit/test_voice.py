"""Speech probability, against Silero's own implementation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import tone

from audio_ops.signal import voice
from audio_ops.signal.voice import speech_probability
from audio_ops.signal.wave import resample

SILERO = Path(find_spec("silero_vad").submodule_search_locations[0])  # type: ignore
SPEECH = Path(find_spec("moonshine_voice").submodule_search_locations[0]) / "assets"  # type: ignore


def speech(name: str) -> np.ndarray:
    sound, rate = soundfile.read(SPEECH / name, dtype="float32", always_2d=True)
    return resample(sound[:, 0], rate, 16000)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 512 * 512, 512 * 512 + 1, None])
def test_probabilities_are_those_of_silero(length: int | None) -> None:
    from silero_vad.sequence_vad import SileroVADSequence

    sound = speech("two_cities.wav")[:length]
    theirs = SileroVADSequence(str(SILERO / "data" / "silero_vad_16k_sequence.onnx"))
    expected = theirs.audio_forward(sound)
    found = speech_probability(sound)
    assert found.dtype == np.uint8 and len(found) == len(expected) == -(-len(sound) // 512)
    np.testing.assert_allclose(found / 255, expected, atol=0.01)


def test_silero_has_the_file_inputs_and_outputs_that_are_used_without_its_package() -> None:
    voice._session.cache_clear()
    assert voice._session() is not None, "see silero_vad/sequence_vad.py for what has changed"


def test_another_file_in_silero_leaves_the_probabilities_to_its_own_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = speech("two_cities.wav")
    expected = speech_probability(sound)
    for model in ("data/missing.onnx", "data/silero_vad.onnx"):
        monkeypatch.setattr(voice, "MODEL", model)
        voice._session.cache_clear()
        voice._documented_model.cache_clear()
        with pytest.warns(UserWarning, match=f"expected silero-vad to have {model}"):
            np.testing.assert_array_equal(speech_probability(sound), expected)
        assert voice._session() is None
    voice._session.cache_clear()


def test_speech_is_told_from_silence_and_from_a_tone() -> None:
    sound = speech("beckett.wav")
    assert (speech_probability(sound) > 127).mean() > 0.4
    assert speech_probability(np.zeros(32000, np.float32)).max() < 127
    assert speech_probability(tone(2)[0]).max() < 127


def test_a_waveform_is_wanted() -> None:
    with pytest.raises(ValueError, match=r"expected \(samples,\), got shape \(2, 3\)"):
        speech_probability(np.zeros((2, 3), np.float32))
