"""Encoded clips -> Arrow tables of waveforms."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from runs import PATHS
from sounds import encode, noise, tone

from audio_ops.errors import ClipError
from audio_ops.prepare import prepare, prepare_clip
from audio_ops.schemas import prepared_schema
from audio_ops.signal.voice import speech_probability
from audio_ops.signal.wave import Level, downmix
from audio_ops.signal.waveforms import Pcm16, waveforms_of

IDENTITY = pa.schema([pa.field("clip_id", pa.string(), nullable=False), ("speaker", pa.int32())])


def clips(*files: bytes | ClipError) -> list[tuple[dict[str, Any], BinaryIO | ClipError]]:
    return [
        ({"clip_id": f"clip {n}", "speaker": n}, io.BytesIO(it) if isinstance(it, bytes) else it)
        for n, it in enumerate(files)
    ]


def wav(seconds: float, rate: int = 16000, channels: int = 1) -> bytes:
    return encode(tone(seconds, rate, channels), rate, "wav")


def test_a_clip_is_decoded_downmixed_and_resampled_to_each_rate() -> None:
    sound = tone(2, 48000, 2)
    found = prepare_clip(io.BytesIO(encode(sound, 48000, "wav_float")), [16000, 48000], 10)
    np.testing.assert_allclose(found["sound_48000"], sound.mean(axis=0), atol=1e-6)
    expected = (tone(2, 16000, 2)).mean(axis=0)
    np.testing.assert_allclose(found["sound_16000"][1000:-1000], expected[1000:-1000], atol=1e-3)
    assert (found["duration_s"], found["sample_rate"], found["channels"]) == (2.0, 48000, 2)
    assert found["format"] == "wav/float"
    mean = sound.mean(axis=0)  # of what the models get
    assert found["peak_dbfs"] == pytest.approx(20 * np.log10(np.abs(mean).max()), abs=0.01)
    assert found["rms_dbfs"] == pytest.approx(10 * np.log10((mean**2).mean()), abs=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_nan_and_inf_are_found(value: float) -> None:
    """But where nobody asks for them."""
    samples = tone(20, channels=2)  # some blocks
    samples[1, 160_000] = value
    data = encode(samples, 16000, "wav_float")
    for stretch in (None, (5.0, 10.0)):
        with pytest.raises(ClipError) as found:
            prepare_clip(io.BytesIO(data), [16000], 100, stretch)
        assert (found.value.kind, found.value.message) == ("not_finite", "NaN or Inf at 10.00 s")
    assert prepare_clip(io.BytesIO(data), [16000], 100, (1.0, 9.0))["duration_s"] == 9
    assert prepare_clip(io.BytesIO(data), [16000], 100, (11.0, 2.0))["duration_s"] == 2


def test_rows_in_are_rows_out_in_order() -> None:
    lost = ClipError("unreadable", "permission denied")
    (table,) = prepare(clips(wav(1), b"", lost, b"words", wav(2)), IDENTITY, [16000, 8000], 100)
    assert table.schema == prepared_schema(IDENTITY, [16000, 8000])
    assert table["clip_id"].to_pylist() == [f"clip {n}" for n in range(5)]
    assert table["speaker"].to_pylist() == list(range(5))
    assert table["error_stage"].to_pylist() == [None, "decode", "read", "decode", None]
    assert table["error_kind"].to_pylist() == [None, "empty", "unreadable", "not_audio", None]
    assert table["error_message"][2].as_py() == "permission denied"
    assert table["duration_s"].to_pylist() == [1, None, None, None, 2]
    sounds = waveforms_of(table["sound_8000"])
    lengths = [None if sound is None else len(sound) for sound in sounds]
    assert lengths == [8000, None, None, None, 16000]
    table.validate(full=True)


def floats(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(-1, 1, count).astype(np.float32)


def test_a_waveform_is_read_back_without_a_copy() -> None:
    (table,) = prepare(clips(wav(1), wav(2)), IDENTITY, [16000, 8000], max_clip_s=100)
    for rate, field in ((16000, "<i2"), (8000, "<f4")):
        sound = waveforms_of(table[f"sound_{rate}"])[1]
        samples = sound.samples if isinstance(sound, Pcm16) else sound
        assert samples is not None and samples.dtype == field and len(samples) == 2 * rate
        data = table[f"sound_{rate}"].chunk(0).field(field).buffers()[2]
        assert data.address <= samples.ctypes.data < data.address + data.size


@pytest.mark.parametrize(
    ("format", "subtype", "is_short"),
    [
        ("WAV", "PCM_U8", True),
        ("WAV", "ULAW", True),
        ("WAV", "PCM_16", True),
        ("WAV", "PCM_24", False),
        ("WAV", "FLOAT", False),
        ("AIFF", "PCM_16", True),
        ("FLAC", "PCM_16", True),
        ("FLAC", "PCM_24", False),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_of_at_most_16_bits_travels_so_as_long_as_nothing_is_computed_with_it(
    format: str, subtype: str, is_short: bool, channels: int
) -> None:
    samples = floats(np.random.default_rng(0), 1_000_000).reshape(-1, channels)
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, subtype, format=format)
    (table,) = prepare(clips(file.getvalue()), IDENTITY, [16000], max_clip_s=1000)
    (sound,) = waveforms_of(table["sound_16000"])
    file.seek(0)
    wanted = soundfile.read(file, dtype="float32", always_2d=True)[0].mean(axis=1)
    assert sound is not None
    np.testing.assert_array_equal(sound[:], wanted)
    np.testing.assert_array_equal(sound[7:70_000], wanted[7:70_000])
    assert isinstance(sound, Pcm16) == (is_short and channels == 1)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_level_of_integers_is_that_of_their_floats(subtype: str, channels: int) -> None:
    file = io.BytesIO()
    samples = floats(np.random.default_rng(0), 300_000).reshape(-1, channels)
    samples[1000] = -1.0
    soundfile.write(file, samples, 16000, subtype, format="WAV")
    file.seek(0)
    level = Level()
    level.add(downmix(soundfile.read(file, dtype="float32", always_2d=True)[0].T))
    file.seek(0)
    clip = prepare_clip(file, [16000, 8000], 1000)
    assert (clip["peak_dbfs"], clip["rms_dbfs"]) == (level.peak_dbfs, level.rms_dbfs)


def test_waveforms_survive_ipc_slices_and_joints() -> None:
    (table,) = prepare(clips(b"", wav(1), wav(2)), IDENTITY, [16000, 8000], max_clip_s=100)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    again = pa.ipc.open_stream(sink.getvalue()).read_all().slice(2)
    for rate in (16000, 8000):
        both = waveforms_of(pa.concat_tables([again, table])[f"sound_{rate}"])
        assert both[1] is None and len(both) == 4
        for sound in (both[0], both[3]):
            assert sound is not None
            wanted = tone(2, rate)[0]
            np.testing.assert_allclose(sound[500:-500], wanted[500:-500], atol=1e-3)


def test_tables_are_cut_by_clips_and_by_bytes() -> None:
    def sizes(**limits: Any) -> list[int]:
        seconds = [1, 1, 1, 5, 1, 1]
        tables = prepare(clips(*map(wav, seconds)), IDENTITY, [16000], max_clip_s=100, **limits)
        return [len(table) for table in tables]

    assert sizes() == [6]
    assert sizes(max_batch_clips=4) == [4, 2]
    assert sizes(max_batch_bytes=2 * 32000) == [2, 1, 1, 2]
    assert sizes(max_batch_bytes=1) == [1] * 6


def test_no_clips_are_no_tables() -> None:
    assert list(prepare([], IDENTITY, [16000], max_clip_s=100)) == []


def test_files_are_closed_good_or_bad() -> None:
    given = clips(wav(1), b"words", wav(200, 4000))
    list(prepare(given, IDENTITY, [16000], max_clip_s=100))
    assert all(file.closed for _, file in given if not isinstance(file, ClipError))


def test_clips_are_pulled_one_by_one() -> None:
    pulled = []

    def source() -> Any:
        for clip in clips(*[wav(0.1)] * 5):
            pulled.append(clip)
            yield clip

    next(prepare(source(), IDENTITY, [16000], max_clip_s=100, max_batch_clips=2))
    assert len(pulled) <= 3


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "m4a"])
def test_a_long_claim_is_refused_at_once(format: str) -> None:
    data = encode(tone(12), 16000, format)
    with pytest.raises(ClipError) as caught:
        prepare_clip(io.BytesIO(data), [16000], 10)
    assert caught.value.kind == "too_long"
    assert caught.value.message.startswith("audio.max_clip_s allows 10 s, found 12.")


def test_a_long_clip_without_a_claim_is_refused_on_the_way() -> None:
    data = encode(noise(12), 16000, "aac")
    with pytest.raises(ClipError) as caught:
        prepare_clip(io.BytesIO(data), [16000], 10)
    assert caught.value.message == "audio.max_clip_s allows 10 s, found more"


def test_speech_is_computed_where_it_is_wanted() -> None:
    given = wav(2), wav(4), b""

    def speech(**options: Any) -> list[int | None]:
        (table,) = prepare(clips(*given), IDENTITY, [16000], max_clip_s=100, long_s=3, **options)
        return [cell and len(cell) for cell in table["speech"].to_pylist()]

    assert speech() == [None, None, None]
    assert speech(want_speech="long") == [None, 125, None]
    assert speech(want_speech="always") == [63, 125, None]


def test_speech_is_computed_at_16_khz_whatever_the_rates_are() -> None:
    for rates in ([16000], [8000, 48000]):
        (table,) = prepare(clips(wav(2)), IDENTITY, rates, max_clip_s=100, want_speech="always")
        found = np.frombuffer(table["speech"][0].as_py(), np.uint8).astype(int)
        assert np.abs(found - speech_probability(tone(2)[0])).max() < 26


LONG = """
import io, resource, sys, struct
sys.path[:0] = {paths!r}
from audio_ops.prepare import prepare_clip
from sounds import encode, noise

