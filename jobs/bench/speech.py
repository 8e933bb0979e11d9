"""Speech recognition: Whisper tiny.en, real weights and real speech."""

from __future__ import annotations

import argparse

from jobs.bench import testbed
from jobs.bench.report import ratio, target
from jobs.bench.testbed import Sample
from jobs.bench.ways import Way, by_turns, earmark, peer, word_error_rate
from jobs.demo import whisper_tiny_en

OURS, GUARDED, PLAIN = "Earmark", "Earmark, window: guarded", "plain Ray Data"


def whisper(options: argparse.Namespace) -> None:
    """Earmark, its peers, and the bare model as an upper bound of the speed."""
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
    target("steady state, full windows / bare loop", ratio(steady, OURS, "bare loop"), 0.95)
    target("steady state, guarded / bare loop", ratio(steady, GUARDED, "bare loop"), 1.8)
    what = "steady state, guarded / faster-whisper int8, its better way"
    target(what, ratio(steady, GUARDED, fastest), 4.0)
    if full is not None and short is not None:
        target("WER, guarded - full", 100 * (short - full), 0.5, at_most=True, unit="points")
    first_rows = {name: one.first_row_s for name, one in of.items()}
    what = f"first row after the command / {PLAIN}"
    target(what, ratio(first_rows, OURS, PLAIN), 1.0, at_most=True)


def whole(options: argparse.Namespace) -> None:
    """The complete job on all of the audio, compared with the peers that write a table, too.

    It takes a third of the rounds, because each is long, and start-up times, which vary, are a small
    part of it.
    """
    sample = testbed.sample(options.data, options.hours)
    ways = {
        name: way for name, way in _ways(sample).items() if name in (OURS, GUARDED, PLAIN, "Daft")
    }
    rounds = max(1, options.rounds // 3)
    of = by_turns("The whole job, Whisper tiny.en", ways, rounds, sample.references)
    speeds = {name: one.speed for name, one in of.items()}
    for name, wanted in ((PLAIN, 2.5), ("Daft", 1.8)):
        target(f"whole job, guarded / {name}", ratio(speeds, GUARDED, name), wanted)
        target(f"whole job, full / {name}", ratio(speeds, OURS, name), 1.0)


def start(options: argparse.Namespace) -> None:
    """The job on eight clips, as one tries a config: almost all of it is start-up."""
    sample = testbed.sample(options.data, None).every(8)
    ways = {name: way for name, way in _ways(sample).items() if name in (OURS, PLAIN, "Daft")}
    of = by_turns("Eight clips, Whisper tiny.en", ways, options.rounds, sample.references)
    first_rows = {name: one.first_row_s for name, one in of.items()}
    walls = {name: one.took.wall_s for name, one in of.items()}
    target("eight clips, first row", first_rows.get(OURS), 8.0, at_most=True, unit="s")
    target("eight clips, whole command", walls.get(OURS), 10.0, at_most=True, unit="s")
    target(f"whole command / {PLAIN}", ratio(walls, OURS, PLAIN), 1.0, at_most=True)


def _ways(sample: Sample) -> dict[str, Way]:
    """Earmark and its peers with Whisper tiny.en, by the names of their rows."""
    model, task = whisper_tiny_en(), "automatic-speech-recognition"
    recognise = {"task": task, "model": str(model)}
    few = sample.every(max(4, len(sample.files) // 8))  # beam search clip by clip is slow
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
