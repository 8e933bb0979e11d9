"""What decodes is labelled, and what is odd about it is a flag."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
from sounds import encode, noise, tone

from audio_ops.errors import ClipError
from audio_ops.flags import FLAGS, Damage, Findings
from audio_ops.prepare import prepare_clip

RATE = 16_000


def clip(data: bytes, damage: Damage = Damage(), **options: Any) -> dict[str, Any]:  # noqa: B008
    return prepare_clip(io.BytesIO(data), [RATE], 3600.0, damage=damage, **options)


def wav_of_size(size: int, data: bytes = b"", riff: int | None = None) -> bytes:
    """A WAV of a second whose header claims another size."""
    wav = bytearray(encode(tone(1), RATE, "wav") + data)
    struct.pack_into("<I", wav, 40, size)
    if riff is not None:
        struct.pack_into("<I", wav, 4, riff)
    return bytes(wav)


# --- durations and claims ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        *(0, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0xFFFFFFFF - 44, 2_000_000_000, 2_000_000_036, 10**9),
        *(0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFDB),
    ],
)
@pytest.mark.parametrize("format", ["wav", "wav_24"])
def test_a_size_that_a_writer_could_not_correct_is_no_claim(size: int, format: str) -> None:
    wav = bytearray(encode(tone(1), RATE, format))
    at = wav.index(b"data") + 4
    struct.pack_into("<I", wav, at, size)
    found = clip(bytes(wav))
    assert (found["duration_s"], found["sound_flags"]) == (1.0, [])


@pytest.mark.parametrize("more", [1, 8, 16, 36, 44])
def test_a_size_that_counts_the_header_costs_a_flag(more: int) -> None:
    found = clip(wav_of_size(32_000 + more), Damage("error"))
    assert (found["duration_s"], found["sound_flags"]) == (1.0, ["shorter_than_header"])


def test_an_empty_wav_with_metadata_stays_empty() -> None:
    empty = encode(tone(0), RATE, "wav") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(ClipError) as caught:
        clip(empty)
    assert caught.value.kind == "empty"


@pytest.mark.parametrize(
    "behind", [encode(tone(1), RATE, "wav"), noise(1).astype("<f4").tobytes()], ids=["wav", "data"]
)
def test_much_data_behind_a_small_size_is_flagged(behind: bytes) -> None:
    assert clip(wav_of_size(32_000, behind))["sound_flags"] == ["longer_than_header"]


def test_chunks_of_metadata_behind_the_sound_are_not_flagged() -> None:
    chunk = b"LIST" + struct.pack("<I", 40_000) + bytes(40_000)
    assert clip(wav_of_size(32_000, chunk * 2))["sound_flags"] == []


def remuxed(data: bytes, muxer: str, keep: Callable[[float], bool], later_s: float = 0.0) -> bytes:
    """The file's packets whose times are to keep, `later_s` seconds later, in another container."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", format=muxer) as out:
        stream = source.streams.audio[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None and keep(float(packet.pts * packet.time_base)):
                ticks = round(later_s / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, (packet.dts or 0) + ticks
                packet.stream = copy
                out.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("format", "muxer"),
    [
        ("webm", "webm"),
        ("webm", "matroska"),
        ("m4a", "matroska"),
        ("m4a", "mpegts"),
        ("m4a", "mp4"),
        ("m4a", "flv"),
        ("ogg_flac", "ogg"),
    ],
)
@pytest.mark.parametrize("later_s", [5.0, 1000.0])
def test_a_sound_that_starts_late_is_whole(format: str, muxer: str, later_s: float) -> None:
    rate = 48_000 if format == "webm" else 44_100
    data = remuxed(encode(noise(4, rate), rate, format), muxer, lambda _: True, later_s)
    found = clip(data, Damage("error"))
    assert found["duration_s"] == pytest.approx(4, abs=0.1)
    assert found["sound_flags"] == []


@pytest.mark.parametrize("muxer", ["webm", "matroska", "mpegts"])
def test_a_gap_becomes_silence(muxer: str) -> None:
    format, rate = ("webm", 48_000) if muxer != "mpegts" else ("m4a", 44_100)
    data = encode(noise(6, rate), rate, format)
    found = clip(remuxed(data, muxer, lambda at_s: not 2 <= at_s < 4))
    assert found["duration_s"] == pytest.approx(6, abs=0.1)
    assert found["sound_flags"] == ["gap"]
    sound = found[f"sound_{RATE}"][:]
    assert np.abs(sound[int(2.2 * RATE) : int(3.8 * RATE)]).max() < 1e-3
    assert np.abs(sound[int(4.2 * RATE) :]).max() > 0.1
    with pytest.raises(ClipError, match="missing at"):
        clip(remuxed(data, muxer, lambda at_s: not 2 <= at_s < 4), Damage("error"))


def test_timestamps_that_begin_anew_are_no_gap_of_hours() -> None:
    data = encode(noise(2, 48_000), 48_000, "webm")
    sink = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", format="matroska") as out:
        stream = source.streams.audio[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None:
                if packet.pts > 1000:
                    packet.pts += 20 * 3600 * 1000
                    packet.dts = packet.pts
                packet.stream = copy
                out.mux(packet)
    found = clip(sink.getvalue())
    assert found["duration_s"] == pytest.approx(2, abs=0.1)
    assert found["sound_flags"] == ["gap"]


# --- damage --------------------------------------------------------------------------------------


def broken(format: str, seconds: float = 10.0) -> bytes:
    rate = 44_100
    data = bytearray(encode(noise(seconds, rate), rate, format))
    middle = len(data) // 2
    at = data.find(b"\xff\xfb", middle) + 4 if format == "mp3" else middle
    data[at : at + 30] = b"\xff" * 30
    return bytes(data)


@pytest.mark.parametrize("format", ["mp3", "flac", "m4a", "ac3", "eac3", "wv"])
def test_a_bad_packet_costs_itself(format: str) -> None:
    found = clip(broken(format))
    assert found["duration_s"] == pytest.approx(10, abs=0.05)
    assert "corrupt" in found["sound_flags"]
    for damage in (Damage("error"), Damage("keep", 0.0)):
        with pytest.raises(ClipError) as caught:
            clip(broken(format), damage)
        assert caught.value.kind == "damaged"


@pytest.mark.parametrize(("share", "is_kept"), [(0.95, True), (0.85, False)])
@pytest.mark.parametrize("format", ["wav", "wav_24", "aiff", "m4a_first"])
def test_a_tenth_of_a_sound_may_be_missing(format: str, share: float, is_kept: bool) -> None:
    name = format.removesuffix("_first")
    data = encode(noise(10, 44_100), 44_100, name)
    if format == "m4a_first":  # its index precedes the sound
        data = remuxed(data, "matroska", lambda _: True)
    data = data[: int(len(data) * share)]
    if is_kept:
        assert "shorter_than_header" in clip(data)["sound_flags"]
    else:
        with pytest.raises(ClipError) as caught:
            clip(data)
        assert caught.value.kind in ("truncated", "damaged")
    with pytest.raises(ClipError):
        clip(data, Damage("error"))


def test_parts_of_an_mp3_behind_tags_are_joined() -> None:
    part = encode(noise(2, 44_100), 44_100, "mp3")
    tag = b"ID3\x04\0\0\0\0\0\x1bTIT2\0\0\0\x11\0\0\x03a part of a talk"
    found = clip((tag + part) * 3)
    assert found["duration_s"] == pytest.approx(6, abs=0.3)
    assert found["sound_flags"] == ["longer_than_header"]


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (32_000, 2)])
def test_a_change_of_rate_or_channels_goes_on(rate: int, channels: int) -> None:
    first = encode(tone(3, 44_100), 44_100, "mp2")
    found = clip(first + encode(tone(3, rate, channels), rate, "mp2"))
    assert found["duration_s"] == pytest.approx(6, abs=0.1)
    assert found["sound_flags"] == ["changed"]
    assert (found["sample_rate"], found["channels"]) == (44_100, 1)
    second = found[f"sound_{RATE}"][4 * RATE : 5 * RATE]
    spectrum = np.abs(np.fft.rfft(second))
    assert abs(int(np.argmax(spectrum)) - 440) <= (1 if channels == 1 else 441)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ogg", 44_100, 1), ("ogg", 32_000, 1)),
        (("ogg", 44_100, 1), ("ogg", 44_100, 2)),
        (("ogg", 44_100, 2), ("ogg", 44_100, 1)),
        (("opus", 48_000, 1), ("opus", 48_000, 2)),
        (("opus", 48_000, 1), ("ogg", 44_100, 1)),
        (("ogg", 44_100, 1), ("ogg_flac", 32_000, 1)),
    ],
)
def test_links_of_an_ogg_file_that_change_go_on(first: Any, second: Any) -> None:
    """As where a radio's stream was recorded, which begins anew with each piece."""
    kinds = (first, second, first)
    data = b"".join(
        encode(tone(2, rate, channels, hz=300 * n), rate, format)
        for n, (format, rate, channels) in enumerate(kinds, 1)
    )
    found = clip(data)
    assert found["duration_s"] == pytest.approx(6, abs=0.1)
    assert found["sound_flags"] == ["changed"]
    assert (found["sample_rate"], found["channels"]) == first[1:]
    for n in range(3):
        middle = found[f"sound_{RATE}"][(2 * n + 1) * RATE :][: RATE // 2]
        peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle))))) * 2
        assert min(abs(peak - 300 * (n + 1)), abs(peak - 600 * (n + 1))) <= 4
    with pytest.raises(ClipError, match=r"damaged: changes to \d+ Hz"):
        clip(data, Damage("error"))
    part = clip(data, stretch=(3.0, 2.0))[f"sound_{RATE}"][:]
    whole = found[f"sound_{RATE}"][3 * RATE : 5 * RATE]  # resampled with what is around it
    np.testing.assert_allclose(part[50:-50], whole[50:-50], atol=0.02)


