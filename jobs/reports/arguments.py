"""The arguments of the commands that read a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.console import printable
from jobs.exit_codes import BAD_CONFIG, FAILED
from jobs.spilling import NoScratch
from jobs.table.storage import Storage
from jobs.table.table import Table, UnreadableTable, reading
from jobs.yaml_values import set_value


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `table_of` takes."""
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


def table_of(args: argparse.Namespace) -> Table:
    """The table that the command line names. Raises ValueError if there is none."""
    return open_table(args.table, storage_options(args.storage_options))


def open_table(path: str, options: Mapping[str, Any]) -> Table:
    """The table at a path or URL, with fsspec's options. Raises ValueError if there is none."""
    storage = Storage(path, options)
    table = Table.open(storage)
    if table is None or "tasks" not in table.settings():
        raise ValueError(f"expected a table that Earmark made, found none at {storage.path}")
    return table


def exit_code_of(table: str, read: Callable[[], int]) -> int:
    """The exit code that `read` returns, which opens and reads the table of this name; 2, with a message,
    for a table that is none or an argument that does not fit, 1 for a table that cannot be read."""
    import duckdb

    try:
        with reading(table, duckdb.Error):
            return read()
    except (UnreadableTable, NoScratch) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except ValueError as error:
        return refused(error)


def refused(why: object) -> int:
    """Print why a command is refused; returns the exit code."""
    print(f"error: {printable(str(why))}", file=sys.stderr)
    return BAD_CONFIG


def storage_options(arguments: Sequence[str]) -> dict[str, Any]:
    """fsspec's options from arguments `a.b=value`, whose values are YAML. Raises ValueError."""
    options: dict[str, Any] = {}
    for argument in arguments:
        set_value(options, argument, "--storage-option", "a.b=value")
    return options
