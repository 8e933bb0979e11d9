"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config, and what decides which labels are due."""
    # Not required here, as `--relabel mine.yaml` takes it: see `plan_arguments`.
    parser.add_argument("config", nargs="?", help="a YAML file, see configs/")
    parser.set_defaults(refuse=parser.error)
    parser.add_argument(
        "--set",
        metavar="a.b.c=value",
        action="append",
        default=[],
        dest="overrides",
        help="replace one value of the config, as it is typed; may be given several times",
    )
    parser.add_argument(
        "--relabel",
        metavar="TASK",
        nargs="*",
        help="replace labels that these tasks made with other settings; without names, those of all "
        "tasks",
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="run tasks again on clips where they failed"
    )


def plan_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the arguments of `add_plan_arguments`, by the names that `jobs.label.run` has for
    them. Raises SystemExit if there is no config."""
    tasks, config = args.relabel, args.config
    if config is None and tasks:
        *tasks, config = tasks
    if config is None:
        args.refuse("the following arguments are required: config")
    return {
        "config_path": config,
        "overrides": args.overrides,
        "relabel": False if tasks is None else tasks or True,
        "retry_errors": args.retry_errors,
    }


def refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """End with exit code 2 and the arguments that a command does not have, with the nearest option."""
    known = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", parser.format_usage())
    option = next((text for text in unknown if text.startswith("-")), "").partition("=")[0]
    near = get_close_matches(option, known, n=1)
    suggestion = f" (did you mean {near[0]}?)" if near else ""
    parser.error(f"unknown arguments: {' '.join(unknown)}{suggestion}")


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)
