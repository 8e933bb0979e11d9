"""Texts of recognisers that are asked are those of their processor and `generate`, as on their pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import each_made_once
from hearing import label, labeller, sound
from prompted import PROMPTED, page

from audio_ops.inference.transformers_compat import can_drop_rows
from audio_ops.speech import generation
from audio_ops.speech.prompted.answers import is_chat
from audio_ops.speech.prompted.kinds import CANARY, COHERE, FUN_ASR, QWEN3
from audio_ops.tasks import Clip

Made = Callable[[str], Path]
SOUNDS = [sound(1.0, 200), sound(2.37, 900), sound(0.41, 3000), sound(1.0, 700), sound(1.7, 300)]
NEEDED: dict[str, dict[str, Any]] = {"cohere_asr": {"language": "en"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The checkpoint of that model type, made once."""
    return each_made_once(tmp_path_factory, lambda folder, name: PROMPTED[name](folder))


def clips_of(model: Any, sounds: list[np.ndarray] = SOUNDS) -> list[Clip]:
    return [Clip(wave, len(wave) / model.model.sample_rate) for wave in sounds]


@pytest.mark.parametrize("name", PROMPTED)
def test_texts_are_the_pages_and_do_not_depend_on_the_batch(made: Made, name: str) -> None:
    model = labeller(made(name), **NEEDED.get(name, {}))
    clips = clips_of(model)
    mixed: list[Any] = model.label(clips)
    backwards: list[Any] = model.label(clips[::-1])[::-1]
    for clip, found, turned in zip(clips, mixed, backwards, strict=True):
        (alone,) = model.label([clip])
        assert isinstance(alone, dict)
        text, score = page(made(name), clip.waveform, **NEEDED.get(name, {}))
        assert found["text"] == alone["text"] == turned["text"] == text
        assert [found["score"], alone["score"], turned["score"]] == pytest.approx(
            [score] * 3, abs=1e-4
        )
    assert len({found["text"] for found in mixed}) > 2


@pytest.mark.parametrize(
    ("name", "options", "request_"),
    [
        (
            "canary",
            {"language": "de", "target_language": "fr", "punctuation": False},
            {"source_language": "de", "target_language": "fr", "punctuation": False},
        ),
        ("canary", {"language": "fr"}, {"source_language": "fr"}),
        (
            "cohere_asr",
            {"language": "de", "punctuation": False},
            {"language": "de", "punctuation": False},
        ),
        ("qwen3_asr", {"language": "de", "prompt": "Ray"}, {"language": "de", "prompt": "Ray"}),
        ("fun_asr_nano", {"language": "ja", "prompt": "x"}, {"language": "ja", "prompt": "x"}),
        ("glmasr", {"prompt": "Names: Ray"}, {"prompt": "Names: Ray"}),
        ("granite_speech", {"prompt": "translate to German"}, {"prompt": "translate to German"}),
        ("audioflamingo3", {"prompt": "Names: Ray"}, {"prompt": "Names: Ray"}),
        ("vibevoice_asr", {"prompt": "Names: Ray"}, {"prompt": "Names: Ray"}),
        ("moss_transcribe_diarize", {"prompt": "Ray"}, {"prompt": "Ray"}),
        ("nemo_speechlm", {"prompt": "Names: Ray"}, {"prompt": "Names: Ray"}),
        ("voxtral", {"language": "de"}, {"language": "de"}),
        ("qwen3_asr", {"num_beams": 3}, {"generate": {"num_beams": 3}}),
        ("canary", {"num_beams": 3}, {"generate": {"num_beams": 3}}),
        ("glmasr", {"max_new_tokens": 4}, {"generate": {"max_new_tokens": 4}}),
        (
            "qwen3_asr",
            {"generate": {"repetition_penalty": 1.7}},
            {"generate": {"repetition_penalty": 1.7}},
        ),
    ],
)
def test_options_are_asked_for(
    made: Made, name: str, options: dict[str, Any], request_: dict[str, Any]
) -> None:
    found = label(made(name), SOUNDS[1], SOUNDS[3], **options)
    plain = label(made(name), SOUNDS[1], SOUNDS[3], **NEEDED.get(name, {}))
    for wave, columns in zip((SOUNDS[1], SOUNDS[3]), found, strict=True):
        text, score = page(made(name), wave, **{**request_})
        assert columns["text"] == text
        assert columns["score"] == pytest.approx(score, abs=1e-4)
    assert [f["score"] for f in found] != [f["score"] for f in plain]
    language = options.get("target_language") or options.get("language")
    assert language is None or found[0]["language"] == language


