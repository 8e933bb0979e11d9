"""A run's config: frozen, validated models.

The only place with defaults, except those of a task, which are in the task's own file.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from audio_ops.decode.headerless import ENCODINGS, Headerless
from audio_ops.flags import Damage, OnDamage
from audio_ops.schemas import Channels
from audio_ops.tasks import TaskOptions
from jobs.input import Input, Section

# The stores that both fsspec and delta-rs write to.
STORES = ("file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
KIND = re.compile(r"CPU|GPU|accelerator_type:\S+")  # of machines


class ConfigError(Exception):
    """A run that cannot start as it is written: one line per problem. Exit code 2."""


class Raw(Section):
    """How files without a header are encoded."""

    extensions: Annotated[tuple[str, ...], Field(min_length=1)]
    """Of such files."""
    encoding: str
    """A key of `audio_ops.decode.headerless.ENCODINGS`."""
    sample_rate: Annotated[int, Field(ge=4_000, le=768_000)]
    """In Hz."""
    channels: Annotated[int, Field(ge=1, le=64)] = 1
    """Interleaved."""

    @field_validator("extensions")
    @classmethod
    def _bare(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(extension.lower().lstrip(".") for extension in extensions)

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        if encoding not in ENCODINGS:
            raise ValueError(f"expected one of {', '.join(ENCODINGS)}, found {encoding!r}")
        return encoding

    @field_validator("sample_rate")
    @classmethod
    def _its_rate(cls, rate: int, info: ValidationInfo) -> int:
        encoding = ENCODINGS.get(info.data.get("encoding", ""))
        if encoding and encoding.rate not in (0, rate):
            name = info.data["encoding"]
            raise ValueError(f"expected {encoding.rate}, which {name} always has, found {rate}")
        return rate

    @field_validator("channels")
    @classmethod
    def _its_channels(cls, channels: int, info: ValidationInfo) -> int:
        encoding = ENCODINGS.get(info.data.get("encoding", ""))
        if encoding and encoding.is_mono and channels > 1:
            raise ValueError(f"expected 1, as {info.data['encoding']} has, found {channels}")
        return channels

    @property
    def headerless(self) -> Headerless:
        return Headerless(self.encoding, self.sample_rate, self.channels)


class Audio(Section):
    """How sound is read: its limits, channels, damage, and files without a header."""

    max_clip_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    """Longer recordings become an error row (`too_long`)."""
    channels: Channels = "mean"
    """What is labelled of a sound with several channels: their `mean`, `each` as a clip of its own, or
    one by its number, from 1 on ([channels](#channels))."""
    on_damage: OnDamage = "keep"
    """`keep` labels what can be decoded of a damaged clip, with a flag in `sound_flags`; `error` makes
    an error row of every clip with a gap, a bad packet, a change of rate or less sound than claimed."""
    max_damage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """With `on_damage: keep`: the share of a clip that may be lost; more is an error row (`damaged`,
    `truncated`). Time in which nothing was sent is not lost."""
    raw: tuple[Raw, ...] = ()
    """Sound without a header: `{extensions: [ulaw], encoding: mulaw, sample_rate: 8000, channels: 1}`,
    or a list of such declarations ([encodings](#sound-without-a-header)). Files of these extensions
    are listed as audio."""
    decode_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Time limit of decoding, added to the clip's duration; beyond it the clip becomes an error row
    (`timeout`)."""
    decode_memory_mb: Annotated[int, Field(ge=64)] = 6144
    """Memory limit of decoding, added to what its process starts with; beyond it the clip becomes an
    error row (`memory`). Four hours at 16 kHz take 1,000. Enforced on Linux only."""

    @field_validator("channels", mode="before")
    @classmethod
    def _mean_each_or_number(cls, channels: Any) -> Any:
        is_number = isinstance(channels, int) and not isinstance(channels, bool)
        if channels in ("mean", "each") or (is_number and 1 <= channels <= 64):
            return channels
        what = "mean, each or a channel's number from 1 to 64"
        raise ValueError(f"expected {what}, found {shown(channels)}")

    @field_validator("raw", mode="before")
    @classmethod
    def _one_or_several(cls, raw: Any) -> Any:
        return (raw,) if isinstance(raw, dict) else raw

    @property
    def damage(self) -> Damage:
        return Damage(self.on_damage, self.max_damage)


class Output(Section):
    """Where the labels go."""

    path: str
    """Folder of the table, local or on a store (`s3://`, `gs://`, `az://`, `abfs://`), with no `#`, `?`,
    `\\` or `%20` in its path, which Delta tables do not support. They also need a disk with hard links
    (exFAT has none), or a store that supports requests with `If-None-Match`."""
    keep: tuple[str, ...] = ()
    """Columns of the source that each row carries along."""
    storage_options: Annotated[dict[str, Any] | None, Field(repr=False)] = None
    """Passed to fsspec; the input's own if left out."""
    retain_h: Annotated[float, Field(ge=0, le=168)] = 0.0
    """Hours for which the data files of earlier versions stay, for Delta readers that are still
    reading them or go back to them. Plain readers of the folder's Parquet files see those rows as
    well; with 0 they see exactly the table's rows."""
    compact: Literal["auto", "never"] = "auto"
    """Whether a run merges small data files at its end, into files of up to 256 MB. `never` leaves that
    to others, such as `OPTIMIZE` of a Delta engine, while no run goes on: its end removes data files that
    are not committed yet."""

    @field_validator("path")
    @classmethod
    def _on_a_known_store(cls, path: str) -> str:
        protocol, is_url, _ = path.partition("://")
        if not path.strip():
            raise ValueError("expected a folder or URL, found nothing, as from an empty variable")
        if is_url and protocol not in STORES:
            raise ValueError(
                "expected a local folder, or a URL that begins with s3://, gs://, az:// or abfs://, "
                f"found {protocol}://"
            )
        return path


class Range(Section):
    """A pool of actors that grows and shrinks with the work and with the cluster."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, max: int, info: ValidationInfo) -> int:
        if max < info.data.get("min", 1):
            raise ValueError(f"expected at least min ({info.data['min']}), found {max}")
        return max


class TaskResources(Section):
    """Resources of one task's actors. What is left out is derived from the cluster."""

    actors: Range | None = None
    """Number of actors, or `{min: 1, max: 8}` for a pool that grows and shrinks."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per actor."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs per actor; may be a fraction. With 0 the model runs on CPUs and its process sees no GPU;
    with more the run ends if torch can use none."""
    batch_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds of audio in one forward pass, padding included; by default as many as the device gains
    from."""

    @field_validator("actors", mode="before")
    @classmethod
    def _number_or_range(cls, actors: Any) -> Any:
        if isinstance(actors, int) and not isinstance(actors, bool):
            return {"min": actors, "max": actors}
        if actors is not None and not isinstance(actors, dict):
            raise ValueError(f"expected a number or {{min: 1, max: 8}}, found {shown(actors)}")
        return actors


class Resources(Section):
    """The run's shares of the cluster."""

    tasks: dict[str, TaskResources] = Field(default_factory=dict)
    """Resources of single tasks, by the task's name."""
    prepare_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per worker that reads and decodes; by default a quarter on clusters without GPUs or under
    8 CPUs, else 1."""
    clips_per_block: Annotated[int, Field(ge=1)] | None = None
    """Clips in one block: they travel together, and are committed together."""
    in_flight_mb: Annotated[int, Field(ge=1)] | None = None
    """Limit of the sound between the stages, for all nodes at the start of the run together; nodes
    that join raise it in proportion. By default 64 per CPU, 512 where there are GPUs. Reading waits
    for free capacity, but one block is always let through, which may be one long recording."""
    object_store_mb: Annotated[int, Field(ge=80)] | None = None
    """Size of Ray's object store, which holds that sound, if the run starts Ray itself; by default
    30 % of the machine's memory."""
    price_per_hour: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """What machines cost, by kind: `GPU` is the price of a machine with GPUs, divided by their number,
    `accelerator_type:L4` that of one with GPUs of the type that Ray calls so, and `CPU` is the price of
    a machine without GPUs, divided by its CPUs. For spot machines give their average price."""
    commit_every_s: Annotated[float, Field(ge=0)] = 5.0
    """Shortest time between two commits."""
    stalled_after_s: Annotated[float, Field(gt=0)] = 2 * 3600.0
    """A run in which no stage starts or finishes a block for this long ends with exit code 1 and names
    what it waits for. Choose more than the longest clip takes."""

    @field_validator("price_per_hour")
    @classmethod
    def _known_kinds(cls, prices: dict[str, float]) -> dict[str, float]:
        if unknown := [kind for kind in prices if not KIND.fullmatch(kind)]:
            raise ValueError(
                "expected CPU, GPU or a type that Ray knows, such as accelerator_type:L4, found "
                f"{', '.join(unknown)}"
            )
        return prices


class Drift(Section):
    """How far the labels of a run may be from those of the table's earlier runs: beyond one of
    these bounds the exit code is 4. Figures without a bound (the default) are in the summary alone."""

    min_clips: Annotated[int, Field(ge=1)] = 200
    """With fewer clips of this run, or of the earlier ones, nothing is compared."""
    max_label_distance: Annotated[float, Field(ge=0, le=1)] | None = None
    """Total variation distance of a classification's labels: 0 is equal, 1 none in common."""
    max_score: Annotated[float, Field(ge=0)] | None = None
    """Change of the mean score, up or down."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rise of the share of clips that fail: 0.1 is from 2 % to 12 %."""
    max_words_per_s: Annotated[float, Field(ge=0)] | None = None
    """Relative change of a recognition's words per second, up or down: 0.3 is 30 %."""


class Config(Section):
    """One run."""

    input: Input
    audio: Audio = Audio()
    tasks: dict[str, SerializeAsAny[TaskOptions]]
    output: Output
    resources: Resources = Resources()
    drift: Drift = Drift()
    max_error_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Exit code 3 if more than this share of the run's clips fail."""

    @property
    def output_options(self) -> dict[str, Any]:
        options = self.output.storage_options
        return self.input.storage_options if options is None else options

    @property
    def model_options(self) -> dict[str, Any]:
        """For models on a store: the input's, or if it has none the output's."""
        return self.input.storage_options or self.output_options


def shown(value: Any) -> str:
    """A value for a message, without what may have secrets inside."""
    if isinstance(value, dict):
        return "keys and values"
    return "a list" if isinstance(value, list | tuple) else repr(value)
