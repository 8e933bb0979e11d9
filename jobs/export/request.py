"""What an export is asked for: the command line, the table and the run's config together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config import Audio as AudioSettings
from jobs.config import Config, Output
from jobs.config_file import load_config
from jobs.export.formats import load_format
from jobs.export.options import (
    Audio,
    BadExport,
    Cut,
    Options,
    columns_of,
    split_of,
)
from jobs.input import Input
from jobs.reports.arguments import open_table, storage_options
from jobs.table.table import Table, reading


@dataclass(frozen=True)
class Request:
    """An export as the command line asks for it. `storage` are fsspec's options of table and folder."""

    table: Table
    out: str
    options: Options
    config: Config  # `input`, limits of decoding, `max_error_fraction`
    storage: Mapping[str, Any]

    @property
    def audio(self) -> Audio:
        """How sound is exported. Raises BadExport for a way that the format does not have."""
        ways = load_format(self.options.format).AUDIO
        if self.options.audio is None:
            return ways[0]
        if self.options.audio not in ways:
            raise BadExport(
                f"--audio: expected {' or '.join(ways)} for {self.options.format}, "
                f"found {self.options.audio}"
            )
        return self.options.audio


def request_of(args: argparse.Namespace) -> Request:
    """The export that the arguments ask for. Raises BadExport, ConfigError and UnreadableTable."""
    options = options_of(args)
    config = load_config(args.config) if args.config else None
    try:
        storage = storage_options(args.storage_options)
    except ValueError as error:
        raise BadExport(str(error)) from None
    if config and not storage:
        storage = config.output_options
    try:
        with reading(args.table):
            table = open_table(args.table, storage)
    except ValueError as error:
        raise BadExport(str(error)) from None
    request = Request(table, args.out, options, config_of(config, table, storage), storage)
    request.audio  # noqa: B018  # or it is refused
    return request


def config_of(config: Config | None, table: Table, storage: Mapping[str, Any]) -> Config:
    """What is needed of a config: the given one's, with the sound decoded as for the table's labels."""
    decoding = table.settings().get("audio", {})
    if config is None:
        config = Config(
            input=Input(path=table.path, storage_options=dict(storage)),
            tasks={},
            output=Output(path=table.path),
        )
    audio = AudioSettings.model_validate(config.audio.model_dump() | decoding)
    more = [name for raw in audio.raw for name in raw.extensions]
    extensions = tuple(dict.fromkeys([*config.input.extensions, *more]))
    input = config.input.model_copy(update={"extensions": extensions})
    return config.model_copy(update={"input": input, "audio": audio})


def options_of(args: argparse.Namespace) -> Options:
    """The options that the arguments name. Raises BadExport."""
    for name in ("pad_s", "min_s", "max_s"):
        if getattr(args, name) is not None and not args.cut:
            raise BadExport(f"--{name.replace('_', '-')}: expected --cut segments beside it")
    split = split_of(args.split) if args.split else None
    if args.group_by and not isinstance(split, Mapping):
        raise BadExport("--group-by: expected --split with shares beside it")
    cut = None
    if args.cut:
        longest = math.inf if args.max_s is None else args.max_s
        cut = Cut(args.pad_s or 0.0, args.min_s or 0.0, longest)
    return Options(
        format=args.format,
        task=args.task,
        where=args.where,
        cut=cut,
        audio=args.audio,
        sample_rate=args.sample_rate,
        split=split,
        group_by=args.group_by,
        speaker=args.speaker,
        columns=columns_of(args.columns),
        shard_clips=args.shard_clips,
        shard_mb=args.shard_mb,
    )
