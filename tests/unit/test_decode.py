"""Encoded bytes -> samples: every format, and everything that can be wrong with one."""

from __future__ import annotations

import io
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from sounds import FORMATS, MONO, RATES, SNDFILE, encode, noise, silent_video, tone

from audio_ops.decode import ffmpeg
from audio_ops.decode.formats import CONTAINERS, recognise
from audio_ops.decode.frames import mpeg_frame
from audio_ops.decode.join import frame_samples
from audio_ops.decode.mp3 import mp3_packets
from audio_ops.decode.open import decode, open_sound
from audio_ops.decode.source import Source
from audio_ops.errors import KINDS, ClipError
from audio_ops.flags import Damage

EXACT = {"wav", "wav_24", "wav_32", "wav_float", "wav_double", "wavex", "rf64", "w64", "aiff"} | {
    "aiff_float", "au", "caf", "flac", "flac_24", "ogg_flac", "alac", "mov", "mkv_flac", "sph", "sph_shorten"
}  # fmt: skip
SAME_LENGTH = EXACT | {"wav_u8", "wav_alaw", "wav_ulaw", "au_ulaw"} | {
    "mp3", "mp3_lame", "opus", "webm", "sph_ulaw", "sph_alaw", "wav_g722", "wav_g726", "wav_oki", "wv"
}  # fmt: skip


# Whose sizes are believed to some bytes only, as writers count in the header.
MISCOUNTED = {*SNDFILE} - {"flac", "flac_24", "mp3", "ogg"}
KINDS_OF_CUT = {
    "half": {"truncated"},
    "last byte": {"truncated", "damaged"},
    "header": {"truncated", "damaged", "not_audio", "no_audio"},
}


STRICT = Damage("error")


def error(data: bytes) -> ClipError:
    """The error with `on_damage: error`."""
    with pytest.raises(ClipError) as caught:
        decode(io.BytesIO(data), STRICT)
    assert caught.value.kind in KINDS
    return caught.value


def encoded(format: str, seconds: float = 1.0, channels: int = 2) -> tuple[np.ndarray, int, bytes]:
    rate = RATES.get(format, 44100)
    samples = tone(seconds, rate, 1 if format in MONO else channels)
    return samples, rate, encode(samples, rate, format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_decodes_to_the_sound_that_was_encoded(format: str) -> None:
    samples, rate, data = encoded(format)
    found, found_rate, name = decode(io.BytesIO(data))
    assert (found_rate, found.dtype, len(found)) == (rate, np.float32, len(samples)), name
    if format in SAME_LENGTH:
        assert found.shape == samples.shape
    assert abs(found.shape[1] - samples.shape[1]) < 2500
    if format in EXACT:
        np.testing.assert_allclose(found, samples, atol=2**-15)
    middle = found[:, rate // 4 : rate // 4 + rate // 2]
    for channel, wave in enumerate(middle):
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
        assert abs(np.argmax(spectrum) * rate / len(wave) - 440 * (channel + 1)) <= 2
        assert abs(np.sqrt(np.mean(wave**2)) - 0.5 / np.sqrt(2)) < 0.05


@pytest.mark.parametrize(
    ("format", "where"),
    [
        (format, where)
        for format in FORMATS
        for where in ("half", "last byte", "header")
        if (format, where) not in (("flv", "last byte"), ("sph_shorten", "last byte"))  # no sound
    ],
)
def test_a_cut_file_is_reported(format: str, where: str) -> None:
    data = encoded(format)[2]
    data = data[: {"half": int(len(data) * 0.55), "last byte": -1, "header": 30}[where]]
    if where == "last byte" and format in MISCOUNTED:
        sound = open_sound(io.BytesIO(data), damage=STRICT)
        assert sum(block.shape[1] for block in sound.blocks) > 40_000
        assert sound.findings.flags == ["shorter_than_header"]
        return
    found = error(data)
    assert found.kind in KINDS_OF_CUT[where]


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("wav", "wav/pcm_16"),
        ("rf64", "wav/pcm_16"),
        ("flac", "flac"),
        ("mp3", "mp3"),
        ("ogg", "ogg/vorbis"),
        ("opus", "ogg/opus"),
        ("m4a", "mp4/aac"),
        ("mov", "mov/pcm_s16le"),
        ("wma", "asf/wmav2"),
        ("webm", "webm/opus"),
        ("mkv", "matroska/aac"),
        ("aac", "aac"),
    ],
)
def test_the_format_is_named(format: str, name: str) -> None:
    assert open_sound(io.BytesIO(encoded(format)[2])).format == name


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        ("u8", [0, 128, 255], [-(2**15), 0, 2**15 - 256]),
        ("s16", [-(2**15), 0, 2**15 - 1], [-(2**15), 0, 2**15 - 1]),
        ("s32", [-(2**31), 0, 2**30], [-1, 0, 0.5]),
        ("dbl", [-1, 0.25, 1], [-1, 0.25, 1]),
        ("s16p", [-(2**15), 0, 2**14], [-(2**15), 0, 2**14]),
    ],
)
def test_integers_become_16_bits_or_floats_by_a_power_of_two(
    bits: str, values: Any, expected: Any
) -> None:
    types = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "dbl": np.float64, "s16p": np.int16}
    frame = av.AudioFrame.from_ndarray(np.array([values], types[bits]), bits, "mono")
    found = frame_samples(frame)
    assert found.dtype == (np.int16 if bits in ("u8", "s16", "s16p") else np.float32)
    np.testing.assert_array_equal(found, [np.float32(expected)])


