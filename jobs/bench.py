"""`make bench`: Earmark beside its peers on the same clips, in the same run, by turns.

    python -m jobs.bench [ROW ...] [--data FOLDER] [--hours H] [--clips N] [--rounds 3]
                         [--ways TEXT ...] [--markdown FILE]

Every way of doing the work is a process of its own, of which wall time, the CPU time of all that it
started and the memory of all of them at once are measured from outside; it says itself when its
models were ready. Figures are medians over the rounds. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs import peers, testbed
from jobs.child import Child
from jobs.demo import whisper_tiny_en
from jobs.summary import package_version
from jobs.testbed import Sample

ROOT = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY_S = 0.5  # at 25 processes a look takes 8 ms, of which those who are measured have less
PACKAGES = ("torch", "transformers", "ray", "daft", "faster-whisper")


@dataclass(frozen=True)
class Took:
    """What one process and all that it started took."""

    began: float  # time.time
    wall_s: float
    cpu_s: float
    peak_bytes: int  # of all together with Ray's object store, without the files that they map
    own_peak_bytes: int  # of the first alone, with what it shares and maps


@dataclass(frozen=True)
class Outcome:
    """One way's run over `audio_s` seconds of sound. What does not apply or is not known is None."""

    audio_s: float
    took: Took
    ready_s: float | None = None  # until the models were loaded
    steady: float | None = None  # seconds of sound per second from then on
    first_row_s: float | None = None
    padding: float | None = None
    labels: Mapping[str, Any] | None = None

    @property
    def speed(self) -> float:
        return self.audio_s / self.took.wall_s


Way = Callable[[Path], Outcome]


def measured(command: Sequence[str], **options: Any) -> Took:
    """Run a command to its end, and until all that it started has ended. Raises RuntimeError with
    the last of what it said if it fails.

    Processes are looked at again and again, for Ray has its workers' CPU time forgotten when they
    end: of each process up to `LOOK_EVERY_S` is missed.
    """
    import psutil

    # What loses its parent becomes our child: nothing escapes the count.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    me, cpu_s = psutil.Process(), {}
    began, started, wall_s, code = time.time(), time.monotonic(), 0.0, None
    peak, own_peak = 0, 0
    stored = _object_store_bytes()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        first = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            **options,
        )
        look_at = started
        while True:
            own_peak = max(own_peak, _bytes(first.pid, "VmHWM"))  # of one alone that costs little
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    if ended[0] == first.pid:
                        wall_s = time.monotonic() - started
                        code = first.returncode = os.waitstatus_to_exitcode(ended[1])
            if time.monotonic() >= look_at:
                alive = me.children(recursive=True)
                for process in alive:
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        cpu_s[process] = times.user + times.system
                own = sum(_bytes(process.pid, "RssAnon") for process in alive)
                peak = max(peak, own + _object_store_bytes() - stored)
                if not alive and code is not None:
                    break
                look_at = time.monotonic() + LOOK_EVERY_S
            time.sleep(LOOK_EVERY_S / 10)
        if code:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{said.read()[-4000:]}")
    return Took(began, wall_s, sum(cpu_s.values()), peak, own_peak)


def _bytes(pid: int, what: str) -> int:
    """What the kernel says of a process's memory (`man proc_pid_status`); 0 if it has ended.

    Counters, unlike its PSS: to weigh that the kernel walks through all pages, and they wait.
    """
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(status.partition(f"{what}:")[2].split()[0]) if what in status else 0
    return 0


def _object_store_bytes() -> int:
    """What of the memory is in shared files: Ray's store, which belongs to no process alone."""
    return shutil.disk_usage("/dev/shm").used


def peer(name: str, sample: Sample, model: Path, task: str) -> Way:
    """One of `jobs.peers`, on the sample's files under names of their own."""

    def way(folder: Path) -> Outcome:
        names = testbed.copied(sample.files, folder / "audio")
        labels = list(testbed.CANDIDATE_LABELS) if task.startswith("zero-shot") else []
        work = {"files": list(names), "model": str(model), "task": task, "out": str(folder / "out")}
        (folder / "work.json").write_text(json.dumps(work | {"candidate_labels": labels}))
        took = measured(
            [sys.executable, "-m", "jobs.peers", name, str(folder / "work.json")],
            env=_environment(),
        )
        done = json.loads((folder / "work.done").read_text())
        rows = sorted(path.stat().st_mtime for path in (folder / "out").rglob("*.parquet"))
        ready_s = done["ready"] - took.began
        return Outcome(
            sample.audio_s,
            took,
            ready_s,
            sample.audio_s / (took.wall_s - ready_s),
            first_row_s=rows[0] - took.began if rows else None,
            padding=1 - sample.audio_s / done["padded_s"] if done["padded_s"] else None,
            labels={names[name]: said for name, said in done["labels"].items()},
        )

    return way


