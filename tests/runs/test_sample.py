"""`earmark run --sample N`: few clips into a table beside the output, and what all would take."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import Job
from sounds import encode, tone

from jobs.label import main


def numbers(job: Job) -> list[int]:
    """The numbers of the clips in the table of the sample."""
    names = pq.read_table(f"{job.table}-sample")["source"].to_pylist()
    return sorted(int(Path(name).stem.removeprefix("clip")) for name in names)


def test_a_sample_is_spread_evenly_and_tells_what_the_whole_takes(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier)
    job.sounds(31, seconds=0.5)
    file = tmp_path / "summary.json"
    price = "resources.price_per_hour.CPU=1800"
    result = job.run(price, sample=4, summary_file=str(file))
    assert result.code == 0, result.text
    assert numbers(job) == [0, 10, 20, 30] and not job.table.exists()
    summary = json.loads(file.read_text())
    whole = summary["whole"]
    assert summary["machines"] == {"CPU": 2.0}
    assert whole["cost"] == pytest.approx(whole["seconds"])  # of 2 CPUs at 0.50 a second
    assert f" and costs about {whole['cost']:.2f}" in result.text
    assert whole["clips"] == 31 and whole["audio_hours"] == pytest.approx(31 * 0.5 / 3600)
    [task] = whole["tasks"].values()
    assert whole["seconds"] == task["seconds"] == pytest.approx(15.5 / task["times_real_time"])
    assert "the whole input: about 31 clips" in result.text
    assert "labelling it on this cluster takes about" in result.text

    # Other settings need no --relabel, and an earlier sample's rows go.
    result = job.run("tasks.kind.top_k=2", sample=3)
    assert result.code == 0, result.text
    assert numbers(job) == [0, 15, 30]
    again = job.run("tasks.kind.top_k=2", sample=3)
    assert again.code == 0 and "nothing to do: 3 clips found" in again.text


def test_of_tars_the_first_clips_are_a_sample_and_sizes_tell_how_many_there_are(
    tmp_path: Path, local_ray: None, classifier: Path
) -> None:
    job = Job(tmp_path, classifier, input={"path": str(tmp_path / "audio"), "format": "webdataset"})
    sound = encode(tone(0.5), 16_000, "wav")
    for shard in range(3):
        with tarfile.open(job.audio / f"{shard}.tar", "w") as tar:
            for clip in range(40):
                info = tarfile.TarInfo(f"{shard}-{clip:02}.wav")
                info.size = len(sound)
                tar.addfile(info, io.BytesIO(sound))

    def members() -> list[str]:
        return sorted(pq.read_table(f"{job.table}-sample")["member"].to_pylist())

    result = job.run(sample=5)
    assert result.code == 0, result.text
    assert members() == [f"{shard}-{clip:02}.wav" for shard in range(3) for clip in range(2)]
    [line] = [line for line in result.text.splitlines() if line.startswith("the whole input")]
    clips = int(line.split("about ")[1].split()[0])
    assert clips == pytest.approx(120, abs=6), line  # a tar has blocks of zeros at its end

    assert job.run(sample=2).code == 0
    assert members() == [f"{shard}-{clip:02}.wav" for shard in range(3) for clip in range(2)]
    assert "nothing to do" in job.run(sample=5).text
    assert job.run(sample=9).code == 0
    assert members() == [f"{shard}-{clip:02}.wav" for shard in range(3) for clip in range(3)]


@pytest.mark.parametrize("number", ["0", "-3", "all", "2.5"])
def test_a_sample_is_a_whole_number(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["job.yaml", "--sample", number])
    assert ended.value.code == 2
    assert f"expected a whole number of 1 or more, found '{number}'" in capsys.readouterr().err