@pytest.mark.parametrize("channels", [1, 2])
def test_integers_of_64_bits_are_exact(channels: int) -> None:
    """Formats that soundfile does not write and PyAV does not make an array of."""
    values = np.random.default_rng(0).integers(-(2**63), 2**63, (channels, 3000), np.int64)
    file = io.BytesIO()
    with av.open(file, "w", "w64") as container:
        layout = "mono" if channels == 1 else "stereo"
        stream: Any = container.add_stream("pcm_s64le", 16000, layout=layout)
        frame = av.AudioFrame("s64", layout, values.shape[1])
        frame.sample_rate = 16000
        frame.planes[0].update(values.T.tobytes())
        container.mux([*stream.encode(frame), *stream.encode(None)])
    file.seek(0)
    found, _, name = decode(file)
    assert name == "w64/pcm_s64le"
    np.testing.assert_array_equal(found, values.astype(np.float32) * np.float32(2.0**-63))


def test_a_long_sound_comes_in_bounded_blocks() -> None:
    for format in ("wav", "flac", "mp3"):
        sound = open_sound(io.BytesIO(encode(noise(8, 44100, 2), 44100, format)))
        sizes = [block.size for block in sound.blocks]
        assert len(sizes) > 2 and max(sizes) < 1 << 20 and sum(sizes) == 8 * 44100 * 2


def test_a_cut_wav_says_how_much_is_missing() -> None:
    found = error(encode(tone(10), 16000, "wav")[: 44 + 160000])
    assert "header says 10.00 s, found 5.00 s" in found.message


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_streamed_wav_is_read_to_its_end(size: int) -> None:
    data = bytearray(encode(tone(1), 16000, "wav"))
    struct.pack_into("<I", data, 4, min(size + 36, 0xFFFFFFFF))
    struct.pack_into("<I", data, 40, size)
    found, _, _ = decode(io.BytesIO(bytes(data)))
    np.testing.assert_allclose(found, tone(1), atol=2**-15)


def with_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    """A WAV with one more chunk ahead of its sound."""
    chunk = name + struct.pack("<I", len(content)) + content
    return data[:4] + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:36] + chunk + data[36:]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data,
        lambda data: with_chunk(data, b"LIST", bytes(6)),
        lambda data: data[:40] + struct.pack("<I", len(data) - 44 - 3) + data[44:],  # half a sample
    ],
    ids=["plain", "one more chunk", "odd size"],
)
def test_a_wav_of_16_bits_is_what_libsndfile_hears(channels: int, change: Any) -> None:
    data = change(encode(noise(7.0, 44_100, channels), 44_100, "wav"))
    expected, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    found, found_rate, _ = decode(io.BytesIO(data))
    assert found_rate == rate
    np.testing.assert_array_equal(found, expected.T)
    blocks = list(open_sound(io.BytesIO(data), 1.5).blocks)
    start = round(1.5 * rate)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1) / 2**15, expected[start:].T)