def test_a_longer_window_may_have_a_longer_text(made: Made) -> None:
    """Whatever other windows its batch has."""
    model = labeller(made("voxtral"))
    family: Any = model.model.family  # type: ignore[attr-defined]
    family.model.generation_config.max_new_tokens = 2
    family.tokens_per_s = 4.0
    clips = clips_of(model)
    found: list[Any] = model.label(clips)
    for clip, columns in zip(clips, found, strict=True):
        limit = {"max_new_tokens": 2 + int(4 * clip.duration_s)}
        assert columns["text"] == page(made("voxtral"), clip.waveform, generate=limit)[0]
    assert len({len(columns["text"]) for columns in found}) > 2


@pytest.mark.parametrize("limit", [{"options": {"max_new_tokens": 3}}, {"file": 3}, {}])
def test_a_limit_that_is_set_is_that_of_each_window(
    made: Made, limit: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("voxtral"), tmp_path / "voxtral"))
    file = folder / "generation_config.json"
    content = json.loads(file.read_text()) | {"max_new_tokens": limit.get("file")}
    file.write_text(json.dumps(content))
    model = labeller(folder, **limit.get("options", {}))
    family: Any = model.model.family  # type: ignore[attr-defined]
    assert family.limit(1800.0) == (3 if limit else 500 + 8 * 1800)


def test_a_column_of_the_source_holds_each_clips_prompt(made: Made) -> None:
    model = labeller(made("qwen3_asr"), prompt_column="names")
    prompts = ["Ray", None, "Anyscale", " ", ""]
    clips = [
        Clip(clip.waveform, clip.duration_s, row={"names": prompt})
        for clip, prompt in zip(clips_of(model), prompts, strict=True)
    ]
    for clip, found, prompt in zip(clips, model.label(clips), prompts, strict=True):
        assert isinstance(found, dict)
        asked = (prompt or "").strip() or None
        assert found["text"] == page(made("qwen3_asr"), clip.waveform, prompt=asked)[0]


@pytest.mark.parametrize("name", ["canary", "qwen3_asr"])
def test_finished_rows_leave_the_batch(
    made: Made, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = labeller(made(name), max_new_tokens=40)
    clips = clips_of(model)
    expected = [model.label([clip])[0] for clip in clips]
    ended = sorted(len(found["text"]) for found in expected)  # type: ignore[index]
    family: Any = model.model.family  # type: ignore[attr-defined]
    rows: list[int] = []
    head = family.model.get_output_embeddings()
    watch = head.register_forward_hook(lambda _, __, scores: rows.append(len(scores)))
    found = model.label(clips)
    watch.remove()
    assert [one["text"] for one in found] == [one["text"] for one in expected]  # type: ignore[index]
    assert [one["score"] for one in found] == pytest.approx(  # type: ignore[index]
        [one["score"] for one in expected],
        abs=1e-5,  # type: ignore[index]
    )
    assert rows[0] == len(clips)
    assert rows == sorted(rows, reverse=True)
    assert ended[0] < ended[-1] and rows[-1] < len(clips), "no row has ended before the others"


def test_rows_of_a_state_space_model_stay_in_the_batch(made: Made) -> None:
    """Its cache cannot go on without some of them."""
    from transformers.cache_utils import LinearAttentionLayer

    assert not hasattr(LinearAttentionLayer, "batch_select_indices"), "it can: see `can_drop_rows`"
    model = labeller(made("nemo_speechlm"), max_new_tokens=40)
    assert not can_drop_rows(model.model.family.model)  # type: ignore[attr-defined]
    assert can_drop_rows(labeller(made("qwen3_asr")).model.family.model)  # type: ignore[attr-defined]
    clips = clips_of(model, [sound(1.0, hz) for hz in (200, 300, 700, 900, 3000)])
    expected = [model.label([clip])[0]["text"] for clip in clips]  # type: ignore[index]
    assert len({len(text) for text in expected}) > 1
    head = model.model.family.model.get_output_embeddings()  # type: ignore[attr-defined]
    rows: list[int] = []
    watch = head.register_forward_hook(lambda _, __, scores: rows.append(len(scores)))
    found = model.label(clips)
    watch.remove()
    assert [one["text"] for one in found] == expected  # type: ignore[index]
    assert set(rows) == {len(clips)}


def test_windows_are_no_longer_than_an_extractor_that_cuts_takes(
    made: Made, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("cohere_asr"), tmp_path / "cohere"))
    assert labeller(folder, language="en").model.family.max_s == 35.0  # type: ignore[attr-defined]
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["feature_extractor"]["max_audio_clip_s"] = 2.0
    file.write_text(json.dumps(settings))
    model = labeller(folder, language="en")
    (clip,) = clips_of(model, [sound(4.5, 300)])
    windows = model.model.windows(clip)
    assert len(windows) > 2
    (found,) = model.label([clip])
    parts = [page(folder, clip.waveform[w.start : w.stop], language="en")[0] for w in windows]
    assert found["text"] == " ".join(parts)  # type: ignore[index]


