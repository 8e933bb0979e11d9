"""Shared by all classifiers: cutting into windows, pooling, ranking labels, references.

A classifier returns logits per window. The windows' logits are pooled, not their probabilities, so
that `score` and `loss` follow from one vector of logits, as for a clip of one window:

- `mean` of logits, then softmax: the normalised geometric mean of the windows' probabilities;
- `max` of logits, then sigmoid: the label's highest probability in any window.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from audio_ops.errors import ClipError
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.tasks import Clip, Reporting, TaskOptions, Window

Function = Literal["softmax", "sigmoid", "none"]
Kind = Literal["single_label", "multi_label", "regression"]

BOOLEANS = ("true", "false")
REPORTING = Reporting(
    "classification",
    label="label",
    text=None,
    score="score",
    suspect=None,
    reference_is_text=False,
)
SHOWN = 200  # characters of a reference in an error


class ClassificationOptions(TaskOptions):
    """Settings of all classifiers."""

    top_k: int | None = Field(default=None, ge=1)
    """How many labels to keep; null for all."""
    window_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longer sound is cut into windows of this length, whose logits are pooled. The last window is
    aligned with the end of the sound. By default the length of the model's input if that is fixed
    (AST 10.255 s, CLAP 10 s, Whisper 30 s), else 30 s."""
    hop_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """From the start of one window to the start of the next; `window_s` if left out."""
    pool: Literal["mean", "max"] = "mean"
    """How the windows' logits become the clip's."""
    segments: bool = False
    """Add the top label of each window, with its times."""
    reference: str | None = None
    """Column with the true label: a name, an id (`3`, `3.0`, also as text), or a list of them for
    multi-label models; a number (or one per output) for regression. Text may hold a list as JSON
    (`["dog", "rain"]`). A boolean is the label named true or false, in any case, and 1 or 0 for
    regression; it is never an id, since which label `true` means is unknown. A reference that
    cannot be compared is reported in `reference_error` of its row, which keeps its labels."""


def classification_columns(options: ClassificationOptions) -> dict[str, pa.DataType]:
    """The columns of a classifier and their Arrow types.

    - `label`, `score`: the top label (also of a multi-label model); a regression's value;
    - `labels`, `scores`: the `top_k` best, best first;
    - `segments`, if asked for: each window's times in seconds, top label and score;
    - with `reference`: `loss` (see `Classes.loss`), `correct`, `reference_label` (the model's name
      for the reference, null for multi-label and regression), and `reference_error`, the reason if
      the reference cannot be used. A null reference gives nulls, and no error.
    """
    segment = pa.struct(
        [
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("label", pa.string()),
            ("score", pa.float32()),
        ]
    )
    columns = {
        "label": pa.string(),
        "score": pa.float32(),
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
    }
    if options.segments:
        columns["segments"] = pa.list_(segment)
    if options.reference is not None:
        columns["loss"] = pa.float32()
        columns["correct"] = pa.bool_()
        columns["reference_label"] = pa.string()
        columns["reference_error"] = pa.string()
    return columns


@dataclass(frozen=True)
class Windowing:
    """How sound is cut, in samples: into windows of `window`, one every `hop`.

    Sound shorter than `shortest` is an error. `sample_rate` is in Hz.
    """

    sample_rate: int
    shortest: int
    window: int
    hop: int

    @classmethod
    def of(
        cls,
        options: ClassificationOptions,
        sample_rate: int,
        *,
        shortest: int,
        default: int,
        limited: bool,
    ) -> Windowing:
        """From the options and the model.

        default: window in samples if the options name none; if `limited`, also the model's maximum.
        shortest: fewest samples that the model takes.

        Raises ValueError if the options contradict the model or each other.
        """
        window = default if options.window_s is None else round(options.window_s * sample_rate)
        hop = window if options.hop_s is None else round(options.hop_s * sample_rate)
        if limited and window > default:
            raise ValueError(
                f"window_s: expected at most {default / sample_rate:g} s, the length of this "
                f"model's input, found {options.window_s:g}"
            )
        if window < shortest:
            raise ValueError(
                f"window_s: expected at least {shortest / sample_rate:g} s, the shortest sound "
                f"that this model takes, found {options.window_s:g}"
            )
        if not 1 <= hop <= window:
            raise ValueError(
                f"hop_s: expected one sample to window_s ({window / sample_rate:g} s), "
                f"found {options.hop_s:g}"
            )
        return cls(sample_rate, shortest, window, hop)

    def __call__(self, samples: int) -> list[Window]:
        """The windows of a clip of that many samples. Raises ClipError `too_short` for too few.

        The last window is as long as the others and ends with the sound: it overlaps with the one
        before rather than be a tiny rest.
        """
        if samples < self.shortest:
            raise ClipError(
                "too_short",
                f"expected at least {self.shortest} samples "
                f"({self.shortest / self.sample_rate:g} s) for this model, found {samples}",
            )
        if samples <= self.window:
            return [Window(0, samples)]
        last = samples - self.window
        return [Window(start, start + self.window) for start in [*range(0, last, self.hop), last]]


