"""The bench's instruments: its figures are only as good as these."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT
from sounds import encode, tone

from jobs.bench import testbed
from jobs.bench.__main__ import main
from jobs.bench.measure import Took
from jobs.bench.ways import Outcome, median, word_error_rate

BUSY = "import time\nwhile time.process_time() < {seconds}: pass\n"
# Leaves its child behind, as Ray does with its workers' workers.
ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {busy!r}], start_new_session=True)
"""
HUNGRY = "import time; held = bytearray(b'1') * ({mib} << 20); time.sleep(3)"
STORED = """
import tempfile
store = tempfile.TemporaryFile(dir="/dev/shm")
store.write(bytes(60 << 20))
store.flush()
"""


MEASURE = """
import dataclasses, json, sys
from jobs.bench.measure import measured
print(json.dumps(dataclasses.asdict(measured([sys.executable, "-c", sys.argv[1]]))))
"""


def taken(script: str) -> Took:
    """The cost of a script, measured in a process that has no other children."""
    command = [sys.executable, "-c", MEASURE, script]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return Took(**json.loads(said))


def outcome(wall_s: float, padding: float | None) -> Outcome:
    return Outcome(10.0, Took(0.0, wall_s, 2 * wall_s, 1 << 30, 1 << 20, wall_s), padding=padding)


def test_time_of_what_a_command_leaves_behind_is_counted_beside_its_own() -> None:
    took = taken(ORPHAN.format(busy=BUSY.format(seconds=2)) + BUSY.format(seconds=1))
    assert 2.4 < took.cpu_s < 5
    assert 0.5 < took.own_cpu_s < 1.5
    assert took.wall_s < took.cpu_s + 60


def test_memory_of_all_processes_is_counted_at_its_peak() -> None:
    both = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {HUNGRY.format(mib=200)!r}])\n"
    took = taken(both + STORED + HUNGRY.format(mib=100))
    assert 360 << 20 < took.peak_bytes < 500 << 20
    assert 100 << 20 < took.own_peak_bytes < 200 << 20


def test_a_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        taken("print('no such thing'); raise SystemExit(3)")
    assert "ended with 3:\nno such thing" in raised.value.stderr


def test_figures_are_medians_of_the_rounds_that_have_them() -> None:
    middle = median([outcome(5.0, None), outcome(1.0, 0.25), outcome(2.0, 0.75)])
    assert (middle.took.wall_s, middle.took.cpu_s, middle.padding) == (2.0, 4.0, 0.5)
    assert middle.took.own_cpu_s == 2.0
    assert middle.speed == 5.0 and middle.ready_s is None


def test_word_errors_are_counted_over_the_clips_with_a_reference() -> None:
    references = {"/one.wav": "My dog, it barks!"}
    said = {"/one.wav": {"it_text": "my dog bark"}, "/other.wav": {"it_text": "anything"}}
    assert word_error_rate(said, references) == 2 / 4
    assert word_error_rate({"/one.wav": {"text": "My dog barks"}}, references) == 1 / 4
    assert word_error_rate({"/other.wav": "anything"}, references) is None


def test_a_sample_is_spread_over_the_data_and_repeated_to_its_length(tmp_path: Path) -> None:
    for n in range(7):
        (tmp_path / f"{n}.wav").write_bytes(encode(tone(0.5), 16_000, "wav"))
    sample = testbed.sample(str(tmp_path), 14 / 3600)
    assert len(sample.files) == 28 and sample.audio_s == 14
    assert [Path(file).stem for file in testbed.sample(str(tmp_path), None).every(3).files] == [
        *"036"
    ]
    packed = tmp_path / "packed"
    testbed.packed(sample.files, packed, "parquet")
    assert [path.name for path in packed.iterdir()] == ["000000000.parquet"]


def test_the_bench_ends_with_its_tables_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.wav").write_bytes(encode(tone(2.0), 16_000, "wav"))
    report = tmp_path / "report.md"
    main(["decode", "--data", str(data), "--rounds", "1", "--markdown", str(report)])
    text = report.read_text()
    assert "| format | Earmark | soundfile + soxr | PyAV | Earmark / the better one |" in text
    assert [line.split(" | ")[0] for line in text.splitlines()].count("| MP3 48 kHz") == 1
    assert "| what | measured | wanted | met |" in text
    assert "MP3 48 kHz → 16 kHz" in capsys.readouterr().out


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["wisper"])
    assert "found wisper" in capsys.readouterr().err


def test_ways_that_there_are_none_of_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["decode", "--ways", "Daft"])
    assert "--ways: expected the row whisper, found decode" in capsys.readouterr().err
    (tmp_path / "a.wav").write_bytes(encode(tone(2.0), 16_000, "wav"))
    assert main(["whisper", "--data", str(tmp_path), "--ways", "dask"]) == 1
    assert "expected parts of Earmark, Earmark, window: guarded" in capsys.readouterr().out
