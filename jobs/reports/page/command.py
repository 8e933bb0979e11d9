"""A page about a table: sums, suspects, comparisons, and clips to listen to.

earmark report TABLE [-o FOLDER]
"""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from jobs.arguments import positive
from jobs.exit_codes import FAILED, OK
from jobs.reports.arguments import add_table_arguments, exit_code_of, refused, table_of

MARK = '<meta name="generator" content="earmark report">'
MARK_WITHIN = 2_000  # characters of index.html
PROGRESS_EVERY_S = 2.0
UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EBUSY,
)
PACKAGES = ("jinja2", "librosa")  # of the extra `report`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark report`."""
    add_table_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="where the page goes, with the sound of its clips; by default TABLE-report, or a folder "
        "of that name here if the table is on a store; an earlier report there is replaced",
    )
    parser.add_argument(
        "--clips",
        metavar="N",
        type=positive,
        default=200,
        help="how many clips the page has at most, of all its lists together; 200 by default",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=positive,
        default=120,
        help="how much of a clip the page plays at most, from its start; 120 by default",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="of the random sample: another number takes other clips; 0 by default",
    )


def run_from(args: argparse.Namespace) -> int:
    """Write the report; returns the exit code: 0, 2 for no such table, or a folder that is in use, or 1
    for a table that cannot be read or a folder that cannot be written."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        return refused(f"expected package {missing[0]}, found none: pip install 'earmark[report]'")
    return exit_code_of(args.table, lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    from jobs.reports.page.build import Choice, build
    from jobs.reports.page.database import reported_tasks

    table = table_of(args)
    folder = Path(args.output or _default(table.path)).absolute()
    _check(folder, args.output or "", table.path)
    reported_tasks(table)  # of a version that has them
    choice = Choice(args.clips, float(args.seconds), args.seed)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:100]}.")
    except OSError as error:
        return _unwritable(folder, error)
    with work:
        new = Path(work.name, "new")
        try:
            new.mkdir()
            built = build(table, new, choice, _progress())
            if folder.exists():
                folder.rename(Path(work.name, "old"))
            new.rename(folder)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            return _unwritable(folder, error)
    print(
        f"{built.rows:,} rows summed up; {built.clips:,} of them shown, {built.playable:,} with sound"
        f"\npage: {folder / 'index.html'}"
    )
    return OK


def _unwritable(folder: Path, error: OSError) -> int:
    print(
        f"error: -o: expected a folder that can be written, found {folder}: {error}",
        file=sys.stderr,
    )
    return FAILED


def _default(table: str) -> str:
    path = table.rstrip("/")
    return f"{path.rpartition('/')[2] if '://' in path else path}-report"


def _check(folder: Path, given: str, table: str) -> None:
    """Raise ValueError if there is something in the folder that a report may not replace, or a URL was
    given."""
    if "://" in given:
        raise ValueError(
            f"-o: expected a folder on this machine, to be copied to a store afterwards, found {given}"
        )
    if not folder.exists() and not folder.is_symlink():
        if folder.is_relative_to(Path(table).absolute()):
            raise ValueError(f"-o: expected a folder outside of the table, found {folder}")
        return
    page = folder / "index.html"
    is_report = page.is_file() and MARK in page.read_text("utf-8", "replace")[:MARK_WITHIN]
    if not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not is_report):
        raise ValueError(
            f"-o: expected a new or empty folder, or an earlier report, found {folder} with "
            "something else: name another one"
        )


def _progress() -> Callable[[str], None]:
    """A function that prints what it gets to stderr, now and then."""
    printed_s = -PROGRESS_EVERY_S

    def progress(text: str) -> None:
        nonlocal printed_s
        if time.monotonic() - printed_s >= PROGRESS_EVERY_S:
            printed_s = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return progress
