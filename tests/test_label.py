"""One bad clip never takes a good one with it, and batching changes no label."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from audio_ops.batching import micro_batches
from audio_ops.decode import ClipError
from audio_ops.label import Label
from audio_ops.tasks import Clip, Window

RATE = 1_000


class Loudest:
    """A model that says each window's largest sample, and fails as it is told to.

    A sample of 9 is a sound that it cannot take; more than `most` windows are out of memory.
    """

    sample_rate = RATE
    equal_lengths = False

    def __init__(self, most: int = 1000, window_s: float = 2.0):
        self.most = most
        self.window = int(window_s * RATE)
        self.batches: list[int] = []

    def windows(self, clip: Clip) -> list[Window]:
        length = len(clip.waveform)
        if not length:
            raise ClipError("empty", "expected samples, found none")
        return [
            Window(start, min(start + self.window, length), clip.row.get("group"))
            for start in range(0, length, self.window)
        ]

    def padded_s(self, samples: int) -> float:
        return samples / RATE

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        self.batches.append(len(waveforms))
        if len(waveforms) > self.most:
            raise MemoryError("too many")
        if any(waveform.max() == 9 for waveform in waveforms):
            raise ValueError("cannot take a 9")
        assert not self.equal_lengths or len({len(waveform) for waveform in waveforms}) == 1
        return [(group, float(waveform.max())) for waveform in waveforms]

    def join(self, clip: Clip, windows: Sequence[Window], outputs: Sequence[Any]) -> dict[str, Any]:
        return {"groups": [g for g, _ in outputs], "loudest": [value for _, value in outputs]}


def labeller(model: Loudest, batch_s: float = 8.0) -> Label:
    """A Label around a model that is not a checkpoint."""
    label = Label.__new__(Label)
    label.name, label.columns, label.drop = "t", {}, []
    label.batch_s, label.model = batch_s, model
    return label


def clip(value: float, length_s: float = 1.0, **row: Any) -> Clip:
    return Clip(np.full(int(length_s * RATE), value, np.float32), length_s, row=row)


def test_only_the_clip_that_fails_gets_an_error() -> None:
    labels = labeller(Loudest()).label([clip(v) for v in (1, 2, 9, 4, 5, 6, 7)])
    assert isinstance(labels[2], ClipError) and labels[2].kind == "model"
    assert "ValueError: cannot take a 9" in str(labels[2])
    good = [label["loudest"] for label in labels if isinstance(label, dict)]
    assert good == [[1], [2], [4], [5], [6], [7]]


def test_labels_come_back_in_the_order_of_the_clips_and_of_their_windows() -> None:
    clips = [clip(1, 0.5), clip(2, 5.0), None, clip(3, 3.1), clip(4, 0.1)]
    labels = labeller(Loudest()).label(clips)
    assert labels[2] is None
    assert [label["loudest"] for label in labels if isinstance(label, dict)] == [
        [1],
        [2, 2, 2],
        [3, 3],
        [4],
    ]


def test_a_long_clip_with_one_bad_window_is_one_error() -> None:
    bad = clip(1, 6.0)
    bad.waveform[3 * RATE] = 9
    labels = labeller(Loudest()).label([clip(2), bad, clip(3)])
    assert [isinstance(label, ClipError) for label in labels] == [False, True, False]


def test_a_clip_that_the_model_refuses_costs_no_batch() -> None:
    model = Loudest()
    labels = labeller(model).label([clip(1, 0), clip(2)])
    assert isinstance(labels[0], ClipError) and labels[0].kind == "empty"
    assert labels[1] == {"groups": [None], "loudest": [2]}
    assert model.batches == [1]


def test_out_of_memory_halves_the_batch_for_good_and_loses_nothing() -> None:
    model = Loudest(most=2)
    label = labeller(model, batch_s=8.0)
    labels = label.label([clip(v) for v in range(1, 9)])
    assert [entry["loudest"] for entry in labels if isinstance(entry, dict)] == [
        [v] for v in range(1, 9)
    ]
    assert label.batch_s < 8.0
    model.batches.clear()
    label.label([clip(v) for v in range(1, 9)])
    assert max(model.batches) <= 2


def test_a_single_clip_that_needs_too_much_memory_is_an_error_row() -> None:
    labels = labeller(Loudest(most=0)).label([clip(1), clip(2)])
    assert [label.kind for label in labels if isinstance(label, ClipError)] == ["out_of_memory"] * 2


@pytest.mark.parametrize("batch_s", [0.1, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("equal", [False, True])
def test_the_budget_changes_no_label(batch_s: float, equal: bool) -> None:
    clips = [clip(v, 0.1 + 0.7 * (v % 5), group=v % 2) for v in range(1, 9)]
    model = Loudest()
    model.equal_lengths = equal
    assert labeller(model, batch_s).label(clips) == labeller(Loudest(window_s=2), 1e9).label(clips)


def test_a_batch_never_mixes_groups() -> None:
    labels = labeller(Loudest(), 1e9).label([clip(v, group=v % 3) for v in range(1, 8)])
    for value, label in enumerate(labels, start=1):
        assert isinstance(label, dict) and label["groups"] == [value % 3]


def test_batches_are_sorted_by_length_within_the_budget() -> None:
    lengths = [1.0, 30.0, 2.0, 29.0, 2.0, 200.0]
    batches = micro_batches(lengths, 60.0)
    assert batches == [[5], [1, 3], [2, 4, 0]]
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 60.0 for b in batches)


def test_no_clips_make_no_batches() -> None:
    assert micro_batches([], 60.0) == []
    assert labeller(Loudest()).label([]) == []
    assert labeller(Loudest()).label([None]) == [None]
