"""Whether a local path means one storage: for the next run, and for every node of the cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from jobs.config import Config, ConfigError
from jobs.sources._paths import absolute, is_local

# Where Ray unpacks a job's working directory (`_private/runtime_env/working_dir.py`), and later
# deletes it. Each upload with another content gets another folder.
UPLOAD = re.compile(r".*/runtime_resources/working_dir_files/[^/]+(?=/|$)")


def refuse_uploads(config: Config, config_path: str | Path, summary_file: str | None) -> None:
    """Raise ConfigError for each path that lies in Ray's temporary copy of a job's upload.

    What is written there is lost; and clips that are read there have other names in each upload,
    so that all of them would be labelled again. Models may lie there, as content identifies them.
    """
    problems = [
        f"{key}: expected an absolute path or a URL (s3://...) outside of the job's upload, found "
        f"{path!r}, which is {inside}: Ray deletes that copy, and the next job gets another one"
        for key, path in _paths(config, summary_file)
        if is_local(path) and UPLOAD.match(inside := os.path.realpath(absolute(path)))
    ]
    if problems:
        raise ConfigError("\n".join(f"{config_path}: {problem}" for problem in problems))


def _paths(config: Config, summary_file: str | None) -> Iterator[tuple[str, str]]:
    yield "output.path", config.output.path
    for path in config.input.paths:
        yield "input.path", path
    if config.input.audio_root is not None:
        yield "input.audio_root", config.input.audio_root
    if summary_file is not None:
        yield "--summary", summary_file
