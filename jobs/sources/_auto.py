"""`format: auto`: recognises the packaging by the names of the files."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from jobs.input import Input
from jobs.sources import load_source, source_names
from jobs.sources._paths import absolute, walk

MAX_FILES = 10_000  # whose names are looked at, for each path


def recognise(input: Input, output: str) -> tuple[str, str]:
    """A packaging's name, and a line that explains the choice. Files in `output` are ignored.

    Manifests count only if there are no other files, because they often lie beside those they list.
    Raises ValueError if the files are of several kinds, FileNotFoundError if there are none.
    """
    suffixes = {name: load_source(name).suffixes(input) for name in source_names()}
    every = tuple(suffix for each in suffixes.values() for suffix in each)
    ours = f"{absolute(output)}/"
    counts: Counter[str] = Counter()
    for path in input.paths:
        found = walk(path, every, input.storage_options, lambda _: None, (".", "_delta_log"))
        for file in islice((file for file in found if not file.source.startswith(ours)), MAX_FILES):
            name = file.source.lower()
            counts[next((kind for kind in suffixes if name.endswith(suffixes[kind])), "files")] += 1
    kinds = set(counts) - {"manifest"} or {"manifest"} & set(counts) or {"files"}
    summary = ", ".join(f"{counts[kind]:,} {_noun(kind, counts[kind])}" for kind in sorted(counts))
    if len(kinds) > 1:
        raise ValueError(
            f"input.format: expected one of {', '.join(sorted(kinds))}, as there is "
            f"more than one kind of file: {summary}"
        )
    kind = kinds.pop()
    where = input.paths[0] + (" ..." if len(input.paths) > 1 else "")
    return kind, f"input.format: {kind} ({summary or 'no known kind of file'} in {where})"


def _noun(kind: str, count: int) -> str:
    noun = {"files": "audio file", "webdataset": "tar", "parquet": "Parquet file"}.get(kind, kind)
    return noun if count == 1 else f"{noun}s"
