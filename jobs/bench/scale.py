"""Packagings, many clips and long ones, with a model that costs almost nothing."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from jobs.bench import testbed
from jobs.bench.report import COST, cost, show, shown, target
from jobs.bench.ways import by_turns, earmark, job, nothing


def packaging(options: argparse.Namespace) -> None:
    """One sample as files, tars and Parquet."""
    sample = testbed.sample(options.data, options.hours)
    ways = {
        f"Earmark, {kind}": earmark(sample, kind, **nothing())
        for kind in ("files", "webdataset", "parquet")
    }
    by_turns("Packagings, a model that costs nothing", ways, 1)


def mountain(options: argparse.Namespace) -> None:
    """The whole job on many one-second clips in tars."""
    rows, peaks = [], []
    for count in (20_000, 200_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tars = testbed.second_clips(folder / "tars", count)
            outcome = job(folder, {"path": str(tars)}, nothing())
            took = outcome.took
            peaks.append(took.own_peak_bytes)
            clips_per_s = count / took.wall_s
            rows.append(
                [
                    *cost(f"{count:,} clips of 1 s in tars", took),
                    f"{clips_per_s:.0f}",
                    shown(outcome.steady, ".0f"),
                    f"{took.own_peak_bytes / 2**20:.0f}",
                    f"{took.own_cpu_s / count * 1e6:.0f}",
                    f"{took.cpu_s / count * 1e6:.0f}",
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
    for what, cpu_s, most_us in (("driver", took.own_cpu_s, 50), ("all", took.cpu_s, 400)):
        us = cpu_s / count * 1e6
        target(f"CPU time of {what} per clip, 200,000 clips", us, most_us, at_most=True, unit="µs")
    header = ["what", *COST, "clips/s", "steady clips/s", "driver MiB"]
    header += ["driver's CPU µs/clip", "all CPU µs/clip"]
    show("The whole job, a model that costs nothing", header, rows)


def memory(options: argparse.Namespace) -> None:
    """Memory of all processes: with 500 clips (slightly more than may be in flight at once), with ten
    and forty times as many, and with 500 and a recording of four hours."""
    rows, peaks = [], []
    for count, hours in ((500, 0), (5_000, 0), (20_000, 0), (500, 4)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = [str(testbed.one_sound(folder / "short", count, 10))]
            if hours:
                paths.append(str(testbed.one_sound(folder / "long", 1, hours * 3600)))
            took = job(folder, {"path": paths, "format": "files"}, nothing()).took
            peaks.append(took.peak_bytes)
            more = f" and one of {hours} h" if hours else ""
            rows.append(cost(f"{count:,} clips of 10 s{more}", took))
    target("memory, 5,000 clips / 500", peaks[1] / peaks[0], 1.1, at_most=True)
    target("memory, 20,000 clips / 5,000", peaks[2] / peaks[1], 1.1, at_most=True)
    target("memory, a recording of 4 h more", peaks[3] / peaks[0], 1.5, at_most=True)
    show("Memory of all processes, a model that costs nothing", ["what", *COST], rows)