def test_a_wav_that_is_cut_while_it_is_read_is_truncated() -> None:
    class Cut(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size)[:50_001]

    with pytest.raises(ClipError) as caught:
        decode(Cut(encode(noise(1.0, 44_100, 2), 44_100, "wav")), STRICT)
    assert caught.value.kind == "truncated"


def test_a_wav_with_chunks_around_its_sound_is_whole() -> None:
    data = encode(tone(1), 16000, "wav")
    junk = b"junk" + struct.pack("<I", 7) + bytes(8)
    data = data[:36] + junk + data[36:] + b"LIST" + struct.pack("<I", 4) + b"INFO"
    assert decode(io.BytesIO(data))[0].shape == (1, 16000)


def without_length(flac: bytes) -> bytes:
    at = 8 + 13  # in STREAMINFO: 36 bits
    return flac[:at] + bytes([flac[at] & 0xF0]) + bytes(4) + flac[at + 5 :]


def test_flac_of_unknown_length_is_read_to_its_end() -> None:
    data = without_length(encode(noise(3), 16000, "flac"))
    assert open_sound(io.BytesIO(data)).duration_s is None
    assert decode(io.BytesIO(data))[0].shape == (1, 48000)
    assert error(data[:-100]).kind == "truncated"


@pytest.mark.parametrize("format", ["flac", "ogg"])
def test_a_hole_in_the_middle_is_damage(format: str) -> None:
    data = bytearray(encode(noise(5), 16000, format))
    data[len(data) // 2] ^= 0xFF
    assert error(bytes(data)).kind == "damaged"


def test_mp3_cut_between_frames_has_fewer_than_its_header_says() -> None:
    data = encode(noise(3, 44100), 44100, "mp3")
    end, frames = 0, 0
    while frames < 60 and (frame := mpeg_frame(data[end:])):
        end, frames = end + frame.size, frames + 1
    found = error(data[:end])
    assert found.kind == "truncated" and "header says 3.00 s" in found.message


def by_ffmpeg(mp3: bytes) -> np.ndarray:
    """The sound as FFmpeg's demuxer and decoder have it among themselves, a packet for each frame."""
    with av.open(io.BytesIO(mp3), "r", format="mp3") as opened:
        frames = [frame.to_ndarray() for frame in opened.decode(audio=0)]
    return np.concatenate(frames, axis=1)


def offsets(mp3: bytes) -> list[int]:
    """Where its frames begin, the one with the header first."""
    found = [0]
    while frame := mpeg_frame(mp3[found[-1] :]):
        found.append(found[-1] + frame.size)
    return found[:-1]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
def test_mp3_sounds_as_ffmpeg_has_it(rate: int, channels: int) -> None:
    samples = noise(2, rate, channels) * np.hanning(2 * rate)  # frames of many sizes
    for mode in ("CONSTANT", "VARIABLE"):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.T, rate, format="MP3", bitrate_mode=mode)
        mp3 = buffer.getvalue()
        found = decode(io.BytesIO(mp3))[0]
        assert found.shape == samples.shape
        np.testing.assert_array_equal(found, by_ffmpeg(mp3))
        bare = mp3[offsets(mp3)[1] :]
        np.testing.assert_array_equal(decode(io.BytesIO(bare))[0], by_ffmpeg(bare))