class Endless(io.RawIOBase):
    '''A stereo WAV of {seconds} s at 48 kHz, made as it is read.'''
    head, at = b"RIFF" + struct.pack("<I", 36 + {size}) + encode(noise(0.1, 48000, 2), 48000, "wav")[8:40], 0
    head += struct.pack("<I", {size})
    def seek(self, offset, whence=0):
        self.at = (0, self.at, 44 + {size})[whence] + offset
        return self.at
    def tell(self): return self.at
    def read(self, count=-1):
        count = min(count, 44 + {size} - self.at)
        data = self.head[self.at:][:count]
        data += bytes(max(0, count - len(data)))
        self.at += len(data)
        return data

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
prepare_clip(io.BytesIO(encode(noise(1, 48000, 2), 48000, "wav")), [16000], 1e6)
before = peak()
found = prepare_clip(Endless(), [16000], 1e6)
print(found["duration_s"], len(found["sound_16000"]), peak() - before)
"""


def test_an_hour_of_stereo_takes_the_memory_of_its_result() -> None:
    seconds = 3600
    code = LONG.format(paths=PATHS, seconds=seconds, size=seconds * 48000 * 2 * 2)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    duration_s, samples, grown = map(float, found.stdout.split())
    assert (duration_s, samples) == (seconds, seconds * 16000)
    assert grown < 1.25 * samples * 4 + 32e6  # as stereo at its stored rate it is 1,382 MB
