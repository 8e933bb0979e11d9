"""Three models in one run on two CPUs: one decoding, two rates, and a `when`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import soundfile
import torch
from checkpoints import tiny_clap, tiny_whisper
from runs import Job, Result, earmark, labels_of
from sounds import encode, tone

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import available_device
from audio_ops.label import Label
from audio_ops.prepare import prepare
from audio_ops.signal.waveforms import waveforms_of
from jobs.config_file import load_config
from jobs.pipeline import columns_done_with
from jobs.resources import CannotRun, share_out

ASR = "automatic-speech-recognition"
SHORT = "short.wav"  # 0.01 s: too short for wav2vec2, not for CLAP
HERTZ = range(200, 2000, 150)
WORDS = ["rain", "an engine", "somebody who speaks"]


class Three(NamedTuple):
    """One run of three tasks over a manifest."""

    job: Job
    result: Result
    rows: dict[str, dict[str, Any]]
    spoken: str  # the label for which the third task is run


def sound_label(job: Job) -> str:
    """A label that the first model gives to some of the tones and not to others."""
    from transformers import pipeline

    classify = pipeline("audio-classification", model=job.sections["tasks"]["kind"]["model"])
    given = [classify(tone(0.3, hz=hz)[0], top_k=1)[0]["label"] for hz in HERTZ]
    spoken = given[0]
    assert 0 < given.count(spoken) < len(given)
    return str(spoken)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, local_ray: None, classifier: Path) -> Three:
    folder = tmp_path_factory.mktemp("three")
    clap, whisper = tiny_clap(folder / "clap"), tiny_whisper(folder / "whisper")
    job = Job(folder, classifier, input={"path": str(folder / "clips.jsonl")})
    spoken = sound_label(job)
    job.write(
        tasks={
            "kind": {
                "task": "audio-classification",
                "model": str(classifier),
                "dtype": "float32",
                "reference": "kind",
            },
            "scene": {
                "task": "zero-shot-audio-classification",
                "model": str(clap),
                "dtype": "float32",
                "candidate_labels": WORDS,
                "reference": "kind_label",  # what the first task says: how far the two agree
            },
            "words": {
                "task": ASR,
                "model": str(whisper),
                "dtype": "float32",
                "language": "de",
                "reference": "text",
                "when": f"kind_label = '{spoken}' and duration_s < 5",
            },
        },
        resources={"clips_per_block": 8},
        output={"path": str(job.table), "keep": ["speaker"]},
        max_error_fraction=1.0,
    )
    entries = []
    for number, hz in enumerate(HERTZ):
        job.sound(f"{number:02}.wav", hz)
        kind = "no such kind" if number == 1 else ["dog", spoken][number % 2]
        entries.append({"audio_filepath": f"audio/{number:02}.wav", "kind": kind})
    job.sound(SHORT, 300, seconds=0.01)
    (job.audio / "stereo.flac").write_bytes(encode(tone(0.4, 44_100, 2), 44_100, "flac"))
    (job.audio / "text.wav").write_text("no sound at all\n" * 40)
    entries += [{"audio_filepath": f"audio/{n}"} for n in (SHORT, "stereo.flac", "text.wav")]
    with (folder / "clips.jsonl").open("w", encoding="utf-8") as manifest:
        for number, entry in enumerate(entries):
            said = {"text": f"clip number {number}", "speaker": "ab"[number % 2]}
            manifest.write(json.dumps({**entry, **said}) + "\n")
    result = job.run()
    return Three(job, result, job.by_name(), spoken)


def test_three_pools_of_actors_run_to_the_end_on_two_cpus(three: Three) -> None:
    assert three.result.code == 0, three.result.text
    assert len(three.rows) == len(HERTZ) + 3
    assert {row["status"] for row in three.rows.values()} == {"ok", "partial", "error"}


def test_a_task_with_a_condition_is_run_where_it_is_true_alone(three: Three) -> None:
    ran = {name for name, row in three.rows.items() if row["words_text"] is not None}
    assert ran == {n for n, row in three.rows.items() if row["kind_label"] == three.spoken}
    assert 0 < len(ran) < len(HERTZ)
    for name in set(three.rows) - ran:
        row = three.rows[name]
        assert set(labels_of("words", row).values()) == {None}, name
        assert row["words_fingerprint"]  # it is done
    passed = [row for name, row in three.rows.items() if name not in ran and row["kind_label"]]
    assert {row["status"] for row in passed} == {"ok"}


def test_a_task_that_fails_leaves_the_labels_of_the_others(three: Three) -> None:
    short = three.rows[SHORT]
    assert short["kind_error"].startswith("too_short: ") and short["kind_label"] is None
    assert short["scene_label"] in WORDS and short["scene_error"] is None
    assert short["words_text"] is None and short["words_error"] is None  # its `when` is null
    assert (short["status"], short["error_stage"]) == ("partial", "kind")
    unread = three.rows["text.wav"]
    assert (unread["status"], unread["error_stage"]) == ("error", "decode")
    for task in three.job.sections["tasks"]:
        assert set(labels_of(task, unread).values()) == {None}


def test_each_task_says_what_it_says_alone(three: Three) -> None:
    config = load_config(three.job.config)
    names = ["00.wav", "05.wav", "stereo.flac"]
    paths = [str(three.job.audio / name) for name in names]
    for name, rate in (("kind", 16_000), ("scene", 48_000), ("words", 16_000)):
        options = config.tasks[name].model_copy(update={"reference": None, "when": None})
        label = Label(
            name, options, find_checkpoint(options.model), device=available_device(), batch_s=1.0
        )
        rows = label(prepared(paths, [rate])).to_pylist()
        for row, source in zip(rows, names, strict=True):
            among_others = three.rows[source]
            for column in ("label", "labels", "error"):
                assert row.get(f"{name}_{column}") == among_others.get(f"{name}_{column}")
            if name != "words":
                scores = row[f"{name}_scores"]
                assert scores == pytest.approx(among_others[f"{name}_scores"], abs=1e-5)
            elif among_others["words_text"] is not None:
                assert row["words_text"] == among_others["words_text"] != ""


def prepared(paths: list[str], rates: list[int]) -> pa.Table:
    clips = [({"source": path}, io.BytesIO(Path(path).read_bytes())) for path in paths]
    return pa.concat_tables(
        prepare(
            clips,
            schema=pa.schema([("source", pa.string())]),
            rates=rates,
            max_clip_s=60,
            want_speech="always",
        )
    )


def test_a_rows_loss_is_torchs_cross_entropy(three: Three, classifier: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    model = AutoModelForAudioClassification.from_pretrained(classifier).eval()
    extractor = AutoFeatureExtractor.from_pretrained(classifier)
    for number in range(len(HERTZ)):
        row = three.rows[f"{number:02}.wav"]
        if number == 1:
            assert row["kind_loss"] is None and "'no such kind'" in row["kind_reference_error"]
            assert row["status"] == "ok"
            continue
        wave, _ = soundfile.read(three.job.audio / f"{number:02}.wav", dtype="float32")
        with torch.inference_mode():
            logits = model(**extractor(wave, sampling_rate=16_000, return_tensors="pt")).logits
        target = torch.tensor([model.config.label2id[row["kind"]]])
        loss = torch.nn.functional.cross_entropy(logits, target)
        assert row["kind_loss"] == pytest.approx(float(loss), abs=1e-4)
        assert row["kind_correct"] == (row["kind_label"] == row["kind"])


def test_references_are_carried_along_unasked(three: Three) -> None:
    row = three.rows["03.wav"]
    assert (row["text"], row["kind"], row["speaker"]) == ("clip number 3", three.spoken, "b")
    assert all(row["scene_reference_error"] for row in three.rows.values() if row["kind_label"])


def test_the_run_ends_with_the_report_and_stores_it(three: Three) -> None:
    [stored] = (three.job.table / "_runs").iterdir()
    summary = json.loads(stored.read_text(encoding="utf-8"))
    assert {row["run_id"] for row in three.rows.values()} == {summary["run_id"]} == {stored.stem}
    report = summary["references"]
    assert set(report["tasks"]) == {"kind", "scene", "words"}
    words, kind = report["tasks"]["words"], report["tasks"]["kind"]
    compared = [row for row in three.rows.values() if row["words_wer"] is not None]
    assert words["compared"] == len(compared) and words["words"] == 3 * len(compared)
    edits = sum(row["words_edits"]["word_edits"] for row in compared)
    assert words["wer"] == pytest.approx(edits / words["words"])
    losses = [row["kind_loss"] for row in three.rows.values() if row["kind_loss"] is not None]
    assert kind["mean_loss"] == pytest.approx(sum(losses) / len(losses))
    assert kind["not_compared"]["unknown_reference"] == 1
    printed = earmark("evaluate", three.job.table)
    assert printed.returncode == 0 and printed.stdout in three.result.text
    assert f"kind against kind: {kind['compared']} of {len(three.rows)} rows" in printed.stdout


def test_sound_is_dropped_as_soon_as_no_later_task_hears_it() -> None:
    rates = {"kind": 16_000, "scene": 48_000, "words": 16_000}
    assert columns_done_with(rates, "kind", ["scene", "words"]) == []
    assert columns_done_with(rates, "scene", ["words"]) == ["sound_48000"]
    assert columns_done_with(rates, "words", []) == ["sound_16000", "speech"]


def test_what_reads_prepares_each_rate_once(tmp_path: Path, classifier: Path) -> None:
    job = Job(tmp_path, classifier)
    path = job.sound("a.wav", 300, seconds=0.5)
    table = prepared([str(path)], [16_000, 48_000])
    (low,), (high,) = (waveforms_of(table[f"sound_{rate}"]) for rate in (16_000, 48_000))
    assert low is not None and len(low) == 8_000 and high is not None and len(high) == 24_000


@pytest.mark.parametrize(("tasks", "gpus"), [(3, 1), (3, 2), (5, 2), (6, 1), (7, 3), (9, 8)])
def test_actors_that_share_gpus_all_have_room(
    tmp_path: Path, classifier: Path, tasks: int, gpus: int
) -> None:
    """No actor can have some of one GPU and some of another: two thirds each hang on two GPUs."""
    task = {"task": "audio-classification", "model": str(classifier)}
    job = Job(tmp_path, classifier, tasks={f"t{n}": task for n in range(tasks)})
    shares = share_out(load_config(job.config), [{"CPU": 32, "GPU": gpus}]).tasks.values()
    part = next(iter(shares)).num_gpus
    assert {share.num_gpus for share in shares} == {part}
    assert sum(share.actors for share in shares) <= gpus * int(1 / part)


def test_parts_of_gpus_that_do_not_fit_are_refused(tmp_path: Path, classifier: Path) -> None:
    task = {"task": "audio-classification", "model": str(classifier)}
    job = Job(
        tmp_path,
        classifier,
        tasks=dict.fromkeys("abc", task),
        resources={"tasks": {name: {"num_gpus": 0.6} for name in "abc"}},
    )
    with pytest.raises(CannotRun, match="in parts that do not fit on 2"):
        share_out(load_config(job.config), [{"CPU": 32, "GPU": 2}])
    assert share_out(load_config(job.config), [{"CPU": 32, "GPU": 3}])