@pytest.mark.parametrize(
    "change",
    [
        *("no delay", "no padding", "least padding", "most padding", "most of both"),
        *("another encoder", "a frame fewer", "a frame more", "half the size", "frames alone"),
        *("without frames", "its last frame twice", "without its last frame", "without a frame"),
        "a tag behind it",
    ],
)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_mp3_is_trimmed_as_ffmpeg_trims_it(rate: int, change: str) -> None:
    mp3 = bytearray(encode(noise(1.2, rate), rate, "mp3"))
    starts = offsets(mp3)
    header = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    frames, size = struct.unpack_from(">II", mp3, header + 8)
    delays = {"no delay": 600, "no padding": 576 << 12, "least padding": 576 << 12 | 530}
    delays |= {"most padding": 576 << 12 | 4095, "most of both": 0xFFFFFF}
    if change in delays:
        mp3[header + 141 : header + 144] = delays[change].to_bytes(3, "big")
    elif change == "another encoder":
        mp3[header + 120 : header + 124] = b"GOGO"
    elif change in ("a frame fewer", "a frame more"):
        struct.pack_into(">I", mp3, header + 8, frames + (1 if change == "a frame more" else -1))
    elif change == "half the size":
        struct.pack_into(">I", mp3, header + 12, size // 2)
    elif change in ("frames alone", "without frames"):
        mp3[header + 7] = 1 if change == "frames alone" else 14
    elif change == "its last frame twice":
        mp3 += mp3[starts[-1] :]
    elif change == "without its last frame":
        del mp3[starts[-1] :]
    elif change == "without a frame":
        del mp3[starts[9] : starts[10]]
    else:
        mp3 += b"TAG" + bytes(125)
    np.testing.assert_array_equal(decode(io.BytesIO(mp3))[0], by_ffmpeg(bytes(mp3)))


@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125)])
def test_most_frames_of_a_plain_mp3_go_around_the_demuxer(behind: bytes) -> None:
    mp3 = encode(noise(10, 44100), 44100, "mp3") + behind
    source = Source(io.BytesIO(mp3))
    opened = ffmpeg.open_demuxer(source, "mp3")
    demuxed = []

    class Watched:
        def demux(self, stream: Any) -> Any:
            for packet in opened.demux(stream):
                demuxed.append(packet)
                yield packet

    watched: Any = Watched()
    packets = [found for found, _ in mp3_packets(source, watched, opened.streams.audio[0])]
    frames = offsets(mp3)
    assert sum(packet.size for packet in packets) == len(mp3) - len(behind) - frames[1]
    assert len(demuxed) < 3 and len(packets) < len(frames) / 10


@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125)])
@pytest.mark.parametrize("has_header", [True, False])
def test_every_bad_frame_of_an_mp3_is_found(has_header: bool, behind: bytes) -> None:
    mp3 = encode(noise(1, 44100), 44100, "mp3")
    starts = offsets(mp3)
    for number, start in enumerate(starts[1:], 1):
        bad = bytearray(mp3 + behind)
        bad[start + 7] |= 0x03
        bad[start + 8] |= 0xFE  # 511 pairs of big values, where 288 are the most
        found = error(bytes(bad[0 if has_header else starts[1] :]))
        assert found.kind == ("truncated" if number == len(starts) - 1 else "damaged"), number
        assert "can't be decoded" in found.message or "FFmpeg" in found.message


def test_an_mp3_without_a_header_is_truncated_in_its_last_frame() -> None:
    mp3 = encode(noise(1, 44100), 44100, "mp3")
    bare = mp3[offsets(mp3)[1] :]
    assert error(bare[:-1]).kind == error(bare[:-100]).kind == "truncated"


def test_junk_within_an_mp3_is_damage() -> None:
    mp3 = encode(noise(1, 44100), 44100, "mp3")
    middle = offsets(mp3)[20]
    assert error(mp3[:middle] + b"junk" * 50 + mp3[middle:]).kind == "damaged"


def test_an_mp3_that_changes_its_rate_or_channels_is_damage() -> None:
    mono, stereo = (encode(noise(6, 44100, channels), 44100, "mp3") for channels in (1, 2))
    bare = mono[offsets(mono)[1] :]
    found = error(bare + stereo)
    assert found.kind == "damaged"
    assert "44100 Hz, 1 channels to 44100 Hz, 2 channels at 6.0" in found.message
    found = error(bare + encode(noise(1, 16000), 16000, "mp3"))
    assert found.kind == "damaged"
    assert "44100 Hz, 1 channels to 16000 Hz, 1 channels at 6.0" in found.message


@pytest.mark.parametrize("format", ["mp3", "aac", "flac"])
def test_tags_and_junk_around_the_sound_are_skipped(format: str) -> None:
    data = encode(tone(1, 44100), 44100, format)
    expected = decode(io.BytesIO(data))[0]
    id3 = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 50, 0, 1 << 31) + bytes(8 + 50)
    id3v1 = b"TAG" + bytes(125)
    cases = [id3 + data, id3 + id3 + data, ape + data, data + id3v1]
    if format != "flac":
        cases += [bytes(1000) + data, b"junk" * 100 + data]
    if format == "mp3":
        cases += [data + ape, data + b"LYRICSBEGIN" + b"la" * 100, id3 + data + ape + id3v1]
    for case in cases:
        np.testing.assert_array_equal(decode(io.BytesIO(case))[0], expected)


