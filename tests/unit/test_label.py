"""One bad clip never takes a good one with it, and batching changes no label."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from audio_ops.crash_guard import CrashGuard
from audio_ops.errors import ClipError
from audio_ops.inference.batching import micro_batches
from audio_ops.inference.runner import BatchRunner, Budget, Failures
from audio_ops.label import Label
from audio_ops.tasks import Clip, Window
from jobs.workers.crash_ledger import CrashLedger

RATE = 1_000


class Loudest:
    """A model that says each window's largest sample, and fails as it is told to.

    A sample of 9 is a sound that it cannot take; more than `most` windows are out of memory.
    """

    sample_rate = RATE
    is_generative = False
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
    label.model, label.failures, label.guard, label.when = model, Failures(), None, None
    label.runner = BatchRunner(model, "cpu", batch_s, label.failures)
    return label


def clip(value: float, length_s: float = 1.0, **row: Any) -> Clip:
    return Clip(np.full(int(length_s * RATE), value, np.float32), length_s, row=row)


def test_only_the_clip_that_fails_gets_an_error() -> None:
    labels = labeller(Loudest()).label([clip(v) for v in (1, 2, 9, 4, 5, 6, 7)])
    assert isinstance(labels[2], ClipError) and labels[2].kind == "model"
    assert "ValueError: cannot take a 9" in str(labels[2])
    good = [label["loudest"] for label in labels if isinstance(label, dict)]
    assert good == [[1], [2], [4], [5], [6], [7]]


@pytest.mark.parametrize("stage", ["windows", "join"])
def test_a_clip_on_which_any_stage_fails_is_an_error_alone_logged_once(
    stage: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = getattr(Loudest, stage)

    def broken(self: Loudest, clip: Clip, *rest: Any) -> Any:
        if "broken" in clip.row:
            return clip.row[f"no {stage}"]
        return whole(self, clip, *rest)

    monkeypatch.setattr(Loudest, stage, broken)
    clips = [clip(1), clip(2, broken=True), clip(3), clip(4, broken=True)]
    label = labeller(Loudest())
    labels = label.label(clips)
    assert [str(labels[index]) for index in (1, 3)] == [f"model: KeyError: 'no {stage}'"] * 2
    assert [labels[index]["loudest"] for index in (0, 2)] == [[1], [3]]  # type: ignore[index,call-overload]
    label.label(clips)
    log = capfd.readouterr().err
    assert log.count("Traceback") == 1 and ", in broken" in log


def test_a_label_that_its_column_cannot_hold_is_an_error_alone() -> None:
    label = labeller(Loudest())
    label.columns = {"loudest": pa.string(), "groups": pa.string()}
    given = [{"loudest": "a", "groups": None}, {"loudest": 3}, None, {"loudest": "\ud800"}, {}]
    columns = label.arrays(given)
    assert columns["loudest"].to_pylist() == ["a", None, None, None, None]
    assert [type(one) for one in given] == [dict, ClipError, type(None), ClipError, dict]


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


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audio_ops.inference.runner.WAIT_S", 0.0)
    monkeypatch.setattr("audio_ops.inference.runner.WAITS_ALONE_S", (0.0, 0.0, 0.0))


def test_out_of_memory_halves_the_batch_and_loses_nothing(no_waiting: None) -> None:
    model = Loudest(most=2)
    label = labeller(model, batch_s=1000.0)
    labels = label.label([clip(v) for v in range(1, 9)])
    assert [entry["loudest"] for entry in labels if isinstance(entry, dict)] == [
        [v] for v in range(1, 9)
    ]
    assert label.runner.budget.batch_s == 2.0
    model.batches.clear()
    label.label([clip(v) for v in range(1, 9)])
    assert max(model.batches) <= 2


class ShortOfMemory(Loudest):
    """Runs out of memory in its first `failures` calls, as if another process had taken it."""

    def __init__(self, failures: int):
        super().__init__()
        self.failures = failures

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        if self.failures:
            self.failures -= 1
            self.batches.append(len(waveforms))
            raise MemoryError
        return super().__call__(waveforms, group)


def test_memory_that_another_process_takes_for_a_moment_costs_neither_row_nor_budget(
    no_waiting: None,
) -> None:
    label = labeller(ShortOfMemory(1), batch_s=4.0)
    assert loudest(label.label([clip(v) for v in range(1, 5)])) == [[1], [2], [3], [4]]
    assert label.runner.budget.batch_s == 4.0
    alone = labeller(ShortOfMemory(3), batch_s=4.0)
    assert loudest(alone.label([clip(5)])) == [[5]]


def test_the_budget_grows_back_and_less_often_after_each_failure() -> None:
    budget = Budget(64.0)
    budget.failed(64.0)
    assert budget.batch_s == 32.0
    batches = 0
    while budget.batch_s < 64.0:
        budget.succeeded()
        batches += 1
    budget.failed(64.0)
    again = 0
    while budget.batch_s < 64.0:
        budget.succeeded()
        again += 1
    assert again == 2 * batches
    for _ in range(1000):
        budget.succeeded()
    assert budget.batch_s == 64.0


def test_a_single_clip_that_needs_too_much_memory_is_an_error_row(no_waiting: None) -> None:
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


# --- a model whose process dies ------------------------------------------------------------------


class Death(BaseException):
    """Ends the process, as far as a Label can tell: nothing in it catches this."""


class Deadly(Loudest):
    """Dies of a window with an 8 in it, and, if it is told so, of more than `most` at once."""

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        self.batches.append(len(waveforms))
        if any(waveform.max() == 8 for waveform in waveforms) or len(waveforms) > self.most:
            raise Death
        return [(group, float(waveform.max())) for waveform in waveforms]


class Notes:
    """One process's connection to the ledger."""

    def __init__(self, ledger: CrashLedger):
        self.enter, self.leave = ledger.enter, partial(ledger.leave, "actor")
        self.working_on = partial(ledger.working_on, "actor")


