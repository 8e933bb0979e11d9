"""Generation of a batch of texts with transformers' `generate`, which rows leave when they have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from audio_ops.inference.transformers_compat import can_drop_rows, rows_of_cache
from audio_ops.speech.tokens import TokenLogProbabilities

if TYPE_CHECKING:
    import torch

MIN_ROWS = 4  # in smaller batches dropping finished rows costs as much as a few steps
NEED_ALL_STEPS = ("min_new_tokens", "exponential_decay_length_penalty", "output_attentions")


@dataclass
class Generated:
    """The tokens that were generated for one row, and their log probabilities, both with the end of
    text if it is there."""

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class HalfEnded:
    """Stops a batch once half of its rows have one of `ends` behind their prompt, or all the tokens that
    they may have."""

    ends: torch.Tensor  # int64 `(tokens,)`
    probabilities: TokenLogProbabilities  # which know the prompt's length
    limits: torch.Tensor | None = None  # int64 `(rows,)`

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        new = input_ids[:, self.probabilities.prompt :]
        ended = (new[:, :, None] == self.ends).flatten(1).any(1)
        if self.limits is not None:
            ended = ended | (new.shape[1] >= self.limits)
        is_half = 2 * ended.sum() >= len(ended)
        return is_half.expand(len(ended)) if len(ended) >= MIN_ROWS else ended


def is_greedy(config: Any) -> bool:
    """Whether each token is the most probable one."""
    return config.num_beams == 1 and not config.do_sample


def drops_finished(config: Any) -> bool:
    """Whether a batch may go on without its finished rows, with these settings of `generate`: not if
    one counts from the token where it begins, or needs the attention of all steps."""
    return is_greedy(config) and not any(getattr(config, name, None) for name in NEED_ALL_STEPS)


def generate_dropping_finished(
    model: Any, inputs: dict[str, Any], limits: Sequence[int]
) -> list[Generated]:
    """What `model.generate` writes for each row, by the model's own generation config.

    A batch runs until its last row has ended, and one that loops runs to its limit: once half of the
    rows have ended, the others go on without them, from the keys and values so far.

    inputs: what the processor returned. An encoder-decoder's `encoder_outputs` take the place of its
        sound, so that it is encoded once.
    limits: the most new tokens of each row; those of a beam search are of one number.
    """
    import torch

    config = model.generation_config
    key = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    mask = f"{key.removesuffix('input_ids')}attention_mask"
    ends = ends_of(config)
    generated = [Generated() for _ in range(len(inputs[key]))]
    rows = list(range(len(generated)))
    left = list(limits)  # of each row, here and below
    drops = drops_finished(config) and len(rows) >= MIN_ROWS and can_drop_rows(model)
    while rows:
        probabilities = TokenLogProbabilities(config)
        device = inputs[key].device
        marks = torch.tensor(ends, device=device)
        most = torch.tensor([left[row] for row in rows], device=device)
        stop = [HalfEnded(marks, probabilities, most)] if drops else []
        output = _generate(model, inputs, max(left[row] for row in rows), probabilities, stop)
        sequences, length = output.sequences, probabilities.prompt
        beams = getattr(output, "beam_indices", None)
        each = probabilities.log_probabilities(sequences, beams)
        late = []
        for place, row in enumerate(rows):
            tokens = _up_to_end(sequences[place, length:].tolist(), ends)[: left[row]]
            generated[row].tokens += tokens
            generated[row].log_probabilities += each[place][: len(tokens)]
            left[row] -= len(tokens)
            if left[row] and tokens[-1:] and tokens[-1] not in ends:
                late.append(place)
        if not drops or not late:
            break
        inputs = _going_on(inputs, sequences, late, key, mask)
        inputs["past_key_values"] = rows_of_cache(output.past_key_values, late, sequences.device)
        rows = [rows[place] for place in late]
    return generated


def ends_of(config: Any) -> list[int]:
    """The tokens with which a text ends."""
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]


def _generate(
    model: Any,
    inputs: dict[str, Any],
    limit: int,
    probabilities: TokenLogProbabilities,
    stop: list[Any],
) -> Any:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    return model.generate(
        **inputs,
        logits_processor=LogitsProcessorList(probabilities.processors),
        stopping_criteria=StoppingCriteriaList(stop),
        max_new_tokens=limit,
        return_dict_in_generate=True,
    )


def _going_on(
    inputs: dict[str, Any], sequences: torch.Tensor, late: Sequence[int], key: str, mask: str
) -> dict[str, Any]:
    """The inputs with which the rows at the places `late` go on, without sound."""
    import torch

    begun = inputs.get(mask)
    begun = torch.ones_like(inputs[key]) if begun is None else begun
    new = begun.new_ones(len(sequences), sequences.shape[1] - begun.shape[1])
    inputs_of_encoder = {}
    if "encoder_outputs" in inputs:
        inputs_of_encoder["encoder_outputs"] = rows_of_output(inputs["encoder_outputs"], late)
    return {key: sequences[late], mask: torch.cat([begun, new], 1)[late], **inputs_of_encoder}


def rows_of_output(output: Any, rows: Sequence[int]) -> Any:
    """An encoder's output with these rows alone."""
    import torch

    values = {k: v[list(rows)] if isinstance(v, torch.Tensor) else v for k, v in output.items()}
    return type(output)(**values)


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and with the first of `ends`."""
    stop = next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
