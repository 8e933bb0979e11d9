"""Decoders' exceptions on bad data -> ClipError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av
import soundfile

from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

av.logging.set_level(None)  # no log lines: FFmpeg's errors are raised as exceptions


@contextmanager
def clip_errors(source: Source, opened: bool = False) -> Iterator[None]:
    """Raise a ClipError in place of exceptions that decoders raise on bad data.

    An exception from reading `source` takes precedence. opened: whether the decoder was opened, so
    that its format and codec are supported.
    """
    try:
        yield
    except ClipError:
        source.check()  # to decoders a lost connection looks like the end of the file
        raise
    except MemoryError as exc:
        raise ClipError("memory", "decoding ran out of memory") from exc
    except (av.DecoderNotFoundError, av.PatchWelcomeError) as exc:
        source.check()
        if opened:  # raised for Vorbis whose rate or channels change
            raise ClipError(
                "damaged", "the stream changes in a way that the decoder can't follow"
            ) from exc
        raise ClipError("unsupported", reason(exc)) from exc
    except (
        av.FFmpegError,
        soundfile.SoundFileError,
        OSError,
        EOFError,
        ValueError,  # also bad UTF-8 in metadata
        ArithmeticError,
        LookupError,
        AttributeError,  # PyAV, for a codec without a sample format: 0 bits per sample
        RuntimeError,  # PyAV, for an unknown sample format; soundfile, for a failing seek
    ) as exc:
        source.check()
        raise ClipError("damaged", reason(exc)) from exc
    source.check()


def reason(exc: Exception) -> str:
    """The decoder's own message."""
    if isinstance(exc, soundfile.LibsndfileError):
        return f"libsndfile: {exc.error_string or f'error {exc.code}'}"
    return f"FFmpeg: {getattr(exc, 'strerror', None) or exc or type(exc).__name__}"
