"""Probes by which a node knows the table's folder; that nodes use them is in test_cluster.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.shared_storage import Files, expect_probe, input_files, look, probe_of, probing


def test_a_probe_is_there_while_a_run_is_and_so_are_those_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "_earmark"
    folder.mkdir()
    old, other = folder / "probe-old", folder / "probe-other"
    for path in (old, other):
        path.touch()
    os.utime(old, (0, time.time() - 3 * 86_400))  # its run was killed
    probe = probe_of(str(tmp_path), "run")
    with probing(str(tmp_path), "run"):
        expect_probe(probe)
        wrong, written, content = look(probe, [])
        assert not wrong and Path(written).read_text() == content
    assert list(folder.iterdir()) == [other]
    with pytest.raises(FileNotFoundError, match=r"output\.path is not shared by node"):
        expect_probe(probe)
    wrong, *_ = look(probe, [])
    assert wrong == {"output.path": f"{probe}: No such file or directory"}


def test_a_table_on_a_store_needs_no_probe() -> None:
    probe = probe_of("s3://bucket/labels", "run")
    with probing("s3://bucket/labels", "run"):
        expect_probe(probe)
    assert look(probe, []) == ({}, "", "")


def test_some_of_the_input_are_looked_at_and_what_is_another_file_is_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{n:03}.wav") for n in range(500)]
    for path in paths:
        Path(path).write_bytes(b"1")
    gone = str(tmp_path / "gone.wav")
    sources = pa.chunked_array([["s3://bucket/a.wav", gone, *paths]])
    files = input_files(sources)
    assert files.key == "input.path" and paths[-1] in files.found and gone not in files.found
    assert 60 <= len(files.found) <= 64
    assert look(None, [files])[0] == {}
    Path(paths[-1]).write_bytes(b"22")
    assert look(None, [files])[0] == {
        "input.path": f"another file at {paths[-1]} (size or time differ)"
    }
    assert look(None, [Files("tasks.t.model", {paths[-1]: (2, None)})])[0] == {}
    assert input_files(pa.chunked_array([], pa.string())).found == {}
