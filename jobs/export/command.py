"""Exports a table's clips and labels in a format that others train on.

earmark export TABLE OUT --as FORMAT
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs import ray_compat
from jobs.config import ConfigError
from jobs.console import Console, new_run_id
from jobs.exit_codes import BAD_CONFIG, FAILED, IN_USE, OK, TOO_MANY_ERRORS, exit_with
from jobs.export.arguments import add_arguments
from jobs.export.folder import ABOUT, PROBE, Folder, complete, folders, is_empty
from jobs.export.formats import Export, load_format
from jobs.export.options import BadExport
from jobs.export.request import Request, request_of
from jobs.export.select import Selection, Shape, select, shape_of
from jobs.export.sound import SoundSettings
from jobs.export.tally import Tally
from jobs.export.work import FAILED as FAILED_CLIPS
from jobs.export.work import sound_settings, write_lists, write_shards
from jobs.ray_address import expect_answer, ray_address
from jobs.ray_cluster import running_ray
from jobs.resources import CannotRun
from jobs.sources._paths import absolute, is_local
from jobs.spilling import NoScratch, scratch_folder
from jobs.stop import Stop, Stopped
from jobs.table.lease import Holder, Lease, TableInUse, holder_of, watched
from jobs.table.storage import Storage
from jobs.table.table import UnreadableTable

__all__ = ["add_arguments", "export", "run_from"]

EXPORT_VERSION = 1  # to be raised when the same table and options give other bytes


def export(request: Request, console: Console, stop: Stop) -> int:
    """Write an export; returns the exit code.

    Raises BadExport, TableInUse, CannotRun, Stopped and OSError.
    """
    options, table = request.options, request.table
    format = load_format(options.format)
    out, unfinished = folders(request.out, request.storage)
    refuse_places(request, out)
    with scratch_folder() as scratch:
        with stop.interrupting():
            shape = shape_of(table, options.task)
            console.progress("selecting clips")
            selection = select(table, shape, options, scratch)
            what = export_of(request, shape, selection, out)
            what = format.prepared(what)
        about = about_of(request, shape, selection)
        if is_there(out, unfinished, about):
            console.say(f"nothing to do: the export is there\nexport: {out.path}")
            return OK
        noun = "segments" if options.cut else "clips"
        tally = Tally(console, selection.items, noun)
        console.say(
            f"{selection.items:,} {noun} of {table.path} selected (version {table.version})"
        )
        for reason, count in selection.left_out.items():
            console.say(f"  left out: {count:,} with {reason}")
        refuse_foreign(unfinished)
        try:
            with held(unfinished, console):
                start(unfinished, about, console)
                write(request, selection, what, unfinished, tally=tally, stop=stop)
        except BadExport:
            unfinished.remove()
            raise
        complete(unfinished, out)
    return told(request, out, tally, selection)


def write(
    request: Request,
    selection: Selection,
    what: Export,
    unfinished: Folder,
    *,
    tally: Tally,
    stop: Stop,
) -> None:
    """Write the shards and the lists. Raises BadExport if no clip can be exported, and Stopped."""
    name = request.options.format
    if what.audio not in ("none", "link"):
        with running_ray(request.config, tally.console, stop):
            make = sound_settings(name, what, sound_of(request, what), unfinished)
            write_shards(selection, make, unfinished, tally, stop)
            stop.raise_lost()
        if stop.why:
            raise Stopped
    tally.console.progress("writing the lists")
    input = request.config.input
    write_lists(selection, name, what, input, unfinished, tally=tally, stop=stop)
    if not tally.written:
        raise BadExport(
            f"expected clips that can be exported, found none among {tally.total:,}:\n  "
            + "\n  ".join(tally.failures())
        )


def refuse_places(request: Request, out: Folder) -> None:
    """Raise BadExport for what is no folder, or none that an unfinished one can replace, for one that
    readers of the table would read, and for one that Ray deletes."""
    try:
        Storage(request.out, request.storage)
    except ValueError as error:
        raise BadExport(f"OUT: {error}") from None
    if is_local(out.path) and os.path.ismount(out.path):
        raise BadExport(
            f"OUT: expected a folder that another one can replace, found a mount point at {out.path}: "
            "name a new folder in it"
        )
    table = absolute(request.table.path)
    if f"{out.path}/".startswith(f"{table}/"):
        raise BadExport(f"OUT: expected a folder outside of the table, found {out.path}")
    if is_local(out.path) and ray_compat.UPLOAD.match(os.path.realpath(out.path)):
        raise BadExport(
            f"OUT: expected an absolute path or a URL outside of the job's upload, found {out.path}"
        )
    if any(not char.isprintable() for char in out.path):
        raise BadExport(f"OUT: expected a path without line ends and the like, found {out.path!r}")


def export_of(request: Request, shape: Shape, selection: Selection, out: Folder) -> Export:
    """What the format gets to know."""
    options = request.options
    return Export(
        out=out.path,
        parts=selection.parts,
        is_split=options.split is not None,
        kind=shape.kind,
        audio=request.audio,
        is_cut=options.cut is not None,
        columns=selection.columns,
        has_speaker=selection.has_speaker,
    )


def sound_of(request: Request, export: Export) -> SoundSettings:
    """How sound is read: as for the table's labels."""
    settings = request.table.settings()
    kept = pa.schema([(name, pa.string()) for name in settings.get("keep", [])])
    encoding = "wav" if export.audio == "wav" else "flac"
    config, rate = request.config, request.options.sample_rate
    return SoundSettings(config.input, config.audio, kept, export.audio, encoding, rate)