def test_a_flac_cut_between_frames_is_as_long_as_it_is() -> None:
    flac = encode(noise(8), RATE, "flac")
    cut = remuxed(flac, "flac", lambda at_s: 3 <= at_s < 6)
    found = clip(cut)
    assert found["duration_s"] == pytest.approx(3, abs=0.6)


# --- samples -------------------------------------------------------------------------------------


def float_wav(samples: np.ndarray) -> bytes:
    return encode(samples.astype(np.float32), RATE, "wav_float")


STEREO = np.concatenate([noise(2), -noise(2)])
SAMPLES = {
    "over_full_scale": tone(2) * 65_536,
    "clipped": np.clip(tone(2) * 5, -1, 1),
    "dc_offset": noise(2) + 0.1,
    "silent_channel": np.concatenate([noise(2), np.zeros((1, 2 * RATE))]),
    "channels_cancel": STEREO,
}


@pytest.mark.parametrize("flag", SAMPLES)
def test_odd_samples_are_flagged(flag: str) -> None:
    assert clip(float_wav(SAMPLES[flag]))["sound_flags"] == [flag]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("format", ["wav", "wav_float", "flac", "mp3"])
def test_plain_sound_has_no_flags(channels: int, format: str) -> None:
    different = np.concatenate([noise(3, RATE), tone(3, RATE)])[:channels]
    assert clip(encode(different, RATE, format))["sound_flags"] == []
    assert clip(encode(np.zeros((channels, RATE)), RATE, format))["sound_flags"] == []


def test_of_channels_that_cancel_each_other_the_loudest_is_used() -> None:
    found = clip(float_wav(np.concatenate([noise(2) * 0.9, -noise(2)])))
    np.testing.assert_allclose(found[f"sound_{RATE}"], -noise(2)[0], atol=1e-6)
    assert found["channels"] == 2


def test_flags_are_a_closed_list() -> None:
    with pytest.raises(ValueError, match=r"flag: expected one of gap, .* found 'odd'"):
        Findings().note("odd")
    findings = Findings()
    for flag in reversed(FLAGS):
        findings.note(flag)
    assert findings.flags == list(FLAGS)
