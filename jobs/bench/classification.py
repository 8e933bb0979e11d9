"""Classifiers at their published sizes, random weights."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from jobs.bench import testbed
from jobs.bench.checkpoints import checkpoint
from jobs.bench.report import ratio, say, target
from jobs.bench.ways import Outcome, by_turns, earmark, peer


def classify(options: argparse.Namespace) -> None:
    """wav2vec2-base, AST and CLAP at their published sizes, random weights."""
    whole = testbed.sample(options.data, options.hours)
    many = 3 * options.clips or len(whole.files)  # 32 would be done while processes still start
    rows = (
        ("wav2vec2-base", "audio-classification", many, (2.5, 1.3)),
        ("ast", "audio-classification", 4, (None, None)),
        ("clap", "zero-shot-audio-classification", 32, (3.0, None)),
    )
    for name, task, clips, wanted in rows:
        sample, model = whole.every(clips), checkpoint(name)
        asked: dict[str, Any] = {"task": task, "model": str(model), "top_k": None}
        if task.startswith("zero-shot"):
            asked["candidate_labels"] = list(testbed.CANDIDATE_LABELS)
        else:
            asked["function_to_apply"] = "none"  # logits, of both
        ways = {
            "Earmark": earmark(sample, **asked),
            "transformers pipeline, as it comes": peer("pipeline_as_it_comes", sample, model, task),
            "transformers pipeline, batched": peer("pipeline_batched", sample, model, task),
        }
        of = by_turns(name, ways, options.rounds)
        ours, *peers = of
        steady = {way: one.steady for way, one in of.items()}
        for way, least in zip(peers, wanted, strict=True):
            target(f"{name}, steady state / {way}", ratio(steady, ours, way), least or 1.0)
        say(f"  {name}: {_agreement(of[ours], of[peers[0]], task)}\n")


def _agreement(ours: Outcome, theirs: Outcome, task: str) -> str:
    """The fraction of clips with the same top label, and the largest difference of a score."""
    tops, largest = [], 0.0
    rows = ours.labels or {}
    for name, scores in (theirs.labels or {}).items():
        mine = dict(zip(rows[name]["it_labels"], rows[name]["it_scores"], strict=True))
        tops.append(max(mine, key=mine.__getitem__) == scores[0]["label"])
        largest = max(largest, *(abs(mine[one["label"]] - one["score"]) for one in scores))
    kind = "probability" if task.startswith("zero-shot") else "logit"
    return f"same top label {np.mean(tops):.0%}, largest difference of a {kind} {largest:.1e}"