def earmark(sample: Sample, kind: str = "files", **task: Any) -> Way:
    """`earmark run` with one task, on the sample as files, tars or Parquet."""

    def way(folder: Path) -> Outcome:
        audio = {"path": str(folder / "audio"), "format": kind}
        if kind != "files":
            testbed.packed(sample.files, folder / "audio", kind)
            return job(folder, audio, task)
        names = testbed.copied(sample.files, folder / "audio")
        outcome = job(folder, audio, task)
        rows = pq.read_table(folder / "table").to_pylist()
        return replace(outcome, labels={names[row["source"]]: row for row in rows})

    return way


def job(folder: Path, audio: Mapping[str, Any], task: Mapping[str, Any]) -> Outcome:
    """Label `audio` into `folder/table` with one task `it`."""
    config = {
        "input": dict(audio),
        "tasks": {"it": dict(task)},
        "output": {"path": str(folder / "table")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    summary = folder / "summary.json"
    command = ["-m", "jobs.label", str(folder / "job.yaml"), "--summary", str(summary)]
    took = measured([sys.executable, *command], env=_environment())
    found = json.loads(summary.read_text())
    model = (found["models"] or {}).get("it", {})
    commits = sorted((folder / "table" / "_delta_log").glob("*.json"))
    labelled = next((path for path in commits if '"add"' in path.read_text()), None)
    return Outcome(
        found["audio_hours"] * 3600,
        took,
        model.get("ready_after_s"),
        model.get("times_real_time"),
        first_row_s=labelled.stat().st_mtime - took.began if labelled else None,
        padding=model.get("padding"),
    )


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def by_turns(
    title: str, ways: Mapping[str, Way], rounds: int, references: Mapping[str, str] | None = None
) -> dict[str, Outcome]:
    """Each way's medians over the rounds, in which they take turns; shown as a table."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                outcomes[name].append(way(Path(folder)))
            last = outcomes[name][-1]
            say(f"  {title}, round {number + 1}: {name}: {last.took.wall_s:.1f} s")
    medians = {name: _median(several) for name, several in outcomes.items()}
    header = [
        "way",
        "× real time",
        "steady",
        "ready s",
        "first row s",
        "CPU-s per h",
        "GiB",
        "padding",
    ]
    rows = [
        [
            name,
            f"{one.speed:.1f}",
            _shown(one.steady, ".1f"),
            _shown(one.ready_s, ".1f"),
            _shown(one.first_row_s, ".1f"),
            f"{one.took.cpu_s / one.audio_s * 3600:.0f}",
            f"{one.took.peak_bytes / 2**30:.2f}",
            _shown(one.padding, ".0%"),
        ]
        for name, one in medians.items()
    ]
    if references:
        header.append("WER")
        for row, one in zip(rows, medians.values(), strict=True):
            row.append(_shown(word_error_rate(one.labels or {}, references), ".1%"))
    audio_s = next(iter(medians.values())).audio_s
    show(f"{title}: {audio_s:.0f} s of sound, rounds: {rounds}", header, rows)
    return medians


def _median(outcomes: Sequence[Outcome]) -> Outcome:
    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    took = Took(
        **{  # type: ignore[arg-type]
            name: middle(getattr(one.took, name) for one in outcomes)
            for name in ("began", "wall_s", "cpu_s", "peak_bytes", "own_peak_bytes")
        }
    )
    names = ("ready_s", "steady", "first_row_s", "padding")
    middles: dict[str, Any] = {
        name: middle(getattr(one, name) for one in outcomes) for name in names
    }
    return replace(outcomes[0], took=took, **middles)


TABLES: list[tuple[str, list[str], list[list[str]]]] = []
TARGETS: list[list[str]] = []


def target(
    what: str, measured: float | None, wanted: float, at_most: bool = False, unit: str = "×"
) -> None:
    """A line of the table of targets."""
    if measured is not None:
        met = measured <= wanted if at_most else measured >= wanted
        sign = "≤" if at_most else "≥"
        TARGETS.append(
            [what, f"{measured:.2f} {unit}", f"{sign} {wanted:g} {unit}", "yes" if met else "no"]
        )


def word_error_rate(labels: Mapping[str, Any], references: Mapping[str, str]) -> float | None:
    """Over all clips that have a reference. What labels a clip is a text, or has one in it."""
    from audio_ops.speech.wer import WordErrors

    compare = WordErrors({})
    edits = words = 0
    for name, said in labels.items():
        reference = references.get(name)
        if reference is not None:
            if isinstance(said, dict):
                said = said.get("it_text", said.get("text"))
            counts = compare(reference, said or "", "en")["edits"]
            edits, words = edits + counts["word_edits"], words + counts["words"]
    return edits / words if words else None


OURS, GUARDED, PLAIN = "Earmark", "Earmark, window: guarded", "plain Ray Data"


def whisper(options: argparse.Namespace) -> None:
    """Whisper tiny.en, real weights and real speech: what the model alone can do, and its peers."""
    sample = testbed.sample(options.data, options.hours)
    sample = sample if options.clips == 0 else sample.every(options.clips)
    ways = _ways(sample)
    if options.ways:
        names = [name for name in ways if any(part in name for part in options.ways)]
        if not names:
            raise RuntimeError(f"--ways: expected parts of {', '.join(ways)}, found {options.ways}")
        ways = {name: ways[name] for name in names}
    of = by_turns("Whisper tiny.en", ways, options.rounds, sample.references)
    steady = {name: one.steady for name, one in of.items()}
    full, short = (
        word_error_rate(of[name].labels or {}, sample.references) if name in of else None
        for name in (OURS, GUARDED)
    )
    fastest = max((n for n in of if "int8" in n), key=lambda name: steady[name] or 0, default="")
    target("steady state, full windows / bare loop", _ratio(steady, OURS, "bare loop"), 0.95)
    target("steady state, guarded / bare loop", _ratio(steady, GUARDED, "bare loop"), 1.8)
    what = "steady state, guarded / faster-whisper int8, its better way"
    target(what, _ratio(steady, GUARDED, fastest), 4.0)
    if full is not None and short is not None:
        target("WER, guarded - full", 100 * (short - full), 0.5, at_most=True, unit="points")
    first_rows = {name: one.first_row_s for name, one in of.items()}
    what = f"first row after the command / {PLAIN}"
    target(what, _ratio(first_rows, OURS, PLAIN), 1.0, at_most=True)


def whole(options: argparse.Namespace) -> None:
    """The whole job on all of the sound, beside those that write a table too.

    A round of it is long, and start-up, which varies, the smaller part: a third of the rounds.
    """
    sample = testbed.sample(options.data, options.hours)
    ways = {
        name: way for name, way in _ways(sample).items() if name in (OURS, GUARDED, PLAIN, "Daft")
    }
    rounds = max(1, options.rounds // 3)
    of = by_turns("The whole job, Whisper tiny.en", ways, rounds, sample.references)
    speeds = {name: one.speed for name, one in of.items()}
    for name, wanted in ((PLAIN, 2.5), ("Daft", 1.8)):
        target(f"whole job, guarded / {name}", _ratio(speeds, GUARDED, name), wanted)
        target(f"whole job, full / {name}", _ratio(speeds, OURS, name), 1.0)


def _ways(sample: Sample) -> dict[str, Way]:
    """All that recognise speech with tiny.en."""
    model, task = whisper_tiny_en(), "automatic-speech-recognition"
    recognise = {"task": task, "model": str(model)}
    few = sample.every(max(4, len(sample.files) // 8))  # beam search, one by one: slow
    return {
        OURS: earmark(sample, **recognise),
        GUARDED: earmark(sample, **recognise, window="guarded"),
        PLAIN: peer("ray_data", sample, model, task),
        "Daft": peer("daft", sample, model, task),
        "bare loop": peer("bare_loop", sample, model, task),
        "transformers pipeline, as it comes": peer("pipeline_as_it_comes", few, model, task),
        "transformers pipeline, greedy, batched": peer("pipeline_batched", sample, model, task),
        "faster-whisper int8, one by one": peer("faster_whisper", sample, model, task),
        "faster-whisper int8, batched": peer("faster_whisper_batched", sample, model, task),
    }


def _ratio(figures: Mapping[str, float | None], one: str, other: str) -> float | None:
    """None if either is not known."""
    above, below = figures.get(one), figures.get(other)
    return above / below if above and below else None


def packaging(options: argparse.Namespace) -> None:
    """The same sound as files, tars and Parquet, with a model that costs nothing."""
    sample = testbed.sample(options.data, options.hours)
    task = {"task": "audio-classification", "model": str(testbed.checkpoint("nothing"))}
    ways = {
        f"Earmark, {kind}": earmark(sample, kind, **task)
        for kind in ("files", "webdataset", "parquet")
    }
    by_turns("Packagings, a model that costs nothing", ways, 1)


def classify(options: argparse.Namespace) -> None:
    """wav2vec2-base, AST and CLAP at their published sizes, random weights."""
    whole = testbed.sample(options.data, options.hours)
    many = 3 * options.clips or len(whole.files)  # beside 32 of them other processes still start
    rows = (
        ("wav2vec2-base", "audio-classification", many, (2.5, 1.3)),
        ("ast", "audio-classification", 4, (None, None)),
        ("clap", "zero-shot-audio-classification", 32, (3.0, None)),
    )
    for name, task, clips, wanted in rows:
        sample, model = whole.every(clips), testbed.checkpoint(name)
        asked: dict[str, Any] = {"task": task, "model": str(model), "top_k": None}
        if task.startswith("zero-shot"):
            asked["candidate_labels"] = list(testbed.CANDIDATE_LABELS)
        else:
            asked["function_to_apply"] = "none"  # logits, of both
        ways = {
            "Earmark": earmark(sample, **asked),
            "transformers pipeline, as it comes": peer("pipeline_as_it_comes", sample, model, task),
            "transformers pipeline, batched": peer("pipeline_batched", sample, model, task),
        }
        of = by_turns(name, ways, options.rounds)
        ours, *peers = of
        steady = {way: one.steady for way, one in of.items()}
        for way, least in zip(peers, wanted, strict=True):
            target(f"{name}, steady state / {way}", _ratio(steady, ours, way), least or 1.0)
        say(f"  {name}: {_agreement(of[ours], of[peers[0]], task)}\n")


def _agreement(ours: Outcome, theirs: Outcome, task: str) -> str:
    """How often both have one top label, and the largest difference of a score."""
    tops, largest = [], 0.0
    rows = ours.labels or {}
    for name, scores in (theirs.labels or {}).items():
        mine = dict(zip(rows[name]["it_labels"], rows[name]["it_scores"], strict=True))
        tops.append(max(mine, key=mine.__getitem__) == scores[0]["label"])
        largest = max(largest, *(abs(mine[one["label"]] - one["score"]) for one in scores))
    kind = "probability" if task.startswith("zero-shot") else "logit"
    return f"same top label {np.mean(tops):.0%}, largest difference of a {kind} {largest:.1e}"


def decode(options: argparse.Namespace) -> None:
    """Decoding and resampling to 16 kHz alone, on one core, by format and rate."""
    import soundfile
    import soxr

    sample = testbed.sample(options.data, options.hours).every(96)
    speech = np.concatenate(
        [soundfile.read(file, dtype="float32", always_2d=True)[0].mean(1) for file in sample.files]
    )
    rate_of_speech = soundfile.info(sample.files[0]).samplerate

    def encoded(rate: int, container: str, codec: str | None) -> list[bytes]:
        sound = soxr.resample(speech, rate_of_speech, rate)
        clips = []
        for at in range(0, len(sound), 10 * rate):
            file = io.BytesIO()
            soundfile.write(file, sound[at : at + 10 * rate], rate, codec, format=container)
            clips.append(file.getvalue())
        return clips

    header = ["format", *peers.DECODERS, "Earmark / the better one"]
    rows = []
    for container, codec, rates in (
        ("WAV", "PCM_16", (8_000, 16_000, 44_100, 48_000)),
        ("FLAC", "PCM_16", (16_000, 48_000)),
        ("MP3", None, (48_000,)),
        ("OGG", "VORBIS", (48_000,)),
        ("OGG", "OPUS", (48_000,)),
    ):
        for rate in rates:
            clips = encoded(rate, container, codec)
            audio_s = len(speech) / rate_of_speech
            work = {"clips": clips, "rounds": 3 * options.rounds}
            process = Child()
            try:
                (took,) = process.tables(peers.decode_in_turns, work, 600.0, 8 << 30)
            finally:
                process.end()  # `measured` waits for all that live
            speeds = {name: audio_s / took[name][0].as_py() for name in peers.DECODERS}
            ratio = speeds["Earmark"] / max(speeds["soundfile + soxr"], speeds["PyAV"])
            what = (
                f"{container if codec in (None, 'PCM_16') else codec.title()} {rate / 1000:g} kHz"
            )
            rows.append([what, *(f"{speed:.0f}" for speed in speeds.values()), f"{ratio:.2f}"])
            if rate == 48_000 and container != "OGG":
                target(f"{what} → 16 kHz / the better decoder", ratio, 0.9)
    show("Decoding to 16 kHz mono, × real time of one core (CPU time)", header, rows)


def planning(options: argparse.Namespace) -> None:
    """A run that has nothing to do, and a plan of a million clips."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = committed(folder, 100_000)
        took = job(folder, audio, _nothing()).took
        rows.append(_cost("nothing new to do, 100,000 committed clips", took))
        target("nothing new to do, 100,000 clips", took.wall_s, 5.0, at_most=True, unit="s")
    took = measured(
        [sys.executable, "-c", "from jobs.bench import plan_a_million; plan_a_million()"]
    )
    rows.append(_cost("plan: 1,000,000 found, 1,000,000 committed", took))
    target("plan of 1,000,000 clips", took.wall_s, 30.0, at_most=True, unit="s")
    target(
        "plan of 1,000,000 clips, memory", took.peak_bytes / 2**30, 1.0, at_most=True, unit="GiB"
    )
    show("Planning", ["what", *COST], rows)


def mountain(options: argparse.Namespace) -> None:
    """The whole job with a model that costs nothing: many one-second clips in tars."""
    rows, peaks = [], []
    for count in (20_000, 200_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tars = testbed.second_clips(folder / "tars", count)
            outcome = job(folder, {"path": str(tars)}, _nothing())
            took = outcome.took
            peaks.append(took.own_peak_bytes)
            clips_per_s = count / took.wall_s
            rows.append(
                [
                    *_cost(f"{count:,} clips of 1 s in tars", took),
                    f"{clips_per_s:.0f}",
                    _shown(outcome.steady, ".0f"),
                    f"{took.own_peak_bytes / 2**20:.0f}",
                ]
            )
    target("200,000 one-second clips", clips_per_s, 1500, unit="clips/s")
    target(
        "driver's growth from 20,000 to 200,000 clips",
        (peaks[1] - peaks[0]) / 2**20,
        50,
        at_most=True,
        unit="MiB",
    )
    header = ["what", *COST, "clips/s", "steady clips/s", "driver MiB"]
    show("The whole job, a model that costs nothing", header, rows)


def memory(options: argparse.Namespace) -> None:
    """All processes together, with ten and forty times as many clips, and with a recording of four
    hours. (500 clips are a little more than may be in flight at once.)"""
    rows, peaks = [], []
    for count, hours in ((500, 0), (5_000, 0), (20_000, 0), (500, 4)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = [str(testbed.one_sound(folder / "short", count, 10))]
            if hours:
                paths.append(str(testbed.one_sound(folder / "long", 1, hours * 3600)))
            took = job(folder, {"path": paths, "format": "files"}, _nothing()).took
            peaks.append(took.peak_bytes)
            more = f" and one of {hours} h" if hours else ""
            rows.append(_cost(f"{count:,} clips of 10 s{more}", took))
    target("memory, 5,000 clips / 500", peaks[1] / peaks[0], 1.1, at_most=True)
    target("memory, 20,000 clips / 5,000", peaks[2] / peaks[1], 1.1, at_most=True)
    target("memory, a recording of 4 h more", peaks[3] / peaks[0], 1.5, at_most=True)
    show("Memory of all processes, a model that costs nothing", ["what", *COST], rows)


def _nothing() -> dict[str, Any]:
    return {"task": "audio-classification", "model": str(testbed.checkpoint("nothing"))}


COST = ["wall s", "CPU-s", "GiB"]


def _cost(what: str, took: Took) -> list[str]:
    return [what, f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}", f"{took.peak_bytes / 2**30:.2f}"]


def committed(folder: Path, count: int) -> dict[str, Any]:
    """Make `count` files and a table in which all of them are labelled; returns the input."""
    from jobs.config import find_models, load_config
    from jobs.plan import COMMITTED, fingerprint, plan, settings
    from jobs.sources import load_source
    from jobs.table.schema import RUN, SHARD_END, label_columns, table_schema
    from jobs.table.storage import Storage
    from jobs.table.table import hold
    from jobs.table.write import write_rows

    (folder / "audio").mkdir()
    for number in range(count):
        (folder / "audio" / f"{number:06}.wav").touch()
    audio = {"path": str(folder / "audio"), "format": "files"}
    output = {"path": str(folder / "table")}
    file = folder / "committed.yaml"
    file.write_text(yaml.safe_dump({"input": audio, "tasks": {"it": _nothing()}, "output": output}))
    config = load_config(str(file), ())
    labels = settings(config, find_models(config, str(file)))
    schema = table_schema(config.tasks, pa.schema([]))
    found = load_source("files").find(config.input, lambda _: None, pa.schema([]))
    todo = plan(found, COMMITTED.empty_table(), fingerprint(labels), retry_errors=False).todo
    for field in (*schema, pa.field("shard_end", SHARD_END)):
        if field.name not in (*todo.column_names, "status", *RUN.names):
            todo = todo.append_column(field, pa.nulls(len(todo), field.type))
    table = hold(Storage(config.output.path), "made", schema, labels, {})
    for at in range(0, count, 25_000):
        written = write_rows(
            todo.slice(at, 25_000),
            schema=schema,
            tasks=label_columns(schema, ["it"]),
            path=table.path,
            storage_options={},
            run_id="made",
            fingerprint=fingerprint(labels),
        )
        table.commit(written.to_pylist())
    table.tidy()
    table.release()
    return audio


def plan_a_million() -> None:
    """Found minus committed, where all is committed."""
    from jobs.plan import clip_ids, plan
    from jobs.sources import PLACE, Listing

    count = 1_000_000
    columns = {
        "source": [f"s3://bucket/speech/{n % 1000:03}/{n:09}.wav" for n in range(count)],
        "source_version": [f"{n}-1700000000" for n in range(count)],
        "offset_s": np.zeros(count),
    }
    found = pa.table(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in PLACE], schema=PLACE
    )
    done = found.add_column(0, "clip_id", clip_ids(found))
    done = done.append_column("status", pa.array(["ok"] * count))
    done = done.append_column("fingerprint", pa.array(["f"] * count))
    assert plan(Listing(found), done, "f", retry_errors=False).done == count


def say(text: str) -> None:
    print(text, flush=True)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Say a table, and keep it for `markdown`."""
    TABLES.append((title, header, rows))
    say(f"\n{title}\n")
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        say("  ".join([row[0].ljust(widths[0]), *cells]))
    say("")


def markdown() -> str:
    """All tables, and what they were made on."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = {name: package_version(name) for name in PACKAGES}
    parts = [
        f"{_cpu()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB · Python "
        f"{platform.python_version()}, {', '.join(f'{n} {v}' for n, v in packages.items() if v)} · "
        f"{date.today().isoformat()}"
    ]
    for title, header, rows in TABLES:
        lines = [
            f"**{title}**\n",
            f"| {' | '.join(header)} |",
            f"| --- |{' ---: |' * (len(header) - 1)}",
        ]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def _cpu() -> str:
    import torch

    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            "CPU",
        )
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


ROWS = {
    row.__name__: row
    for row in (whisper, whole, decode, planning, mountain, memory, packaging, classify)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench", description=__doc__.splitlines()[0]
    )  # type: ignore[union-attr]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    parser.add_argument(
        "--data", help="a folder of audio, or a CSV with columns file and text (Debian's prompts)"
    )
    parser.add_argument("--hours", type=float, help="of sound: the data again and again (once)")
    parser.add_argument(
        "--clips", type=int, default=32, help="spread over the data, 0 for all (32)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ways", nargs="+", metavar="TEXT", help="of whisper, those with this in their names (all)"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there as well")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"expected rows of {', '.join(ROWS)}, found {', '.join(sorted(unknown))}")
    if options.ways and "whisper" not in (options.rows or ROWS):
        parser.error(f"--ways: expected the row whisper, found {', '.join(options.rows)}")
    began = time.monotonic()
    failed = False
    for name in options.rows or ROWS:
        try:
            ROWS[name](options)
        except RuntimeError as error:  # the other rows are worth having all the same
            say(f"error: {name}: {error}")
            failed = True
    if TARGETS:
        show("Targets", ["what", "measured", "wanted", "met"], TARGETS)
    say(f"{(time.monotonic() - began) / 60:.1f} minutes")
    if options.markdown:
        Path(options.markdown).write_text(markdown(), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
