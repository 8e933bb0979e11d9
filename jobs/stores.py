"""The store that a path or URL names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

# Values of gcsfs's `token` that are no credentials but ways to find some.
GCS_METHODS = ("anon", "google_default", "cache", "cloud", "browser")
VARIABLE_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_")  # of the environment variables of stores
WITH_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


def store_of(path: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """fsspec's file system of a path or URL, and the path in it.

    Raises ValueError for a URL without a bucket, and for a store that fsspec does not know, or whose
    package is not installed.
    """
    import fsspec

    forget_empty_variables()
    protocol, is_url, rest = path.partition("://")
    if is_url and protocol in WITH_BUCKETS and not rest.strip("/"):
        raise ValueError(f"expected a bucket in the URL, found {path}")
    try:
        fs, root = fsspec.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        # Of a package that is installed but broken.
        why = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(
            f"expected a URL that fsspec can open, found {path}: {error}{why}"
        ) from None
    return fs, root


def forget_empty_variables() -> None:
    """Unset the environment variables of stores that are empty, as schedulers leave those without a value:
    a store's client would use the empty profile or endpoint."""
    for name in [
        n for n, value in os.environ.items() if n.startswith(VARIABLE_PREFIXES) and not value
    ]:
        del os.environ[name]