def guarded(label: Label, ledger: CrashLedger) -> Callable[[Sequence[Clip]], list[Any]]:
    """The label's work on clips, under a guard of its own."""
    guard = CrashGuard(Notes(ledger))
    return lambda clips: guard(clips, label.label)


def survive(clips: Sequence[Clip], ledger: CrashLedger, most: int = 1000) -> tuple[list[Any], int]:
    """A call and its retries, each in a new process; what it gives, and how often it died."""
    for deaths in range(100):
        try:
            return guarded(labeller(Deadly(most)), ledger)(clips), deaths
        except Death:
            continue
    raise AssertionError("it died for ever")


def named(*values: float) -> list[Clip]:
    return [clip(value, clip_id=f"{n:032}") for n, value in enumerate(values)]


def loudest(labels: Sequence[Any]) -> list[Any]:
    return [entry.kind if isinstance(entry, ClipError) else entry["loudest"] for entry in labels]


def test_a_clip_that_kills_the_process_is_found_within_three_deaths() -> None:
    ledger = CrashLedger()
    labels, deaths = survive(named(1, 2, 3, 8, 5, 6, *[7] * 20), ledger)
    assert loudest(labels) == [[1], [2], [3], "crashed", [5], [6], *[[7]] * 20]
    assert deaths == 3
    assert not ledger.in_progress and not ledger.deaths


@pytest.mark.parametrize("values", [(8, 8, 1), (1, 8, *[2] * 30, 8), (8, 8)])
def test_several_in_one_call_are_all_found(values: tuple[float, ...]) -> None:
    labels, deaths = survive(named(*values), CrashLedger())
    assert loudest(labels) == ["crashed" if value == 8 else [value] for value in values]
    assert deaths <= 3 * values.count(8)


def test_a_batch_that_is_too_much_for_the_machine_costs_no_clip() -> None:
    """As when the kernel ends the process because memory is short."""
    labels, deaths = survive(named(*range(1, 8), *[1] * 20), CrashLedger(), most=4)
    assert loudest(labels) == [*[[v] for v in range(1, 8)], *[[1]] * 20]
    assert deaths <= 4  # one for each batch, which are not tried again


def test_an_innocent_clip_survives_a_machine_that_is_lost_with_it_alone() -> None:
    ledger, clips = CrashLedger(), named(1, 2)
    for alone in (False, False, True):
        ledger.working_on("actor", clips[0].row["clip_id"], [clips[1].row["clip_id"]], alone)
        ledger.enter(clips[0].row["clip_id"])
    labels, deaths = survive(clips, ledger)
    assert (loudest(labels), deaths) == ([[1], [2]], 0)


def test_a_long_clip_is_alone_with_all_its_windows() -> None:
    long = clip(1, 7.0, clip_id="long")
    long.waveform[6 * RATE] = 8
    labels, deaths = survive([*named(1, 2), long], CrashLedger())
    assert (loudest(labels), deaths) == ([[1], [2], "crashed"], 3)


def test_a_call_beside_a_suspect_waits_until_it_is_through() -> None:
    """Else two calls that die together would each blame its own clip."""
    inside = threading.Event()
    go_on = threading.Event()
    beside: list[str] = []

    class Slow(Deadly):
        def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
            if waveforms[0][0] == 3:
                inside.set()
                assert go_on.wait(60)
                beside.append("suspect is through")
            else:
                beside.append("other")
            return super().__call__(waveforms, group)

    ledger = CrashLedger()
    ledger.working_on("actor", "suspect", ["suspect"], alone=False)
    label = guarded(labeller(Slow()), ledger)
    first = threading.Thread(target=label, args=([clip(3, clip_id="suspect")],))
    second = threading.Thread(target=label, args=([clip(1, clip_id="b")],))
    first.start()
    assert inside.wait(60)
    second.start()
    second.join(0.3)
    assert second.is_alive() and not beside
    go_on.set()
    first.join()
    second.join()
    assert beside == ["suspect is through", "other"]


def test_starts_count_until_something_is_labelled() -> None:
    ledger = CrashLedger()
    assert [ledger.started("a") for _ in range(3)] == [1, 2, 3]
    ledger.working_on("a", "call", ["x"], True)
    ledger.working_on("a", "call", ["y"], True)  # so x is labelled
    assert ledger.started("a") == 1
    ledger.leave("a", "call")
    assert (ledger.started("a"), ledger.started("b")) == (1, 1)
