"""The `input` section of a config: where the audio is and how it is packaged."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from audio_ops.decode.formats import EXTENSIONS as AUDIO_EXTENSIONS


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Section):
    """Columns that hold the sound or its place. Those left out are found by their usual names."""

    audio: str | None = None
    """The column with the sound itself, or with its path."""
    offset: str | None = None
    """The column with a clip's start in its file, in seconds."""
    duration: str | None = None
    """The column with a clip's length, in seconds."""
    names: tuple[str, ...] = ()
    """The names of all columns, of a CSV or TSV without a header."""


class Input(Section):
    """Where the audio is. Each packaging (`jobs/sources/`) says which of these options it takes."""

    path: str | tuple[str, ...]
    """A file, folder, glob or range (`{000..123}`), local or any fsspec URL, or a list of them."""
    format: str = "auto"
    """How the audio is packaged: a file in `jobs/sources/`. `auto` decides by the files' names and a
    list's first line."""
    extensions: tuple[str, ...] = AUDIO_EXTENSIONS
    """Which files of a folder, or members of a tar, are audio. A file that `path` names always is."""
    columns: Columns = Columns()
    """Of a Parquet file or a manifest."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """The character between the fields of a CSV or TSV. By default the one of comma, semicolon, tab and
    bar with which the header has a column of paths."""
    encoding: str | None = None
    """The encoding of a manifest, by its name in Python (`latin-1`, `utf-16-le`, `gb18030`). By default
    UTF-8, or UTF-16 if the file begins with its byte order mark."""
    manifest: str | tuple[str, ...] | None = None
    """Lists of the members of tars (JSON lines of NeMo or cuts of Lhotse), whose columns the clips get.
    By default `tarred_audio_manifest.json`, or the `cuts.*.jsonl.gz` of a Shar, beside the tars."""
    inventory: str | None = None
    """An S3 Inventory, read instead of listing the bucket: its `manifest.json`, the folder of its
    configuration (the newest one is read), or one Parquet file. `path` then names folders or files of
    that bucket."""
    audio_root: str | None = None
    """The folder that paths in a manifest or a Parquet file are relative to. By default that of the
    file itself."""
    audio_allow: tuple[str, ...] = ()
    """Folders that such paths may lead into, by their names or by links, besides `audio_root` and
    the file's own folder."""
    max_clip_bytes: Annotated[int, Field(gt=0)] = 512 << 20
    """The size limit of a clip inside a tar, with its sidecars, or inside a Parquet file, which is held
    in memory whole. A larger one becomes an error row (`too_large`). Separate audio files are streamed
    and have no limit."""
    storage_options: Annotated[dict[str, Any], Field(repr=False)] = {}
    """Passed to fsspec, e.g. `endpoint_url`, `anon`."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @field_validator("path")
    @classmethod
    def _not_empty(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not path or (isinstance(path, tuple) and "" in path):
            raise ValueError("expected a path or a list of paths, found an empty one")
        return path

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError(
                f"expected an encoding that Python knows, found {encoding!r}"
            ) from None
        return encoding

    @field_validator("extensions")
    @classmethod
    def _bare(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(extension.lower().lstrip(".") for extension in extensions)
