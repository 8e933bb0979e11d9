"""Formats of telephony and broadcast, sound without a header, and what is refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from sounds import FORMATS, MONO, RATES, encode, noise, shorten_sphere, sphere, tone

from audio_ops.decode.headerless import ENCODINGS, Headerless
from audio_ops.decode.open import decode, open_sound
from audio_ops.errors import ClipError
from audio_ops.prepare import prepare_clip
from jobs.clips import clip_ids
from jobs.config import Audio, Raw
from jobs.input import Input
from jobs.sources import load_source
from jobs.workers.read import ReadSettings, SandboxWork, prepared


def error(data: bytes, raw: Headerless | None = None) -> ClipError:
    with pytest.raises(ClipError) as caught:
        prepare_clip(io.BytesIO(data), [16_000], 60.0, raw=raw)
    return caught.value


# --- a part of a file ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_stretch_of_any_format_is_that_part_of_the_sound(format: str) -> None:
    """Whether or not its decoder can seek."""
    rate = RATES.get(format, 44_100)
    file = encode(noise(2, rate, 1 if format in MONO else 2), rate, format)
    whole, rate, _ = decode(io.BytesIO(file))
    found = prepare_clip(io.BytesIO(file), [rate], 60.0, (1.25, 0.5))[f"sound_{rate}"][:]
    start = round(1.25 * rate)
    expected = whole[:, start : start + round(0.5 * rate)].mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- SPHERE --------------------------------------------------------------------------------------


def pcm_sphere(samples: np.ndarray, order: str, **fields: str) -> bytes:
    body = samples.T.astype(">i2" if order == "10" else "<i2").tobytes()
    named = {"sample_rate": "-i 16000", "channel_count": f"-i {len(samples)}"}
    named |= {"sample_n_bytes": "-i 2", "sample_byte_format": f"-s2 {order}"}
    return sphere(body, samples.shape[1], **{**named, **fields})


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("order", ["01", "10"])
def test_sphere_has_either_byte_order(order: str, channels: int) -> None:
    samples = np.rint(noise(1, 16_000, channels) * 32768)
    found, rate, name = decode(io.BytesIO(pcm_sphere(samples, order)))
    assert (rate, name) == (16_000, "sphere/pcm_16")
    np.testing.assert_array_equal(found * 32768, samples)


@pytest.mark.parametrize("coding", ["pcm,embedded-shorten-v1.09", "pcm,embedded-shorten-v2.00"])
def test_shorten_in_sphere_is_lossless(coding: str) -> None:
    samples = np.rint(noise(1, 16_000)[0] * 32767).astype(int)
    found, _, name = decode(io.BytesIO(shorten_sphere(samples, 16_000, coding)))
    assert name == "sphere/shorten"
    np.testing.assert_array_equal(np.rint(found[0] * 32768), samples)


def test_sphere_with_a_count_of_samples_that_it_lacks_is_truncated() -> None:
    samples = np.rint(noise(1) * 32768)
    found = error(pcm_sphere(samples, "01", sample_count="-i 32000"))
    assert found.kind == "truncated" and "header says 2.00 s, found 1.00 s" in found.message


@pytest.mark.parametrize("coding", ["ulaw,embedded-shorten-v2.00", "pcm,embedded-wavpack"])
def test_what_no_decoder_knows_in_sphere_is_refused_with_the_command_that_converts_it(
    coding: str,
) -> None:
    found = error(pcm_sphere(noise(1), "01", sample_coding=f"-s{len(coding)} {coding}"))
    assert found.kind == "unsupported"
    assert coding in found.message and "`sph2pipe -f wav x.sph x.wav`" in found.message


# --- AMR -----------------------------------------------------------------------------------------


def with_pauses(codec: str, muxer: str) -> bytes:
    """3 s of a tone, 3 s of faint noise, which the encoder does not send, and the tone again."""
    rate = 8000
    parts = (tone(3, rate, hz=300), noise(3, rate) / 100, tone(3, rate, hz=300))
    samples = np.concatenate(parts, axis=1)
    amr = encode(samples, rate, "amr_dtx")
    if muxer == "amr":
        return amr
    sink = io.BytesIO()
    with av.open(io.BytesIO(amr)) as source, av.open(sink, "w", format=muxer) as out:
        copy = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize("muxer", ["amr", "3gp"])
def test_amr_with_pauses_that_were_not_sent_is_as_long_as_they_are(muxer: str) -> None:
    data = with_pauses("amrnb", muxer)
    found = prepare_clip(io.BytesIO(data), [8000], 60.0)
    assert found["duration_s"] == pytest.approx(9, abs=0.1)
    assert found["sound_flags"] == []
    sound = found["sound_8000"][:]
    level = [np.abs(sound[s * 8000 : s * 8000 + 4000]).max() for s in (1, 4, 7)]
    assert level[1] < 0.05 < 0.3 < min(level[0], level[2])


def test_amr_without_pauses_is_decoded_as_ever() -> None:
    """By FFmpeg's own decoder, in floats: tables have labels of that."""
    data = encode(tone(1, 8000), 8000, "amr")
    with av.open(io.BytesIO(data)) as opened:
        frames = [frame.to_ndarray() for frame in opened.decode(audio=0)]
    np.testing.assert_array_equal(decode(io.BytesIO(data))[0], np.concatenate(frames, axis=1))


# --- sound without a header ----------------------------------------------------------------------


def headerless(encoding: str, samples: np.ndarray, rate: int) -> bytes:
    form = ENCODINGS[encoding]
    sink = io.BytesIO()
    if form.subtype:
        options: Any = {"format": "RAW", "subtype": form.subtype, "endian": form.endian}
        soundfile.write(sink, samples.T, rate, **options)
        return sink.getvalue()
    wav = encode(samples, rate, f"wav_{encoding}")
    return wav[wav.index(b"data") + 8 :]


