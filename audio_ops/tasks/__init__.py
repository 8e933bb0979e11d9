"""One file per task; its name is what YAML calls it (`-` is written `_`).

Each of these files is a `Task`, which `_contract.py` has mypy check. Importing one imports neither
torch nor transformers: only its `Model()` does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.signal.waveforms import Waveform

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WantsSpeech = Literal["never", "long", "always"]


class TaskOptions(BaseModel):
    """Settings of all tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task: str
    """One of the tasks: a file in `audio_ops/tasks/`."""
    model: str
    """A hub id, a local folder, or a folder on a store (`s3://...`), which is fetched once per
    node."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; its main branch if left out."""
    dtype: Dtype = "auto"
    """Number format of the model. `auto`: bfloat16, or float16 on older GPUs; on CPUs bfloat16 with
    AMX or AVX512-BF16, else float32."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings along."""
    when: str | None = None
    """SQL expression over the clip's columns so far (see [several tasks](#several-tasks)), e.g.
    `sound_label = 'Speech' and sound_score > 0.6`. Where it is false or null the task is not run on
    the clip, and its columns are null. Columns of a task that failed, or was not run, are null as
    well."""


@dataclass(frozen=True)
class Clip:
    """One clip, as a model gets it.

    waveform: (samples,) at the task's sample rate; it or a slice of it is float32 in [-1, 1].
    speech: probability of speech per 32 ms, uint8 (255 = certain), None unless `wants_speech`.
    row: the clip's other columns so far: carried ones and earlier tasks' labels.
    """

    waveform: Waveform
    duration_s: float
    speech: np.ndarray | None = None
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """The samples `[start, stop)` of a clip. A batch has windows of one `group` only."""

    start: int
    stop: int
    group: Hashable = None


@dataclass(frozen=True)
class Reporting:
    """How reports read a task's columns, which are named without the task's prefix.

    kind: `recognition` is compared with a reference by word and character errors (`wer`, `cer` and
        their counts), `classification` by `loss` and `correct`.
    label, text, score: the columns with the top label, the transcript, and the confidence from 0 to
        1 (a regression's value).
    reference_is_text: whether the column named by `reference` must be text.
    """

    kind: Literal["recognition", "classification"]
    label: str | None
    text: str | None
    score: str | None
    suspect: str | None
    reference_is_text: bool


class TaskModel(Protocol):
    """A loaded model: cuts a clip into windows, labels batches of windows, joins their outputs."""

    sample_rate: int  # Hz, of its input
    is_generative: bool  # generates text step by step, so that large batches are faster on CPUs too
    equal_lengths: bool  # a batch's windows must have one length: padding would change labels

    def windows(self, clip: Clip) -> list[Window]:
        """The model's inputs, at least one. Raises ClipError if the clip cannot be used."""

    def padded_s(self, samples: int) -> float:
        """Seconds of sound, padding included, that a window of that many samples takes."""

    def __call__(self, waveforms: Sequence[np.ndarray], group: Hashable) -> list[Any]:
        """One output per float32 (samples,) waveform, independent of its neighbours in the batch.

        A ClipError takes the place of an output that is not finite.
        """

    def join(self, clip: Clip, windows: Sequence[Window], outputs: Sequence[Any]) -> dict[str, Any]:
        """The clip's columns, named as in `columns`, from the outputs of its windows in order."""


OptionsT = TypeVar("OptionsT", bound=TaskOptions)


class Task(Protocol[OptionsT]):
    """The contract that the module of a task fulfils."""

    @property
    def Options(self) -> type[OptionsT]:  # noqa: N802
        """Its settings and their defaults: a frozen pydantic model on top of `TaskOptions`."""

    @property
    def Model(self) -> Callable[[OptionsT, Checkpoint, str], TaskModel]:  # noqa: N802
        """Loads the checkpoint on a device, `cuda` or `cpu`.

        Raises ValueError if weights are missing.
        """

    def check(self, options: OptionsT, checkpoint: Checkpoint) -> None:
        """Raise ValueError (`key: expected ...`) if the checkpoint cannot do what is asked.

        Runs before anything is started: from the checkpoint's JSON files, without torch.
        """

    def sample_rate(self, options: OptionsT, checkpoint: Checkpoint) -> int:
        """The sample rate of the model's input in Hz."""

    def wants_speech(self, options: OptionsT) -> WantsSpeech:
        """For which clips voice activity has to be computed."""

    def columns(self, options: OptionsT) -> dict[str, pa.DataType]:
        """Its columns, without the task's name in front, and their Arrow types.

        The table's schema comes from here: a model may return no other columns or types.
        """

    def reporting(self, options: OptionsT) -> Reporting:
        """Which of its columns reports read, and how."""


def most_speech(wishes: Iterable[WantsSpeech]) -> WantsSpeech:
    """For which clips voice activity has to be computed, so that every task has what it wants."""
    order: list[WantsSpeech] = ["never", "long", "always"]
    return max(wishes, key=order.index)


def task_names() -> list[str]:
    """Every task there is, as YAML calls them."""
    return sorted(
        path.stem.replace("_", "-")
        for path in Path(__file__).parent.glob("*.py")
        if not path.stem.startswith("_")
    )


def load_task(name: str) -> Task[Any]:
    """The module of the task that YAML calls `name`."""
    return cast(Task[Any], import_module(f"{__name__}.{name.replace('-', '_')}"))
