"""Datasets of the Hugging Face hub by name: `hf://datasets/USER/NAME[@REVISION][/PATH]`."""

from __future__ import annotations

import re

_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?")


def in_cache(path: str) -> str:
    """The path of a dataset in this machine's cache of the hub, if the hub may not be asked
    (`HF_HUB_OFFLINE`); other paths unchanged.

    Raises FileNotFoundError.
    """
    match = _DATASET.fullmatch(path)
    if match is None:
        return path
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not constants.HF_HUB_OFFLINE:
        return path
    repository, revision, inside = match.groups()
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"expected {path} in this machine's cache, as HF_HUB_OFFLINE is set, found nothing: "
            f"`hf download --repo-type dataset {repository}` fetches it"
        ) from None
    return f"{folder}{inside or ''}"
