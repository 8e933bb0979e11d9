"""The splits of a folder for `datasets.load_dataset`."""

from __future__ import annotations

from collections.abc import Callable

import yaml

from jobs.export.folder import Folder
from jobs.export.formats import Export


def write_splits(export: Export, folder: Folder, files: Callable[[str], str]) -> None:
    """Write which files each split has, in the file that `load_dataset(folder)` reads: it knows splits
    of a few names only."""
    names = {part: part if export.is_split else "train" for part in export.parts}
    data_files = [{"split": name, "path": files(part)} for part, name in names.items()]
    document = {"configs": [{"config_name": "default", "data_files": data_files}]}
    with folder.create_text(".huggingface.yaml") as file:
        yaml.safe_dump(document, file, sort_keys=False)
