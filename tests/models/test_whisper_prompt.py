"""What a Whisper's files say of language and task is followed as transformers' pipeline follows it, and
what makes no sense is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import librosa
import pytest
from checkpoints import LANGUAGES, tiny_whisper
from hearing import RATE, label, sound
from test_whisper import TASK, pipeline_texts, same_pieces

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.tasks.automatic_speech_recognition import Options, check, columns
from jobs.bench.testbed import prompts, whisper_base
from jobs.demo import recordings, whisper_tiny_en

EN, DE, FR, AR = 258, 259, 260, 261
TRANSLATE, TRANSCRIBE, NO_TIMESTAMPS = 262, 263, 267
SIZE = 1769  # of the vocabulary
SOUNDS = [sound(2.5, 400), sound(1.0, 900)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


def edited(original: Path, folder: Path, file: str = "generation_config.json", **keys: Any) -> Path:
    """A copy of the checkpoint with other values for keys of a file; None removes a key."""
    if not folder.exists():
        shutil.copytree(original, folder)
    content = json.loads((folder / file).read_text())
    content |= keys
    kept = {key: value for key, value in content.items() if key not in keys or value is not None}
    (folder / file).write_text(json.dumps(kept))
    return folder


# What generation_config.json says, what config.json says, and the language and task that follow; with
# neither the pipeline leaves out the task's token, which is intended otherwise here.
SAID: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "task": ({"task": "translate"}, {}, None),
    "transcribe": ({"task": "transcribe"}, {}, None),
    "language": ({"language": "german"}, {}, "de"),
    "a code": ({"language": "de"}, {}, "de"),
    "a token": ({"language": "<|de|>"}, {}, "de"),
    "capitals": ({"language": "German"}, {}, "de"),
    "language and task": ({"language": "fr", "task": "translate"}, {}, "fr"),
    "forced": ({"forced_decoder_ids": [[1, DE], [2, TRANSLATE]]}, {}, "de"),
    "forced to transcribe": ({"forced_decoder_ids": [[1, FR], [2, TRANSCRIBE]]}, {}, "fr"),
    "forced whole": ({"forced_decoder_ids": [[1, FR], [2, TRANSCRIBE], [3, 267]]}, {}, "fr"),
    "forced, detected": ({"forced_decoder_ids": [[1, None], [2, TRANSLATE]]}, {}, None),
    "forced language": ({"forced_decoder_ids": [[1, DE]]}, {}, "de"),
    "forced in config.json": ({}, {"forced_decoder_ids": [[1, DE], [2, TRANSLATE]]}, "de"),
    "the generation config's": (
        {"forced_decoder_ids": [[1, None], [2, TRANSLATE]]},
        {"forced_decoder_ids": [[1, EN], [2, TRANSCRIBE], [3, NO_TIMESTAMPS]]},
        None,
    ),
    "task beside forced": (
        {"task": "transcribe", "forced_decoder_ids": [[1, DE], [2, TRANSLATE]]},
        {},
        None,
    ),
    "language beside forced": (
        {"language": "fr", "forced_decoder_ids": [[1, DE], [2, TRANSLATE]]},
        {},
        "fr",
    ),
    "languages, but English-only": ({"is_multilingual": False, "task": "translate"}, {}, None),
    "not said whether": ({"is_multilingual": None, "task": "translate"}, {}, None),
}


@pytest.mark.parametrize("said", SAID)
def test_what_a_checkpoint_says_is_followed_as_the_pipeline_follows_it(
    said: str, original: Path, tmp_path: Path
) -> None:
    generation, config, language = SAID[said]
    folder = edited(original, tmp_path / "whisper", **generation)
    edited(original, folder, "config.json", **config)
    found = label(folder, *SOUNDS)
    expected = pipeline_texts(folder, SOUNDS)
    assert [one["text"] for one in found] == [one["text"].strip() for one in expected]
    if language:
        assert {one["language"] for one in found} == {language}


# On real weights: what a file of the checkpoint says, and `timestamps`.
REAL = [
    ({"task": "translate"}, "generation_config.json", "none"),
    ({"forced_decoder_ids": [[1, 50262], [2, 50358]]}, "config.json", "segment"),
]


@pytest.mark.parametrize(("said", "file", "timestamps"), REAL)
def test_whisper_base_translates_if_its_files_say_so(
    said: dict[str, Any], file: str, timestamps: str, tmp_path: Path
) -> None:
    """ "Llave incorrecta. Por favor, ... su número ..." is a number in English."""
    (path,) = prompts("es").rglob("agent-incorrect.wav")
    spoken = librosa.load(path, sr=RATE)[0]
    folder = edited(whisper_base(), tmp_path / "base", file, **said)
    (found,) = label(folder, spoken, timestamps=timestamps)
    (expected,) = pipeline_texts(folder, [spoken], return_timestamps=timestamps == "segment")
    assert found["language"] == "es"
    assert found["text"] == expected["text"].strip()
    assert "number" in found["text"]


OVERRIDES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "language": ({"language": "de"}, {"language": "fr"}, {"language": "fr"}),
    "language, not the task": (
        {"language": "de", "task": "translate"},
        {"language": "fr"},
        {"language": "fr"},
    ),
    "transcribe": ({"task": "translate"}, {"translate": False}, {"task": "transcribe"}),
    "translate": ({"language": "de"}, {"translate": True}, {"task": "translate"}),
    "language, not the forced": (
        {"forced_decoder_ids": [[1, DE], [2, TRANSLATE]]},
        {"language": "fr"},
        {"language": "fr"},
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_options_come_before_the_checkpoint(name: str, original: Path, tmp_path: Path) -> None:
    said, options, call = OVERRIDES[name]
    folder = edited(original, tmp_path / "whisper", **said)
    expected = pipeline_texts(folder, SOUNDS, generate_kwargs=call)
    found = label(folder, *SOUNDS, **options)
    assert [one["text"] for one in found] == [one["text"].strip() for one in expected]
    assert [one["text"] for one in found] != [one["text"] for one in label(folder, *SOUNDS)]


FORCED = "expected forced_decoder_ids"
BEYOND = (
    f"expected token ids from 0 to {SIZE - 1}, .* found {{}} as generation_config.json: {{}} in"
)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a language without a token": ({"language": "polish"}, "a token in lang_to_id .*'polish' in"),
    "no language at all": ({"language": "elvish"}, "a token in lang_to_id .*'elvish' in"),
    "several languages": ({"language": ["de", "fr"]}, "a token in lang_to_id .*'de', 'fr'"),
    "a language, no map": ({"language": "de", "lang_to_id": None}, "no language.*'de'"),
    "a task of no Whisper": ({"task": "summarise"}, "expected task 'summarise' among"),
    "a task without a token": (
        {"task": "translate", "task_to_id": {"transcribe": TRANSCRIBE}},
        "expected task 'translate' .* found \\['transcribe'\\]",
    ),
    "a task, no map": ({"task": "translate", "task_to_id": None}, "expected task 'translate'"),
    "a gap": ({"forced_decoder_ids": [[1, DE], [3, TRANSCRIBE]]}, f"{FORCED} as pairs"),
    "no first": ({"forced_decoder_ids": [[2, TRANSCRIBE]]}, f"{FORCED} as pairs"),
    "no pairs": ({"forced_decoder_ids": [DE, TRANSCRIBE]}, f"{FORCED} as pairs"),
    "text": ({"forced_decoder_ids": [[1, "<|de|>"]]}, f"{FORCED} as pairs"),
    "of another vocabulary": ({"forced_decoder_ids": [[1, DE], [2, 264]]}, f"{FORCED} .*\\[264\\]"),
    "forced beyond": ({"forced_decoder_ids": [[1, DE], [2, 50359]]}, f"{FORCED} .*\\[50359\\]"),
    "languages beyond": (
        {"lang_to_id": {"<|de|>": 50261}},
        BEYOND.format("50261", "lang_to_id"),
    ),
    "tasks beyond": ({"task_to_id": {"transcribe": SIZE}}, BEYOND.format(SIZE, "task_to_id")),
    "suppressed beyond": ({"suppress_tokens": [1, -1]}, BEYOND.format("-1", "suppress_tokens")),
    "start beyond": (
        {"decoder_start_token_id": 50258},
        BEYOND.format("50258", "decoder_start_token_id"),
    ),
    "end beyond": ({"eos_token_id": [256, 50257]}, BEYOND.format("50257", "eos_token_id")),
    "no timestamps beyond": (
        {"no_timestamps_token_id": 50363},
        BEYOND.format("50363", "no_timestamps_token_id"),
    ),
    "languages in a list": (
        {"lang_to_id": ["<|de|>"]},
        "lang_to_id as an object of names and ids, found \\['<|de|>'\\]",
    ),
    "another Whisper's languages": (
        {"lang_to_id": {"<|de|>": FR, "<|en|>": EN}},
        f"expected id {DE} for <.de.>, as in the tokenizer, found {FR} as generation_config.json: lang_to_id",
    ),
    "another Whisper's tasks": (
        {"task_to_id": {"transcribe": TRANSLATE, "translate": TRANSLATE - 1}},
        f"expected id {TRANSCRIBE} for <.transcribe.>, .* found {TRANSLATE} as .*task_to_id",
    ),
    "another Whisper's no timestamps": (
        {"no_timestamps_token_id": NO_TIMESTAMPS - 1},
        f"expected id {NO_TIMESTAMPS} for <.notimestamps.>, .*found {NO_TIMESTAMPS - 1}",
    ),
    "several texts": ({"num_return_sequences": 2}, "no num_return_sequences in .*found 2: remove"),
    "words that stop": ({"stop_strings": ["q"]}, "no stop_strings in .*found \\['q'\\]"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "no penalty_alpha in .*found 0.6"),
    "English-only, another language": (
        {"is_multilingual": False, "lang_to_id": None, "language": "de"},
        "expected no language but 'en' .*'de'",
    ),
    "English-only, translating": (
        {"is_multilingual": False, "lang_to_id": None, "task": "translate"},
        "expected no task but 'transcribe' .*'translate'",
    ),
}


@pytest.mark.parametrize("asked", [True, "word"])
def test_timestamps_of_the_checkpoint_are_followed_if_the_options_leave_them_out(
    asked: Any, tmp_path: Path
) -> None:
    folder = edited(whisper_tiny_en(), tmp_path / "tiny", return_timestamps=asked)
    spoken = librosa.load(recordings() / "beckett.wav", sr=RATE)[0]
    (expected,) = pipeline_texts(folder, [spoken])
    (found,) = label(folder, spoken)
    assert found["text"] == expected["text"].strip()
    assert len(found["segments"]) > 1 and "words" not in columns(Options(task=TASK, model="m"))
    (without,) = label(folder, spoken, timestamps="none")
    assert len(without["segments"]) == 1


OF_CHECKPOINT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "guarded": ({}, {"window": "guarded"}, "window: .* return_timestamps in .* overrides it"),
    "without a token": (
        {"no_timestamps_token_id": None},
        {},
        "timestamps: expected none, .* has no no_timestamps_token_id, found return_timestamps in",
    ),
}


@pytest.mark.parametrize("name", OF_CHECKPOINT)
def test_timestamps_of_the_checkpoint_have_to_fit_the_options(
    name: str, original: Path, tmp_path: Path
) -> None:
    said, options, message = OF_CHECKPOINT[name]
    folder = edited(original, tmp_path / "whisper", return_timestamps=True, **said)
    chosen = Options(task=TASK, model=str(folder), **options)
    with pytest.raises(ValueError, match=message):
        check(chosen, find_checkpoint(str(folder)))
    check(Options(**{**chosen.model_dump(), "timestamps": "none"}), find_checkpoint(str(folder)))


@pytest.mark.parametrize(
    "said",
    [
        {"do_sample": True, "temperature": 2.0},
        {"num_beams": 5, "length_penalty": 2.0},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"repetition_penalty": 5.0},
        {"max_new_tokens": 5},
    ],
    ids=lambda said: next(iter(said)),
)
def test_how_a_checkpoint_searches_is_followed_as_the_pipeline_follows_it(
    said: dict[str, Any], original: Path, tmp_path: Path
) -> None:
    folder = edited(original, tmp_path / "whisper", task="transcribe", **said)
    expected = pipeline_texts(folder, SOUNDS)
    assert [one["text"] for one in label(folder, *SOUNDS)] == [
        one["text"].strip() for one in expected
    ]


def refused(folder: Path, message: str, **options: Any) -> None:
    chosen = Options(task=TASK, model=str(folder), **options)
    with pytest.raises(ValueError, match=f"^(model|timestamps|generate).*{message}") as error:
        check(chosen, find_checkpoint(str(folder)))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    name: str, original: Path, tmp_path: Path
) -> None:
    said, message = REFUSED[name]
    refused(edited(original, tmp_path / "whisper", **said), message)


@pytest.mark.parametrize("heads", [[[0, 0], [2, 0]], [[0, 2]], [[-1, 0]], [[0]], []])
def test_alignment_heads_are_those_of_the_decoder(
    heads: Any, original: Path, tmp_path: Path
) -> None:
    folder = edited(original, tmp_path / "whisper", alignment_heads=heads)
    message = "alignment_heads .* a layer under 2 and a head under 2"
    refused(folder, message, timestamps="word")
    check(Options(task=TASK, model=str(folder)), find_checkpoint(str(folder)))


def test_an_english_only_whisper_may_say_so(tmp_path: Path) -> None:
    said = {"language": "en", "task": "transcribe", "forced_decoder_ids": [[1, NO_TIMESTAMPS]]}
    folder = tiny_whisper(tmp_path / "english", multilingual=False)
    plain = label(folder, *SOUNDS)
    again = label(edited(folder, tmp_path / "said", **said), *SOUNDS)
    assert [one["text"] for one in plain] == [one["text"] for one in again]
    assert {one["language"] for one in again} == {"en"}


def test_the_reference_of_a_translating_checkpoint_is_english(
    original: Path, tmp_path: Path
) -> None:
    """English is normalised by English rules, whatever was spoken."""
    from audio_ops.inference.runner import available_device
    from audio_ops.tasks import Clip
    from audio_ops.tasks.automatic_speech_recognition import Model

    for task, is_same in (("translate", True), ("transcribe", False)):
        folder = edited(original, tmp_path / task, language="de", task=task)
        options = Options(task=TASK, model=str(folder), reference="said", dtype="float32")
        model = Model(options, find_checkpoint(str(folder)), available_device())
        clip = Clip(SOUNDS[0], len(SOUNDS[0]) / RATE, row={"said": "I am"})
        assert (model._errors(clip, "I'm", "de")["wer"] == 0) is is_same


def test_languages_of_the_tests_are_those_of_the_checkpoint(original: Path) -> None:
    generation = json.loads((original / "generation_config.json").read_text())
    ids = [generation["lang_to_id"][f"<|{code}|>"] for code in LANGUAGES]
    assert ids == [EN, DE, FR, AR]
    assert generation["task_to_id"] == {"translate": TRANSLATE, "transcribe": TRANSCRIBE}
    assert generation["no_timestamps_token_id"] == NO_TIMESTAMPS
    assert json.loads((original / "config.json").read_text())["vocab_size"] == SIZE


def test_a_prompt_precedes_each_window_as_in_the_pipeline(original: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(original)
    settings: dict[str, Any] = {"language": "de", "max_new_tokens": 12}
    plain = label(original, *SOUNDS, **settings)
    said = []
    for prompt in ("Ray, Anyscale", "KubeRay"):
        ids = torch.tensor(tokenizer.get_prompt_ids(prompt))
        generate = {"prompt_ids": ids, "task": "transcribe", **settings}
        answers = pipeline_texts(original, SOUNDS, generate_kwargs=generate)
        expected = [answer["text"].strip() for answer in answers]
        found = label(original, *SOUNDS, prompt=prompt, **settings)
        assert [columns["text"] for columns in found] == expected
        said.append(expected)
    assert said[0] != said[1] != [columns["text"] for columns in plain]


def test_words_behind_a_prompt_are_timed_as_in_the_pipeline(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    folder = tiny_whisper(tmp_path, timestamps=True)
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder).get_prompt_ids("KubeRay"))
    settings: dict[str, Any] = {"language": "de", "max_new_tokens": 12}
    generate = {"prompt_ids": ids, "task": "transcribe", **settings}
    [expected] = pipeline_texts(
        folder, SOUNDS[:1], generate_kwargs=generate, return_timestamps="word"
    )
    (found,) = label(folder, SOUNDS[0], prompt="KubeRay", timestamps="word", **settings)
    assert len(found["words"]) > 3
    # Random bytes that are no characters are cut into other words.
    same_pieces(found["words"][:3], expected["chunks"][:3], 2.5)


def test_of_a_long_prompt_the_end_counts(original: Path) -> None:
    names = "Anyscale, KubeRay, Daft, "
    (found,) = label(original, SOUNDS[0], language="de", prompt=20 * names)
    (less,) = label(original, SOUNDS[0], language="de", prompt=30 * names)
    assert found["text"] == less["text"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"prompt": "<|de|> Ray"},
            "prompt: expected words without Whisper's special tokens, found",
        ),
        (
            {"prompt": "Ray", "max_new_tokens": 300},
            "max_new_tokens: expected at most 221, all that",
        ),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(
    original: Path, options: dict[str, Any], expected: str
) -> None:
    chosen = Options(task=TASK, model=str(original), **options)
    with pytest.raises(ValueError, match=expected):
        check(chosen, find_checkpoint(str(original)))


@pytest.mark.parametrize(
    "options", [{}, {"timestamps": "segment"}, {"retry_temperatures": [0.4], "min_score": 0.9}]
)
def test_a_column_of_the_source_holds_each_clips_prompt(
    options: dict[str, Any], tmp_path: Path
) -> None:
    from hearing import labeller

    from audio_ops.tasks import Clip

    folder = tiny_whisper(tmp_path, timestamps=True)
    settings: dict[str, Any] = {"language": "de", "max_new_tokens": 12, **options}
    prompts = ["Ray", None, "Anyscale and others", " ", "", "<|de|> Ray"]
    clips = [
        Clip(wave, len(wave) / RATE, row={"names": prompt})
        for wave, prompt in zip(3 * SOUNDS, prompts, strict=True)
    ]
    found: list[Any] = labeller(folder, prompt_column="names", **settings).label(clips)
    for clip, prompt, ours in zip(clips[:5], prompts, found, strict=False):
        (alone,) = label(folder, clip.waveform, prompt=(prompt or "").strip() or None, **settings)
        assert ours["text"] == alone["text"]
        assert ours["score"] == pytest.approx(alone["score"], abs=1e-5)
    assert found[0]["text"] != label(folder, SOUNDS[0], **settings)[0]["text"]
    assert "disallowed special token" in str(found[5])


def test_a_prompt_beside_a_column_of_prompts_is_refused(original: Path) -> None:
    chosen = Options(task=TASK, model=str(original), prompt="Ray", prompt_column="names")
    with pytest.raises(ValueError, match="prompt_column: expected none beside prompt, found"):
        check(chosen, find_checkpoint(str(original)))