@dataclass(frozen=True)
class Classes:
    """Turns windows' logits into a clip's columns.

    names: the labels by id.
    function: makes scores of logits.
    kind: decides the loss, and what a reference may be.
    sample_rate: of the windows, in Hz.
    """

    names: Sequence[str]
    function: Function
    kind: Kind
    options: ClassificationOptions
    sample_rate: int

    def columns(
        self, clip: Clip, windows: Sequence[Window], logits: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        """The columns of one clip from float32 `(labels,)` logits for each of its windows.

        Raises ClipError `model` if the logits are not finite.
        """
        by_window = np.array(logits)
        if not are_finite(by_window):
            raise not_finite("logits")
        pooled = by_window[0]
        # Most clips have one window, and numpy's calls take a large part of the time here.
        if len(logits) > 1:
            pooled = by_window.mean(0) if self.options.pool == "mean" else by_window.max(0)
        scores = self.scores(pooled)
        best = np.argsort(-scores, kind="stable")[: self.options.top_k]
        columns: dict[str, Any] = {
            "label": self.names[best[0]],
            "score": float(scores[best[0]]),
            "labels": [self.names[index] for index in best],
            "scores": scores[best].tolist(),
        }
        if self.options.segments:
            columns["segments"] = [
                self._segment(window, self.scores(own))
                for window, own in zip(windows, by_window, strict=True)
            ]
        if self.options.reference is not None:
            columns |= self._compared(clip, pooled)
        return columns

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """`function` over the last axis of logits."""
        if self.function == "softmax":
            exponentials = np.exp(logits - logits.max(-1, keepdims=True))
            return exponentials / exponentials.sum(-1, keepdims=True)
        if self.function == "sigmoid":
            return np.exp(-np.logaddexp(0, -logits))
        return logits

    def loss(self, logits: np.ndarray, target: np.ndarray) -> float:
        """The loss of (labels,) logits against a target of that shape; 0 is perfect.

        - single label, one-hot target: cross-entropy, -log of the softmax (of several outputs with one
          name the softmax of all of them);
        - multi-label, 0/1 target: binary cross-entropy of each label's sigmoid, mean over labels;
        - regression, numbers: squared error, mean over outputs.

        As torch's losses of these names, in nats. Does not depend on `function`.
        """
        logits = logits.astype(np.float64)
        if self.kind == "single_label":
            own = np.logaddexp.reduce(logits[target > 0])
            return float(np.logaddexp.reduce(logits) - own)
        if self.kind == "multi_label":
            return float((np.logaddexp(0, logits) - logits * target).mean())
        return float(((logits - target) ** 2).mean())

    def label_id(self, reference: Any) -> int:
        """The id of a label given by name, by id (`3`, `3.0`, `"3"`, `"3.0"`) or as a boolean.

        Text is a name if there is such a label; a number never is. A boolean, or `true` and `false`
        as text, is the only label of that name in any case. Raises ValueError for an unknown label.
        """
        if isinstance(reference, str) and reference in self.names:
            return self.names.index(reference)
        spelled = str(reference).lower()
        if isinstance(reference, bool) or (isinstance(reference, str) and spelled in BOOLEANS):
            same = [id for id, name in enumerate(self.names) if name.lower() == spelled]
            number = same[0] if len(same) == 1 else None
        else:
            number = _whole_number(reference)
        if number is None or not 0 <= number < len(self.names):
            known = ", ".join(map(repr, self.names[:5])) + (", ..." if len(self.names) > 5 else "")
            raise ValueError(
                f"expected a label ({known}) or an id from 0 to {len(self.names) - 1}, "
                f"found {_shortened(reference)}"
            )
        return number

    def _segment(self, window: Window, scores: np.ndarray) -> dict[str, Any]:
        best = int(scores.argmax())
        return {
            "start_s": window.start / self.sample_rate,
            "end_s": window.stop / self.sample_rate,
            "label": self.names[best],
            "score": float(scores[best]),
        }

    def _compared(self, clip: Clip, logits: np.ndarray) -> dict[str, Any]:
        """The columns with the clip's reference.

        `correct` means that the top label is the reference, or one of several; for an empty list of
        references, that its sigmoid is below a half. It is null for regression.
        """
        column = self.options.reference
        try:
            if column not in clip.row:
                raise ValueError(f"expected a column {column!r}, found {', '.join(clip.row)}")
            reference = clip.row[column]
            if reference is None:
                return {}
            if self.kind == "regression":
                return {"loss": self._finite_loss(logits, self._numbers(reference))}
            listed = self._listed(reference)
            if self.kind == "single_label" and len(listed) != 1:
                raise ValueError(f"expected one label, found {len(listed)}: {_shortened(listed)}")
            ids = [self.label_id(label) for label in listed]
            if len(set(ids)) < len(ids):
                raise ValueError(
                    "expected each label once (a 0 or 1 for every label is no list of labels), "
                    f"found {_shortened(reference)}"
                )
        except (ValueError, OverflowError) as error:
            return {"reference_error": f"{column}: {error}"}
        names = {self.names[id] for id in ids}  # some checkpoints have a name for several outputs
        target = np.array([name in names for name in self.names], float)
        best = int(logits.argmax())
        return {
            "loss": self.loss(logits, target),
            "correct": self.names[best] in names if ids else bool(logits[best] < 0),
            "reference_label": self.names[ids[0]] if self.kind == "single_label" else None,
        }

    def _listed(self, reference: Any) -> list[Any]:
        """The labels in a reference: one, a list, or a list as JSON that is no label's name."""
        if isinstance(reference, list | tuple):
            return list(reference)
        if isinstance(reference, str) and reference.startswith("[") and reference not in self.names:
            try:
                parsed = json.loads(reference)
            except (ValueError, RecursionError):
                return [reference]
            return parsed if isinstance(parsed, list) else [reference]
        return [reference]

    def _numbers(self, reference: Any) -> np.ndarray:
        """A regression's target (outputs,). Raises ValueError unless all are finite numbers."""
        try:
            numbers = np.array([_number(number) for number in self._listed(reference)])
        except (TypeError, ValueError, OverflowError):
            numbers = np.array([])
        if numbers.shape != (len(self.names),) or not np.isfinite(numbers).all():
            raise ValueError(
                f"expected {len(self.names)} finite number(s), found {_shortened(reference)}"
            )
        return numbers

    def _finite_loss(self, logits: np.ndarray, numbers: np.ndarray) -> float:
        """A regression's loss. Raises ValueError for one that its column of float32 cannot hold."""
        with np.errstate(over="ignore"):
            loss = self.loss(logits, numbers)
        if not loss <= np.finfo(np.float32).max:
            raise ValueError(f"expected numbers near the outputs, found {numbers.tolist()}")
        return loss


def _number(reference: Any) -> float:
    """A regression's number. `true` and `false` as text, as manifests have them, are 1 and 0."""
    if isinstance(reference, str) and reference.lower() in BOOLEANS:
        return float(reference.lower() == "true")
    return float(reference)


def _shortened(reference: Any) -> str:
    shown = repr(reference)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _whole_number(reference: Any) -> int | None:
    """3 for 3, 3.0, `"3"` and `"3.0"`; None for anything else."""
    if isinstance(reference, str):
        return int(float(reference)) if re.fullmatch(r"\d{1,9}(\.0{1,9})?", reference) else None
    if isinstance(reference, Number) and float(reference).is_integer():  # type: ignore[arg-type]
        return int(reference)  # type: ignore[call-overload,no-any-return]
    return None
