"""Every use of transformers that its documentation does not promise.

Each function names the file and name upstream that it relies on, and its fallback if there is one:
slower, with the same labels. When an upgrade breaks an assumption, the test of that name in
`tests/models/test_transformers_compat.py` fails. Uses of torch beyond its documentation are in
`cpu_bfloat16.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def run_in_one_process() -> None:
    """Tell transformers that no model is split across processes, so that it does not look.

    `is_fsdp_managed_module` (distributed/fsdp.py), which `generate` and some encoders call, imports
    torch.distributed.fsdp, in 0.6 s or more, unless its `is_torch_distributed_available` is false. If
    the file is gone, transformers looks.
    """
    with suppress(ImportError):
        from transformers.distributed import fsdp

        fsdp.is_torch_distributed_available = lambda: False


def encode_whisper(encoder: Any, features: torch.Tensor) -> torch.Tensor:
    """Log-mel features `(batch, mels, frames)` -> hidden states `(batch, frames / 2, width)`.

    `WhisperEncoder.forward` (models/whisper/modeling_whisper.py) takes 3000 frames (30 s) and no
    fewer. Fewer go through the same modules with the first of the positions; for those there is no
    documented way.
    """
    if features.shape[-1] == 2 * encoder.config.max_source_positions:
        states: torch.Tensor = encoder(features).last_hidden_state
        return states
    return encode_whisper_in_steps(encoder, features)


def encode_whisper_in_steps(encoder: Any, features: torch.Tensor) -> torch.Tensor:
    """`encode_whisper` for any even number of frames up to 3000."""
    from torch.nn.functional import gelu

    states = gelu(encoder.conv2(gelu(encoder.conv1(features)))).permute(0, 2, 1)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    for layer in encoder.layers:
        states = layer(states, None)
    hidden: torch.Tensor = encoder.layer_norm(states)
    return hidden


def generate_from_states(model: Any, states: torch.Tensor, **settings: Any) -> Any:
    """`GenerationMixin.generate` (generation/utils.py) of a Whisper, from its encoder's output.

    Not Whisper's own `generate` around it (models/whisper/generation_whisper.py), which runs the
    encoder again to detect the language, and copies the key-value cache to the host for every
    window. There is no fallback: Whisper's own takes other prompts.
    """
    from transformers import GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    encoded = BaseModelOutput(last_hidden_state=states)  # type: ignore[arg-type]
    return GenerationMixin.generate(model, encoder_outputs=encoded, **settings)


def encoder_keys_alone(cache: Any) -> Any:
    """A cache with the keys and values of the encoder's states and no token's.

    `EncoderDecoderCache` in cache_utils.py. None for any other cache: then `generate` computes them
    again.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    of_encoder = getattr(cache, "cross_attention_cache", None)
    return None if of_encoder is None else EncoderDecoderCache(DynamicCache(), of_encoder)


def rows_of_cache(cache: Any, rows: Sequence[int], device: torch.device) -> Any:
    """The cache with these rows alone. It is changed in place.

    `EncoderDecoderCache.batch_select_indices` in cache_utils.py. None for a cache that cannot:
    then `generate` computes it again from the whole prompt.
    """
    import torch

    if not hasattr(cache, "batch_select_indices"):
        return None
    cache.batch_select_indices(torch.tensor(rows, device=device))
    return cache


def can_drop_rows(model: Any) -> bool:
    """Whether `generate` of this model can go on with some of a batch's rows: a state space model's cannot.

    `_is_stateful` in modeling_utils.py; `LinearAttentionLayer` in cache_utils.py has no
    `batch_select_indices`.
    """
    return not getattr(model, "_is_stateful", False)


