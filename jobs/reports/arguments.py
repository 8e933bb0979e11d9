"""The arguments of the commands that read a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jobs.console import printable
from jobs.exit_codes import FAILED
from jobs.table.storage import Storage
from jobs.table.table import Table
from jobs.yaml_values import set_value


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `open_table` takes."""
    parser.add_argument("table", help="the output of a run: a folder or any fsspec URL")
    add_storage_option(parser)


def add_storage_option(parser: argparse.ArgumentParser) -> None:
    """Add `--storage-option`, see `storage_options`."""
    parser.add_argument(
        "--storage-option",
        metavar="a.b=value",
        action="append",
        default=[],
        dest="storage_options",
        help="passed to fsspec, such as endpoint_url=http://...; may be given several times",
    )


def open_table(args: argparse.Namespace) -> Table:
    """The table that the command line names. Raises ValueError if there is none."""
    storage = Storage(args.table, storage_options(args.storage_options))
    table = Table.open(storage)
    if table is None or "tasks" not in table.settings():
        raise ValueError(f"expected a table that Earmark made, found none at {storage.path}")
    return table


def unreadable(table: str, error: Exception) -> int:
    """Tell that a table could not be read; returns the exit code."""
    what = printable(str(error).partition("\n")[0])
    print(
        f"error: expected a table that can be read at {table}, found: {what}: "
        "`earmark verify` tells what is damaged",
        file=sys.stderr,
    )
    return FAILED


def storage_options(arguments: Sequence[str]) -> dict[str, Any]:
    """fsspec's options from arguments `a.b=value`, whose values are YAML. Raises ValueError."""
    options: dict[str, Any] = {}
    for argument in arguments:
        set_value(options, argument, "--storage-option", "a.b=value")
    return options
