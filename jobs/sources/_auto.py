"""`format: auto`: recognises the packaging by the names of the files, and a list by its first line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from jobs.input import Input
from jobs.sources import (
    BadInput,
    audiofolder,
    lhotse,
    ljspeech,
    load_source,
    manifest,
    source_names,
)
from jobs.sources._lines import PACKED, TextList, first_line
from jobs.sources._paths import Found, absolute, folder_of
from jobs.sources._walk import Search, extension, walk

MAX_FILES = 10_000  # whose names are looked at, for each path
# Only if `path` names the file.
NAMED_LISTS = tuple(f"{kind}{packed}" for kind in (".json", ".txt", ".lst") for packed in PACKED)
LISTS = ("lhotse", "ljspeech")  # recognised among manifests by their first line
NOUNS = {
    "audiofolder": ("audio file, with metadata", "audio files, with metadata"),
    "files": ("audio file", "audio files"),
    "kaldi": ("wav.scp", "wav.scp"),
    "lhotse": ("list of Lhotse", "lists of Lhotse"),
    "ljspeech": ("list of LJSpeech", "lists of LJSpeech"),
    "parquet": ("Parquet file", "Parquet files"),
    "webdataset": ("tar", "tars"),
}
ARROW = (
    "Arrow files, as of save_to_disk, are not read: write Parquet from them, "
    "datasets.load_from_disk(FOLDER).to_parquet(FILE)"
)
UNPACK = (
    "zips and the like are not read, and of compressed files those of gzip and zstd: unpack them"
)
TABLES = "tables of this kind are not read: write Parquet from them"
HINTS = {
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ARROW),
    **dict.fromkeys((".zip", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar"), UNPACK),
    **dict.fromkeys((".lance", ".orc", ".avro", ".xlsx", ".xls", ".h5", ".hdf5"), TABLES),
}


def recognise(input: Input, output: str) -> tuple[Input, str]:
    """The input with the packaging that it has, and a line that explains the choice. Files in `output`
    are ignored.

    Manifests count only if there are no other files, because they often lie beside those they list.
    Raises BadInput if the files are of several kinds, FileNotFoundError if there are none.
    """
    found = _by_kind(input, output)
    metadata = found.pop("metadata", [])
    if _is_audiofolder(metadata, found, input):
        found = {"audiofolder": found["files"]}
    else:
        for file in metadata:
            is_parquet = file.source.lower().endswith(".parquet")
            found.setdefault("parquet" if is_parquet else "manifest", []).append(file)
    if metadata and "files" in found and _is_ljspeech(metadata[0], input):
        found = {"ljspeech": metadata}
    elif set(found) == {"manifest"}:
        lists = found["manifest"]
        kind = _kind_of_list(lists[0], input)
        if kind == "tarred" and (tars := _tars_of(lists[0], input)):
            names = tuple(file.source for file in lists)
            update = {"path": tars, "manifest": names, "format": "webdataset"}
            line = f"input.format: webdataset (tars of {where(input)}: {tars})"
            return input.model_copy(update=update), line
        found = {"manifest" if kind == "tarred" else kind: lists}
    kinds = set(found) - {"manifest"} or {"manifest"} & set(found) or {"files"}
    summary = ", ".join(f"{len(found[kind]):,} {_noun(kind, found)}" for kind in sorted(found))
    if len(kinds) > 1:
        raise BadInput(
            f"input.format: expected one of {', '.join(sorted(kinds))}, as there is "
            f"more than one kind of file: {summary}"
        )
    kind = kinds.pop()
    if kind == "files":
        _refuse_unread([file.source for file in found.get("files", ())])
    line = f"input.format: {kind} ({summary or 'no known kind of file'} in {where(input)})"
    return input.model_copy(update={"format": kind}), line


def hint(extensions: Collection[str]) -> str:
    """What to do about files that no packaging reads, for the end of a message."""
    texts = dict.fromkeys(text for kind, text in HINTS.items() if kind in extensions)
    return "".join(f"; {text}" for text in texts)


def _refuse_unread(named: Sequence[str]) -> None:
    """Raise BadInput if all files that `path` names are of kinds that no packaging reads."""
    kinds = {extension(source) for source in named}
    if named and kinds <= HINTS.keys():
        raise BadInput(f"input.path: expected sound, found {named[0]}{hint(kinds)}")


def where(input: Input) -> str:
    """The input's first path, for messages."""
    return input.paths[0] + (" ..." if len(input.paths) > 1 else "")


def _by_kind(input: Input, output: str) -> dict[str, list[Found]]:
    suffixes = {name: load_source(name).suffixes(input) for name in source_names()}
    every = tuple(suffix for each in suffixes.values() for suffix in each)
    ours = f"{absolute(output)}/"
    found = defaultdict[str, list[Found]](list)
    for path in input.paths:
        search = Search(
            every,
            input.storage_options,
            lambda _: None,
            (".", "_delta_log"),
            inventory=input.inventory,
        )
        walked = walk(path, search, in_order=True)
        files = (file for file in walked if not file.source.startswith(ours))
        for file in islice(files, MAX_FILES):
            name = file.source.lower()
            kind = next((kind for kind in suffixes if name.endswith(suffixes[kind])), "files")
            if kind in LISTS:
                kind = "manifest"
            if kind == "files" and name.endswith(NAMED_LISTS) and manifest.is_list(file, input):
                kind = "manifest"
            if kind in ("manifest", "parquet") and audiofolder.is_metadata(file.source):
                kind = "metadata"
            found[kind].append(file)
    return dict(found)


def _is_audiofolder(metadata: list[Found], found: dict[str, list[Found]], input: Input) -> bool:
    """Whether metadata lie beside audio files, and name them."""
    if not metadata or set(found) - {"manifest"} != {"files"}:
        return False
    try:
        return audiofolder.names_files(metadata[0], input)
    except (BadInput, FileNotFoundError):
        return False


def _is_ljspeech(found: Found, input: Input) -> bool:
    is_text = found.source.lower().endswith(".csv")
    return is_text and ljspeech.is_list(found, first_line(found, input), input)


def _kind_of_list(found: Found, input: Input) -> str:
    line = first_line(found, input).strip()
    if line.startswith(("{", "[")):
        first = next(iter(TextList(found, input)), None)
        values = first.values if first and isinstance(first.values, dict) else {}
        if "shard_id" in values:
            return "tarred"
        return "lhotse" if lhotse.is_item(values) else "manifest"
    return "ljspeech" if ljspeech.is_list(found, line, input) else "manifest"


def _tars_of(found: Found, input: Input) -> str | None:
    """The glob of the tars whose members a list names: beside it, or one folder above."""
    folder = folder_of(found.source)
    for tars in (f"{folder}/*.tar", f"{folder_of(folder)}/*.tar"):
        try:
            next(walk(tars, Search((), input.storage_options, lambda _: None), in_order=True))
        except FileNotFoundError:
            continue
        return tars
    return None


def _noun(kind: str, found: Mapping[str, Sequence[Found]]) -> str:
    one, many = NOUNS.get(kind, (kind, f"{kind}s"))
    return one if len(found[kind]) == 1 else many
