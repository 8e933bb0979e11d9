"""Versions of installed packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version(package: str) -> str | None:
    """The installed version, or None: Earmark in a checkout (`ray job submit`) is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
