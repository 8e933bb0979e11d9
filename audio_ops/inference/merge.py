"""Merges a PEFT adapter into its loaded base model, with the package peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def merge_adapter(model: Any, name: str, revision: str | None) -> Any:
    """The model with the weights of the adapter, a folder or a hub id, added to its own.

    Raises ValueError if weights of the adapter are missing.
    """
    from peft import PeftModel

    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted: Any = PeftModel.from_pretrained(model, name, **where)
    missing = [str(one.message) for one in caught if "missing adapter keys" in str(one.message)]
    if missing:
        raise ValueError(f"model: expected all weights of the adapter {name}: {missing[0][:300]}")
    return adapted.merge_and_unload()


@contextmanager
def without_adapter(folder: str) -> Iterator[str]:
    """A folder of links to all files of `folder` but the adapter's, which transformers would load by
    itself, without merging it."""
    with TemporaryDirectory(prefix="earmark-") as links:
        for path in Path(folder).iterdir():
            if path.is_file() and not path.name.startswith("adapter_"):
                (Path(links) / path.name).symlink_to(path)
        yield links
