"""`make bench`: Earmark compared with its peers, on the same clips and in alternation.

    python -m jobs.bench [ROW ...] [--data FOLDER] [--hours H] [--clips N] [--table-rows N]
                         [--rounds 3] [--ways TEXT ...] [--markdown FILE]

Earmark and each peer run in separate processes, whose wall time, CPU time and memory (including all
descendants) are measured from outside; the processes report when their models were loaded. Figures
are medians over the rounds. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.bench.classification import classify
from jobs.bench.decoding import decode
from jobs.bench.planning import planning
from jobs.bench.recognition import recognise
from jobs.bench.report import TARGETS, markdown, say, show
from jobs.bench.reports import reports
from jobs.bench.scale import memory, mountain, packaging
from jobs.bench.speech import start, whisper, whole

ROWS = {
    row.__name__: row
    for row in (
        start,
        whisper,
        whole,
        decode,
        planning,
        reports,
        mountain,
        memory,
        packaging,
        classify,
        recognise,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench", description=__doc__.splitlines()[0]
    )  # type: ignore[union-attr]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    parser.add_argument(
        "--data", help="a folder of audio, or a CSV with columns file and text (Debian's prompts)"
    )
    parser.add_argument("--hours", type=float, help="of audio: the data is repeated (once)")
    parser.add_argument(
        "--clips", type=int, default=32, help="evenly spaced in the data, 0 for all (32)"
    )
    parser.add_argument(
        "--table-rows",
        type=int,
        default=10_000_000,
        help="of planning's table of tars (10 million)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ways", nargs="+", metavar="TEXT", help="rows of whisper whose names contain it (all)"
    )
    parser.add_argument("--markdown", metavar="FILE", help="also write the tables to it")
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
        except RuntimeError as error:  # the other rows are still measured
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
