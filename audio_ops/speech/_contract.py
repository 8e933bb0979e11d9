"""Where mypy checks that each family fulfils the contract. No run imports this file."""

from __future__ import annotations

from audio_ops.speech import (
    Family,
    ctc,
    kyutai,
    prompted,
    seamless,
    seq2seq,
    transducer,
    voxtral_realtime,
    whisper,
)

FAMILIES: tuple[Family, ...] = (
    *(ctc, kyutai, prompted, seamless, seq2seq, transducer, voxtral_realtime, whisper),
)
