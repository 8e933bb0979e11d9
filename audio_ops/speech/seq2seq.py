"""Encoder-decoders other than Whisper: Moonshine, Speech2Text, speech encoder-decoders.

Long sound is cut in pauses into windows of at most `MAX_S` that do not overlap: transformers'
pipeline chunks by a stride, which these models' texts then hold twice. A clip that fits one window
gets the pipeline's text for the same settings.

Windows of less than 0.1 s say nothing: too short for a word, and these models answer noise with
words.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, load, load_model
from audio_ops.inference.features import compute_on
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.inference.wav2vec2 import is_masked
from audio_ops.signal.segment import cut_at_quiet
from audio_ops.speech.options import Options
from audio_ops.speech.transcript import (
    TimedText,
    Transcript,
    WindowTranscript,
    geometric_mean,
    join_windows,
)
from audio_ops.tasks import Clip, Window

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("moonshine", "speech-encoder-decoder", "speech_to_text")
TIMESTAMPS = ("none",)
OPTIONS = ("num_beams", "max_new_tokens", "generate")
MIN_S = 0.1
# The longest sound that each was made for. Moonshine was trained on 4 to 30 s
# (https://arxiv.org/abs/2410.15608) and its 194 tokens are those of 30 s; Speech2Text has room for
# 6,000 frames of 10 ms, but LibriSpeech and MuST-C end near 30 s; speech encoder-decoders differ.
MAX_S = {"moonshine": 30.0, "speech_to_text": 30.0, "speech-encoder-decoder": 30.0}
PIPELINE_NEW_TOKENS = 256  # the pipeline's own limit where a checkpoint sets none


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint cannot do what is asked."""
    config = checkpoint.json("config.json")
    found = config.get("architectures") or []
    # Another head's checkpoint would load too, with random weights for the decoder.
    endings = ("ForConditionalGeneration", "ForSpeechToText", "SpeechEncoderDecoderModel")
    if not any(name.endswith(endings) for name in found):
        raise ValueError(
            f"model: expected an architecture that ends in {' or '.join(endings)}, found {found} "
            f"in {checkpoint.name}"
        )
    if options.num_beams > 1 and options.generate.get("do_sample"):
        raise ValueError(
            f"num_beams: expected 1 beside generate.do_sample, found {options.num_beams}"
        )
    checkpoint.extractor_settings()


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 16_000))


