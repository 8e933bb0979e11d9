"""Why a sound that was decoded may not be what its file meant: the closed list of sound flags, and
how much damage a sound may have."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from audio_ops.errors import ClipError

FLAGS = {
    "gap": "timestamps skip some time, as if packets were lost: silence takes its place",
    "corrupt": "some packets cannot be decoded: silence takes their place",
    "shorter_than_header": "less sound than the header, or the manifest, says",
    "longer_than_header": "more data than the header says, such as another file; in WAV, MP4 and similar "
    "formats the rest is not decoded",
    "changed": "the rate or the number of channels changes: converted to those of the start",
    "over_full_scale": "float samples beyond full scale, such as integers that were never scaled",
    "clipped": "many samples at full scale",
    "dc_offset": "the mean of a channel is not zero",
    "silent_channel": "a channel is silent while another is not",
    "channels_cancel": "the channels cancel each other in their mean: the loudest one is used alone",
}
OnDamage = Literal["keep", "error"]


@dataclass(frozen=True)
class Damage:
    """What becomes of a damaged sound.

    on_damage: `keep` it, with a flag, or raise the error of its first damage.
    max_share: of its seconds that may be lost if it is kept.
    """

    on_damage: OnDamage = "keep"
    max_share: float = 0.1


KEEP = Damage()


def in_order(flags: Set[str]) -> list[str]:
    """The flags in the order of FLAGS."""
    return [flag for flag in FLAGS if flag in flags] if flags else []


class Findings:
    """The flags of one sound and what is lost of it, found while it is decoded."""

    def __init__(self, allowed: Damage = KEEP) -> None:
        self._allowed = allowed
        self.clear()

    def clear(self) -> None:
        """Forget all findings: they are of sound that is not used."""
        self._flags: set[str] = set()
        self._missing_s = self._silenced_s = 0.0
        self._first: ClipError | None = None

    @property
    def flags(self) -> list[str]:
        """The flags in the order of FLAGS."""
        return in_order(self._flags)

    @property
    def first_damage(self) -> ClipError | None:
        return self._first

    def note(self, flag: str) -> None:
        """Add a flag. Raises ValueError for one that is not in FLAGS."""
        if flag not in FLAGS:
            raise ValueError(f"flag: expected one of {', '.join(FLAGS)}, found {flag!r}")
        self._flags.add(flag)

    def damage(
        self, flag: str, error: ClipError, *, missing_s: float = 0.0, silenced_s: float = 0.0
    ) -> None:
        """Add a flag for sound that is lost: it is missing, or silence takes its place. Raises
        `error` if damage is not to be kept."""
        if self._allowed.on_damage == "error":
            raise error
        self.note(flag)
        self._missing_s += missing_s
        self._silenced_s += silenced_s
        self._first = self._first or error

    def check(self, duration_s: float) -> None:
        """Raise the error of the first damage if too much is lost of a sound, of which `duration_s`
        seconds were decoded, silence included."""
        lost_s = self._missing_s + self._silenced_s
        if self._first and lost_s > self._allowed.max_share * (duration_s + self._missing_s):
            raise self._first
