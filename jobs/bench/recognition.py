"""Recognisers at their published sizes, random weights."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.bench import testbed
from jobs.bench.checkpoints import checkpoint
from jobs.bench.report import ratio, target
from jobs.bench.ways import by_turns, earmark, peer

OURS, BARE = "Earmark", "bare loop"
PIPELINE, PAGE = "transformers pipeline, batched", "as on its page, batched"
TOKENS = 16  # written for each clip: random weights do not end a text
MODELS = {
    "parakeet-tdt-0.6b": ("pipeline_batched", PIPELINE),
    "canary-1b-flash": ("page_batched", PAGE),
    "qwen3-asr-0.6b": ("page_batched", PAGE),
    "whisper-large-v3-turbo": ("pipeline_batched", PIPELINE),
}


def recognise(options: argparse.Namespace) -> None:
    """Parakeet, Canary, Qwen3-ASR and Whisper turbo beside the bare model and a user's best."""
    whole = testbed.sample(options.data, options.hours)
    # So many, as half of them would be done while actors start.
    sample = whole.every(2 * options.clips or len(whole.files))
    task = "automatic-speech-recognition"
    for name, (users, title) in MODELS.items():
        model, is_transducer = checkpoint(name), name.startswith("parakeet")
        tokens = None if is_transducer else TOKENS
        limit: dict[str, Any] = {} if is_transducer else {"max_new_tokens": TOKENS}
        ways = {
            OURS: earmark(sample, task=task, model=str(model), **limit),
            BARE: peer("bare_loop", sample, model, task, tokens),
            title: peer(users, sample, model, task, tokens),
        }
        of = by_turns(name, ways, options.rounds)
        steady = {way: one.steady for way, one in of.items()}
        target(f"{name}, steady state / {BARE}", ratio(steady, OURS, BARE), 0.95)
        target(f"{name}, steady state / {title}", ratio(steady, OURS, title), 1.3)
