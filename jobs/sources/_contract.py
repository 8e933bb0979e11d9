"""Lets mypy check that each packaging is a `Source`. No run imports this file."""

from __future__ import annotations

from jobs.sources import (
    ShardedSource,
    Source,
    audiofolder,
    files,
    kaldi,
    lhotse,
    ljspeech,
    manifest,
    parquet,
    webdataset,
)

SOURCES: tuple[Source, ...] = (
    audiofolder,
    files,
    kaldi,
    lhotse,
    ljspeech,
    manifest,
    parquet,
    webdataset,
)
SHARDED: tuple[ShardedSource, ...] = (webdataset,)
