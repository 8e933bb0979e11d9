"""Log probabilities of the tokens that `generate` chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from audio_ops.inference.transformers_compat import call_last, tokens_kept_by_beam_search

if TYPE_CHECKING:
    import torch


class DrawnFrom:
    """The last logits processor of all, behind temperature, `top_k` and their kin: keeps the scores
    that tokens are drawn from."""

    def __init__(self, probabilities: TokenLogProbabilities):
        self.probabilities = probabilities

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.probabilities.draw_from(input_ids, scores)
        return scores


def keep_draws(model: Any) -> None:
    """Let `generate` of this model call `DrawnFrom` behind all other logits processors."""
    call_last(model, DrawnFrom)


class TokenLogProbabilities:
    """Last of the logits processors: keeps the log probability of each chosen token.

    Tokens that are sampled have the probability with which they were drawn. It is known to a
    processor that transformers calls later: see `processors` and `keep_draws`.

    generate's own `output_scores` would keep every step's scores of the whole vocabulary, for
    every beam: gigabytes for SeamlessM4T. Of a beam search the best tokens of each beam are kept,
    among which it chooses.
    """

    def __init__(self, config: Any):
        ends = config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.beams: int = config.num_beams
        self.samples = bool(config.do_sample)
        self.kept = tokens_kept_by_beam_search(config)
        self.prompt = 0  # tokens before the first step
        self.scores: torch.Tensor | None = None  # of the last step, float `(rows, vocabulary)`
        self.spoilt: torch.Tensor | None = (
            None  # bool `(rows, 1)`: NaN or infinite in the last step
        )
        self.steps: list[torch.Tensor] = []  # without beams: `(rows,)` each
        self.best: list[tuple[torch.Tensor, torch.Tensor]] = []  # beams: `(rows * beams, kept)`

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        self.prompt = self.prompt or input_ids.shape[1]
        if self.beams > 1:
            values, tokens = scores.float().topk(min(self.kept, scores.shape[1]))
            self.best.append((values, tokens))
        elif not self.samples:
            self._keep(input_ids)
            self.scores = scores
        if self.samples:  # sampling from NaN raises on a CPU, and kills the process on a GPU
            self.spoilt = (scores.isnan() | (scores == torch.inf)).any(-1, keepdim=True)
            finite = torch.finfo(scores.dtype).max
            scores = scores.nan_to_num(0.0, posinf=finite, neginf=-torch.inf)
        return scores

    @property
    def processors(self) -> list[Any]:
        """Itself, and with it what has to be called when tokens are drawn."""
        return [self, DrawnFrom(self)] if self.samples and self.beams == 1 else [self]

    def draw_from(self, input_ids: torch.Tensor, scores: torch.Tensor) -> None:
        """Keep the scores of a step from which the next tokens are drawn."""
        assert self.spoilt is not None
        self._keep(input_ids)
        self.scores = scores.masked_fill(self.spoilt, math.nan)

    def _keep(self, input_ids: torch.Tensor) -> None:
        """Keep the probability of the last token of each row, chosen by the scores before it."""
        if self.scores is not None:
            scores = self.scores.float()
            self.steps.append(scores.gather(1, input_ids[:, -1:])[:, 0] - scores.logsumexp(-1))

    def log_probabilities(
        self, sequences: torch.Tensor, beam_indices: torch.Tensor | None
    ) -> list[list[float]]:
        """Per row, one for each generated token up to and with the end of text.

        `sequences` `(rows, tokens)` and `beam_indices` `(rows, steps)` as generate returns them.
        """
        import torch

        generated = sequences[:, self.prompt :].tolist()
        if self.beams > 1:
            assert beam_indices is not None
            each = self._of_beams(generated, beam_indices.tolist())
        else:
            self._keep(sequences)
            each = torch.stack(self.steps, 1).tolist()
        return [
            log_probabilities[: self._length(row)]
            for log_probabilities, row in zip(each, generated, strict=True)
        ]

    def _of_beams(
        self, generated: list[list[int]], beam_indices: list[list[int]]
    ) -> list[list[float]]:
        self.best = [(values.cpu(), tokens.cpu()) for values, tokens in self.best]
        return [
            [
                self._of_beam(step, beam, token)
                for step, (beam, token) in enumerate(zip(beams, row, strict=False))
                if beam >= 0  # behind the end there is -1
            ]
            for beams, row in zip(beam_indices, generated, strict=True)
        ]

    def _of_beam(self, step: int, beam: int, token: int) -> float:
        values, tokens = self.best[step]
        found = values[beam][tokens[beam] == token]
        return found.item() if len(found) else math.nan  # beam search may choose others beside NaN

    def _length(self, row: list[int]) -> int:
        return next((n + 1 for n, token in enumerate(row) if token in self.ends), len(row))


def of_text(
    tokens: Sequence[int], log_probabilities: Sequence[float], tokenizer: Any
) -> list[float]:
    """The log probabilities of the tokens that are text, or those of all if none is."""
    special = set(tokenizer.all_special_ids)
    each = list(log_probabilities[: len(tokens)])
    own = [one for token, one in zip(tokens, each, strict=True) if token not in special]
    return own or each
