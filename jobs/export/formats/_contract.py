"""Lets mypy check that each format is a `Format`. No export imports this file."""

from __future__ import annotations

from jobs.export.formats import (
    Format,
    audiofolder,
    csv,
    datasets,
    kaldi,
    lhotse,
    lhotse_shar,
    nemo,
    nemo_tarred,
    srt,
    tsv,
    vtt,
    webdataset,
)

FORMATS: tuple[Format, ...] = (
    *(audiofolder, csv, datasets, kaldi, lhotse, lhotse_shar, nemo, nemo_tarred),
    *(srt, tsv, vtt, webdataset),
)
