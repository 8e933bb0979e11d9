"""This user's folder among the machine's temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def own_folder() -> Path:
    """The folder, made if there is none. Raises OSError if it cannot be, or is another user's."""
    folder = Path(tempfile.gettempdir(), f"earmark-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's")
    return folder
