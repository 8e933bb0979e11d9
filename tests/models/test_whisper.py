"""Whisper's labels are those of transformers' pipeline, in any batch, and no word is missing."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
from checkpoints import tiny_whisper
from hearing import labeller

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.signal.voice import speech_probability
from audio_ops.speech.evidence import compression_ratio
from audio_ops.speech.options import GENERATE
from audio_ops.speech.transcript import WindowTranscript
from audio_ops.speech.whisper.log_mel import LogMel
from audio_ops.speech.whisper.model import Group
from audio_ops.speech.whisper.segments import Generation, WindowState
from audio_ops.tasks import Clip
from audio_ops.tasks.automatic_speech_recognition import Model, Options, check, columns
from jobs.demo import recordings, whisper_tiny_en

RATE = 16_000
TASK = "automatic-speech-recognition"


@pytest.fixture(scope="session")
def tiny_en() -> Path:
    return whisper_tiny_en()


@pytest.fixture(scope="session")
def many_tongues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper") / "multilingual")


@pytest.fixture(scope="session")
def recorded() -> dict[str, np.ndarray]:
    return {
        path.stem: librosa.load(path, sr=RATE)[0] for path in sorted(recordings().glob("*.wav"))
    }


def whisper(folder: Path, **options: Any) -> Model:
    return loaded(str(folder), json.dumps({"dtype": "float32", **options}))


@cache
def loaded(folder: str, options: str) -> Model:
    chosen = Options(task=TASK, model=folder, **json.loads(options))
    checkpoint = find_checkpoint(folder)
    check(chosen, checkpoint)
    return Model(chosen, checkpoint, available_device())


def transcribe(model: Model, sounds: list[np.ndarray]) -> list[dict[str, Any]]:
    """The columns of each sound, all windows of all sounds in one batch."""
    clips = [Clip(sound, len(sound) / RATE, speech_probability(sound)) for sound in sounds]
    windows = [model.windows(clip) for clip in clips]
    pieces = [
        clip.waveform[window.start : window.stop]
        for clip, cuts in zip(clips, windows, strict=True)
        for window in cuts
    ]
    outputs = iter(model(pieces, None))
    return [
        model.join(clip, cuts, [next(outputs) for _ in cuts])
        for clip, cuts in zip(clips, windows, strict=True)
    ]


def tones() -> list[np.ndarray]:
    """Short sounds, no two alike."""
    noise = np.random.default_rng(0)
    sounds = []
    for number, length_s in enumerate((1.0, 2.5, 4.0, 0.4, 7.0), start=1):
        t = np.arange(int(length_s * RATE)) / RATE
        hiss = 0.1 * noise.standard_normal(len(t)) * np.sin(2 * np.pi * number * t)
        sounds.append((hiss + 0.2 * np.sin(2 * np.pi * 200 * number * t)).astype(np.float32))
    return sounds


def pipeline_texts(folder: Path, sounds: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
    from transformers import pipeline

    pipe = pipeline(TASK, model=str(folder), dtype="float32", device="cpu")
    generate = {"num_beams": 1, **options.pop("generate_kwargs", {})}
    return [pipe(sound.copy(), generate_kwargs=generate, **options) for sound in sounds]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def same_pieces(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], end_s: float) -> None:
    """Texts and times are equal, up to the end of the sound."""
    assert [piece["text"] for piece in ours] == [chunk["text"].strip() for chunk in theirs]
    for piece, chunk in zip(ours, theirs, strict=True):
        times = tuple(min(t, end_s) for t in chunk["timestamp"])
        assert (piece["start_s"], piece["end_s"]) == pytest.approx(times, abs=1e-3)


def test_log_mel_is_the_feature_extractors() -> None:
    from transformers import WhisperFeatureExtractor

    for mels in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=mels)
        sounds = [*tones(), np.zeros(RATE, np.float32)]
        found = LogMel(extractor, available_device())(sounds, 30 * RATE).cpu()
        expected = extractor(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-4


@pytest.fixture(scope="session")
def heard(tiny_en: Path, recorded: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """tiny.en's labels of the recordings, all in one batch."""
    return dict(zip(recorded, transcribe(whisper(tiny_en), list(recorded.values())), strict=True))


