"""Nothing in a clip, a tar, a Parquet file or a manifest makes Earmark open a file, open a
connection or run code: a listener on loopback and a canary file would tell."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import bad_audio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import Job
from sounds import encode, tone
from test_sources import walk, write_lines

from audio_ops.decode import ffmpeg
from audio_ops.decode.open import decode
from audio_ops.errors import ClipError
from jobs.config import ConfigError
from jobs.config_file import UNSAFE_LOADING, load_config
from jobs.input import Input
from jobs.sources import load_source

CANARY_SAMPLES = 3200
WAV = encode(tone(0.2), 16_000, "wav")


class Lure:
    """A canary file, and a listener that counts who comes and hangs up."""

    def __init__(self, folder: Path, listener: socket.socket):
        self.folder, self.listener, self.visits = folder, listener, 0
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/x"
        self.canary = folder / "canary.wav"
        self.canary.write_bytes(WAV)

    def serve(self) -> None:
        """Until a visitor says so."""
        while True:
            with self.listener.accept()[0] as visitor:
                visitor.settimeout(10)
                with contextlib.suppress(OSError):
                    if visitor.recv(4) == b"STOP":
                        return
                self.visits += 1


@pytest.fixture
def lure(tmp_path: Path) -> Iterator[Lure]:
    (tmp_path / "outside").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        lure = Lure(tmp_path / "outside", listener)
        threads.submit(lure.serve)
        yield lure
        with socket.create_connection(("127.0.0.1", lure.port)) as visitor:
            visitor.sendall(b"STOP")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def matroska(kind: str, content: bytes) -> bytes:
    return bytes.fromhex(kind) + (0x0100000000000000 | len(content)).to_bytes(8, "big") + content


def scripts(url: str, path: str) -> dict[str, tuple[str | None, bytes]]:
    """Ways to name another file: the demuxer that would follow it, and the script."""
    host = url.split("/")[2]
    found: dict[str, tuple[str | None, bytes]] = {}
    m3u8 = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n{}#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S">{}<Period><AdaptationSet mimeType="audio/mp4">'
        '<Representation id="1" bandwidth="1">{}</Representation></AdaptationSet></Period></MPD>'
    )
    xml = '<?xml version="1.0"?>'
    for name, target in {"url": url, "path": path, "file URL": f"file://{path}"}.items():
        texts = {
            "HLS": ("hls", m3u8.format("", target)),
            "HLS with a key": (
                "hls",
                m3u8.format(f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n', target),
            ),
            "HLS with an initialisation": (
                "hls",
                m3u8.format(f'#EXT-X-MAP:URI="{target}"\n', target),
            ),
            "HLS of HLS": ("hls", f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}.m3u8\n"),
            "DASH": ("dash", mpd.format("", f"<BaseURL>{target}</BaseURL>")),
            "DASH from elsewhere": ("dash", mpd.format(f"<Location>{target}</Location>", "")),
            "concat": ("concat", f"ffconcat version 1.0\nfile '{target}'\n"),
            "concat without its name": ("concat", f"file '{target}'\n"),
            "M3U": (None, f"{target}\n"),
            "PLS": (None, f"[playlist]\nFile1={target}\nNumberOfEntries=1\n"),
            "ASX": (None, f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'),
            "XSPF": (
                None,
                f'{xml}<playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track>'
                f"<location>{target}</location></track></trackList></playlist>",
            ),
            "SMIL": (None, f'<smil><body><audio src="{target}"/></body></smil>'),
            "an external entity": (
                None,
                f'{xml}<!DOCTYPE x [<!ENTITY e SYSTEM "{target}">]><MPD>&e;</MPD>',
            ),
            "an ASF redirection": (None, f"[Reference]\nRef1={target}\n"),
            "RealAudio's list": (None, f"{target}\n--stop--\n"),
            "a QuickTime link": (
                None,
                f'{xml}<?quicktime type="application/x-quicktime-media-link"?>'
                f'<embed src="{target}"/>',
            ),
        }
        found |= {f"{kind}, {name}": (d, text.encode()) for kind, (d, text) in texts.items()}
        found[f"a movie that refers, {name}"] = (
            "mov",
            movie_with_data_elsewhere(target, alias=b"url "),
        )
        found[f"a movie with an alias, {name}"] = (
            "mov",
            movie_with_data_elsewhere(target, alias=b"alis"),
        )
        reference = struct.pack(">I4sI", 0, b"url ", len(target) + 1) + target.encode() + b"\0"
        found[f"a reference movie, {name}"] = (
            "mov",
            box(b"ftyp", b"qt  \0\0\0\0qt  ")
            + box(b"moov", box(b"rmra", box(b"rmda", box(b"rdrf", reference)))),
        )
        segment = matroska("73a4", bytes(16)) + matroska("3eb923", bytes(range(16)))
        segment += matroska("3e83bb", target.encode())  # NextFilename
        found[f"a matroska link, {name}"] = (
            "matroska",
            matroska("1a45dfa3", matroska("4282", b"matroska"))
            + matroska("18538067", matroska("1549a966", segment)),
        )
    rtp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio {host[10:]} RTP/AVP 0\n"
    return found | {"SDP": ("sdp", rtp.encode()), "RTSP": (None, f"rtsp://{host}/x".encode())}


def movie_with_data_elsewhere(target: str, alias: bytes) -> bytes:
    """An M4A whose samples are said to be in another file."""
    movie = bad_audio.good(0.3, "mov")
    at = movie.index(b"dref")
    size = int.from_bytes(movie[at - 4 : at], "big")
    content = target.encode() + b"\0"
    if alias == b"alis":
        content = alias_record(target)
    # version and flags (0: the data is not in this file), then one entry
    entry = box(alias, bytes(4) + content)
    other = box(b"dref", bytes(4) + struct.pack(">I", 1) + entry)
    grown = bytearray(movie[: at - 4] + other + movie[at - 4 + size :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = bytes(grown).index(kind) - 4
        before = int.from_bytes(grown[place : place + 4], "big")
        grown[place : place + 4] = (before + len(other) - size).to_bytes(4, "big")
    return bytes(grown)


def alias_record(target: str) -> bytes:
    """Of the Macintosh, as FFmpeg reads it: a volume, a file name, and its path as type 2."""
    name = target.rsplit("/", 1)[-1].encode()[:63]
    record = bytearray(150)
    record[10] = 0
    record[50] = len(name)
    record[51 : 51 + len(name)] = name
    record[130:134] = struct.pack(">hh", 1, 1)
    path = target.encode()
    return bytes(record) + struct.pack(">hh", 2, len(path)) + path + struct.pack(">hh", -1, 0)


def samples_of(open_and_count: Callable[[], int]) -> int:
    """How many samples came out, 0 if it was refused."""
    try:
        return open_and_count()
    except (ClipError, av.FFmpegError, PermissionError, ValueError, LookupError):
        return 0


def test_no_script_opens_anything(lure: Lure) -> None:
    """By itself, under a name, and even through the demuxer that would follow it."""
    lures = scripts(lure.url, str(lure.canary))
    assert len(lures) > 60
    files = opened_files()
    for name, (demuxer, script) in lures.items():
        suffix = {"hls": "m3u8", "dash": "mpd", "mov": "mov", "sdp": "sdp"}.get(
            demuxer or "", "pls"
        )
        path = lure.folder / f"x.{suffix}"
        path.write_bytes(script)
        found = [samples_of(lambda: decode(io.BytesIO(script))[0].shape[1])]  # noqa: B023
        with path.open("rb") as named:
            found.append(samples_of(lambda: decode(named)[0].shape[1]))
        if demuxer:
            found.append(samples_of(lambda: demuxed(script, demuxer)))  # noqa: B023
        # a movie may well have sound of its own
        assert not any(found) or (demuxer == "mov" and CANARY_SAMPLES not in found), name
        assert opened_files() == files, name
        assert not lure.visits, name


def demuxed(script: bytes, demuxer: str) -> int:
    with ffmpeg.open_demuxer(io.BytesIO(script), demuxer) as opened:
        return sum(frame.samples for frame in opened.decode(audio=0))


def opened_files() -> set[str]:
    """The files that this process holds open."""
    found = set()
    for link in Path("/proc/self/fd").glob("*") if Path("/proc/self/fd").exists() else ():
        with contextlib.suppress(OSError):
            found.add(os.readlink(link))
    return {name for name in found if name.startswith("/") and "/proc/" not in name}


def test_ffmpeg_alone_would_have_come(lure: Lure) -> None:
    """Else the test above shows nothing. Each of the two lists stops it, so both are spelt right."""
    _, script = scripts(lure.url, str(lure.canary))["concat, path"]

    def follow(**options: str) -> int:
        guard = {"safe": "0", **options}
        with av.open(io.BytesIO(script), format="concat", container_options=guard) as file:
            return sum(frame.samples for frame in file.decode(audio=0))

    assert follow() == CANARY_SAMPLES
    assert follow(protocol_whitelsit="none") == CANARY_SAMPLES  # what is misspelt is ignored
    for option in ("format_whitelist", "protocol_whitelist"):
        guard = {option: ffmpeg.OPTIONS[option]}
        assert samples_of(lambda: follow(**guard)) == 0  # noqa: B023


def test_ffmpeg_alone_would_have_connected(lure: Lure) -> None:
    path = lure.folder / "x.m3u8"
    path.write_bytes(scripts(lure.url + ".ts", "")["HLS, url"][1])
    with path.open("rb") as named:  # by which FFmpeg takes it for a playlist
        assert samples_of(lambda: len(av.open(named).streams)) == 0
    assert lure.visits


# --- references ----------------------------------------------------------------------------------


def references(lure: Lure) -> list[str]:
    return [
        *(lure.url, f"{lure.url}.wav", f"https{lure.url[4:]}", f"ftp{lure.url[4:]}"),
        *(str(lure.canary), f"file://{lure.canary}", f"file://localhost{lure.canary}"),
        *("../outside/canary.wav", "sub/../../outside/canary.wav", "./../outside/canary.wav"),
        *("link.wav", "folder_link/canary.wav", "/etc/passwd", "/dev/stdin", "/proc/self/environ"),
        *("s3://elsewhere/x.wav", "gs://elsewhere/x.wav", "memory://x.wav", "hf://x/y.wav"),
        *(f"simplecache::{lure.url}", f"zip://x.wav::{lure.url}", f"reference://::{lure.url}"),
        *(f"FILE://{lure.canary}", f"file:{lure.canary}", f"//{lure.canary}", "\\\\host\\x.wav"),
        *("a\0b.wav", "~/x.wav", "%2e%2e/outside/canary.wav", "x" * 5000),
        *(
            f"http://user:hunter2@127.0.0.1:{lure.port}/x.wav",
            f"{lure.url}?X-Amz-Signature=hunter2",
        ),
    ]


@pytest.fixture
def dataset(tmp_path: Path, lure: Lure) -> Path:
    """A folder with links that lead out of it."""
    folder = tmp_path / "dataset"
    (folder / "sub").mkdir(parents=True)
    (folder / "good.wav").write_bytes(WAV)
    (folder / "sub" / "inner.wav").symlink_to(folder / "good.wav")
    (folder / "link.wav").symlink_to(lure.canary)
    (folder / "folder_link").symlink_to(lure.folder)
    return folder


@pytest.mark.parametrize("format", ["manifest", "parquet"])
def test_references_lead_nowhere_else(lure: Lure, dataset: Path, format: str) -> None:
    inside = ["good.wav", "sub/../good.wav", "sub/inner.wav", f"file://{dataset}/good.wav"]
    names = references(lure) + inside
    if format == "manifest":
        lines = [json.dumps({"audio_filepath": name}) for name in names]
        path = write_lines(dataset / "x.jsonl", lines)
    else:
        path = dataset / "x.parquet"
        pq.write_table(pa.table({"path": names}), path)
    found = walk(Input(path=str(path), format=format))
    refused = [sound for _, sound in found if isinstance(sound, ClipError)]
    assert {error.kind for error in refused} == {"unreadable"}
    assert len(refused) == len(references(lure))
    good = [sound for _, sound in found if not isinstance(sound, ClipError)]
    assert set(good) == {WAV}
    assert "hunter2" not in "".join(error.message for error in refused)
    assert not lure.visits


def test_audio_root_opens_that_folder_and_no_other(lure: Lure, dataset: Path) -> None:
    names = ["link.wav", "folder_link/canary.wav", str(lure.canary), "/etc/passwd"]
    path = write_lines(dataset / "x.jsonl", [json.dumps({"audio_filepath": n}) for n in names])
    input = Input(path=str(path), format="manifest", audio_root=str(lure.folder))
    sounds = [s if isinstance(s, bytes) else s.kind for _, s in walk(input)]
    # relative names begin at audio_root now, where there are no links
    assert sounds == ["unreadable", "unreadable", WAV, "unreadable"]


# --- code ----------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("column", ["audio", "x"])
def test_a_pickle_in_a_column_stays_what_it_is(tmp_path: Path, column: str) -> None:
    import ray.data  # noqa: F401  # registers types that unpickle what they hold

    data = pickle.dumps(Payload(tmp_path / "ran"))
    path = tmp_path / "x.parquet"
    path.write_bytes(bad_audio.pickled(column, data))
    assert type(pq.read_schema(path).field(column).type).__name__ == "ArrowPythonObjectType"
    source, input = load_source("parquet"), Input(path=str(path), format="parquet")
    kept = source.columns(input, ["x"])
    assert kept.field("x").type == pa.binary()
    [(row, sound)] = source.clips(source.find(input, print, kept).clips, input, kept)
    assert (sound.read() if column == "audio" else row["x"]) == data
    assert not (tmp_path / "ran").exists()


def test_a_broken_extension_type_is_damage(tmp_path: Path) -> None:
    import ray.data  # noqa: F401

    metadata = {
        "ARROW:extension:name": "ray.data.arrow_tensor",
        "ARROW:extension:metadata": pickle.dumps(Payload(tmp_path / "ran")),
    }
    field = pa.field("x", pa.list_(pa.int64()), metadata=metadata)
    schema = pa.schema([pa.field("audio", pa.binary()), field])
    table = pa.Table.from_arrays([pa.array([WAV]), pa.array([[1]])], names=["audio", "x"])
    with contextlib.suppress(ValueError):  # newer Rays make the type as it is written
        table = table.cast(schema)
    pq.write_table(table, tmp_path / "x.parquet")
    input = Input(path=str(tmp_path), format="parquet")
    assert all(isinstance(sound, bytes | ClipError) for _, sound in walk(input))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", UNSAFE_LOADING)
def test_a_switch_that_lets_data_run_code_is_refused(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job = Job(tmp_path, classifier)
    for harmless in ("", "0", "false"):
        monkeypatch.setenv(name, harmless)
        load_config(job.config)
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name}: expected it to be unset"):
        load_config(job.config)
    result = job.run()
    assert result.code == 2 and name in result.text


def test_every_switch_that_ray_has_is_known() -> None:
    """Of those whose names say so, in the Ray that is installed."""
    import re

    import ray.data

    names: set[str] = set()
    for path in Path(ray.data.__file__).parent.rglob("*.py"):
        names |= set(
            re.findall(r"RAY_DATA_[A-Z_]*(?:AUTOLOAD|PICKLE|UNSAFE)[A-Z_]*", path.read_text())
        )
    assert names <= set(UNSAFE_LOADING)


def test_a_model_of_pickled_weights_is_refused(tmp_path: Path, classifier: Path) -> None:
    """The weights would run code while they load."""
    import shutil

    model = tmp_path / "model"
    shutil.copytree(classifier, model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    from transformers import AutoModelForAudioClassification

    from audio_ops.inference.checkpoint import find_checkpoint

    digest = find_checkpoint(str(classifier)).digest()
    assert find_checkpoint(str(model)).digest() != digest
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForAudioClassification.from_pretrained(model, use_safetensors=True)
    assert not (tmp_path / "ran").exists()
