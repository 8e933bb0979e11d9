"""The exit code of a run, for schedulers that saw only how `ray job submit` ended: with 0 or 1.

earmark exit-code SUMMARY
"""

from __future__ import annotations

import argparse
import json
import sys

import fsspec

from jobs.exit_codes import FAILED, OK
from jobs.reports.arguments import add_storage_option, storage_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark exit-code`."""
    parser.add_argument("summary", help="the file or URL of a run's --summary")
    parser.add_argument(
        "--accept",
        metavar="CODE",
        type=int,
        nargs="+",
        default=[],
        help="exit codes in place of which to end with 0, such as 75 where another run may hold the table",
    )
    add_storage_option(parser)


def run_from(args: argparse.Namespace) -> int:
    """The exit code in the summary; 1, with a message, if there is none."""
    try:
        options = storage_options(args.storage_options)
        with fsspec.open(args.summary, "rb", **options) as file:
            document = json.loads(file.read())
        code, why = document["exit_code"], document.get("error") or document.get("stopped")
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"error: expected the summary of a run at {args.summary}, found none "
            f"({type(error).__name__}): the run was killed or did not start",
            file=sys.stderr,
        )
        return FAILED
    if why:
        print(f"run {document.get('run_id')} ended with exit code {code}: {why}")
    return OK if code in args.accept else int(code)