def test_chained_ogg_is_decoded_completely() -> None:
    for format in ("ogg", "opus"):
        data = encode(noise(2, 48000), 48000, format)
        assert abs(decode(io.BytesIO(data + data))[0].shape[1] - 192000) < 1000


def test_a_change_of_rate_is_damage() -> None:
    found = error(encode(noise(1, 44100), 44100, "mp2") + encode(noise(1, 32000), 32000, "mp2"))
    assert found.kind == "damaged" and "44100 Hz" in found.message and "32000 Hz" in found.message
    found = error(encode(noise(1, 44100), 44100, "ogg") + encode(noise(1, 32000), 32000, "ogg"))
    assert found.kind == "damaged" and "changes" in found.message


def test_a_change_of_channels_is_damage() -> None:
    parts = [encode(noise(1, 44100, channels), 44100, "mp2") for channels in (1, 2)]
    found = error(b"".join(parts))
    assert found.kind == "damaged"
    assert "1 channels" in found.message and "2 channels" in found.message


def header(**changes: int) -> bytes:
    """A WAV whose header lies."""
    data = bytearray(encode(tone(1), 16000, "wav"))
    for name, value in changes.items():
        form, at = {"channels": ("<H", 22), "rate": ("<I", 24), "tag": ("<H", 20)}[name]
        struct.pack_into(form, data, at, value)
    return bytes(data)


IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("empty", b""),
        ("empty", encode(tone(0), 16000, "wav")),
        ("empty", encode(tone(0), 16000, "flac")),
        ("not_audio", b"these are just words, renamed to .wav\n" * 100),
        ("not_audio", IMAGE),
        ("not_audio", b"PK\x03\x04" + bytes(100)),
        ("not_audio", b"<!doctype html><html></html>"),
        ("not_audio", bytes(range(256)) * 100),
        ("not_audio", bytes(100_000)),
        ("not_audio", b"R"),
        ("unsupported", b"#EXTM3U\nhttp://127.0.0.1/x.mp3\n"),
        ("unsupported", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
        ("unsupported", b"MThd" + bytes(100)),
        ("unsupported", b"\x64\xa3\x02\x00" + bytes(1024)),
        ("unsupported", b"RIFF\x10\0\0\0RMIDdata" + bytes(100)),
        ("unsupported", header(rate=1)),
        ("unsupported", header(rate=3999)),
        ("unsupported", header(rate=768001)),
        ("unsupported", encode(tone(0.1, channels=65), 16000, "wav")),
        ("unsupported", encode(tone(0.1, 2000), 2000, "flac")),
        ("no_audio", silent_video("mp4")),
        ("no_audio", silent_video("mkv_video")),
        ("no_audio", silent_video("avi")),
    ],
)
def test_what_is_no_sound_is_refused_by_name(kind: str, data: bytes) -> None:
    assert error(data).kind == kind


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [
        (b"\x02#!SILK_V3" + bytes(range(256)), "unsupported", "SILK v3"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not_audio", "Git LFS"),
        (b"/annex/objects/SHA256E-s448044--0123.wav\n", "not_audio", "git-annex"),
        (b"\xef\xbb\xbf<html><body>404</body></html>", "not_audio", "document"),
        (b"<!-- gateway -->\n<html></html>", "not_audio", "document"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "not_audio", "document"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "not_audio", "archive"),
    ],
)
def test_what_a_name_hides_is_named(data: bytes, kind: str, name: str) -> None:
    found = error(data)
    assert found.kind == kind and name in found.message


@pytest.mark.parametrize("lie", [{"rate": 0}, {"rate": 2**31}, {"channels": 0}, {"tag": 0x1234}])
def test_a_lying_header_is_an_error(lie: dict[str, int]) -> None:
    assert error(header(**lie)).kind in ("damaged", "unsupported")


