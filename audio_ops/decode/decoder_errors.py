"""What decoders raise on bad data -> ClipError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av
import soundfile

from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

av.logging.set_level(None)  # FFmpeg's own lines: every error it reports comes back as an exception


@contextmanager
def clip_errors(source: Source, opened: bool = False) -> Iterator[None]:
    """Raise a ClipError for what the decoders raise on bad data; what reading `source` has raised
    comes first. `opened`: the decoder has been opened, so its format and codec are known."""
    try:
        yield
    except ClipError:
        source.check()  # a lost connection looks like the end of the file
        raise
    except MemoryError as exc:
        raise ClipError("memory", "decoding ran out of memory") from exc
    except (av.DecoderNotFoundError, av.PatchWelcomeError) as exc:
        source.check()
        if opened:  # FFmpeg's answer to Vorbis whose rate or channels change
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
        AttributeError,  # PyAV, for a codec that names no sample format: 0 bits a sample
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
