"""The containers and codecs that are decoded, and how a file's container is recognised: by its
first bytes, never by its name. Imports no decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from audio_ops.decode import claims
from audio_ops.decode.claims import HEAD_BYTES, W64_TAIL, Chunks, Claim, SoundChunk
from audio_ops.decode.frames import AC3, ADTS, EAC3, MPEG, FrameSyntax
from audio_ops.decode.source import Source
from audio_ops.errors import ClipError

if TYPE_CHECKING:
    import av

Duration = Callable[[Source, "av.container.InputContainer", "av.AudioStream"], Claim]


@dataclass(frozen=True)
class Container:
    """How files of one container are recognised, measured and decoded.

    name: the first part of `Sound.format`.
    demuxer: FFmpeg's demuxer for it.
    extensions: of its files, without the dot.
    magic: regular expression for the first bytes; None for bare `frames`.
    sound_chunk: finds the samples in a container that libsndfile decodes and seeks in; FFmpeg
        decodes what libsndfile cannot read. None if FFmpeg decodes all, from the beginning.
    bytes_claimed: the file's length in bytes by its own structure, 0 if unknown.
    duration: the audio stream's duration by its header or FFmpeg's demuxer.
    frames: the syntax of frames that follow each other without a container.
    has_timestamps: whether packets have timestamps, so that gaps between them can be found.
    has_sample_positions: whether these are exact and without pauses: a gap is missing sound.
    is_bare: whether `Sound.format` is the codec's name alone.
    encryption: regular expression for a mark of encrypted sound in the header.
    missing_kind: the error kind for less sound than claimed.
    """

    name: str
    demuxer: str
    extensions: tuple[str, ...]
    magic: bytes | None
    sound_chunk: Callable[[Source], SoundChunk] | None = None
    bytes_claimed: Callable[[Source], int] = claims.no_bytes
    duration: Duration = claims.no_claim
    frames: FrameSyntax | None = None
    has_timestamps: bool = False
    has_sample_positions: bool = False
    is_bare: bool = False
    encryption: bytes | None = None
    missing_kind: str = "truncated"


def _chunks(
    first: int, header: str, sound: bytes, align: int, **options: bool
) -> Callable[[Source], SoundChunk]:
    layout = Chunks(first, header, sound, align, **options)
    return partial(claims.find_sound_chunk, chunks=layout)


MATROSKA_ENCRYPTION = rb"\x6d\x80.{1,64}?\x50\x35"  # ContentEncodings, ContentEncryption in them
ASF_ENCRYPTION = b"|".join(  # the Content Encryption Object, and the extended one
    re.escape(bytes.fromhex(guid))
    for guid in ("fbb3112223bdd211b4b700a0c955fc6e", "14e68a292226174cb935dae07ee9289c")
)

CONTAINERS = (  # the first whose magic matches
    Container(
        "wav",
        demuxer="wav",
        extensions=("wav", "wave", "rf64", "bwf"),
        magic=rb"(RIFF|RF64|BW64)....WAVE",
        sound_chunk=_chunks(12, "<4sI", b"data", 2),
    ),
    Container(
        "rifx",  # WAV with big-endian numbers
        demuxer="wav",
        extensions=(),
        magic=rb"RIFX....WAVE",
        sound_chunk=_chunks(12, ">4sI", b"data", 2),
    ),
    Container(
        "w64",
        demuxer="w64",
        extensions=("w64",),
        magic=rb"riff\x2e\x91\xcf\x11",
        sound_chunk=_chunks(40, "<16sQ", b"data" + W64_TAIL, 8, size_includes_header=True),
    ),
    Container(
        "aiff",
        demuxer="aiff",
        extensions=("aif", "aiff", "aifc"),
        magic=rb"FORM....AIF[FC]",
        sound_chunk=_chunks(12, ">4sI", b"SSND", 2),
    ),
    Container(
        "au",
        demuxer="au",
        extensions=("au", "snd"),
        magic=rb"\.snd",
        sound_chunk=claims.au_sound_chunk,
    ),
    Container(
        "caf",
        demuxer="caf",
        extensions=("caf",),
        magic=rb"caff",
        sound_chunk=_chunks(8, ">4sq", b"data", 1),
    ),
    Container(
        "sphere",
        demuxer="nistsphere",
        extensions=("sph", "nist", "wv1", "wv2"),
        magic=rb"NIST_1A",
        sound_chunk=claims.sphere_sound_chunk,
        duration=claims.exact_claim,
    ),
    Container(
        "flac",
        demuxer="flac",
        extensions=("flac",),
        magic=rb"fLaC",
        duration=claims.exact_claim,
        has_timestamps=True,
        has_sample_positions=True,
        is_bare=True,
    ),
    Container(
        "wavpack",
        demuxer="wv",
        extensions=("wv",),
        magic=rb"wvpk",
        bytes_claimed=claims.wavpack_bytes,
        duration=claims.exact_claim,
        has_timestamps=True,
        has_sample_positions=True,
        is_bare=True,
    ),
    Container(
        "ogg",
        demuxer="ogg",
        extensions=("ogg", "oga", "opus", "spx"),
        magic=rb"OggS",
        bytes_claimed=claims.ogg_bytes,
        duration=claims.ogg_claim,
        missing_kind="damaged",  # a truncated file has no complete last page, so the gap is inside
        has_timestamps=True,
    ),
    Container(
        "mov",
        demuxer="mov",
        extensions=("mov",),
        magic=rb"....(ftypqt  |moov|mdat|wide|free|skip)",
        bytes_claimed=claims.mp4_bytes,
        duration=claims.index_claim,
        has_timestamps=True,
    ),
    Container(
        "mp4",
        demuxer="mov",
        extensions=("m4a", "m4b", "mp4", "m4v", "3gp"),
        magic=rb"....(ftyp|styp|moof|sidx)",
        bytes_claimed=claims.mp4_bytes,
        duration=claims.index_claim,
        has_timestamps=True,
    ),
    Container(
        "webm",
        demuxer="matroska",
        extensions=("webm",),
        magic=rb"\x1aE\xdf\xa3.{0,40}webm",
        bytes_claimed=claims.matroska_bytes,
        duration=claims.tag_claim,
        has_timestamps=True,
        encryption=MATROSKA_ENCRYPTION,
    ),
    Container(
        "matroska",
        demuxer="matroska",
        extensions=("mkv", "mka"),
        magic=rb"\x1aE\xdf\xa3",
        bytes_claimed=claims.matroska_bytes,
        duration=claims.tag_claim,
        has_timestamps=True,
        encryption=MATROSKA_ENCRYPTION,
    ),
    Container(
        "asf",
        demuxer="asf",
        extensions=("wma", "wmv"),
        magic=re.escape(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")),
        bytes_claimed=claims.asf_bytes,
        duration=claims.asf_claim,
        has_timestamps=True,
        encryption=ASF_ENCRYPTION,
    ),
    Container(
        "avi",
        demuxer="avi",
        extensions=("avi",),
        magic=rb"RIFF....AVI ",
        bytes_claimed=claims.avi_bytes,  # its durations count packets that are empty
    ),
    Container(
        "flv",
        demuxer="flv",
        extensions=("flv",),
        magic=rb"FLV\x01",
        duration=claims.flv_claim,
        has_timestamps=True,
    ),
    Container(
        "mpegts",
        demuxer="mpegts",
        extensions=("ts",),
        magic=rb"G(.{187}G){2}|.{4}G(.{191}G){2}",
        bytes_claimed=claims.mpegts_bytes,
        has_timestamps=True,
    ),
    Container(
        "mpegps",
        demuxer="mpeg",
        extensions=("mpg", "mpeg"),
        magic=rb"\x00\x00\x01\xba",
        bytes_claimed=claims.mpegps_bytes,
        has_timestamps=True,
    ),
    Container("amr", demuxer="amr", extensions=("amr",), magic=rb"#!AMR(-WB)?\n"),
    Container(
        "aac",
        demuxer="aac",
        extensions=("aac",),
        magic=None,
        frames=ADTS,
        is_bare=True,
    ),
    Container(
        "ac3",
        demuxer="ac3",
        extensions=("ac3",),
        magic=None,
        frames=AC3,
        is_bare=True,
    ),
    Container(
        "eac3",
        demuxer="eac3",
        extensions=("eac3", "ec3"),
        magic=None,
        frames=EAC3,
        is_bare=True,
    ),
    Container(
        "mp3",
        demuxer="mp3",
        extensions=("mp3", "mp2"),
        magic=None,
        duration=claims.mp3_claim,
        frames=MPEG,
        is_bare=True,
    ),
)

# FFmpeg's decoders that may run, in addition to all that are called pcm_...
CODECS = (
    *("aac", "aac_latm", "ac3", "eac3", "alac", "amrnb", "amrwb", "dca", "flac"),
    *("g722", "g723_1", "g726", "g726le", "gsm", "gsm_ms", "shorten", "wavpack"),
    *("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
    *("opus", "libopus", "vorbis", "libvorbis", "speex", "truehd", "mlp"),
    *("wmav1", "wmav2", "wmapro", "wmalossless", "wmavoice"),
    *("adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_ima_oki", "adpcm_ct"),
    *("adpcm_swf", "adpcm_yamaha", "nellymoser"),
)
# Decoders that are used in place of FFmpeg's own: those of AMR refuse streams with pauses that were
# not sent (DTX), that of Opus makes two to three times the power of tones that sweep (SILK).
OTHER_DECODERS = {
    "amrnb": "libopencore_amrnb",
    "amrwb": "libopencore_amrwb",
    "opus": "libopus",
}


# Of files that are listed, so that they get an error row unless `audio.raw` declares them.
RAW_EXTENSIONS = ("ulaw", "ul", "alaw", "al", "sln", "vox", "gsm", "g722", "g723")


@dataclass(frozen=True)
class Refused:
    """A format that is recognised but not decoded.

    name: for error messages.
    kind: the error kind.
    magic: regular expression for the first bytes.
    remedy: for error messages.
    """

    name: str
    kind: str
    magic: bytes
    remedy: str = ""


def _sound(name: str, magic: bytes, remedy: str = "`ffmpeg -i FILE x.wav` converts it") -> Refused:
    return Refused(name, "unsupported", magic, remedy)


GIT_LFS = b"version https://git-lfs.github.com/spec/"  # begins the pointer in place of a file
REFUSED = (
    _sound("a playlist", rb"(?i)\s*(#EXTM3U|\[playlist\]|ffconcat|<asx|<smil|<MPD)", ""),
    _sound("a MIDI score", rb"MThd", ""),
    _sound("IRCAM", rb"\x64\xa3[\x00-\x04]\x00|\x00[\x00-\x04]\xa3\x64"),
    _sound("Monkey's Audio", rb"MAC "),
    _sound("True Audio", rb"TTA[12]"),
    _sound("Musepack", rb"MP\+|MPCK"),
    _sound("VOC", rb"Creative Voice File"),
    _sound("DSD", rb"DSD |FRM8"),
    _sound("RealMedia", rb"\.RMF|\.ra\xfd"),
    _sound("DTS", rb"\x7f\xfe\x80\x01"),
    _sound(
        "SILK v3 (of messengers)",
        rb"\x02?#!SILK_V3",
        "`silk_v3_decoder FILE x.pcm` converts it, which audio.raw can declare as s16le",
    ),
    Refused(
        "a Git LFS pointer",
        "not_audio",
        re.escape(GIT_LFS),
        "`git lfs pull` fetches the file",
    ),
    Refused(
        "a git-annex pointer",
        "not_audio",
        rb"/annex/objects/",
        "`git annex get` fetches the file",
    ),
    Refused(
        "an AppleDouble file of macOS",
        "not_audio",
        rb"\0\x05\x16[\0\x07]",
        "the sound is in the file of this name without `._`",
    ),
    Refused(
        "an image",
        "not_audio",
        rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM.{4}\0{4}",
    ),
    Refused(
        "an archive",
        "not_audio",
        rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|Rar!|\x28\xb5\x2f\xfd|.{257}ustar",
    ),
    Refused(
        "a document",
        "not_audio",
        rb"%PDF|\xd0\xcf\x11\xe0|PAR1|ARROW1|(\xef\xbb\xbf)?(?i:\s*<(!|html|svg|error|\?xml))",
    ),
    _sound("an unknown RIFF or IFF file", rb"RIFF|FORM", ""),
)

EXTENSIONS = (
    *(extension for it in CONTAINERS for extension in it.extensions),
    *RAW_EXTENSIONS,
)

HEADERLESS = "audio.raw in the config declares sound without a header"

_BY_NAME = {container.name: container for container in CONTAINERS}
_MAGIC = re.compile(
    b"|".join(b"(?P<%s>%s)" % (it.name.encode(), it.magic) for it in CONTAINERS if it.magic),
    re.DOTALL,
)
_REFUSED_MAGIC = [(refused, re.compile(refused.magic, re.DOTALL)) for refused in REFUSED]
_FRAMED = [(container, container.frames) for container in CONTAINERS if container.frames]
_FRAME_SYNC = re.compile(rb"\xff[\xe0-\xff]|\x0b\x77")  # of MPEG audio and ADTS, and of AC-3
_TS_SYNC = re.compile(rb"G(.{187}G){5}|.{4}G(.{191}G){5}", re.DOTALL)
_MAX_TAGS = 16
_TEXT = re.compile(rb"[\t\n\f\r -~]*")


def begins_with_magic(head: bytes) -> bool:
    """Whether these are the first bytes of one of the containers with magic bytes."""
    return bool(_MAGIC.match(head))


def recognise(source: Source) -> Container:
    """The file's container. Skips tags at its start, and junk before MPEG audio and ADTS frames.

    Raises ClipError `not_audio` or `unsupported`, or `truncated` if the file ends within a tag.
    """
    head = _skip_tags(source)
    if known := _MAGIC.match(head):
        return _BY_NAME[str(known.lastgroup)]
    for refused, magic in _REFUSED_MAGIC:
        if magic.match(head):
            what = f"{refused.name} is not a supported format"
            remedy = refused.remedy and f": {refused.remedy}"
            raise ClipError(refused.kind, what + remedy)
    if sync := _TS_SYNC.search(head):  # cut within a packet
        source.skip(sync.start())
        return _BY_NAME["mpegts"]
    for sync in _FRAME_SYNC.finditer(head):
        for container, frames in _FRAMED:
            if _is_chain(source, head, sync.start(), frames):
                source.skip(sync.start())
                return container
    what = "text" if _TEXT.fullmatch(head) else f"it starts with {head[:12]!r} ({HEADERLESS})"
    raise ClipError("not_audio", f"no known sound format: {what}")


def _skip_tags(source: Source) -> bytes:
    """Skip ID3v2 and APE tags; return the first HEAD_BYTES after them."""
    for _ in range(_MAX_TAGS):
        head = source.at(0, HEAD_BYTES)
        if head[:3] == b"ID3" and len(head) > 9:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            tag = 10 + size + (10 if head[5] & 0x10 else 0)  # with its footer
        elif head[:8] == b"APETAGEX" and len(head) > 31:
            tag = 32 + int.from_bytes(head[12:16], "little")
        else:
            break
        if tag >= source.length:
            what = f"the tag at the start says {tag} bytes, found {source.length}"
            raise ClipError("truncated", what)
        source.skip(tag)
    return head


def _is_chain(source: Source, head: bytes, start: int, frames: FrameSyntax) -> bool:
    """True if three frames of one kind follow each other, or fewer at the end of the file."""
    if not (first := frames.parse(head[start : start + 8])):
        return False
    position = start + first.size
    for count in (1, 2):
        frame = frames.parse(source.at(position, 8))
        if not frame or frame.kind != first.kind:
            return position + 8 > source.length and (start == 0 or count > 1)
        position += frame.size
    return True
