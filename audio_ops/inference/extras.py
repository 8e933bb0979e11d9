"""Packages that only some checkpoints need: Earmark's extras, checked before a run starts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.version import Version


def check_extra(extra: str, package: str, use: str, at_least: str = "0") -> None:
    """Raise ValueError if a package is missing, or too old for transformers.

    extra: of Earmark's, which installs it.
    package: its name on a package index, which is that of its module but for `-`.
    use: what it does for the checkpoint ("reads the tokenizer of ...").
    """
    found = _version(package) if find_spec(package.replace("-", "_")) else None
    if found is None or Version(found) < Version(at_least):
        newer = "" if at_least == "0" else f" ({at_least} or later)"
        raise ValueError(
            f"model: expected the package {package}{newer}, which {use}, found "
            f'{found or "none"}: pip install "earmark[{extra}]"'
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