def predict_next(
    model: Any, tokens: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The output `(rows, width)` of a transducer's prediction network for a token in each row, and
    its state, which begins as None.

    The modules of `ParakeetRNNTDecoder` (models/parakeet/modeling_parakeet.py), whose own `forward`
    runs for all rows if any has a new token. There is no fallback.
    """
    network = model.decoder
    output, state = network.lstm(network.embedding(tokens[:, None]), state)
    predicted: torch.Tensor = network.decoder_projector(output)[:, 0]
    return predicted, state


def joint_scores(model: Any, frames: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """The scores `(rows, tokens + durations)` of a transducer's next token and of its durations.

    `ParakeetRNNTJointNetwork.forward` (models/parakeet/modeling_parakeet.py). There is no fallback.
    """
    scores: torch.Tensor = model.joint(
        encoder_hidden_states=frames, decoder_hidden_states=predicted
    )
    return scores


def frames_of_mels(model: Any, mels: Sequence[int]) -> list[int]:
    """The number of a transducer's encoder frames for each number of log-mel frames in `mels`.

    `_get_subsampling_output_length` of `ParakeetPreTrainedModel` (models/parakeet/
    modeling_parakeet.py), with which its `generate` sets its own limit.
    """
    import torch

    frames: list[int] = model.encoder._get_subsampling_output_length(torch.tensor(mels)).tolist()
    return frames


def token_end_times(
    model: Any, output: Any, row: int, *, prompt: int, length: int, frames: int, beams: int = 1
) -> list[float]:
    """The end of each of a row's `length` generated tokens in seconds, by the attention to sound.

    `output` is what `generate` returned with `output_attentions`, for prompts of `prompt` tokens;
    `frames` are the row's 10 ms frames of sound. `WhisperGenerationMixin._extract_token_timestamps`
    in models/whisper/generation_whisper.py, on one row alone: in a batch it takes the padding after
    a row's end for tokens, so that times would depend on the neighbours. There is no fallback.
    """
    import torch
    from transformers.generation import (
        GenerateBeamEncoderDecoderOutput,
        GenerateEncoderDecoderOutput,
    )

    if frames < 2 or length < 2:
        return [0.0] * length
    rows = slice(row * beams, (row + 1) * beams)
    alone: dict[str, Any] = {
        "sequences": output.sequences[row : row + 1, : prompt + length],
        "cross_attentions": tuple(
            tuple(layer[rows] for layer in step) for step in output.cross_attentions[:length]
        ),
    }
    kind: Any = GenerateEncoderDecoderOutput
    if beams > 1:
        kind = GenerateBeamEncoderDecoderOutput
        picks = output.beam_indices[row : row + 1, :length]
        alone["beam_indices"] = torch.where(picks < 0, picks, picks - row * beams)
    times = model._extract_token_timestamps(
        kind(**alone),
        model.generation_config.alignment_heads,
        num_frames=[frames],
        num_input_ids=prompt,
    )
    ends: list[float] = times[0, prompt:].tolist()
    return ends


def words_of(
    tokenizer: Any, tokens: Sequence[int], language: str | None
) -> list[tuple[str, list[int]]]:
    """The words that a Whisper's tokens spell, each with its tokens' places in `tokens`.

    `_combine_tokens_into_words` in models/whisper/tokenization_whisper.py, with which the pipeline
    makes words. There is no fallback.
    """
    from transformers.models.whisper.tokenization_whisper import (
        LANGUAGES,
        _combine_tokens_into_words,
    )

    texts, _, places = _combine_tokens_into_words(
        tokenizer, list(tokens), LANGUAGES.get(language or "en", "english")
    )
    return list(zip(texts, places, strict=True))


def language_code(name: str) -> str:
    """Whisper's code (`de`) of a language's English name (`german`), or of its code.

    `TO_LANGUAGE_CODE` in models/whisper/tokenization_whisper.py.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE.get(name, name)


def english_normalizer(spelling: Mapping[str, str]) -> Callable[[str], str]:
    """Whisper's normaliser of English text (models/whisper/english_normalizer.py).

    `spelling` maps British to American words.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(dict(spelling))


def tokens_kept_by_beam_search(config: Any) -> int:
    """The number of best tokens of each beam among which a beam search chooses in each step.

    `beams_to_keep` in `GenerationMixin._beam_search` (generation/utils.py). Were it more, tokens
    outside them would have NaN for a probability, and their window an error.
    """
    ends = config.eos_token_id
    count: int = config.num_beams * max(2, 1 + (len(ends) if isinstance(ends, list) else 1))
    return count


def call_last(model: Any, kind: type) -> None:
    """Let `generate` of this model call logits processors of this kind after all others.

    `GenerationMixin._get_logits_processor` (generation/utils.py) puts a caller's processors ahead
    of temperature, `top_k` and the like. There is no fallback.
    """
    listed = model._get_logits_processor

    def reordered(*args: Any, **settings: Any) -> Any:
        processors = listed(*args, **settings)
        return type(processors)(sorted(processors, key=lambda one: isinstance(one, kind)))

    model._get_logits_processor = reordered


def mask_adapter_padding(encoder: Any, frames: Callable[[], torch.Tensor]) -> bool:
    """Zero the padding ahead of the convolutions in a SeamlessM4T speech encoder's adapter.

    `frames()` is int64 `(batch,)`: the frames of sound in each row of the batch in the encoder.

    Alone, a clip has zeros after its end there. In a batch it would have what layer norm made of
    the padding: the one place where transformers lets padding into the text
    (`SeamlessM4TConformerAdapterLayer.forward` in models/seamless_m4t/modeling_seamless_m4t.py).

    Returns whether padded batches are safe. If not, as with several layers or with modules of other
    names, batches have to be of equal length.
    """

    def without_padding(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        import torch

        (states,) = inputs  # (batch, width, frames)
        padding = torch.arange(states.shape[-1], device=states.device) >= frames()[:, None]
        return (states.masked_fill(padding[:, None], 0),)

    if not hasattr(encoder, "adapter"):
        return False
    if encoder.adapter is None:
        return True
    layers: Any = getattr(encoder.adapter, "layers", [])
    modules: dict[str, Any] = dict(layers[0].named_children()) if len(layers) == 1 else {}
    if not {"residual_conv", "self_attn_conv"} <= modules.keys():
        return False
    for name in ("residual_conv", "self_attn_conv"):
        modules[name].register_forward_pre_hook(without_padding)
    return True


def mask_group_norm(model: Any) -> bool:
    """Make the group norm of a model's first convolution ignore padding, clip by clip.

    The layer and its convolution are found by names that transformers does not document:
    `conv_layers` of `Wav2Vec2FeatureEncoder`, `conv` and `layer_norm` of
    `Wav2Vec2GroupNormConvLayer` (transformers/models/wav2vec2/modeling_wav2vec2.py, and its copies
    for the other model types). Returns False, and changes nothing, if they are not there.
    """
    import torch

    layers = getattr(
        getattr(getattr(model, "base_model", None), "feature_extractor", None),
        "conv_layers",
        [None],
    )
    norm: Any = getattr(layers[0], "layer_norm", None)
    conv: Any = getattr(layers[0], "conv", None)
    if not isinstance(norm, torch.nn.GroupNorm) or not isinstance(conv, torch.nn.Conv1d):
        return False
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    batch = threading.local()  # concurrent calls have lengths of their own

    def keep_lengths(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        batch.samples = inputs["attention_mask"].sum(-1).tolist()

    def forward(states: torch.Tensor) -> torch.Tensor:
        normed = torch.zeros_like(states)
        for row, samples in enumerate(batch.samples):
            own = slice(row, row + 1), slice(None), slice(0, (samples - kernel) // stride + 1)
            normed[own] = torch.nn.functional.group_norm(
                states[own], norm.num_groups, norm.weight, norm.bias, norm.eps
            )
        return normed

    model.register_forward_pre_hook(keep_lengths, with_kwargs=True)
    norm.forward = forward  # type: ignore[assignment, method-assign]
    return True


def replace_filter_bank(extractor: Any, make: Callable[[Any], Callable[..., Any]]) -> bool:
    """Let a feature extractor compute its Kaldi filter bank with `make(extractor)`.

    `_extract_fbank_features` of the extractors of AST, SeamlessM4T, wav2vec2-bert and Speech2Text,
    which with torchaudio have no `mel_filters`. Returns whether the extractor has such a filter bank;
    if not, it stays as it is.
    """
    if not {"mel_filters", "window", "_extract_fbank_features"} <= set(dir(extractor)):
        return False
    extractor._extract_fbank_features = make(extractor)
    return True
