"""Every model type of transformers that takes sound is run by a family or a task, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.speech import families
from audio_ops.speech.refused import REFUSED
from audio_ops.tasks import automatic_speech_recognition as task
from audio_ops.tasks.audio_classification import ARCHITECTURES

RUN = {kind for family in families().values() for kind in family.MODEL_TYPES}
RECOGNISERS = ("CTC", "SPEECH_SEQ_2_SEQ", "TDT", "RNNT")
ASSISTANTS = ("MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "PRETRAINING")
OTHERS = ("AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR")
FIELD_OF_SOUND = re.compile(r"^    \w*(audio|acoustic)\w*\s*:", re.MULTILINE)


def mapped(name: str) -> set[str]:
    return set(getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES"))


def takes_sound(kind: str) -> bool:
    """Whether the configuration of a model type has a field for sound."""
    module = configuration_auto.model_type_to_module_name(kind)
    folder = Path(transformers.__file__).parent / "models" / module
    path = folder / f"configuration_{module}.py"
    return path.is_file() and bool(FIELD_OF_SOUND.search(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", [*RECOGNISERS, *ASSISTANTS, *OTHERS])
def test_every_model_type_is_run_or_refused_with_a_reason(name: str) -> None:
    kinds = mapped(name)
    if name in ASSISTANTS:
        kinds = {kind for kind in kinds if takes_sound(kind)}
        assert "qwen3_asr" in kinds, "the field for sound has another name"
    undecided = kinds - RUN - set(REFUSED) - (set(ARCHITECTURES) if name in OTHERS else set())
    assert not undecided, "add them to a family's MODEL_TYPES or to audio_ops/speech/refused.py"


def test_no_model_type_is_run_and_refused_or_unknown_to_transformers() -> None:
    assert not RUN & set(REFUSED)
    known = set(modeling_auto.MODEL_MAPPING_NAMES) | set(configuration_auto.CONFIG_MAPPING_NAMES)
    assert (RUN | set(REFUSED)) <= known


def test_a_folder_in_another_format_is_told_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"alignment_heads": [[1, 0]], "lang_ids": [50259]}')
    options = task.Options(task="automatic-speech-recognition", model=str(tmp_path))
    with pytest.raises(ValueError, match=r"no model_type in .*CTranslate2 .* converted from$"):
        task.check(options, Checkpoint(str(tmp_path)))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_names_the_type_and_the_reason(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    options = task.Options(task="automatic-speech-recognition", model=str(tmp_path))
    with pytest.raises(ValueError, match="model: expected a speech recognition") as refused:
        task.check(options, Checkpoint(str(tmp_path)))
    assert repr(kind) in str(refused.value)
    assert str(refused.value).endswith(REFUSED[kind])


def test_an_unknown_type_is_refused_with_those_that_are_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    options = task.Options(task="automatic-speech-recognition", model=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"checkpoint \(.*wav2vec2.*whisper\), found model_type 'bert'"
    ):
        task.check(options, Checkpoint(str(tmp_path)))