@pytest.mark.parametrize("start_s", [0.0, 0.5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sound_without_a_header_is_read_as_declared(encoding: str, start_s: float) -> None:
    form = ENCODINGS[encoding]
    rate, channels = form.rate or 8000, 1 if form.is_mono else 2
    samples = tone(1, rate, channels)
    data = headerless(encoding, samples, rate)
    raw = Headerless(encoding, rate, channels)
    sound = open_sound(io.BytesIO(data), start_s, raw=raw)
    found = np.concatenate(list(sound.blocks), axis=1)
    assert (sound.sample_rate, len(found)) == (rate, channels)
    assert found.shape[1] == pytest.approx(rate * (1 - start_s), abs=300)
    spectrum = np.abs(np.fft.rfft(found[0, :4000] * np.hanning(4000)))
    assert abs(np.argmax(spectrum) * rate / 4000 - 440) <= rate / 4000
    assert sound.format.startswith("raw/")


def test_a_start_behind_the_end_of_sound_without_a_header_is_truncated() -> None:
    raw = Headerless("mulaw", 8000)
    with pytest.raises(ClipError, match=r"truncated: the sound ends at 1\.00 s, before 2 s"):
        prepare_clip(io.BytesIO(bytes(8000)), [8000], 60.0, (2.0, 1.0), raw=raw)


def test_a_file_with_a_header_is_read_by_it_whatever_is_declared() -> None:
    wav = encode(tone(1, 16_000), 16_000, "wav")
    row = prepare_clip(io.BytesIO(wav), [16_000], 60.0, raw=Headerless("mulaw", 8000))
    assert (row["format"], row["duration_s"]) == ("wav/pcm_16", 1.0)


def test_sound_without_a_header_that_nobody_declared_names_the_option() -> None:
    found = error(headerless("mulaw", noise(1, 8000), 8000))
    assert found.kind == "not_audio" and "audio.raw" in found.message


def test_files_and_members_are_headerless_by_their_extension(tmp_path: Path) -> None:
    """Of several declarations each has its own, and files of other extensions none."""
    sounds = {"a.ulaw": "mulaw", "b.SLN": "s16le", "c.wav": ""}
    for name, encoding in sounds.items():
        data = headerless(encoding, tone(1, 8000), 8000) if encoding else b"no sound at all"
        (tmp_path / name).write_bytes(data)
    raw = Raw(extensions=("ulaw",), encoding="mulaw", sample_rate=8000)
    audio = Audio(raw=(raw, Raw(extensions=(".sln",), encoding="s16le", sample_rate=8000)))
    input = Input(path=str(tmp_path), format="files")
    listed = load_source("files").find(input, print).clips
    plan = listed.add_column(0, "clip_id", clip_ids(listed))

    class Memory:
        def working_on(self, clip_id: str, row: int) -> None: ...
        def waits(self) -> None: ...
        def decoded(self, seconds: float) -> None: ...

    settings = ReadSettings(input, audio, (8000,), "never")
    rows = pa.concat_tables(prepared(Memory(), SandboxWork(plan, settings))).to_pylist()  # type: ignore[arg-type]
    found = {Path(row["source"]).name: row["format"] or row["error_kind"] for row in rows}
    assert found == {"a.ulaw": "raw/mulaw", "b.SLN": "raw/s16le", "c.wav": "not_audio"}


# --- refused by name -----------------------------------------------------------------------------


def with_tag(tag: bytes) -> bytes:
    return encode(noise(1, 44_100), 44_100, "m4a").replace(b"mp4a", tag)


def cenc_mp4() -> bytes:
    """Encrypted with a key, as streaming services do it."""
    sink = io.BytesIO()
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16}
    plain = io.BytesIO(encode(noise(1, 44_100), 44_100, "m4a"))
    options |= {"encryption_kid": "01" * 16}
    with av.open(plain) as source, av.open(sink, "w", format="mp4", options=options) as out:
        copy = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    return sink.getvalue()


def encrypted_matroska() -> bytes:
    """With ContentEncodings in its track, whose size and that of Tracks count them."""
    mkv = encode(noise(1, 44_100), 44_100, "mkv")
    element = bytes.fromhex("6d808a624087503184503581 00".replace(" ", ""))
    at = mkv.rindex(b"\x16\x54\xae\x6b")
    return mkv[: at + 40] + element + mkv[at + 40 :]


def encrypted_wma() -> bytes:
    wma = bytearray(encode(noise(1, 44_100), 44_100, "wma"))
    at = wma.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    element = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e") + (32).to_bytes(8, "little")
    wma[at:at] = element + bytes(8)
    return bytes(wma)


@pytest.mark.parametrize(
    "data",
    [
        cenc_mp4,
        lambda: with_tag(b"enca"),
        lambda: with_tag(b"drms"),
        lambda: with_tag(b"aavd"),
        encrypted_matroska,
        encrypted_wma,
    ],
    ids=["cenc", "enca", "itunes", "audible", "matroska", "wma"],
)
def test_encrypted_sound_is_named_with_the_remedy(data: Any) -> None:
    found = error(data())
    assert found.kind == "unsupported"
    assert "encrypted, not damaged" in found.message and "-decryption_key" in found.message


@pytest.mark.parametrize(
    ("head", "kind", "words"),
    [
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "not_audio", "AppleDouble"),
        (b"\x02#!SILK_V3", "unsupported", "SILK v3"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_audio", "git lfs pull"),
    ],
)
def test_what_looks_like_sound_by_its_name_is_refused_by_its_own(
    head: bytes, kind: str, words: str
) -> None:
    found = error(head + bytes(range(256)) * 10)
    assert found.kind == kind and words in found.message
