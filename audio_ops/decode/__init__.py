"""Encoded bytes -> samples, or a ClipError that says why not.

open.py            `open_sound` and `decode`: the functions for everybody else
formats.py         one record per container: how it is recognised, measured and decoded
claims.py          lengths that headers claim
frames.py          frame headers of MPEG audio and ADTS
source.py          the file as a decoder sees it
sound.py           `Sound`, its limits, and the check that nothing is missing
pcm.py             16-bit WAV without a decoder; libsndfile
ffmpeg.py          everything else, through PyAV
mp3.py             many MP3 frames per packet
decoder_errors.py  what decoders raise -> ClipError

formats.py imports no decoder, so that a config can ask for the file extensions; this file imports
nothing for the same reason.

To add a codec, add its name to `formats.CODECS`; to add a container, add its record to
`formats.CONTAINERS`. Then add both to `tests/sounds.py`, which tests/test_decode.py goes through.
"""
