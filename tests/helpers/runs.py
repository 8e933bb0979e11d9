"""Shared by the tests of runs: a folder of sounds, a config and a table, runs, both readers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml
from deltalake import DeltaTable
from sounds import encode, tone

from jobs.label import run as run_job

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / "tests" / folder) for folder in ("helpers", "unit", "models", "runs")]


class Result(NamedTuple):
    """A run's exit code and what it printed."""

    code: int
    text: str


class Job:
    """A job with `audio/`, `job.yaml` and `table/` in one temporary folder."""

    def __init__(self, folder: Path, model: Path, **sections: Any):
        self.folder = folder
        self.audio = folder / "audio"
        self.table = folder / "table"
        self.config = folder / "job.yaml"
        self.audio.mkdir(parents=True, exist_ok=True)
        self.sections: dict[str, Any] = {
            "input": {"path": str(self.audio)},
            "tasks": {"kind": {"task": "audio-classification", "model": str(model)}},
            "output": {"path": str(self.table)},
        }
        self.write(**sections)

    def write(self, **sections: Any) -> None:
        """Write the config, with some of its sections replaced."""
        self.sections |= sections
        self.config.write_text(yaml.safe_dump(self.sections), encoding="utf-8")

    def sound(self, name: str, hz: float, seconds: float = 0.3) -> Path:
        """Write a WAV with a tone of `hz`."""
        path = self.audio / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(tone(seconds, hz=hz), 16_000, "wav"))
        return path

    def sounds(self, count: int, seconds: float = 0.3) -> None:
        for n in range(count):
            self.sound(f"clip{n:03}.wav", 150 + 37 * n, seconds)

    def run(self, *overrides: str, **options: Any) -> Result:
        """Run the job in this process, on its Ray."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
            sys.stdout.flush()
            before = os.dup(1)
            os.dup2(printed.fileno(), 1)
            try:
                code = run_job(str(self.config), overrides, **options)
            finally:
                os.dup2(before, 1)
                os.close(before)
            printed.seek(0)
            return Result(code, printed.read())

    def files(self) -> dict[str, tuple[int, int]]:
        """The table's data files by name, with inode and mtime, which change when rewritten."""
        return {
            path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in self.table.glob("*.parquet")
        }

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows by source, as a plain Parquet reader of the folder sees them.

        Asserts that a Delta reader sees the same, and each clip and source once.
        """
        plain = pq.read_table(self.table)
        delta = DeltaTable(str(self.table)).to_pyarrow_table()
        rows = plain.to_pylist()
        assert set(plain.column_names) == set(delta.column_names)
        by_id = sorted(rows, key=lambda row: row["clip_id"])
        assert by_id == sorted(
            delta.select(plain.column_names).to_pylist(), key=lambda row: row["clip_id"]
        )
        assert len({row["clip_id"] for row in rows}) == len(rows)
        by_source = {row["source"]: row for row in rows}
        assert len(by_source) == len(rows)
        return by_source

    def by_name(self) -> dict[str, dict[str, Any]]:
        """`rows`, by path below the audio folder."""
        return {source.removeprefix(f"{self.audio}/"): row for source, row in self.rows().items()}

    def committed(self) -> int:
        """The number of commits of the table, without opening it."""
        return len(list(self.table.glob("_delta_log/*.json")))


def labels(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The columns of the model of task `kind` for each clip."""
    return {name: labels_of("kind", row) for name, row in rows.items()}


def labels_of(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A task's labels and its error in a row, without what made them."""
    marks = (f"{task}_fingerprint", f"{task}_run_id")
    return {k: v for k, v in row.items() if k.startswith(f"{task}_") and k not in marks}


def earmark(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `earmark ...` in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=300,
        **{"cwd": ROOT, **options},
    )


def command(*arguments: str | Path) -> Sequence[str]:
    """The command line of `earmark ...`."""
    return [str(Path(sys.executable).with_name("earmark")), *map(str, arguments)]
