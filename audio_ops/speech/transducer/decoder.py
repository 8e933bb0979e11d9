"""Greedy decoding of a transducer's batch, a token or a blank for each row in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audio_ops.inference.finite import are_finite
from audio_ops.inference.transformers_compat import frames_of_mels, joint_scores, predict_next

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Emission:
    """A token other than the blank, at encoder frame `start`, that lasts for `frames` of them."""

    id: int
    start: int
    frames: int
    log_probability: float


@dataclass
class Rows:
    """The rows of a batch that are not finished; tensors `(rows,)` but for the last two."""

    numbers: torch.Tensor  # their places in the batch
    lengths: torch.Tensor  # frames of sound
    limits: torch.Tensor  # steps at most
    frames: torch.Tensor  # where each row is
    symbols: torch.Tensor  # tokens at that frame so far
    predicted: torch.Tensor  # the prediction network's output, (rows, width)
    state: tuple[torch.Tensor, torch.Tensor]  # and its state, (layers, rows, width) each

    def keep(self, places: torch.Tensor) -> None:
        """Drop all rows but those at these places."""
        for name in ("numbers", "lengths", "limits", "frames", "symbols", "predicted"):
            setattr(self, name, getattr(self, name)[places])
        hidden, cell = self.state
        self.state = hidden[:, places], cell[:, places]


class Decoder:
    """Decodes with the prediction and the joint network of a loaded transducer.

    Rows that have come to the end of their frames leave the batch, and the prediction network runs
    only for rows with a new token, as a blank changes nothing there. The tokens are those of
    transformers' `generate`, which runs all of it for each row until the last has ended.
    """

    def __init__(self, model: Any):
        import torch

        config, generation = model.config, model.generation_config
        self.model = model
        self.vocabulary: int = config.vocab_size  # the blank included
        self.blank: int = config.blank_token_id
        starts = (generation.decoder_start_token_id, generation.bos_token_id, self.blank)
        self.start: int = next(token for token in starts if token is not None)
        self.max_symbols: int = model.max_symbols_per_step
        durations = getattr(config, "durations", None)
        self.durations = durations and torch.tensor(list(durations), device=model.device)

    def max_steps(self, mels: Sequence[int]) -> list[int]:
        """The steps after which `generate` gives up, for windows of so many mel frames."""
        return [self.max_symbols * frames - 1 for frames in frames_of_mels(self.model, mels)]

    def __call__(
        self, encoded: torch.Tensor, lengths: torch.Tensor, limits: Sequence[int]
    ) -> list[list[Emission] | None]:
        """The tokens of each row; None where a probability is not finite.

        encoded: the projected frames `(rows, frames, width)`, of which `lengths` `(rows,)` count.
        """
        import torch

        rows = self._begin(encoded, lengths, limits)
        steps: list[torch.Tensor] = []
        while len(rows.numbers):
            scores = joint_scores(
                self.model, encoded[rows.numbers, rows.frames], rows.predicted
            ).float()
            best, tokens = scores[:, : self.vocabulary].max(-1)
            probabilities = best - scores[:, : self.vocabulary].logsumexp(-1)
            is_blank = tokens == self.blank
            advance = self._advance(rows, is_blank, scores)
            numbers = [rows.numbers, tokens, rows.frames, advance]
            steps.append(torch.stack([*(n.double() for n in numbers), probabilities.double()]))
            rows.frames = rows.frames + advance
            goes_on = (rows.frames < rows.lengths) & (len(steps) < rows.limits)
            self._next(rows, tokens, goes_on, ~is_blank)
        return self._emissions(steps, len(encoded))

    def _begin(self, encoded: torch.Tensor, lengths: torch.Tensor, limits: Sequence[int]) -> Rows:
        import torch

        count, device = len(encoded), encoded.device
        first = torch.full((count,), self.start, device=device)
        predicted, state = predict_next(self.model, first, None)
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        return Rows(
            numbers=torch.arange(count, device=device),
            lengths=lengths.to(device),
            limits=torch.tensor(limits, device=device),
            frames=zeros,
            symbols=zeros,
            predicted=predicted,
            state=state,
        )

    def _advance(self, rows: Rows, is_blank: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """How many frames each row goes on: never none after a blank, nor after too many tokens at
        one frame (RNN-T)."""
        import torch

        if self.durations is not None:
            advance = self.durations[scores[:, self.vocabulary :].argmax(-1)]
            return torch.where(is_blank, advance.clamp(min=1), advance)
        symbols = torch.where(is_blank, 0, rows.symbols + 1)
        leaves = is_blank | (symbols >= self.max_symbols)
        rows.symbols = torch.where(leaves, 0, symbols)
        return leaves.long()

    def _next(
        self, rows: Rows, tokens: torch.Tensor, goes_on: torch.Tensor, is_new: torch.Tensor
    ) -> None:
        """Drop the finished rows, and predict from the new tokens of the others."""
        import torch

        # One copy to the host a step: a GPU waits for it.
        left, new = torch.stack([goes_on, is_new & goes_on]).cpu()
        if not left.all():
            places = left.nonzero()[:, 0].to(tokens.device)
            rows.keep(places)
            tokens, new = tokens[places], new[left]
        if new.all() and len(new):
            rows.predicted, rows.state = predict_next(self.model, tokens, rows.state)
        elif new.any():
            places = new.nonzero()[:, 0].to(tokens.device)
            hidden, cell = rows.state
            state = hidden[:, places].contiguous(), cell[:, places].contiguous()
            predicted, (some_hidden, some_cell) = predict_next(self.model, tokens[places], state)
            rows.predicted = rows.predicted.index_copy(0, places, predicted)
            rows.state = (
                hidden.index_copy(1, places, some_hidden),
                cell.index_copy(1, places, some_cell),
            )

    def _emissions(self, steps: Sequence[torch.Tensor], count: int) -> list[list[Emission] | None]:
        """Each row's tokens from all steps, in order."""
        import torch

        emissions: list[list[Emission]] = [[] for _ in range(count)]
        probabilities: list[list[float]] = [[] for _ in range(count)]
        for row, token, frame, advance, log_probability in torch.cat(list(steps), 1).T.tolist():
            probabilities[int(row)].append(log_probability)
            if token != self.blank:
                # An RNN-T token lasts for one frame, whether or not the next is at the same one.
                frames = int(advance) if self.durations is not None else 1
                emissions[int(row)].append(
                    Emission(int(token), int(frame), frames, log_probability)
                )
        return [
            own if are_finite(each) else None
            for own, each in zip(emissions, probabilities, strict=True)
        ]
