"""Encoded bytes -> samples, or a ClipError that says why not.

open.py            `open_sound` and `decode`, the functions that other folders call
formats.py         one record per container: how it is recognised, measured and decoded
headerless.py      encodings of sound without a header, which a config declares
claims.py          lengths that headers claim
frames.py          frame headers of MPEG audio and ADTS
source.py          the file, as decoders read it
sound.py           `Sound`, its limits, and the check that nothing is missing
pcm.py             16-bit WAV without a decoder, and libsndfile
ffmpeg.py          everything else, through PyAV
packets.py         packets -> frames, and what bad packets cost
join.py            frames -> blocks of one rate, with silence in the gaps
ogg.py             links of Ogg files that change their rate, channels or codec
mp3.py             many MP3 frames per packet
amr.py             AMR frames, even after a broken one
decoder_errors.py  decoders' exceptions -> ClipError

formats.py imports no decoder, so that configs can name file extensions without loading one. For the
same reason this file imports nothing.

To add a codec, add its name to `formats.CODECS`; to add a container, add its record to
`formats.CONTAINERS`. Then add both to `tests/helpers/sounds.py`, from which tests/unit/test_decode.py runs.
"""
