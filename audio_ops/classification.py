"""What all classifiers share: cutting into windows, pooling, ranking labels, references.

A classifier gives logits per window. The windows' logits are pooled (not their probabilities), so
that `score`, `loss` and a clip of one window all follow from one vector of logits:

- `mean` of logits, then softmax: the normalised geometric mean of the windows' probabilities;
- `max` of logits, then sigmoid: the highest probability that any window gave the label.
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
from audio_ops.tasks import Clip, TaskOptions, Window

Function = Literal["softmax", "sigmoid", "none"]
Kind = Literal["single_label", "multi_label", "regression"]

BOOLEANS = ("true", "false")


class ClassificationOptions(TaskOptions):
    """Settings that every classifier takes."""

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
    regression; it is never an id, since which label `true` means is unknown. A reference that cannot
    be compared is reported in `reference_error` of its row, which keeps its labels."""


def classification_columns(options: ClassificationOptions) -> dict[str, pa.DataType]:
    """The columns of a classifier and their Arrow types.

    - `label`, `score`: the top label (also of a multi-label model); a regression's value;
    - `labels`, `scores`: the `top_k` best, best first;
    - `segments`, if asked for: each window's times in seconds, top label and score;
    - with `reference`: `loss` (see `Classes.loss`), `correct`, `reference_label` (the reference as
      the model names it, null for multi-label and regression), and `reference_error`, which says
      why a reference could not be used. A null reference gives nulls, and no error.
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
    """How sound is cut, in samples: at least `shortest`, windows of `window` every `hop`."""

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
        """From the options; `default` samples is the most the model hears at once if `limited`.

        Raises ValueError where the options contradict the model or each other.
        """
        window = default if options.window_s is None else round(options.window_s * sample_rate)
        hop = window if options.hop_s is None else round(options.hop_s * sample_rate)
        if limited and window > default:
            raise ValueError(
                f"window_s: expected at most {default / sample_rate:g} s, which is all that this "
                f"model hears at once, found {options.window_s:g}"
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
        """The windows of a clip of that many samples; ClipError `too_short` if it has too few.

        The last window is as long as the others and ends with the sound: a model hears no tiny
        rest, at the price of overlapping the window before.
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

    `names` are the labels by id; `function` makes scores of logits; `kind` says what the loss is.
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
        if len(logits) > 1:  # numpy's calls are most of what is done here, for most clips in vain
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
            columns |= self._judged(clip, pooled)
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
        """How far `(labels,)` logits are from a target of that shape; 0 is perfect.

        - single label, one-hot target: cross-entropy, -log of the softmax;
        - multi-label, 0/1 target: binary cross-entropy of each label's sigmoid, mean over labels;
        - regression, numbers: squared error, mean over outputs.

        What torch's losses of these names give, in nats. `function` has no part in it.
        """
        logits = logits.astype(np.float64)
        if self.kind == "single_label":
            return float(np.logaddexp.reduce(logits) - logits @ target)
        if self.kind == "multi_label":
            return float((np.logaddexp(0, logits) - logits * target).mean())
        return float(((logits - target) ** 2).mean())

    def label_id(self, reference: Any) -> int:
        """The id of a label given by name, by id (`3`, `3.0`, `"3"`, `"3.0"`) or as a boolean.

        Text is a name first, a number never is. A boolean, or `true` and `false` as text, is the
        one label of that name in any case. Raises ValueError for an unknown label.
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
                f"found {reference!r}"
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

    def _judged(self, clip: Clip, logits: np.ndarray) -> dict[str, Any]:
        """The reference columns. Right is: the top label is the reference, or one of them, or
        scores under a half by its sigmoid if there is none. A regression is never right or wrong.
        """
        column = self.options.reference
        try:
            if column not in clip.row:
                raise ValueError(f"expected a column {column!r}, found {', '.join(clip.row)}")
            reference = clip.row[column]
            if reference is None:
                return {}
            if self.kind == "regression":
                return {"loss": self.loss(logits, self._numbers(reference))}
            listed = self._listed(reference)
            if self.kind == "single_label" and len(listed) != 1:
                raise ValueError(f"expected one label, found {len(listed)}: {listed}")
            ids = [self.label_id(label) for label in listed]
        except (ValueError, OverflowError) as error:
            return {"reference_error": f"{column}: {error}"}
        target = np.zeros(len(self.names))
        target[ids] = 1
        best = int(logits.argmax())
        return {
            "loss": self.loss(logits, target),
            "correct": best in ids if ids else bool(logits[best] < 0),
            "reference_label": self.names[ids[0]] if self.kind == "single_label" else None,
        }

    def _listed(self, reference: Any) -> list[Any]:
        """A reference's members: of a list, of a list as JSON that is no label's name, or itself."""
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
        """A regression's target `(outputs,)`; ValueError if it isn't one finite number for each."""
        try:
            numbers = np.array([float(number) for number in self._listed(reference)])
        except (TypeError, ValueError, OverflowError):
            numbers = np.array([])
        if numbers.shape != (len(self.names),) or not np.isfinite(numbers).all():
            raise ValueError(f"expected {len(self.names)} finite number(s), found {reference!r}")
        return numbers


def _whole_number(reference: Any) -> int | None:
    """`3` of 3, 3.0, `"3"` and `"3.0"`; None of anything else."""
    if isinstance(reference, str):
        return int(float(reference)) if re.fullmatch(r"\d{1,9}(\.0{1,9})?", reference) else None
    if isinstance(reference, Number) and float(reference).is_integer():  # type: ignore[arg-type]
        return int(reference)  # type: ignore[call-overload,no-any-return]
    return None
