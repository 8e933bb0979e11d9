"""Lets mypy check that each packaging is a `Source`. No run imports this file."""

from __future__ import annotations

from jobs.sources import Source, files, manifest, parquet, webdataset

SOURCES: tuple[Source, ...] = (files, manifest, parquet, webdataset)