def test_long_sound_is_cut_in_pauses(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model = labeller(made("qwen3_asr"))
    assert model.model.family.max_s == 180  # type: ignore[attr-defined]
    model.model.family.max_s = 4.0  # type: ignore[attr-defined]
    wave = np.concatenate([sound(2.5, 400), np.zeros(8000, np.float32), sound(2.4, 700)])
    (found,) = model.label([Clip(wave, len(wave) / 16_000)])
    assert isinstance(found, dict)
    first, second = found["segments"]
    assert (first["start_s"], first["end_s"], second["end_s"]) == (0, second["start_s"], 5.4)
    cut = round(second["start_s"] * 16_000)
    texts = [page(made("qwen3_asr"), part)[0] for part in (wave[:cut], wave[cut:])]
    assert [first["text"], second["text"]] == texts
    assert found["text"] == " ".join(texts)


def said(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str, text: str, **options: Any
) -> dict[str, Any]:
    """The columns of 5 s of sound for which the model writes this text."""
    model = labeller(made(name), **options)
    family: Any = model.model.family  # type: ignore[attr-defined]
    tokens = family.tokenizer(text)["input_ids"]
    monkeypatch.setattr(
        "audio_ops.speech.prompted.model.generate_dropping_finished",
        lambda *_: [generation.Generated(tokens, [-0.1] * len(tokens))],
    )
    seconds = 5.0
    (found,) = model.label([Clip(sound(seconds * family.sample_rate / 16_000, 300), seconds)])
    assert isinstance(found, dict)
    return found


MOSS = "[0.50][S01]Good morning.[1.75][0:02][S02]Hello, all.[4.9]"
VIBE = (
    'assistant\n[{"Start":0.5,"End":1.75,"Speaker":1,"Content":"Good morning."},'
    '{"Start":2,"End":4.9,"Speaker":2,"Content":"Hello, all."}]\n'
)


@pytest.mark.parametrize(
    ("name", "text", "speakers"),
    [("moss_transcribe_diarize", MOSS, ["1", "2"]), ("vibevoice_asr", VIBE, ["1", "2"])],
)
def test_speakers_and_times_in_a_text_are_segments(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str, text: str, speakers: list[str]
) -> None:
    found = said(made, monkeypatch, name, text)
    assert found["text"] == "Good morning. Hello, all."
    assert [(s["start_s"], s["end_s"], s["text"], s["speaker"]) for s in found["segments"]] == [
        (0.5, 1.75, "Good morning.", speakers[0]),
        (2.0, 4.9, "Hello, all.", speakers[1]),
    ]


def test_speakers_without_times_have_those_of_the_window(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged = "<spk:0> Good morning. <spk:1> Hello, all. <spk:0> Bye.<|im_end|>"
    found = said(made, monkeypatch, "nemo_speechlm", tagged)
    assert found["text"] == "Good morning. Hello, all. Bye."
    assert [(s["start_s"], s["end_s"], s["text"], s["speaker"]) for s in found["segments"]] == [
        (0.0, 5.0, "Good morning.", "0"),
        (0.0, 5.0, "Hello, all.", "1"),
        (0.0, 5.0, "Bye.", "0"),
    ]
    (segment,) = said(made, monkeypatch, "nemo_speechlm", "Good morning.<|im_end|>")["segments"]
    assert (segment["text"], segment["speaker"]) == ("Good morning.", None)


@pytest.mark.parametrize("name", ["moss_transcribe_diarize", "vibevoice_asr"])
def test_an_answer_of_another_form_is_one_segment(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = said(made, monkeypatch, name, "Good morning.")
    (segment,) = found["segments"]
    assert (found["text"], segment["text"]) == ("Good morning.", "Good morning.")
    assert (segment["start_s"], segment["end_s"], segment["speaker"]) == (0, 5, None)


def test_a_language_in_a_text_is_the_clips(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    found = said(made, monkeypatch, "qwen3_asr", "language German<asr_text>Guten Tag.")
    assert (found["text"], found["language"]) == ("Guten Tag.", "de")
    found = said(made, monkeypatch, "qwen3_asr", "language None<asr_text>")
    assert (found["text"], found["language"], found["segments"]) == ("", None, [])


def test_a_frame_around_a_text_is_left_out(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The spoken content of the audio is 'good morning'."
    assert said(made, monkeypatch, "audioflamingo3", text)["text"] == "good morning"


REMARKS = [
    "I'm sorry, but I can't transcribe this audio.",
    "I'm sorry, but I can't assist with that request.",
    "I am unable to process audio files.",
    "As an AI language model, I cannot listen to recordings.",
    "There is no speech in this recording.",
    "The audio contains no discernible words.",
    "The audio clip appears to be silent.",
    "Sure! Here is the transcription:",
    "Here's the transcript of the audio: ...",
    "Please provide the audio file you would like me to transcribe.",
    "No speech detected.",
    "Please transcribe this audio into text",  # GLM-ASR's own request
]
SPEECH = [
    "I'm sorry I'm late.",
    "Sorry, I can't come on Monday, but Tuesday is fine.",
    "I'm sorry, I can't hear you.",
    "Unfortunately we cannot help you with that today.",
    "The sound is amazing.",
    "The speaker is late today.",
    "The recording is from last year.",
    "There is no sound on my television.",
    "The audio book is on the table.",
    "Sure, here's the menu.",
    "Please send me the file.",
    "Please transcribe.",
    "No.",
    "Here is the news.",
    "Ray and Anyscale.",
    "",
]


@pytest.mark.parametrize("text", REMARKS)
def test_a_chat_models_remark_is_no_transcript(text: str) -> None:
    assert is_chat(text, ["Please transcribe this audio into text"])


@pytest.mark.parametrize("text", SPEECH)
def test_what_people_say_is_a_transcript(text: str) -> None:
    assert not is_chat(text, ["Please transcribe this audio into text", "Names: Ray and Anyscale"])


@pytest.mark.parametrize("text", [REMARKS[0], REMARKS[-1]])
def test_a_chat_models_remark_is_suspect(
    made: Made, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    found = said(made, monkeypatch, "glmasr", text)
    assert "not_a_transcript" in found["suspect"]
    assert "not_a_transcript" in found["segments"][0]["suspect"]
    assert said(made, monkeypatch, "glmasr", text, suspect="drop")["text"] == ""


def test_what_people_say_is_not_suspect_for_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    found = said(made, monkeypatch, "glmasr", "Ray.", prompt="Names: Ray and Anyscale")
    assert "not_a_transcript" not in found["suspect"]


def test_the_prompt_repeated_is_no_transcript() -> None:
    names = "Names: Ray, Anyscale, KubeRay"
    assert is_chat(names, [names])
    assert is_chat(f"{names} and so on", [names])
    assert not is_chat("Ray runs on KubeRay", [names])
    assert not is_chat("the ray is bright", ["Ray"])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("canary", {"prompt": "x"}, "prompt: expected none, as the request of canary has no place"),
        ("canary", {"prompt_column": "x"}, "prompt_column: expected none, as the request of"),
        (
            "glmasr",
            {"language": "en"},
            "language: expected none, .* which .*qwen3_asr, voxtral have",
        ),
        ("qwen3_asr", {"target_language": "de"}, "target_language: expected none, .* canary have"),
        ("canary", {"language": "xx"}, "language: expected one of bg, cs, .* found 'xx'"),
        ("canary", {"target_language": "ja"}, "target_language: expected one of bg, .* found 'ja'"),
        ("cohere_asr", {}, "language: expected the language of the speech, one of ar, de, .* none"),
        ("glmasr", {"prompt": "x", "prompt_column": "y"}, "prompt_column: expected none beside"),
        ("qwen3_asr", {"timestamps": "word"}, "timestamps: expected none for a qwen3_asr"),
        ("qwen3_asr", {"translate": True}, "translate: expected nothing for a qwen3_asr"),
    ],
)
def test_what_a_request_has_no_place_for_is_refused(
    made: Made, name: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        labeller(made(name), **options)


def test_another_head_is_refused(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("qwen3_asr"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3ASRForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected architecture Qwen3ASRForConditionalGeneration"):
        labeller(folder)


def test_languages_are_those_of_the_processors() -> None:
    def of(module: str, name: str) -> Any:
        path = f"transformers.models.{module}.processing_{module}"
        return getattr(import_module(path), name)

    assert of("canary", "LANGUAGE_CODE_TO_NAME").keys() == set(CANARY)
    assert of("cohere_asr", "LANGUAGES") == set(COHERE)
    assert of("qwen3_asr", "LANGUAGE_CODE_TO_NAME") == QWEN3
    assert set(FUN_ASR) <= of("fun_asr_nano", "LANGUAGE_CODE_TO_NAME").keys()
