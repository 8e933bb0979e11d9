"""Runs over tables of millions of clips: with nothing to do, with one new tar, with all to do."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml

from jobs.bench.big_table import big_table
from jobs.bench.measure import Took
from jobs.bench.report import COST, cost, show, shown, target
from jobs.bench.ways import first_row_s, run_job

FILES = 1_000_000
STOP_AFTER = "40s"  # of a run with all to do


def planning(options: argparse.Namespace) -> None:
    """A table of files and one of tars, each with all of its clips labelled."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        config = big_table(Path(name), "files", FILES)
        took = run_job(config)
        rows.append([*cost(f"{FILES:,} files, all done", took), ""])
        _targets("1 million files, all done", took, 5, 0.5)
    clips = options.table_rows
    with tempfile.TemporaryDirectory() as name:
        config = big_table(Path(name), "webdataset", clips)
        what = f"{clips:,} clips in {clips // 1000:,} tars"
        took = run_job(config)
        rows.append([*cost(f"{what}, all done", took), ""])
        _targets(f"{what}, all done", took, 3e-6 * clips, 1)
        _new_tar(config, "a")
        run_job(config)  # sums up the labels of the new table, once
        _new_tar(config, "b")
        took = run_job(config)
        rows.append([*cost(f"{what}, and a new one", took), _first_row(config, took)])
        _targets(f"{what}, and a new one", took, 20 + 1e-6 * clips, 3)
        took = run_job(_changed(config), "--relabel", "--max-runtime", STOP_AFTER)
        rows.append([*cost(f"{what}, all to do, for {STOP_AFTER}", took), _first_row(config, took)])
    show("Large tables", ["what", *COST, "first row s"], rows)


def _targets(what: str, took: Took, wall_s: float, memory_gib: float) -> None:
    target(what, took.wall_s, wall_s, at_most=True, unit="s")
    memory = took.own_peak_bytes / 2**30
    target(f"{what}, memory of the driver", memory, memory_gib, at_most=True, unit="GiB")


def _new_tar(config: Path, name: str) -> None:
    tar = next((config.parent / "audio").rglob("*.tar"))
    new = config.parent / "audio" / f"{name}.tar"
    new.write_bytes(tar.read_bytes())


def _changed(config: Path) -> Path:
    """The config with an option that changes every label."""
    document = yaml.safe_load(config.read_text())
    document["tasks"]["it"]["top_k"] = 2
    changed = config.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(document))
    return changed


def _first_row(config: Path, took: Took) -> str:
    return shown(first_row_s(config.parent / "table", took), ".1f")
