"""Models load and label without the modules that only training and compiling need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checkpoints import tiny_clap, tiny_classifier, tiny_ctc, tiny_whisper
from runs import ROOT

IN_A_PROCESS = """
import sys
from pathlib import Path

import numpy as np

from audio_ops.inference.checkpoint import find_checkpoint, load_model
from audio_ops.inference.light_import import META_KERNELS, POSTPONED
from audio_ops.label import Label
from audio_ops.tasks import Clip, load_task

noise = np.random.default_rng(0).normal(scale=0.1, size=72_000).astype(np.float32)
asr = "automatic-speech-recognition"
for kind, name, settings in [
    (asr, "whisper", {"timestamps": "word"}),
    (asr, "ctc", {}),
    ("audio-classification", "classifier", {}),
    ("zero-shot-audio-classification", "clap", {"candidate_labels": ["a", "b"]}),
]:
    task, folder = load_task(kind), str(Path(sys.argv[1]) / name)
    options = task.Options(task=kind, model=folder, **settings)
    model = Label("t", options, find_checkpoint(folder), device="cpu")
    labels = model.label([Clip(noise, 1.0), Clip(noise[:48_000], 1.0)])
    assert all(isinstance(label, dict) for label in labels), labels
    found = {*POSTPONED, META_KERNELS, "sympy"} & set(sys.modules)
    assert not found, (name, found)

import functools

import torch
from transformers import AutoModelForCTC, Wav2Vec2Model, masking_utils
from transformers.utils.import_utils import create_import_structure_from_path

# A model that needs a kernel for tensors without data that is one of those in Python.
class Deviating(Wav2Vec2Model):
    def __init__(self, config):
        super().__init__(config)
        torch.ones(3).std()

sys.modules[Wav2Vec2Model.__module__].Wav2Vec2Model = Deviating
folder = str(Path(sys.argv[1]) / "ctc")
options = load_task(asr).Options(task=asr, model=folder)
assert load_model(AutoModelForCTC, find_checkpoint(folder), options, "cpu").device.type == "cpu"
assert META_KERNELS in sys.modules

# transformers has read its files' names once, and defines other caches as they are.
assert create_import_structure_from_path.cache_info().hits
assert functools.lru_cache(len).cache_info().maxsize == 128

from transformers.distributed.utils import is_dtensor
from transformers.loss import loss_for_object_detection as losses

# Who uses them gets the real ones, also as attributes of the module above them.
assert "torch/" in torch.distributed.tensor.placement_types.Shard.__module__.replace(".", "/")
assert isinstance(torch.distributed.tensor.Replicate(), torch.distributed.tensor.Replicate)
assert not is_dtensor(torch.zeros(1))
with masking_utils.TransformGetItemToIndex():
    pass
ends = losses.linear_sum_assignment(np.eye(2))
assert [end.tolist() for end in ends] == [[0, 1], [1, 0]]
from torch.distributed.tensor import DTensor
assert "torch/" in sys.modules[DTensor.__module__].__file__
assert not is_dtensor(torch.zeros(1))
"""


def test_models_label_without_modules_for_training_and_compiling(tmp_path: Path) -> None:
    tiny_whisper(tmp_path / "whisper", timestamps=True)
    tiny_ctc(tmp_path / "ctc", "wav2vec2")
    tiny_classifier(tmp_path / "classifier", "wav2vec2")
    tiny_clap(tmp_path / "clap")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
