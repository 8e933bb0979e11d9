"""The console script: `earmark COMMAND ...`.

Only the module of the command that is called is imported: `earmark --help` imports none of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import NamedTuple

from jobs.console import keep_streams
from jobs.exit_codes import exit_with
from jobs.versions import package_version


class Command(NamedTuple):
    """A subcommand. Its module has `add_arguments(parser)` and `run_from(args)`, which returns the
    exit code."""

    module: str
    does: str


COMMANDS = {
    "run": Command("jobs.label", "label the audio that a config names"),
    "plan": Command(
        "jobs.reports.forecast", "say what a run would do, without starting Ray or loading a model"
    ),
    "evaluate": Command(
        "jobs.reports.evaluate", "compare labels with references, for every task that has one"
    ),
    "verify": Command(
        "jobs.reports.verify",
        "check that a table is intact (log, data files, rows, counts), reading only",
    ),
    "report": Command(
        "jobs.reports.page.command",
        "make a page about a table: sums, suspects, references, and clips to listen to",
    ),
    "export": Command(
        "jobs.export.command", "write clips and labels of a table in a format that others train on"
    ),
    "exit-code": Command(
        "jobs.reports.exit_code", "end with the exit code of a run, from its summary"
    ),
}


def main() -> None:
    """Run the command of this process's arguments, and end the process with its exit code."""
    keep_streams()
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # of a command that only reads: the others have `Stop`
        code = 128 + signal.SIGINT
    exit_with(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code. Raises SystemExit after `--help`, `--version` and for
    arguments that do not fit (2)."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = _parser(name)
    if name == "help" or not arguments:
        parser.print_help()
        return 0
    if name is not None and name not in COMMANDS:
        parser.error(_unknown(name))
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        args.refuse_unknown(unknown)
    run_from: Callable[[argparse.Namespace], int] = args.run_from
    return run_from(args)


def _parser(called: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="earmark", description="Label audio with models.")
    version = package_version("earmark") or "(not installed)"
    parser.add_argument("--version", action="version", version=f"earmark {version}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        description = f"{command.does[0].upper()}{command.does[1:]}."
        subparser = subparsers.add_parser(name, help=command.does, description=description)
        if name == called:
            from jobs.arguments import refuse_unknown

            module = import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(
                run_from=module.run_from, refuse_unknown=partial(refuse_unknown, subparser)
            )
    return parser


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1)
    suggestion = f": did you mean {near[0]!r}?" if near else ""
    return f"expected a command ({', '.join(COMMANDS)}), found {name!r}{suggestion}"


if __name__ == "__main__":
    main()