def test_tiny_en_knows_the_recordings(heard: dict[str, dict[str, Any]]) -> None:
    texts = {name: label["text"] for name, label in heard.items()}
    assert texts["beckett"].startswith("Ever tried, ever failed.")
    assert texts["clone-test"] == "I do. I think that America do it very well."
    assert texts["endgame_nagg_nell"].startswith("Do you hear me?")
    assert texts["two_cities"].startswith("It was the best of times, it was the worst of times.")


def test_english_texts_are_the_pipelines(
    tiny_en: Path, recorded: dict[str, np.ndarray], heard: dict[str, dict[str, Any]]
) -> None:
    short = ("beckett", "clone-test", "endgame_nagg_nell")
    expected = pipeline_texts(tiny_en, [recorded[name] for name in short])
    for name, wanted in zip(short, expected, strict=True):
        label = heard[name]
        assert label["text"] == wanted["text"].strip()
        assert label["language"] == "en"
        assert 0.5 < label["score"] < 1.0


def test_segments_and_words_are_the_pipelines(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    short = [recorded["beckett"], recorded["clone-test"]]
    for option, returned in (("segment", True), ("word", "word")):
        expected = pipeline_texts(tiny_en, short, return_timestamps=returned)
        labels = transcribe(whisper(tiny_en, timestamps=option), short)
        for label, wanted, sound in zip(labels, expected, short, strict=True):
            pieces = label["words" if option == "word" else "segments"]
            assert label["text"] == wanted["text"].strip()
            same_pieces(pieces, wanted["chunks"], len(sound) / RATE)
            assert all(0 < piece["score"] <= 1 for piece in pieces)


def test_every_language_in_a_mixed_batch_is_the_pipelines(many_tongues: Path) -> None:
    expected = pipeline_texts(
        many_tongues, tones(), return_language=True, generate_kwargs={"task": "transcribe"}
    )
    labels = transcribe(whisper(many_tongues), tones())
    names = {"english": "en", "german": "de", "french": "fr", "arabic": "ar"}
    assert len({label["language"] for label in labels}) > 1
    for label, wanted in zip(labels, expected, strict=True):
        assert label["text"] == wanted["text"].strip()
        assert label["language"] == names[wanted["chunks"][0]["language"]]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_given_language_and_translation_are_the_pipelines(many_tongues: Path, beams: int) -> None:
    generate = {"language": "fr", "task": "translate", "num_beams": beams}
    expected = pipeline_texts(many_tongues, tones(), generate_kwargs=generate)
    model = whisper(many_tongues, language="fr", translate=True, num_beams=beams)
    for label, wanted in zip(transcribe(model, tones()), expected, strict=True):
        assert label["text"] == wanted["text"].strip()
        assert label["language"] == "fr"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timestamps": "word"},
        {"num_beams": 2, "timestamps": "segment", "max_new_tokens": 24},  # noise goes on for ever
        {"generate": {"do_sample": True, "temperature": 0.8}},
    ],
    ids=["greedy", "word", "beams", "sampling"],
)
def test_alone_or_in_a_mixed_batch_a_sound_gets_the_same_label(
    tiny_en: Path, recorded: dict[str, np.ndarray], options: dict[str, Any]
) -> None:
    model = whisper(tiny_en, **options)
    noise = 0.01 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    two = recorded["two_cities"]
    sounds = [recorded["clone-test"], noise, two[: 8 * RATE], two[: 2 * RATE]]
    together = transcribe(model, sounds)
    for label, sound in zip(together, sounds, strict=True):
        (alone,) = transcribe(model, [sound])
        assert label["text"] == alone["text"]
        assert label["score"] == pytest.approx(alone["score"], abs=1e-4)
        for kind in ("segments", "words"):
            for one, other in zip(label[kind], alone[kind], strict=True):
                assert one["text"] == other["text"]
                assert (one["start_s"], one["end_s"]) == (other["start_s"], other["end_s"])