def test_a_refused_rate_is_told_with_what_was_expected() -> None:
    assert error(header(rate=1)).message == "sample rate: expected 4000 to 768000 Hz, found 1"


def test_a_codec_that_is_not_on_the_list_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream: Any = out.add_stream("tta", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), "s16", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = error(buffer.getvalue())
    assert found.kind == "unsupported" and "tta" in found.message


def test_the_first_of_two_sounds_is_taken() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        streams: list[Any] = [out.add_stream("flac", rate=16000, layout="mono") for _ in range(2)]
        for stream, level in zip(streams, (4096, 8192), strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 16000), level, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 0
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    assert np.all(decode(io.BytesIO(buffer.getvalue()))[0] == 0.125)


class Broken(io.BytesIO):
    """A file whose connection is lost after its first 100 kB."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 100_000:
            raise ConnectionResetError("connection lost")
        return super().read(size)


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "m4a", "ogg"])
def test_a_file_that_fails_to_be_read_is_unreadable(format: str) -> None:
    data = encode(noise(20, 44100), 44100, format)
    with pytest.raises(ClipError) as caught:
        decode(Broken(data))
    assert caught.value.kind == "unreadable" and "connection lost" in caught.value.message


def test_a_clip_error_pickles() -> None:
    copy = pickle.loads(pickle.dumps(ClipError("empty", "no samples")))
    assert (copy.kind, copy.message, str(copy)) == ("empty", "no samples", "empty: no samples")


def test_a_clip_error_has_one_of_the_known_kinds() -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of empty, .* found 'broken'"):
        ClipError("broken", "no such kind")


def test_every_container_that_is_read_is_tested() -> None:
    """By `FORMATS`, which the tests above go through."""
    found = {recognise(Source(io.BytesIO(encoded(format)[2]))) for format in FORMATS}
    assert found == set(CONTAINERS)


# --- no reach-out ----------------------------------------------------------------------------


def lures(folder: Path, port: int) -> dict[str, bytes]:
    """Scripts by the name of the FFmpeg demuxer that would follow them."""
    canary = folder / "canary.wav"
    soundfile.write(canary, tone(1)[0], 16000)
    m3u8 = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    mpd = f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
        mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4"><Representation
        id="1" bandwidth="1"><BaseURL>http://127.0.0.1:{port}/x.mp4</BaseURL></Representation>
        </AdaptationSet></Period></MPD>"""
    return {
        "concat": f"ffconcat version 1.0\nfile '{canary}'\n".encode(),
        "hls": m3u8.format(f"http://127.0.0.1:{port}/x.ts").encode(),
        "dash": mpd.encode(),
        "sdp": f"v=0\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n".encode(),
    }


def test_a_script_opens_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        for demuxer, script in lures(tmp_path, listener.getsockname()[1]).items():
            assert error(script).kind in ("unsupported", "not_audio")
            (tmp_path / f"x.{demuxer}").write_bytes(script)
            with open(tmp_path / f"x.{demuxer}", "rb") as named, pytest.raises(ClipError):
                decode(named)
            with pytest.raises((av.FFmpegError, PermissionError, ValueError)):
                ffmpeg.open_demuxer(io.BytesIO(script), demuxer)  # even if it were recognised
        with pytest.raises(TimeoutError):
            listener.accept()


def test_ffmpeg_alone_would_have_followed_the_script(tmp_path: Path) -> None:
    script = lures(tmp_path, 1)["concat"]
    with av.open(io.BytesIO(script), "r", format="concat", options={"safe": "0"}) as opened:
        assert sum(frame.samples for frame in opened.decode(audio=0)) == 16000
    for name in ("format_whitelist", "protocol_whitelist"):  # each stops it: both are spelt right
        guard = {"safe": "0", name: ffmpeg.OPTIONS[name]}
        with pytest.raises(av.FFmpegError):
            av.open(io.BytesIO(script), format="concat", container_options=guard)


def test_decoding_imports_no_model_library() -> None:
    code = (
        "import sys, audio_ops.decode.open, audio_ops.signal.wave, audio_ops.signal.voice, audio_ops.prepare;"
        "print([name for name in ('torch', 'transformers', 'librosa', 'silero_vad', 'ray')"
        " if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
