"""Families of models in one run over one folder: what transformers' own pipelines say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoints import (
    tiny_clap,
    tiny_classifier,
    tiny_ctc,
    tiny_moonshine,
    tiny_seamless,
    tiny_speech2text,
    tiny_speech_encoder_decoder,
    tiny_whisper,
)
from hearing import RATE, sound
from mistral import realtime_page, tiny_voxtral, tiny_voxtral_realtime
from prompted import page, tiny_canary, tiny_qwen3
from recognisers import tiny_transducer
from runs import Job
from sounds import encode

ASR = "automatic-speech-recognition"
WORDS = ["rain", "an engine", "somebody who speaks"]
CLAP_RATE = 48_000


class Family(NamedTuple):
    """A checkpoint's maker, the task's options in the config, and the pipeline's in a call."""

    make: Callable[[Path], Path]
    task: str
    options: dict[str, Any]
    call: dict[str, Any]


def recogniser(
    make: Callable[[Path], Path], options: dict[str, Any] | None = None, **generate: Any
) -> Family:
    return Family(make, ASR, options or {}, {"generate_kwargs": {"num_beams": 1, **generate}})


FAMILIES = {
    "ctc": Family(
        lambda folder: tiny_ctc(folder, "wav2vec2", seed=2),
        ASR,
        {"timestamps": "word"},
        {"return_timestamps": "word"},
    ),
    "whisper": recogniser(tiny_whisper, {"language": "de"}, language="de", task="transcribe"),
    "moonshine": recogniser(tiny_moonshine),
    "speech_to_text": recogniser(tiny_speech2text),
    "encoder_decoder": recogniser(tiny_speech_encoder_decoder),
    "seamless_v1": recogniser(
        lambda folder: tiny_seamless(folder, 1), {"tgt_lang": "arb"}, tgt_lang="arb"
    ),
    "seamless_v2": recogniser(
        lambda folder: tiny_seamless(folder, 2), {"tgt_lang": "eng"}, tgt_lang="eng"
    ),
    "parakeet_tdt": recogniser(lambda folder: tiny_transducer(folder, "parakeet_tdt")),
    "canary": Family(
        tiny_canary,
        ASR,
        {"language": "de", "target_language": "en"},
        {"source_language": "de", "target_language": "en"},
    ),
    "qwen3_asr": Family(tiny_qwen3, ASR, {"prompt": "Ray"}, {"prompt": "Ray"}),
    "voxtral": Family(tiny_voxtral, ASR, {"language": "de"}, {"language": "de"}),
    "voxtral_realtime": Family(tiny_voxtral_realtime, ASR, {}, {}),
    "classifier": Family(
        lambda folder: tiny_classifier(folder, "hubert"), "audio-classification", {}, {"top_k": 5}
    ),
    "clap": Family(
        tiny_clap,
        "zero-shot-audio-classification",
        {"candidate_labels": WORDS},
        {"candidate_labels": WORDS},
    ),
}


# The pipeline does not ask as their pages do.
PAGES = {"canary": page, "qwen3_asr": page, "voxtral": page, "voxtral_realtime": realtime_page}
OFTEN = (
    *("ctc", "moonshine", "seamless_v2", "classifier", "parakeet_tdt", "qwen3_asr"),
    "voxtral_realtime",
)
SELDOM = tuple(name for name in FAMILIES if name not in OFTEN)


class Run(NamedTuple):
    """One run of families: their checkpoints, the rows by clip, the sounds at the file's rate."""

    models: dict[str, Path]
    rows: dict[str, dict[str, Any]]
    sounds: dict[str, np.ndarray]


@pytest.fixture(params=[OFTEN, pytest.param(SELDOM, marks=pytest.mark.chaos)], ids=" ".join)
def run(request: pytest.FixtureRequest, tmp_path: Path, local_ray: None) -> Run:
    models = {}
    for name in request.param:
        (tmp_path / name).mkdir()
        models[name] = FAMILIES[name].make(tmp_path / name)
    job = Job(
        tmp_path,
        models[request.param[0]],
        tasks={
            name: {
                "task": FAMILIES[name].task,
                "model": str(model),
                "dtype": "float32",
                **FAMILIES[name].options,
            }
            for name, model in models.items()
        },
    )
    sounds = {}
    for n, (seconds, hz) in enumerate([(1.0, 200), (2.37, 900), (0.41, 3000), (1.7, 300)]):
        sounds[f"{n}.wav"] = sound(seconds, hz)
        stored = encode(sounds[f"{n}.wav"][None], RATE, "wav_float")
        (job.audio / f"{n}.wav").write_bytes(stored)
    result = job.run()
    assert result.code == 0, result.text
    return Run(models, job.by_name(), sounds)


def test_a_whole_runs_labels_are_the_pipelines(run: Run) -> None:
    for name in run.models:
        says_what_the_pipeline_says(run, name)


def says_what_the_pipeline_says(run: Run, name: str) -> None:
    import soxr
    import torch
    from transformers import pipeline

    family = FAMILIES[name]
    folder = run.models[name]
    pipe: Any
    if name in PAGES:
        pipe = lambda wave, **request: {"text": PAGES[name](folder, wave, **request)[0]}  # noqa: E731
    else:
        pipe = pipeline(family.task, model=str(folder), dtype=torch.float32)
    said = set()
    for clip, wave in run.sounds.items():
        row = run.rows[clip]
        assert row[f"{name}_error"] is None
        if name == "clap":
            wave = soxr.resample(wave, RATE, CLAP_RATE, quality="HQ")
        expected = pipe(wave.copy(), **family.call)
        if family.task == ASR:
            found = row[f"{name}_text"]
            assert found == expected["text"].strip()
            assert 0 < row[f"{name}_score"] <= 1
        else:
            found = tuple(row[f"{name}_labels"])
            assert list(found) == [answer["label"] for answer in expected]
            scores = [answer["score"] for answer in expected]
            assert row[f"{name}_scores"] == pytest.approx(scores, abs=1e-4)
            found = (*found, round(scores[0], 3))
        if name == "ctc":
            assert [(w["text"], w["start_s"], w["end_s"]) for w in row["ctc_words"]] == [
                (chunk["text"], *(pytest.approx(float(t), abs=1e-3) for t in chunk["timestamp"]))
                for chunk in expected["chunks"]
            ]
        said.add(found)
    assert len(said) == len(run.sounds), f"{name} tells nothing apart"
