"""Files that a program streamed, cut, joined or captured: what their headers and timestamps are worth."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
import pytest
from sounds import encode, noise, tone

from audio_ops.errors import ClipError
from audio_ops.flags import Damage
from audio_ops.prepare import prepare_clip

RATE = 16_000


def clip(data: bytes, damage: Damage = Damage(), **options: Any) -> dict[str, Any]:  # noqa: B008
    return prepare_clip(io.BytesIO(data), [RATE], 3600.0, damage=damage, **options)


def patched(data: bytes, behind: bytes, offset: int, form: str, value: int) -> bytes:
    """The file with another number `offset` bytes after the last of these bytes."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.rindex(behind) + offset, value)
    return bytes(changed)


def power(samples: Any) -> float:
    return float(np.mean(np.square(np.asarray(samples[:], np.float64))))


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "behind", "offset", "form", "size"),
    [
        ("aiff", b"SSND", 4, ">I", 0),
        ("aiff", b"SSND", 4, ">I", 0x7F000008),  # sox
        ("w64", b"data", 16, "<Q", (1 << 63) - 1),  # FFmpeg
    ],
)
def test_a_streamed_file_is_read_to_its_end(
    format: str, behind: bytes, offset: int, form: str, size: int
) -> None:
    data = patched(encode(tone(1), RATE, format), behind, offset, form, size)
    found = clip(data, Damage("error"))
    assert (found["duration_s"], found["sound_flags"]) == (1.0, [])


@pytest.mark.parametrize("packets", [0xFFFFFFFF, 1000])
def test_an_avi_does_not_say_how_much_sound_it_has(packets: int) -> None:
    """A streamed one counts nothing, another one empty packets as well, as before a late start."""
    data = encode(noise(2, 44_100), 44_100, "avi")
    data = patched(data, b"auds", 32, "<I", packets)
    if packets == 0xFFFFFFFF:
        data = data[:4] + b"\xff\xff\xff\xff" + data[8:]
    found = clip(data, Damage("error"))
    assert found["duration_s"] == pytest.approx(2, abs=0.1)
    assert found["sound_flags"] == []


ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def test_a_wmv_has_pictures_longer_than_its_sound() -> None:
    data = encode(noise(2, 44_100), 44_100, "wmv")
    data = patched(data, ASF_PROPERTIES, 64, "<Q", 10**8)
    assert clip(data, Damage("error"))["sound_flags"] == []


def test_an_asf_broadcast_claims_no_length() -> None:
    data = encode(noise(30, 16_000), 16_000, "wma")
    data = patched(data, ASF_PROPERTIES, 88, "<I", 3)
    data = patched(data, ASF_PROPERTIES, 64, "<Q", 0)
    found = clip(patched(data, ASF_PROPERTIES, 40, "<Q", 0), Damage("error"))
    assert found["duration_s"] == pytest.approx(30, abs=0.1)
    assert found["sound_flags"] == []


@pytest.mark.parametrize("format", ["m4a", "wma", "aiff", "w64", "wav"])
def test_a_file_behind_a_file_is_not_passed_over_in_silence(format: str) -> None:
    data = encode(noise(2, 44_100), 44_100, format)
    found = clip(data * 2)
    assert found["duration_s"] == pytest.approx(2, abs=0.1)
    assert found["sound_flags"] == ["longer_than_header"]


def test_a_second_chunk_of_sound_is_flagged() -> None:
    wav = encode(tone(1), RATE, "wav")
    assert clip(wav + wav[36:])["sound_flags"] == ["longer_than_header"]


def test_a_transport_stream_may_begin_within_a_packet() -> None:
    data = retimed(encode(noise(4, 44_100), 44_100, "m4a"), "mpegts", [0.0] * 1000)
    found, cut = clip(data * 2), clip((data * 2)[100:])
    assert cut["format"] == "mpegts/aac"
    assert found["duration_s"] - cut["duration_s"] < 0.5


def test_a_segment_without_its_start_is_no_unknown_format() -> None:
    sink = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "500000"}
    with av.open(sink, "w", format="mp4", options=options) as out:
        stream = out.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(noise(2, 44_100), "fltp", "mono")
        frame.sample_rate = 44_100
        out.mux([*stream.encode(frame), *stream.encode(None)])
    data = sink.getvalue()
    with pytest.raises(ClipError) as caught:
        clip(data[data.index(b"moof") - 4 :])
    assert caught.value.kind == "damaged"


# --- timestamps ----------------------------------------------------------------------------------


