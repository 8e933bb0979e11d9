"""The arguments of `earmark export`."""

from __future__ import annotations

import argparse
import math

from jobs.arguments import positive
from jobs.export.formats import format_names
from jobs.reports.arguments import add_table_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `earmark export`."""
    add_table_arguments(parser)
    parser.add_argument("out", help="a new folder, local or any fsspec URL")
    parser.add_argument(
        "--as",
        dest="format",
        required=True,
        choices=format_names(),
        help="the format of the export",
    )
    parser.add_argument(
        "--task", metavar="T", help="the task whose text or label is exported, if there are several"
    )
    parser.add_argument(
        "--where",
        metavar="SQL",
        help='export only clips of which this is true, e.g. "t_score > 0.6 and len(t_suspect) = 0"; '
        "with --cut segments it may use `segment` as well: segment.score > 0.6",
    )
    _add_sound_arguments(parser)
    _add_split_arguments(parser)
    parser.add_argument(
        "--speaker", metavar="COLUMN", help="the column with the speaker, for formats that name one"
    )
    parser.add_argument(
        "--columns",
        metavar="A,B=NAME",
        action="append",
        default=[],
        help="more columns of the table, which may get another name; may be given several times",
    )
    parser.add_argument(
        "--shard-clips",
        metavar="N",
        type=positive,
        default=2_000,
        help="clips in a shard at most; 2000 by default",
    )
    parser.add_argument(
        "--shard-mb",
        metavar="MB",
        type=positive,
        default=512,
        help="size of a shard at most, as 16-bit sound without compression; 512 by default",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the run's config, whose `input` says how to find the sound again, if that needs more than "
        "the table has: columns.audio, audio_root, extensions, storage_options",
    )


def _add_sound_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audio",
        choices=("none", "link", "copy", "flac", "wav"),
        help="what becomes of the sound: `link` names files where they are, `copy` takes their bytes, "
        "`flac` and `wav` re-encode what was labelled; each format has its own default",
    )
    parser.add_argument(
        "--sample-rate",
        metavar="HZ",
        type=positive,
        help="the sample rate of re-encoded sound; by default that of the file",
    )
    parser.add_argument(
        "--cut", choices=("segments",), help="export the task's segments in place of whole clips"
    )
    for name, text in (
        ("pad", "seconds that segments get at both ends, as far as the clip goes"),
        ("min", "leave out segments of fewer seconds"),
        ("max", "leave out segments of more seconds"),
    ):
        parser.add_argument(f"--{name}-s", metavar="S", type=_seconds, dest=f"{name}_s", help=text)


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="parts with a share each, train=0.98,dev=0.01,test=0.01, by a hash of the recording; or a "
        "column whose values are the parts",
    )
    parser.add_argument(
        "--group-by",
        metavar="COLUMN",
        help="keep all clips with the same value in one part, such as those of a speaker",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"expected seconds, found {text!r}")
    return value
