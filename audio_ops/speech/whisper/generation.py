"""Whisper's decoder: continues the prompts of a batch of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from audio_ops.inference.finite import are_finite
from audio_ops.inference.transformers_compat import (
    generate_from_states,
    rows_of_cache,
    token_end_times,
)
from audio_ops.speech.generation import HalfEnded
from audio_ops.speech.tokens import TokenLogProbabilities, keep_draws
from audio_ops.speech.whisper.segments import Generation
from audio_ops.speech.whisper.settings import Settings

if TYPE_CHECKING:
    import torch

TOKENS, TOKENS_PER_S = 16, 8.0  # speech has fewer; a longer text is a loop


def max_plausible_tokens(frames: int) -> int:
    """Of speech in so many 10 ms frames, the end of text included."""
    return TOKENS + int(TOKENS_PER_S * frames / 100)


@dataclass(frozen=True)
class GenerationRequest:
    """A batch of windows for the decoder, a row each."""

    states: torch.Tensor  # the encoder's `(rows, positions, width)`
    prompts: list[list[int]]  # tokens so far, of equal length
    frames: list[int]  # of sound in each window, 10 ms each
    limit: int  # new tokens per row
    begin: int  # tokens of the prompt itself; those behind it in `prompts` were generated
    cache: Any = None  # transformers' key-value cache of all but the last of `prompts`

    def rows(self, numbers: Sequence[int]) -> GenerationRequest:
        """These rows alone, without a cache."""
        return replace(
            self,
            states=self.states[numbers],
            prompts=[self.prompts[row] for row in numbers],
            frames=[self.frames[row] for row in numbers],
            cache=None,
        )


class Generator:
    """Generates with a loaded WhisperForConditionalGeneration by `settings.generation`."""

    def __init__(self, model: Any, settings: Settings):
        import torch

        self.model, self.settings = model, settings
        keep_draws(model)
        self.suppressed, self.suppressed_first, self.end = (
            torch.tensor(tokens, dtype=torch.long, device=model.device)
            for tokens in (settings.suppressed, settings.suppressed_first, [settings.end])
        )

    def with_settings(self, settings: Settings) -> Generator:
        """This generator with other settings of the same tokens and limits of the vocabulary."""
        other = copy(self)
        other.settings = settings
        return other

    def __call__(self, request: GenerationRequest) -> list[Generation]:
        """Continue each prompt up to an end of text, or by `limit` tokens."""
        if self.settings.timestamps != "word" or not self.settings.is_greedy:
            return self.generate_dropping_finished(request)
        # Word times need the attention of all steps, so no row can be dropped. Rows that have not
        # ended after the tokens that are plausible, which are loops, are generated again alone.
        plausible = min(request.limit, max_plausible_tokens(max(request.frames)))
        generations, _ = self.generate(replace(request, limit=plausible))
        late = [row for row, generation in enumerate(generations) if not generation.ended]
        if late and plausible < request.limit:
            again, _ = self.generate(request.rows(late))
            for row, generation in zip(late, again, strict=True):
                generations[row] = generation
        return generations

    def generate_dropping_finished(self, request: GenerationRequest) -> list[Generation]:
        """Like `generate`, but once half of the rows have ended, the others go on without them.

        A batch runs until its last row has ended, and one that loops runs to the limit.
        """
        generations, cache = self.generate(request)
        late = [row for row, generation in enumerate(generations) if not generation.ended]
        if not late or not self.settings.drops_finished:
            return generations
        limit = request.limit - len(generations[late[0]].tokens)
        if limit:
            rest = replace(
                request.rows(late),
                prompts=[request.prompts[row] + generations[row].tokens for row in late],
                limit=limit,
                cache=rows_of_cache(cache, late, request.states.device),
            )
            for row, more in zip(late, self.generate_dropping_finished(rest), strict=True):
                generations[row] = generations[row].followed_by(more)
        return generations

    def generate(self, request: GenerationRequest) -> tuple[list[Generation], Any]:
        """Generations, cut off where half of the rows have ended if finished rows are dropped, and
        the cache with which the others go on."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        probabilities = TokenLogProbabilities(self.settings.generation)
        so_far = torch.tensor(request.prompts, device=request.states.device)
        length = so_far.shape[1]
        stop = [HalfEnded(self.end, probabilities)] if self.settings.drops_finished else []
        output = generate_from_states(
            self.model,
            request.states,
            generation_config=self.settings.generation,
            decoder_input_ids=so_far,
            # A prompt that goes on from generated tokens has a cache of all but the last.
            decoder_attention_mask=torch.ones_like(so_far) if length > request.begin else None,
            logits_processor=LogitsProcessorList(self._processors(request.begin, probabilities)),
            stopping_criteria=StoppingCriteriaList(stop),
            max_new_tokens=request.limit,
            past_key_values=request.cache,
        )
        sequences = output.sequences[:, length:].tolist()
        if self.settings.num_beams > 1:
            each = self._of_beams(sequences, output.sequences_scores.tolist())
        else:
            each = [
                row[: self._length(sequence)]
                for row, sequence in zip(
                    probabilities.log_probabilities(output.sequences, None), sequences, strict=True
                )
            ]
        generations = [
            self._generation(request, output, row, sequence, each[row])
            for row, sequence in enumerate(sequences)
        ]
        return generations, output.past_key_values

    def _processors(self, begin: int, probabilities: TokenLogProbabilities) -> list[Any]:
        from transformers import WhisperTimeStampLogitsProcessor

        config = self.settings.generation
        processors: list[Any] = [
            SuppressTokens(begin, self.suppressed, self.suppressed_first),
        ]
        if self.settings.timestamps != "none":
            processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=begin))
        if self.settings.num_beams == 1:
            processors += probabilities.processors
        return processors

    def _of_beams(self, sequences: list[list[int]], scores: list[float]) -> list[list[float]]:
        """Log probabilities by beam search's score of the whole: sum / length ** length_penalty."""
        penalty = self.settings.generation.length_penalty
        exponent = 1.0 if penalty is None else penalty
        each = []
        for sequence, score in zip(sequences, scores, strict=True):
            length = self._length(sequence)  # 0 where all beams were NaN
            each.append([score * length**exponent / length] * length if length else [math.nan])
        return each

    def _length(self, sequence: list[int]) -> int:
        """Tokens up to and with the end of text."""
        end = self.settings.end
        return sequence.index(end) + 1 if end in sequence else len(sequence)

    def _generation(
        self,
        request: GenerationRequest,
        output: Any,
        row: int,
        sequence: list[int],
        log_probabilities: list[float],
    ) -> Generation:
        length, ended = self._length(sequence), self.settings.end in sequence
        times = None
        if self.settings.timestamps == "word" and are_finite(log_probabilities):
            times = token_end_times(
                self.model,
                output,
                row,
                prompt=request.begin,
                length=length,
                frames=request.frames[row],
                beams=self.settings.num_beams,
            )
        return Generation(sequence[: length - ended], log_probabilities, times, ended)


@dataclass(frozen=True)
class SuppressTokens:
    """Gives tokens a probability of zero, in all steps or as the first behind `begin` tokens.

    transformers' processors look for them in the whole vocabulary anew, by sorting, in each step.
    """

    begin: int
    never: torch.Tensor  # int64 `(tokens,)`
    not_first: torch.Tensor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == self.begin:
            scores = scores.index_fill(1, self.not_first, -math.inf)
        return scores.index_fill(1, self.never, -math.inf)
