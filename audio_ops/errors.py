"""Why a clip has no labels: `ClipError` and the closed list of its kinds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

KINDS = {
    "empty": "no bytes, or no samples",
    "unreadable": "the bytes could not be read, or a reference that may not be followed",
    "not_audio": "text, an image, an archive",
    "unsupported": "a format, codec, sample rate or number of channels that is refused",
    "no_audio": "a container without an audio stream, such as a silent video",
    "truncated": "much less sound than the header claims",
    "damaged": "cannot be decoded, or not enough of it; a broken line, header or column",
    "not_finite": "NaN or Inf among the samples, or values too large to average",
    "too_long": "over audio.max_clip_s",
    "too_short": "less sound than one frame of the model",
    "too_large": "over a limit on bytes or samples, or few bytes that unpack to very many",
    "memory": "decoding exceeded its memory limit",
    "timeout": "decoding exceeded its time limit",
    "crashed": "the clip crashed the process that decoded it, or the model's process",
    "out_of_memory": "the model ran out of memory on this clip alone",
    "model": "the model failed on this clip",
    "when": "the task's `when` has no value for this clip, such as a text cast to a number",
}
_MAX_MESSAGE_CHARS = 500


class ClipError(Exception):
    """A clip that cannot be labelled.

    kind: a key of KINDS. Anything else raises ValueError.
    message: for people, at most 500 characters, because it may quote what a file says of itself.
    """

    def __init__(self, kind: str, message: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
        if len(message) > _MAX_MESSAGE_CHARS:
            message = f"{message[: _MAX_MESSAGE_CHARS - 4]} ..."
        super().__init__(kind, message)  # with both arguments, so that it can be unpickled
        self.kind, self.message = kind, message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


NO_FAILURES: Mapping[str, ClipError] = MappingProxyType({})
