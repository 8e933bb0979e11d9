"""The exit code of a run, for schedulers that saw only how `ray job submit` ended: with 0 or 1.

earmark exit-code SUMMARY
"""

from __future__ import annotations

import argparse
import json
import sys

from jobs.console import one_line, printable
from jobs.exit_codes import FAILED, OK
from jobs.reports.arguments import add_storage_option, storage_options
from jobs.stores import store_of


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
        fs, path = store_of(args.summary, storage_options(args.storage_options))
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return FAILED
    try:
        document = json.loads(fs.cat_file(path))
        code, why = int(document["exit_code"]), document.get("error") or document.get("stopped")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _found_none(args.summary, error, "the run was killed or did not start")
    except Exception as error:  # clients of stores raise their own errors: no credentials, say
        return _found_none(args.summary, error, one_line(error))
    if why:
        print(f"run {document.get('run_id')} ended with exit code {code}: {why}")
    return OK if code in args.accept else code


def _found_none(summary: str, error: Exception, why: str) -> int:
    print(
        f"error: expected the summary of a run at {printable(summary)}, found none "
        f"({type(error).__name__}): {why}",
        file=sys.stderr,
    )
    return FAILED