def test_what_is_certain_to_be_drawn_scores_one(many_tongues: Path) -> None:
    options: dict[str, Any] = {"language": "fr", "max_new_tokens": 20}
    (greedy,) = transcribe(whisper(many_tongues, **options), tones()[:1])
    drawn = {"do_sample": True, "top_k": 1}
    (certain,) = transcribe(whisper(many_tongues, **options, generate=drawn), tones()[:1])
    assert certain["text"] == greedy["text"]
    assert certain["score"] == pytest.approx(1.0) and greedy["score"] < 0.9


def test_windows_that_go_on_for_ever_are_the_pipelines(many_tongues: Path) -> None:
    options = {"language": "fr", "max_new_tokens": 200}
    expected = pipeline_texts(many_tongues, tones(), generate_kwargs=options)
    labels = transcribe(whisper(many_tongues, **options), tones())
    assert max(len(label["text"]) for label in labels) > 100
    assert [label["text"] for label in labels] == [wanted["text"].strip() for wanted in expected]


def test_a_batch_goes_on_without_those_that_have_ended(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    model, rows = whisper(tiny_en), []

    def look(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        rows.append(len(inputs["input_ids"]))

    hook = model.family.model.model.decoder.register_forward_pre_hook(look, with_kwargs=True)
    transcribe(model, [recorded["two_cities"][: seconds * RATE] for seconds in (1, 2, 3, 12)])
    hook.remove()
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 4 and rows[-1] <= 2


def test_guarded_windows_have_the_text_of_full_ones(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    """Three contexts (15, 20 and 25 s, and the whole 30 s of what is longer), mixed and alone."""
    two = recorded["two_cities"]
    sounds = [recorded["clone-test"], *(two[: length_s * RATE] for length_s in (12, 19, 28))]
    clips = [Clip(sound, len(sound) / RATE, speech_probability(sound)) for sound in sounds]
    guarded = labeller(tiny_en, window="guarded")
    contexts = [window.group.context_s for clip in clips for window in guarded.model.windows(clip)]
    assert contexts == [15.0, 20.0, 25.0, 30.0]
    together: list[Any] = guarded.label(clips)
    for found, clip in zip(together, clips, strict=True):
        (alone,) = guarded.label([clip])
        assert isinstance(alone, dict)
        assert alone["text"] == found["text"]
        assert alone["score"] == pytest.approx(found["score"], abs=1e-4)
        assert found["redone"] is False
    full: list[Any] = labeller(tiny_en).label(clips)
    assert [words(row["text"]) for row in together] == [words(row["text"]) for row in full]


def test_a_text_too_long_for_its_sound_is_transcribed_again_whatever_its_neighbours(
    tiny_en: Path, recorded: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio_ops.speech.whisper.generation.TOKENS", 0)
    monkeypatch.setattr("audio_ops.speech.whisper.generation.TOKENS_PER_S", 2.5)
    model = whisper(tiny_en, window="guarded")
    wordy, long = recorded["clone-test"], np.zeros(10 * RATE, np.float32)
    contexts = {model.padded_s(len(sound)) for sound in (wordy, long)}
    (context_s,) = contexts
    group = Group(context_s, previous=())
    (alone,), (beside, other) = model([wordy], group), model([wordy, long], group)
    assert alone.redone and beside.redone and not other.redone
    assert alone.text == beside.text


def test_texts_that_guarded_windows_spoil_are_transcribed_again_in_full(many_tongues: Path) -> None:
    """A random Whisper generates loops alone: all of them have to be transcribed again."""
    clips = [Clip(sound, len(sound) / RATE) for sound in tones()]
    guarded: list[Any] = labeller(many_tongues, window="guarded", language="fr").label(clips)
    full: list[Any] = labeller(many_tongues, language="fr").label(clips)
    assert [row["redone"] for row in guarded] == [True] * len(clips)
    for one, other in zip(guarded, full, strict=True):
        assert one["text"] == other["text"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert "redone" not in other


def test_random_timestamps_lose_no_text_and_stay_inside_the_sound(tmp_path: Path) -> None:
    model = whisper(tiny_whisper(tmp_path / "odd", timestamps=True), timestamps="word")
    for label, sound in zip(transcribe(model, tones()), tones(), strict=True):
        for kind in ("segments", "words"):
            assert "".join(piece["text"] for piece in label[kind]).replace(" ", "").strip(
                "\ufffd"
            ) == label["text"].replace(" ", "").strip("\ufffd")
            for piece in label[kind]:
                assert 0 <= piece["start_s"] <= piece["end_s"] <= len(sound) / RATE


def test_no_word_reaches_into_what_is_transcribed_again(many_tongues: Path) -> None:
    """Its attention may rest on the pause behind it, and on what the next pass transcribes."""
    reader = whisper(many_tongues, timestamps="word").family.reader
    at_0, at_1, later = (reader.settings.first_timestamp + n for n in (0, 50, 80))
    (a, b) = reader.tokenizer.encode("ab", add_special_tokens=False)
    state = WindowState(frames=1000, length_s=10.0)
    tokens = [at_0, a, at_1, at_1, b, later, later, a]  # the rest behind 1.6 s is cut off
    ends_s = [0.0, 0.9, 1.0, 1.2, 7.5, 7.5, 7.5, 9.0]
    reader.extend(state, Generation(tokens, [-0.1] * len(tokens), ends_s))
    words = [(word["start_s"], word["end_s"]) for part in state.segments for word in part.words]
    assert state.offset_s == 1.6 and words == [(0.0, 0.9), (1.2, 1.6)]


def test_the_score_is_the_geometric_mean_probability_of_the_tokens(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    import torch
    from transformers import GenerationConfig

    model, config = whisper(tiny_en), GenerationConfig.from_pretrained(tiny_en)
    family, sound = model.family, recorded["clone-test"]
    (label,) = transcribe(model, [sound])
    features = family.extractor(sound, sampling_rate=RATE, return_tensors="pt").to(
        available_device()
    )
    start = [50257, 50362]
    spoken = [*family.tokenizer.encode(" " + label["text"], add_special_tokens=False), 50256]
    with torch.no_grad():
        logits = family.model(
            **features,
            decoder_input_ids=torch.tensor([start + spoken[:-1]], device=available_device()),
        ).logits[0, 1:]
    logits[:, config.suppress_tokens] = -torch.inf
    logits[0, config.begin_suppress_tokens] = -torch.inf
    chosen = logits.log_softmax(-1)[range(len(spoken)), spoken]
    assert label["score"] == pytest.approx(chosen.mean().exp().item(), abs=1e-3)


@pytest.mark.parametrize("setting", ["suppress_tokens", "begin_suppress_tokens"])
def test_suppressed_tokens_are_not_generated(
    setting: str,
    tiny_en: Path,
    recorded: dict[str, np.ndarray],
    heard: dict[str, dict[str, Any]],
) -> None:
    usual, sound = heard["clone-test"]["text"], recorded["clone-test"]
    first, *_ = whisper(tiny_en).family.tokenizer.encode(" " + usual, add_special_tokens=False)
    kept = {setting: [first, 50256]}
    (label,) = transcribe(whisper(tiny_en, max_new_tokens=20, generate=kept), [sound])
    (said,) = pipeline_texts(tiny_en, [sound], generate_kwargs={"max_new_tokens": 20, **kept})
    assert label["text"] == said["text"].strip() != usual


def test_a_beam_search_of_one_scores_like_greedy_search(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    """Both find the same words, with the same probability."""
    sound = recorded["clone-test"]
    (greedy,) = transcribe(whisper(tiny_en), [sound])
    (beams,) = transcribe(whisper(tiny_en, num_beams=2, generate={"length_penalty": 0.5}), [sound])
    assert greedy["text"] == beams["text"]
    assert beams["score"] == pytest.approx(greedy["score"], abs=0.02)


@pytest.mark.parametrize("timestamps", ["none", "segment"])
def test_a_long_recording_is_joined_without_losing_or_doubling_a_word(
    tiny_en: Path, recorded: dict[str, np.ndarray], timestamps: str
) -> None:
    spoken = words(
        """It was the best of times, it was the worst of times, it was the age of wisdom, it was
        the age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was
        the season of light, it was the season of darkness, it was the spring of hope, it was the
        winter of despair, we had everything before us, we had nothing before us, we were all going
        direct to heaven, we were all going direct the other way. In short, the period was so far
        like the present period that some of its noisiest authorities insisted on its being
        received, for good or for evil, in the superlative degree of comparison only."""
    )
    sound = np.concatenate([recorded["beckett"], recorded["two_cities"]])
    (label,) = transcribe(whisper(tiny_en, timestamps=timestamps), [sound])
    heard = words(label["text"])
    first = heard.index("it")
    assert heard[:4] == ["ever", "tried", "ever", "failed"]
    import jiwer

    measures = jiwer.process_words(" ".join(spoken), " ".join(heard[first:]))
    assert measures.deletions <= 2 and measures.insertions <= 2 and measures.wer < 0.06
    segments = label["segments"]
    assert len(segments) >= (2 if timestamps == "none" else 8)
    assert all(a["end_s"] <= b["start_s"] + 0.001 for a, b in pairwise(segments))
    assert segments[-1]["end_s"] <= len(sound) / RATE + 0.001
    if timestamps == "segment":
        (best,) = [piece for piece in segments if "best of times" in piece["text"]]
        assert best["start_s"] == pytest.approx(len(recorded["beckett"]) / RATE, abs=1.5)
        (short,) = [piece for piece in segments if "In short" in piece["text"]]
        assert 36 < short["start_s"] < 45  # in the second window


def test_a_fine_tuned_checkpoint_keeps_the_language_it_is_fixed_to(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "german", language="german", task="transcribe")
    assert {label["language"] for label in transcribe(whisper(folder), tones())} == {"de"}


def test_a_checkpoint_from_before_languages_runs_with_its_fixed_prompt(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "old", forced_decoder_ids=[[1, 260], [2, 263]])
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    del settings["lang_to_id"], settings["task_to_id"]
    path.write_text(json.dumps(settings))
    expected = pipeline_texts(folder, tones())
    for label, wanted in zip(transcribe(whisper(folder), tones()), expected, strict=True):
        assert label["text"] == wanted["text"].strip()
    with pytest.raises(ValueError, match="language: expected a checkpoint whose generation_config"):
        whisper(folder, language="de")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "xx"}, "language: expected one of ar, de, en, fr, found 'xx'"),
        (
            {"timestamps": "char"},
            "timestamps: expected none or segment or word .*'char', which ctc",
        ),
        ({"max_new_tokens": 448}, "max_new_tokens: expected at most 444"),
        ({"window": "guarded", "num_beams": 2}, "window: expected full beside .* num_beams"),
        ({"window": "guarded", "timestamps": "word"}, "window: expected full beside timestamps"),
        (
            {"num_beams": 2, "generate": {"do_sample": True}},
            "num_beams: expected 1 beside generate.do_sample, .* no probability, found 2",
        ),
        ({"generate": {"num_beam": 2}}, "generate.num_beam: expected one of"),
        ({"generate": {"num_beams": 2}}, "generate.num_beams: expected the task's own option"),
        ({"generate": {"top_k": "many"}}, "generate.top_k: expected int, found 'many'"),
        ({"generate": {"temperature": 0.5}}, "generate.temperature: expected do_sample: true"),
        ({"generate": {"top_p": 0.5}}, "generate.top_p: expected do_sample: true beside it"),
        ({"generate": {"length_penalty": 2.0}}, "generate.length_penalty: expected num_beams over"),
        ({"prompt": " "}, "prompt: expected words, or no such key, found ' '"),
    ],
)
def test_a_contradiction_is_reported_before_anything_starts(
    many_tongues: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(Options(task=TASK, model="m", **options), find_checkpoint(str(many_tongues)))


@pytest.mark.parametrize("options", [{"language": "de"}, {"translate": True}])
def test_an_english_only_whisper_refuses_other_languages(
    tiny_en: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="transcribes only English"):
        check(Options(task=TASK, model="m", **options), find_checkpoint(str(tiny_en)))
    check(Options(task=TASK, model="m", language="en"), find_checkpoint(str(tiny_en)))


def test_timestamps_need_a_generation_config_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper", "vocab_size": 51865}')
    with pytest.raises(ValueError, match=r"timestamps: expected none.* no_timestamps_token_id"):
        check(Options(task=TASK, model="m", timestamps="segment"), find_checkpoint(str(tmp_path)))


def test_a_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match=r"model: expected a speech .*whisper.* found model_type 'bert'"
    ):
        check(Options(task=TASK, model="m"), find_checkpoint(str(tmp_path)))


def test_generate_knows_only_names_that_transformers_knows() -> None:
    from transformers import GenerationConfig

    whispers_own = {"max_initial_timestamp_index"}
    assert set(GENERATE) - whispers_own <= set(vars(GenerationConfig()))


def test_max_new_tokens_ends_the_text(tiny_en: Path, recorded: dict[str, np.ndarray]) -> None:
    (heard,) = whisper(tiny_en, max_new_tokens=4)([recorded["clone-test"]], None)
    assert isinstance(heard, WindowTranscript) and heard.tokens == 4


def test_a_label_has_the_columns_that_are_declared(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    import pyarrow as pa

    for timestamps in ("none", "word"):
        options = Options(task=TASK, model="m", timestamps=timestamps)
        (label,) = transcribe(whisper(tiny_en, timestamps=timestamps), [recorded["clone-test"]])
        assert set(columns(options)) <= set(label)
        for name, kind in columns(options).items():
            assert pa.array([label[name]], kind).null_count == 0


def test_text_invented_for_silence_noise_and_tones_is_suspect_and_real_speech_is_not(
    tiny_en: Path, recorded: dict[str, np.ndarray]
) -> None:
    noise = 0.001 * np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    chord = sum(np.sin(2 * np.pi * f * np.arange(5 * RATE) / RATE) for f in (220, 277.2, 329.6))
    nobody = [np.zeros(5 * RATE, np.float32), noise, (0.1 * chord).astype(np.float32)]
    for label in transcribe(whisper(tiny_en), nobody):
        assert label["suspect"] or not label["text"]
    for label in transcribe(whisper(tiny_en, suspect="drop"), nobody):
        assert label["text"] == "" and all(part["text"] == "" for part in label["segments"])
    for name in ("beckett", "clone-test"):
        (label,) = transcribe(whisper(tiny_en), [recorded[name]])
        assert label["suspect"] == [] and label["speech_ratio"] > 0.3


def test_a_loop_is_suspect_however_long_the_text_around_it() -> None:
    varied = " ".join(
        [
            "It was the epoch of belief, it was the epoch of incredulity. In short, the period was",
            "so far like the present one that some of its noisiest authorities insisted on its",
            "being received, for good or for evil, in the superlative degree of comparison only.",
            "Please enter your conference number, followed by the pound key. Nobody is at the desk;",
            "hold on while I try to locate them, or leave a message after the tone, then hang up.",
        ]
    )
    assert compression_ratio("") == 0
    assert compression_ratio(varied) < 2.4
    assert compression_ratio(varied + " I'm going to go to the next one." * 24) > 2.4


def test_text_behind_the_last_of_several_segments_is_transcribed_again(many_tongues: Path) -> None:
    """Whisper may stop before the sound does; its next timestamps count from where it stopped."""
    family = whisper(many_tongues, timestamps="segment").family
    window = WindowState(frames=500, length_s=5.0, language="en")

    def generate(*parts: float | str) -> None:
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, str):
                tokens += family.tokenizer.encode(part, add_special_tokens=False)
            else:
                tokens.append(family.settings.first_timestamp + round(part / 0.02))
        family.reader.extend(window, Generation(tokens, [-0.1] * (len(tokens) + 1), None))

    generate(0.0, "one", 1.0, 1.0, "two", 2.0, 2.0, "cut o")
    assert window.seek == 200
    assert window.offset_s == 2.0
    generate(0.0, "cut off", 1.5, 1.5, "end", 9.0)
    assert window.seek == 500
    assert [(p.start_s, p.end_s, p.text) for p in window.segments] == [
        (0.0, 1.0, "one"),
        (1.0, 2.0, "two"),
        (2.0, 3.5, "cut off"),
        (3.5, 5.0, "end"),
    ]
    assert family.reader.text(window.tokens) == "onetwocut offend"