class Model:
    """A loaded encoder-decoder.

    `score` is the geometric mean probability of the generated tokens, end of text included, under
    the distribution that they were chosen from.
    """

    is_generative = True
    max_s: float
    language: str | None = None

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        extractor, self.tokenizer = self._processors(checkpoint, options)
        self.extractor = compute_on(device, extractor)
        self.model = load_model(self._class(), checkpoint, options, device)
        self.device, self.dtype = device, self.model.dtype
        self.generating = threading.Lock() if device != "cpu" else nullcontext()  # see whisper.py
        self.sample_rate = sample_rate(options, checkpoint)
        config = checkpoint.json("config.json")
        self.max_s = MAX_S.get(config["model_type"], 0.0)
        # Moonshine's group norm runs over time, padding included; Speech2Text convolves over it.
        self.equal_lengths = not is_masked(config.get("encoder") or {})
        self._settle(options)

    def _class(self) -> Any:
        from transformers import AutoModelForSpeechSeq2Seq

        return AutoModelForSpeechSeq2Seq

    def _processors(self, checkpoint: Checkpoint, options: Options) -> tuple[Any, Any]:
        """The feature extractor and the tokenizer, found as the pipeline finds them."""
        from transformers import AutoFeatureExtractor, AutoTokenizer

        return (
            load(AutoFeatureExtractor, checkpoint, options),
            load(AutoTokenizer, checkpoint, options),
        )

    def _settle(self, options: Options) -> None:
        """The generation config: the checkpoint's, the options, and the pipeline's limit."""
        config = self.model.generation_config
        limit = options.max_new_tokens or config.max_new_tokens
        if limit is None and config.max_length is None:
            limit = PIPELINE_NEW_TOKENS
        if limit is not None:
            config.max_length = None
        for name, value in options.generate.items():
            setattr(config, name, value)
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id
        config.update(
            num_beams=options.num_beams, max_new_tokens=limit, return_dict_in_generate=True
        )

    def windows(self, clip: Clip) -> list[Window]:
        cuts = cut_at_quiet(
            len(clip.waveform), self.sample_rate, self.max_s, clip.speech, clip.waveform
        )
        return [Window(start, stop) for start, stop in cuts]

    def padded_s(self, samples: int) -> float:
        return samples / self.sample_rate

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[WindowTranscript]
    ) -> Transcript:
        return join_windows(windows, outputs, self.sample_rate)

    def __call__(
        self, waveforms: Sequence[np.ndarray], group: Hashable = None
    ) -> list[WindowTranscript | ClipError]:
        import torch

        nothing = WindowTranscript(
            text="", log_probability=0.0, tokens=0, segments=[], language=self.language
        )
        heard: list[WindowTranscript | ClipError] = [nothing] * len(waveforms)
        long = [n for n, wave in enumerate(waveforms) if len(wave) >= MIN_S * self.sample_rate]
        if not self.model.generation_config.do_sample:
            batches = [long] if long else []
        else:  # drawn tokens would depend on the neighbours: each alone, seeded by its own sound
            batches = [[n] for n in long]
        for batch in batches:
            sounds = [waveforms[n] for n in batch]
            with self.generating, torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(zlib.crc32(sounds[0].tobytes()))
                for n, said in zip(batch, self._heard(sounds), strict=True):
                    heard[n] = said
        return heard

    def _heard(self, waveforms: Sequence[np.ndarray]) -> list[WindowTranscript | ClipError]:
        spoken = self._generated(self._inputs(waveforms))
        return [
            WindowTranscript(
                text=text,
                log_probability=sum(each),
                tokens=len(each),
                segments=[
                    TimedText(
                        start_s=0.0,
                        end_s=len(waveform) / self.sample_rate,
                        text=text,
                        score=geometric_mean(sum(each), len(each)) or 0.0,
                    )
                ]
                if text.strip()
                else [],
                language=self.language,
            )
            if each and are_finite(each)
            else not_finite("token probabilities")
            for waveform, (text, each) in zip(waveforms, spoken, strict=True)
        ]

    def _inputs(self, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
        """What `generate` takes: features and their attention mask."""
        inputs: dict[str, Any] = self.extractor(
            list(waveforms),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
            padding=True,
            return_attention_mask=True,
        ).to(self.device, self.dtype)
        # A speech encoder-decoder calls its input `inputs`, whatever its encoder calls it.
        main = self.model.main_input_name
        return {main if name.startswith("input") else name: x for name, x in inputs.items()}

    def _generated(self, inputs: dict[str, Any]) -> list[tuple[str, list[float]]]:
        """For each row its text and the log probabilities of what was generated."""
        from transformers import LogitsProcessorList

        chosen = Chosen(self.model.generation_config)
        output: Any = self.model.generate(**inputs, logits_processor=LogitsProcessorList([chosen]))
        beams = getattr(output, "beam_indices", None)
        each = chosen.log_probabilities(output.sequences, beams)
        return [
            (self.tokenizer.decode(row, skip_special_tokens=True), log_probabilities)
            for row, log_probabilities in zip(output.sequences.tolist(), each, strict=True)
        ]


class Chosen:
    """Put last among the logits processors: keeps the log probability of each chosen token.

    generate's own `output_scores` would keep every step's scores of the whole vocabulary, for
    every beam: gigabytes for SeamlessM4T. Of a beam search, what can be chosen in a step is kept:
    the `2 * num_beams` best tokens of each beam (`beams_to_keep` in transformers'
    `GenerationMixin._beam_search`).
    """

    def __init__(self, config: Any):
        ends = config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.beams: int = config.num_beams
        self.draws = bool(config.do_sample)
        self.kept = max(2, 1 + len(self.ends)) * self.beams
        self.prompt = 0  # tokens that were there before the first step
        self.scores: torch.Tensor | None = None
        self.steps: list[torch.Tensor] = []  # greedy: (rows,)
        self.best: list[tuple[torch.Tensor, torch.Tensor]] = []  # beams: (rows * beams, kept)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        self.prompt = self.prompt or input_ids.shape[1]
        if self.beams > 1:
            values, tokens = scores.float().topk(min(self.kept, scores.shape[1]))
            self.best.append((values, tokens))
        else:
            self._keep(input_ids)
            self.scores = scores
        if self.draws:  # to draw from NaN is an error on the CPU and the end of a GPU's process
            finite = torch.finfo(scores.dtype).max
            scores = scores.nan_to_num(0.0, posinf=finite, neginf=-torch.inf)
        return scores

    def _keep(self, input_ids: torch.Tensor) -> None:
        if self.scores is not None:
            scores = self.scores.float()
            self.steps.append(scores.gather(1, input_ids[:, -1:])[:, 0] - scores.logsumexp(-1))

    def log_probabilities(
        self, sequences: torch.Tensor, beam_indices: torch.Tensor | None
    ) -> list[list[float]]:
        """Per row, one for each generated token up to and with the end of text.

        `sequences` `(rows, tokens)` and `beam_indices` `(rows, steps)` as generate returns them.
        """
        generated = sequences[:, self.prompt :].tolist()
        if self.beams > 1:
            assert beam_indices is not None
            self.best = [(values.cpu(), tokens.cpu()) for values, tokens in self.best]
            each = [
                [
                    self._of_beam(step, beam, token)
                    for step, (beam, token) in enumerate(zip(beams, row, strict=False))
                    if beam >= 0  # behind the end there is -1
                ]
                for beams, row in zip(beam_indices.tolist(), generated, strict=True)
            ]
        else:
            import torch

            self._keep(sequences)
            each = torch.stack(self.steps, 1).tolist()
        return [
            log_probabilities[: self._length(row)]
            for log_probabilities, row in zip(each, generated, strict=True)
        ]

    def _of_beam(self, step: int, beam: int, token: int) -> float:
        values, tokens = self.best[step]
        found = values[beam][tokens[beam] == token]
        return found.item() if len(found) else math.nan  # which beam search may choose beside NaN

    def _length(self, row: list[int]) -> int:
        return next((n + 1 for n, token in enumerate(row) if token in self.ends), len(row))
