"""How audio is packaged: one file per packaging; its name is what YAML calls it.

A source's file holds:

- `COLUMNS`: the Arrow schema of the columns that it offers to `output.keep`;
- `SHARDED`: whether its files have to be read to know what clips they hold;
- `find(input, warn)`: every clip there is (if `SHARDED`: every shard, `member` null), as an Arrow
  table of `PLACE` and `COLUMNS`, sorted, without opening more than it must; `warn(text)` is told
  what could not be looked into;
- `clips(plan, storage_options)`: for each row of a plan its dict and its sound as a binary file,
  or the ClipError that stands in for it, in the plan's order. If `SHARDED`: all clips of each
  shard, as dicts of `PLACE` and `COLUMNS`; the file is read only if it is wanted, before the next.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pyarrow as pa

# Where a clip is: what makes it this clip and no other.
PLACE = pa.schema(
    [
        ("source", pa.string()),  # path or URL of the file that holds it
        ("member", pa.string()),  # name or row inside the source, else null
        ("source_version", pa.string()),  # ETag, or size and mtime
        ("offset_s", pa.float64()),
    ]
)


def source_names() -> list[str]:
    """Every packaging there is, as YAML calls them."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load_source(name: str) -> ModuleType:
    """The module of the packaging that YAML calls `name`."""
    return import_module(f"{__name__}.{name}")
