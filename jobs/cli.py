"""The console script: `earmark COMMAND ...`."""

from __future__ import annotations

import sys

from jobs.exit_codes import BAD_CONFIG, exit_with

USAGE = """\
usage: earmark COMMAND ...

  run CONFIG [--set a.b.c=value ...] [--relabel] [--retry-errors]
        label the audio that a config names (earmark run --help)
  evaluate TABLE [--by COLUMN ...]
        compare a table's labels with its references (earmark evaluate --help)
  verify TABLE
        check that a table is whole, reading only (earmark verify --help)
"""


def main() -> None:
    command, *rest = sys.argv[1:] or ["--help"]
    if command == "run":
        from jobs.label import main as run

        exit_with(run(rest))
    if command == "evaluate":
        from jobs.reports.evaluate import main as evaluate

        exit_with(evaluate(rest))
    if command == "verify":
        from jobs.reports.verify import main as verify

        exit_with(verify(rest))
    known = command in ("-h", "--help", "help")
    print(USAGE, file=sys.stdout if known else sys.stderr, end="")
    sys.exit(0 if known else BAD_CONFIG)
