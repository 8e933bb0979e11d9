"""Samples in a column, as `datasets` decodes them, as a WAV file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audio_ops.errors import ClipError

PCM, FLOAT = 1, 3  # WAV's numbers of formats
MAX_WAV_BYTES = (1 << 32) - 1024


def decoded_sound(value: pa.StructScalar, max_bytes: int) -> io.BytesIO | ClipError:
    """A WAV file of {array, sampling_rate: Hz}, or the error.

    array: (samples,) or (channels, samples); with more rows than a sound can have channels it is
        soundfile's (samples, channels). int16 and int32 have the full scale of their type; all other
        numbers are converted to float32, whose full scale is 1.
    """
    rate = value["sampling_rate"].as_py()
    if not isinstance(rate, int) or not 0 < rate < 1 << 31:
        return ClipError("damaged", f"sampling_rate: expected Hz, found {rate!r}")
    try:
        samples = _samples(value["array"])
    except (ValueError, TypeError, pa.ArrowException) as error:
        return ClipError("damaged", f"array: expected samples: {error}")
    if samples.nbytes > min(max_bytes, MAX_WAV_BYTES):
        limit = f"input.max_clip_bytes allows {max_bytes:,}, found {samples.nbytes:,}"
        return ClipError("too_large", limit)
    return io.BytesIO(_wav(samples, rate))


def _samples(array: pa.Scalar) -> np.ndarray:
    """float32, int16 or int32 (samples, channels)."""
    from audio_ops.decode.sound import MAX_CHANNELS

    values = array.values
    if pa.types.is_nested(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise ValueError(f"found rows of several lengths: {lengths[:8]}")
        samples = _numbers(values.flatten()).reshape(max(1, len(values)), *lengths or [0])
        if len(samples) <= MAX_CHANNELS:
            samples = samples.T
        if samples.shape[1] > MAX_CHANNELS:
            raise ValueError(f"found {samples.shape[::-1]}, and a sound has (channels, samples)")
    else:
        samples = _numbers(values)[:, None]
    return samples if samples.dtype in (np.int16, np.int32) else samples.astype(np.float32)


def _numbers(values: pa.Array) -> np.ndarray:
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise TypeError(f"found {values.type}")
    return np.asarray(values.to_numpy(zero_copy_only=False))  # null becomes NaN


def _wav(samples: np.ndarray, rate: int) -> bytes:
    channels, width = samples.shape[1], samples.itemsize
    kind = FLOAT if samples.dtype == np.float32 else PCM
    size = samples.nbytes
    frame = channels * width
    form = struct.pack(
        "<HHIIHH", kind, channels, rate, min(rate * frame, 0xFFFFFFFF), frame, 8 * width
    )
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    return b"RIFF" + struct.pack("<I", len(head) + size) + head + data