def about_of(request: Request, shape: Shape, selection: Selection) -> dict[str, Any]:
    """What tells this export from another one, as JSON values."""
    options = asdict(request.options) | {"task": shape.task}
    options["audio"] = request.audio
    if options["cut"] and math.isinf(options["cut"]["max_s"]):
        options["cut"]["max_s"] = None
    return {
        "earmark_export": EXPORT_VERSION,
        "table": request.table.path,
        "options": options,
        "items": selection.items,
        "selection": selection.digest,
    }


def is_there(out: Folder, unfinished: Folder, about: Mapping[str, Any]) -> bool:
    """Whether the export is there already. Raises BadExport if something else is."""
    if is_empty(out):
        return False
    found = out.about()
    if found == about:
        return True
    if found is None and unfinished.about() == about:  # a store's copy was not finished
        return False
    what = "files of others" if found is None else "another export"
    raise BadExport(
        f"OUT: expected an empty folder or none, found {what} in {out.path}: remove it, or choose "
        "another one"
    )


@contextmanager
def held(unfinished: Folder, console: Console) -> Iterator[None]:
    """Keep other exports out of the unfinished folder. Raises TableInUse."""
    storage = unfinished.storage
    if storage.is_local:
        os.makedirs(storage.root, exist_ok=True)
    try:
        watched(storage, console.say)
    except TableInUse:
        other = holder_of(storage) or "whose note is gone"
        what = f"{unfinished.path} is being written by another export, {other}"
        raise TableInUse(what) from None
    lease = Lease(storage, Holder.me(console.run_id), lambda: False)
    lease.write()
    try:
        yield
    finally:
        lease.end()


def refuse_foreign(unfinished: Folder) -> None:
    """Raise BadExport if files that no export made lie where this one is to be made."""
    names = unfinished.storage.names() - {PROBE, ".earmark"}
    if names and unfinished.about() is None:
        raise BadExport(
            f"OUT: expected no {unfinished.path}, in which the export is made, or that of a killed "
            "export, found files of others: remove it, or choose another OUT"
        )


def start(unfinished: Folder, about: Mapping[str, Any], console: Console) -> None:
    """Continue the unfinished export, if it is this one; else begin anew."""
    if unfinished.about() == about:
        console.say(f"an unfinished export in {unfinished.path} is continued")
        return
    for name in unfinished.storage.names() - {PROBE}:
        unfinished.remove(name)
    unfinished.write(ABOUT, json.dumps(about, indent=1, ensure_ascii=False).encode())


def told(request: Request, out: Folder, tally: Tally, selection: Selection) -> int:
    """Show the result; returns the exit code."""
    tally.finish()
    say = tally.console.say
    if request.options.split is not None:
        say(f"parts: {', '.join(f'{part} ({n:,})' for part, n in selection.sizes().items())}")
    say(f"export: {out.path}")
    if tally.failed:
        say(f"failed clips: {out.path}/{FAILED_CLIPS}")
    say(f"log: {tally.console.log}")
    share = tally.failed / tally.total
    if share > request.config.max_error_fraction:
        say(
            f"{share:.1%} of the {tally.noun} failed, more than max_error_fraction "
            f"({request.config.max_error_fraction:.1%}) allows: exit code {TOO_MANY_ERRORS}"
        )
        return TOO_MANY_ERRORS
    return OK


def run_from(args: argparse.Namespace) -> int:
    """Export what the arguments of `add_arguments` ask for; returns the exit code."""
    with Console(new_run_id()) as console, Stop() as stop:
        stop.give_up = lambda error: exit_with(lost(error, console))
        try:
            with stop.interrupting():
                request = request_of(args)
                if (address := ray_address()) and request.audio not in ("none", "link"):
                    expect_answer(address, console.say)
            return export(request, console, stop)
        except TableInUse as error:
            console.say(f"error: {error}")
            return IN_USE
        except (ConfigError, CannotRun, BadExport) as error:
            console.say(f"error: {error}")
            return BAD_CONFIG
        except (UnreadableTable, NoScratch) as error:
            traceback.print_exc()
            console.say(f"error: {error}\nlog: {console.log}")
            return FAILED
        except (Stopped, SystemExit):
            console.say(f"stopped ({stop.why}): the same command continues")
            return stop.code or 128 + signal.SIGTERM
        except Exception as error:
            traceback.print_exc()
            return lost(error, console)


def lost(error: Exception, console: Console) -> int:
    """Tell what ended an export; returns the exit code."""
    line = ray_compat.first_line(error)
    console.say(f"error: {line}; the same command continues\nlog: {console.log}")
    return FAILED
