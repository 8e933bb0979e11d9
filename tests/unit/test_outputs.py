"""What commands read and write: paths that are mistaken or in the way, damaged tables, summaries."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from runs import Job
from tables import existing
from test_evaluate import make, speech
from test_mistaken_paths import COMMANDS

from jobs.cli import run
from jobs.console import MESSAGE_CHARACTERS, one_line
from jobs.export.folder import Folder
from jobs.export.options import Options
from jobs.export.select import select, shape_of
from jobs.label import main
from jobs.spilling import NoScratch, scratch_folder, spilling
from jobs.table.storage import Storage

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [row | {"duration_s": 1.0, "sample_rate": 16_000} for row in speech()]
    return Path(make(tmp_path, rows).path)


# --- tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a#b", "a?b", "x%20y", "back\\slash", "tab\there", "half\udcff"])
def test_a_path_that_no_delta_table_can_have_is_refused(
    tmp_path: Path, classifier: Path, capfd: Captured, name: str
) -> None:
    """delta-rs would write the log to one place, and look for it at another one."""
    job = Job(tmp_path, classifier)
    job.sound("a.wav", 300)
    for arguments in COMMANDS.values():
        assert run(arguments(job, str(tmp_path / name))) == 2
        assert "expected a path for a Delta table" in "".join(capfd.readouterr())
    assert {path.name for path in tmp_path.iterdir()} == {"audio", "job.yaml"}


@pytest.mark.parametrize("name", ["50%", "a b", "a+b", "ünï 中", "[a]*", "quo'te"])
def test_other_odd_paths_are_those_of_tables(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, speech()).path
    assert existing(path).rows(["source"]).num_rows == len(speech())


def log_with_a_gap(table: Path) -> None:
    (table / "_delta_log" / f"{1:020}.json").unlink()


def cut_short(table: Path) -> None:
    [file] = table.glob("part-*")
    file.write_bytes(file.read_bytes()[:-100])


def gone(table: Path) -> None:
    [file] = table.glob("part-*")
    file.unlink()


def overwritten(table: Path) -> None:
    [file] = table.glob("part-*")
    file.write_bytes(file.read_bytes()[:-4] + b"none")


@pytest.mark.parametrize("damage", [log_with_a_gap, cut_short, gone, overwritten])
def test_a_table_that_cannot_be_read_is_told_apart_from_one_that_is_none(
    table: Path, classifier: Path, capfd: Captured, damage: Callable[[Path], None]
) -> None:
    damage(table)
    tmp_path = table.parent
    job = Job(tmp_path, classifier)
    job.sound("a.wav", 300)
    files = {path.name for path in tmp_path.iterdir()}
    export = ["export", str(table), str(tmp_path / "out"), "--as", "csv", "--task", "words"]
    for arguments in (
        ["evaluate", str(table)],
        ["report", str(table), "-o", str(tmp_path / "page")],
        export,
        [*export, "--where", "words_score > 0.5"],  # which is not to blame
        ["plan", str(job.config), "--relabel"],
        ["run", str(job.config), "--relabel"],
    ):
        assert run(arguments) == 1, arguments
        told = "".join(capfd.readouterr())
        assert f"error: expected a table that can be read at {table}, found: " in told
        assert "`earmark verify` tells what is damaged" in told and "continues" not in told
    assert run(["verify", str(table)]) == 1
    assert {path.name for path in tmp_path.iterdir()} == files


def others(table: Path) -> None:
    shutil.rmtree(table)
    write_deltalake(table, pa.table({"clip_id": [1]}), description="Calls of 2026")


def without_log(table: Path) -> None:
    for file in (table / "_delta_log").iterdir():
        file.unlink()


@pytest.mark.parametrize("what", [others, without_log])
def test_what_is_no_table_of_a_run_is_refused_and_untouched(
    table: Path, classifier: Path, capfd: Captured, what: Callable[[Path], None]
) -> None:
    """The end of a run removes data files that the log does not name."""
    what(table)
    job = Job(table.parent, classifier)
    job.sound("a.wav", 300)
    files = sorted(table.rglob("*"))
    for arguments in (["plan", str(job.config)], ["run", str(job.config), "--relabel"]):
        assert run(arguments) == 2
        told = "".join(capfd.readouterr())
        assert "output.path: expected a table" in told and "choose another path" in told
    assert run(["verify", str(table)]) == 2
    assert "expected a table that Earmark made" in capfd.readouterr().err
    assert sorted(table.rglob("*")) == files


def test_an_error_of_a_store_is_told_with_its_causes() -> None:
    down, answer = "\n   \x1b[31m↳\x1b[0m ", '<?xml version="1.0"?>\n<Error>x</Error>'
    error = OSError(down.join(["Generic S3 error", "GET http://h/b", "404 Not Found", answer]))
    assert one_line(error) == "Generic S3 error: GET http://h/b: 404 Not Found"
    assert one_line(ValueError()) == "ValueError" and one_line(ValueError("\na\nb")) == "a"
    assert len(one_line(ValueError("x" * 10_000))) == MESSAGE_CHARACTERS + 1


def test_variables_of_stores_that_are_empty_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):  # botocore and delta-rs fail with them
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    options = Storage("s3://bucket/table", {"key": "k", "secret": "s"}).delta_options
    assert options is not None and options["AWS_REGION"] == "eu-west-3"
    assert "AWS_PROFILE" not in os.environ and "AWS_ENDPOINT_URL_S3" not in os.environ


# --- where reports and exports go -------------------------------------------------------------------


def test_a_report_goes_into_a_folder_of_this_machine(
    table: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["report", str(table), "-o", "s3://bucket/page"]) == 2
    assert "-o: expected a folder on this machine" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert run(["report", str(table), "-o", str(tmp_path / "file" / "page")]) == 1
    assert "-o: expected a folder that can be written" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"table", "file"}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("/", "found a mount point at /"),
        ("file", "expected a folder, found a file at "),
        ("file/below", "expected a folder, found a file at "),
        ("s3://", "expected a bucket in the URL"),
        ("nope://x", "expected a URL that fsspec can open"),
    ],
)
def test_what_can_be_no_export_is_refused_before_one_is_made(
    table: Path,
    tmp_path: Path,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert run(["export", str(table), out, "--as", "csv", "--task", "words"]) == 2
    assert f"OUT: {message}" in (told := capfd.readouterr().out) or message in told
    assert {path.name for path in tmp_path.iterdir()} == {"table", "file"}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_temporary_files_is_told_apart_from_a_damaged_table(
    table: Path, capfd: Captured
) -> None:
    with files_of_at_most(1500):
        assert run(["verify", str(table)]) == 1
    expected = f"expected room for temporary files in {gettempdir()}, found: .*too large"
    assert re.search(f"error: {expected}", capfd.readouterr().err)
    opened = existing(table)
    shape = shape_of(opened, "words")
    with (
        files_of_at_most(1500),
        pytest.raises(NoScratch, match=expected),
        scratch_folder() as folder,
    ):
        select(opened, shape, Options("csv"), folder)
    with pytest.raises(NoScratch), spilling("60MB") as database:
        database.execute(
            "SET threads = 1; SET max_temp_directory_size = '1MB'; "
            "SELECT md5(i::VARCHAR) AS x FROM range(3000000) t(i) ORDER BY x"
        )


def test_a_full_disk_is_named_by_an_export(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with (
        files_of_at_most(4000),
        pytest.raises(OSError, match=f"File too large: '{tmp_path}/x/clips.csv'"),
        folder.create_text("x/clips.csv") as file,
    ):
        file.write("x" * 10_000)
    assert not list((tmp_path / "x").iterdir())


@pytest.mark.parametrize("is_there", [True, False])
def test_an_export_to_a_link_goes_where_it_leads(
    table: Path, tmp_path: Path, is_there: bool
) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link"
    link.symlink_to(disk)
    if is_there:
        disk.mkdir()
    export = ["export", str(table), str(link), "--as", "csv", "--task", "words"]
    assert run(export) == 0
    assert link.is_symlink() and (disk / "clips.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"table", "disk", "link"}


# --- summaries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "file/summary.json", "gs://bucket/x", "nope://x"])
def test_a_summary_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    job = Job(tmp_path, classifier, input={"path": str(tmp_path / "nowhere")})
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("mine")
    result = job.run(summary_file=place)
    assert result.code == 2 and "nowhere" not in result.text
    assert f"--summary: expected a file or URL that can be written, found {place}: " in result.text
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"audio", "job.yaml", "folder", "file"} and not list(Path("folder").iterdir())


def test_a_summary_gets_its_folder_whatever_the_names(tmp_path: Path, classifier: Path) -> None:
    """Also if the config's name is not UTF-8, which no JSON can hold as it is."""
    job = Job(tmp_path, classifier, input={"path": str(tmp_path / "nowhere")})
    odd = tmp_path / "odd\udcff.yaml"
    shutil.copy(job.config, odd)
    for summary in ("new/folder/s #1.json", "another/summary.json"):
        place = str(tmp_path / summary)
        given = place if "new" in summary else Path(place).as_uri()
        assert main([str(odd), "--summary", given]) == 2
        document = json.loads(Path(place).read_text(encoding="utf-8"))
        assert document["exit_code"] == 2 and document["config"] == str(odd)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"exit_code": null}', "the run was killed or did not start"),
        ("[]", "the run was killed or did not start"),
        ("gs://bucket/x", "install gcsfs"),
        ("nope://x", "Protocol not known"),
    ],
)
def test_a_summary_that_is_none_has_no_exit_code(
    tmp_path: Path, capsys: Captured, content: str, message: str
) -> None:
    (tmp_path / "summary.json").write_text(content)
    place = content if "://" in content else str(tmp_path / "summary.json")
    assert run(["exit-code", place]) == 1
    assert message in capsys.readouterr().err
