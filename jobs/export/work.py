"""The work of an export: its shards of sound, on Ray, and then the lists that name them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa

from audio_ops.errors import ClipError
from jobs.export.folder import RECORDS, Folder
from jobs.export.formats import Export, Item, Shard, load_format
from jobs.export.formats._fields import as_json, origin
from jobs.export.select import Selection
from jobs.export.shards import (
    ShardSettings,
    SoundSettings,
    read_record,
    record_name,
    recorded,
    with_id,
    write_shard,
)
from jobs.export.tally import Tally
from jobs.input import Input
from jobs.shared_storage import SeenInput, input_files, probe_of, probing
from jobs.sources import NO_VERSION
from jobs.sources._entries import add_versions
from jobs.stop import Stop

FAILED = ".earmark/failed.jsonl"
WAIT_S = 0.5
TASKS_PER_CPU = 2  # one that runs, and one whose rows are there when it ends
RETRIES = 3  # of a shard whose process died; a clip that kills one dies in the sandbox


def finished_shards(selection: Selection, folder: Folder) -> set[int]:
    """The shards that an earlier, killed export has written."""
    names = folder.storage.sizes(RECORDS)
    return {n for n in range(len(selection.cuts)) if record_name(n).rpartition("/")[2] in names}


def write_shards(
    selection: Selection,
    settings: Callable[[SeenInput, str | None], ShardSettings],
    folder: Folder,
    tally: Tally,
    stop: Stop,
) -> None:
    """Write the shards that are not there yet, on the Ray that runs, until all are or `stop` says so."""
    import ray

    done = finished_shards(selection, folder)
    for number in sorted(done):
        tally.add_record(read_record(folder, number))
    run_id = tally.console.run_id
    waiting: dict[Any, int] = {}
    with probing(folder.path, run_id):
        seen = SeenInput(ray.get_runtime_context().get_node_id(), _sampled(selection))
        shared = ray.put(settings(seen, probe_of(folder.path, run_id)))
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        claim = min(1.0, max(nodes)) or 1.0
        remote = ray.remote(write_shard).options(
            num_cpus=claim, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )

        def collect() -> None:
            ready, _ = ray.wait(list(waiting), timeout=WAIT_S)
            for one in ready:
                del waiting[one]
                tally.add_record(ray.get(one))
            tally.show()

        for number, (part, own, rows) in enumerate(selection.shards()):
            if number in done:
                continue
            most = max(2, int(TASKS_PER_CPU * sum(nodes) / claim))
            while len(waiting) >= most and not stop.now():
                collect()
            if stop.now():
                break
            shard = Shard(part, own, selection.parts[part])
            waiting[remote.remote(number, shard, rows, shared)] = number
        while waiting and not stop.now():
            collect()
        for one in waiting if stop.signal else ():  # a cluster that is gone would not answer
            ray.cancel(one)


def _sampled(selection: Selection) -> tuple[str, ...]:
    """Some local files of the input."""
    batch = next(selection.batches())
    return tuple(input_files(pa.chunked_array([batch["source"]])).found)


def write_lists(
    selection: Selection,
    format: str,
    export: Export,
    input: Input,
    folder: Folder,
    *,
    tally: Tally,
    stop: Stop,
) -> None:
    """Write the lists of each part, and which clips have failed."""
    module = load_format(format)
    has_sound = export.audio not in ("none", "link")

    def items(shards: Iterator[tuple[int, tuple[str, int, pa.Table]]]) -> Iterator[Item]:
        for number, (_, _, rows) in shards:
            pairs = (
                recorded(rows, read_record(folder, number))
                if has_sound
                else _as_they_are(rows, export, input, module.problem)
            )
            for item, error in pairs:
                if not has_sound:
                    tally.add(item["duration_s"], error, item["source"])
                if error is None:
                    yield item
                else:
                    failed.write(f"{as_json(_failure(item, error))}\n")
            tally.show()
            with stop.interrupting():
                pass

    with folder.create_text(FAILED) as failed:
        numbered = enumerate(selection.shards())
        for part, shards in groupby(numbered, key=lambda pair: pair[1][0]):
            of_part = items(shards)
            module.finish(part, of_part, export, folder)
            deque(of_part, maxlen=0)  # what a format without lists leaves


def _failure(item: Item, error: ClipError) -> dict[str, Any]:
    return {"id": item["id"], **origin(item), "error": error.kind, "message": error.message}


def _as_they_are(
    rows: pa.Table, export: Export, input: Input, problem: Callable[[Item, Export], str | None]
) -> Iterator[tuple[Item, ClipError | None]]:
    """The items of clips that stay where they are, and errors of those that do not any more."""
    items = [with_id(row) for row in rows.to_pylist()]
    reasons = {item["id"]: problem(item, export) for item in items}
    versions: dict[str, str] = {}
    if export.audio == "link":
        sources = {item["source"] for item in items if reasons[item["id"]] is None}
        found: list[dict[str, Any]] = [
            {"source": source, "source_version": None, "_problem": None}
            for source in sorted(sources)
        ]
        add_versions(found, input)
        versions = {row["source"]: row["source_version"] for row in found}
    for item in items:
        error = None
        if reason := reasons[item["id"]]:
            error = ClipError("unsupported", reason)
        elif versions.get(item["source"]) in NO_VERSION:
            error = ClipError("unreadable", "the file existed when it was labelled and is gone")
        elif versions.get(item["source"], item["source_version"]) != item["source_version"]:
            error = ClipError("unreadable", "the file has changed since it was labelled")
        yield item, error


def sound_settings(
    format: str, export: Export, sound: SoundSettings, folder: Folder
) -> Callable[[SeenInput, str | None], ShardSettings]:
    """What shards share, but for what is known when Ray runs."""
    return lambda seen, probe: ShardSettings(format, export, sound, folder, probe, seen)