def retimed(data: bytes, muxer: str, late_s: list[float]) -> bytes:
    """The file's packets, each later by its own number of seconds."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", format=muxer) as out:
        stream = source.streams.audio[0]
        copy = out.add_stream_from_template(stream)
        for packet, late in zip(source.demux(stream), late_s, strict=False):
            if packet.pts is not None:
                packet.pts += round(late / packet.time_base)
                packet.dts, packet.stream = packet.pts, copy
                out.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize(("format", "muxer"), [("webm", "webm"), ("m4a", "matroska")])
def test_jitter_does_not_add_up(format: str, muxer: str) -> None:
    """As of a call that was recorded with the times at which its packets came in."""
    rate = 48_000 if format == "webm" else 44_100
    data = encode(noise(10, rate), rate, format)
    late_s = [0.04, 0.03, 0.02, 0.01, 0.0] * 200
    found = clip(retimed(data, muxer, late_s))
    assert found["duration_s"] == pytest.approx(10, abs=0.1)


def test_frames_across_packets_of_a_program_stream_are_no_gaps() -> None:
    """FFmpeg's parser gives some frames of AC-3 the time of the next one."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="vob") as out:
        stream = out.add_stream("ac3", rate=48_000, layout="mono")
        stream.bit_rate = 96_000
        frame = av.AudioFrame.from_ndarray(noise(14, 48_000), "fltp", "mono")
        frame.sample_rate = 48_000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    found = clip(sink.getvalue(), Damage("error"))
    assert found["duration_s"] == pytest.approx(14, abs=0.05)
    assert found["sound_flags"] == []


# --- codecs --------------------------------------------------------------------------------------


def test_opus_of_sweeping_tones_is_as_loud_as_it_was() -> None:
    """FFmpeg's own decoder makes three times the power of it."""
    at = np.arange(8 * RATE) / RATE
    hz = np.where(at % 1 < 0.5, 200 + at % 0.5 * 4000, 2200 - at % 0.5 * 4000)
    sweep = 0.5 * np.sin(2 * np.pi * np.cumsum(hz) / RATE)
    sink = io.BytesIO()
    with av.open(sink, "w", format="ogg") as out:
        stream = out.add_stream("libopus", RATE, layout="mono", options={"application": "voip"})
        stream.bit_rate = 16_000
        frame = av.AudioFrame.from_ndarray(sweep[None].astype("f4"), "flt", "mono")
        frame.sample_rate = RATE
        out.mux([*stream.encode(frame), *stream.encode(None)])
    found = clip(sink.getvalue())
    assert power(found[f"sound_{RATE}"]) == pytest.approx(power(sweep), rel=0.2)


@pytest.mark.parametrize("bad", [b"\xff" * 40, bytes(range(7, 247, 6))], ids=["ones", "numbers"])
def test_a_broken_frame_of_amr_costs_itself(bad: bytes) -> None:
    data = encode(noise(10, 8000), 8000, "amr")
    middle = len(data) // 2
    whole = clip(data)
    found = clip(data[:middle] + bad + data[middle + len(bad) :])
    assert found["duration_s"] == pytest.approx(whole["duration_s"], abs=0.05)
    assert found["sound_flags"] == ["corrupt"]
    end = slice(7 * RATE, 9 * RATE)
    same = np.corrcoef(found[f"sound_{RATE}"][end], whole[f"sound_{RATE}"][end])[0, 1]
    assert same > 0.9


def test_amr_files_are_joined() -> None:
    data = encode(noise(2, 8000), 8000, "amr")
    once, twice = clip(data), clip(data * 2, Damage("error"))
    assert twice["duration_s"] == pytest.approx(2 * once["duration_s"])
    assert twice["sound_flags"] == []


def test_a_changed_byte_of_wavpack_is_found() -> None:
    """By its checksum, which FFmpeg does not look at by itself."""
    data = bytearray(encode(noise(60), RATE, "wv"))
    data[len(data) // 2] ^= 0x10
    found = clip(bytes(data))
    assert (found["duration_s"], found["sound_flags"]) == (60.0, ["corrupt"])


def with_checksum(page: bytes) -> bytes:
    """A page of Ogg with its CRC."""
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return page[:22] + crc.to_bytes(4, "little") + page[26:]


def test_changes_of_vorbis_blocks_are_no_gaps() -> None:
    """FFmpeg gives some of the first packets of pages times that are too late by a fourth of the
    difference of the blocks' sizes, which is longer at the lowest bit rates: here, at half the rate."""
    bursts = noise(3, 44_100) * (np.arange(3 * 44_100) % 9_000 < 2_000)
    data = encode(bursts.astype(np.float32), 44_100, "ogg")
    end = data.index(b"OggS", 4)
    data = with_checksum(patched(data[:end], b"vorbis", 11, "<I", 22_050)) + data[end:]
    found = clip(data, Damage("error"))
    assert found["sample_rate"] == 22_050 and found["sound_flags"] == []
    assert found["duration_s"] == pytest.approx(6, abs=0.001)


def test_metadata_within_chained_flac_is_no_damage() -> None:
    data = encode(noise(1, RATE), RATE, "ogg_flac")
    sound = data.index(b"OggS", data.index(b"OggS", 4) + 4)
    padding = b"\x81\0\0\x12" + bytes(18)
    page = data[:5] + bytes(9) + data[14:18] + bytes(8) + bytes([1, len(padding)]) + padding
    link = data[:sound] + with_checksum(page) + data[sound:]
    samples, flags = (clip(link + link)[name] for name in (f"sound_{RATE}", "sound_flags"))
    assert "corrupt" not in flags
    np.testing.assert_array_equal(samples[:], np.tile(clip(data)[f"sound_{RATE}"][:], 2))
