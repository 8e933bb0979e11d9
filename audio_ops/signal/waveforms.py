"""Waveforms in Arrow, as they travel between processes: 16-bit where they are stored like that.

A `sound_{rate}` column is a struct with a field per sample type, of which a row uses one or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

FIELDS = ("<i2", "<f4")  # by numpy's names: int16 with full scale 2^15, float32 with full scale 1
WAVEFORM = pa.struct([(name, pa.large_binary()) for name in FIELDS])


class Pcm16:
    """16-bit sound: `samples` are int16 (samples,), a slice of it is float32 in [-1, 1]."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice) -> np.ndarray:
        return as_float32(self.samples[part])


Waveform = np.ndarray | Pcm16


def as_float32(samples: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """int16 (full scale 2^15) as float32 (full scale 1), exactly; float32 is returned unchanged.

    out: float32 of the same shape, into which the result may be written.
    """
    if samples.dtype == np.float32:
        return samples
    if out is None:
        out = np.empty_like(samples, np.float32)
    np.copyto(out, samples)  # then scaled in place: a mixed product would be cast piece by piece
    out *= np.float32(2.0**-15)
    return out


def waveform_column(sounds: Sequence[Waveform | None]) -> pa.StructArray:
    """A `WAVEFORM` column of (samples,) waveforms, None as null. A single one is not copied,
    several are copied once."""
    ints = [sound.samples if isinstance(sound, Pcm16) else None for sound in sounds]
    floats = [None if isinstance(sound, Pcm16) else sound for sound in sounds]
    return pa.StructArray.from_arrays(map(_cells, (ints, floats), FIELDS), FIELDS)


def _cells(sounds: Sequence[np.ndarray | None], dtype: str) -> pa.LargeBinaryArray:
    present = np.array([sound is not None for sound in sounds])
    here = [sound for sound in sounds if sound is not None]
    data = here[0] if len(here) == 1 else np.concatenate([np.empty(0, dtype), *here])
    sizes = [0 if sound is None else sound.nbytes for sound in sounds]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    valid = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        len(sounds),
        [valid, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data, dtype))],
    )


def waveforms_of(column: pa.ChunkedArray) -> list[Waveform | None]:
    """The waveforms in a `sound_{rate}` column: (samples,), read-only views, None for null."""
    sounds: list[Waveform | None] = []
    for chunk in column.chunks:
        here: list[Waveform | None] = [None] * len(chunk)
        for name in FIELDS:
            cells = chunk.field(name)
            _, offsets, data = cells.buffers()  # a cell's as_buffer() would copy
            ends = np.frombuffer(offsets, np.int64, len(cells) + 1, cells.offset * 8).tolist()
            size = np.dtype(name).itemsize
            for row, (start, end) in enumerate(pairwise(ends)):
                if end > start:  # a good clip has at least one sample
                    samples = np.frombuffer(data, name, (end - start) // size, start)
                    here[row] = Pcm16(samples) if name == "<i2" else samples
        sounds += here
    return sounds
