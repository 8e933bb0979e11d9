"""CTC models: whatever `AutoModelForCTC` loads: wav2vec2 and its relatives, Parakeet CTC, Granite
Speech 5, LASR.

A CTC model predicts one token per frame (20 ms in wav2vec2, 80 ms in Parakeet), usually the blank.
Sound longer than `chunk_length_s` is cut into windows that overlap by `stride_length_s` on each
side; the overlap is cut off and the frames are joined before they are read as text, as in
transformers' pipeline (`transformers/pipelines/automatic_speech_recognition.py`), so that texts and
times are the pipeline's with the same two settings.

They differ where the pipeline is wrong: it takes a frame of Parakeet, or of a wav2vec2 with an
adapter (`add_adapter`), for shorter than it is, cuts such models' windows in the wrong places and
has no times for Parakeet; and it reads the frame of pure padding at the end of some clips, which
Parakeet's own `generate` leaves out.

Decoding is greedy. A checkpoint's language model (`Wav2Vec2ProcessorWithLM`) is not used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import AdaptedCheckpoint, Checkpoint, load, load_model
from audio_ops.inference.features import compute_on
from audio_ops.inference.finite import are_finite, not_finite
from audio_ops.inference.granite import Granite5Features
from audio_ops.inference.wav2vec2 import (
    FBANK_FRAME,
    FBANK_HOP,
    accepts_padding,
    conv_frames,
    shortest,
)
from audio_ops.inference.weights import check_head, check_rows, shapes_in
from audio_ops.speech.frames import LOG_MEL, frames_of, samples_per_frame
from audio_ops.speech.frames import shortest as shortest_of_log_mel
from audio_ops.speech.languages import no_languages
from audio_ops.speech.options import Options
from audio_ops.speech.transcript import Segment, TimedText, Transcript, geometric_mean, score_of
from audio_ops.speech.vocabulary import check_ctc
from audio_ops.tasks import Clip, Window

MODEL_TYPES = (
    *LOG_MEL,
    *("data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat"),
    *("wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm"),
)
TIMESTAMPS = ("none", "word", "char")
OPTIONS = ("chunk_length_s", "stride_length_s", "target_lang")
languages = no_languages
# Attention over time costs its square: an hour at once runs out of memory.
DEFAULT_CHUNK_S = 30.0
HEADS = ("lm_head.weight", "ctc_head.weight", "encoder.out.weight")  # the last is Granite's
LM_PROCESSOR = "Wav2Vec2ProcessorWithLM"
MAX_WORD_S = 5.0  # longer runs without a delimiter are taken for a script without spaces


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if the checkpoint is no CTC model or cannot do what the options ask for."""
    config = checkpoint.json("config.json")
    found = config.get("architectures") or []
    if not any(name.endswith("ForCTC") for name in found):
        # Another head's checkpoint would load too, with random weights for the vocabulary.
        raise ValueError(
            f"model: expected a ...ForCTC architecture, found {found} in {checkpoint.name}"
        )
    if config["model_type"] in LOG_MEL and options.timestamps == "char":
        raise ValueError(
            f"timestamps: expected none or word for a {config['model_type']} checkpoint, whose "
            "tokens are pieces of words, found 'char'"
        )
    Chunking.of(options, checkpoint)
    _check_language(options, checkpoint, config)
    _check_vocabulary(options, checkpoint, config)
    files = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
    if any(checkpoint.json(file).get("processor_class") == LM_PROCESSOR for file in files):
        logging.getLogger(__name__).warning(
            "%s: its language model is not used, decoding is greedy", checkpoint.name
        )


def _check_language(options: Options, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    vocabulary = checkpoint.json("vocab.json")
    languages = sorted(code for code, tokens in vocabulary.items() if isinstance(tokens, dict))
    language = options.target_lang
    if language is None:
        if languages and not checkpoint.json("tokenizer_config.json").get("target_lang"):
            raise ValueError(
                f"target_lang: expected one of {', '.join(languages)}, as {checkpoint.name} has a "
                "vocabulary for each and no default, found none"
            )
        default = checkpoint.json("tokenizer_config.json").get("target_lang")
        if languages and default not in languages:
            raise ValueError(
                f"model: expected target_lang in tokenizer_config.json as one of "
                f"{', '.join(languages)}, which vocab.json has, found {default!r} in "
                f"{checkpoint.source}: correct it, or set the option `target_lang`"
            )
        return
    if not languages or config.get("adapter_attn_dim") is None:
        raise ValueError(
            "target_lang: expected none, as only a checkpoint with language adapters (MMS) has "
            f"languages to choose from, found {language!r} for {checkpoint.name}"
        )
    if isinstance(checkpoint, AdaptedCheckpoint):
        raise ValueError(
            "target_lang: expected none beside a PEFT adapter, which was trained on one language of "
            f"{checkpoint.base.source}, found {language!r}"
        )
    if language not in languages:
        raise ValueError(f"target_lang: expected one of {', '.join(languages)}, found {language!r}")
    if checkpoint.path(f"adapter.{language}.safetensors") is None:
        raise ValueError(
            f"target_lang: expected adapter.{language}.safetensors in {checkpoint.name}, found none"
        )


def _check_vocabulary(options: Options, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """ValueError if the head, config.json and the tokenizer are not of one model."""
    check_head(checkpoint, HEADS)
    size = config.get("vocab_size")
    if size is not None:
        check_rows(checkpoint, HEADS, size, "vocab_size")
    if options.target_lang is not None and checkpoint.revision is None:
        adapter = checkpoint.path(f"adapter.{options.target_lang}.safetensors")
        rows = shapes_in(adapter).get("lm_head.weight") if adapter else None
        size = rows[0] if rows else size
    if size is not None and not options.trust_remote_code:
        check_ctc(checkpoint, options.target_lang, size)


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """The rate in Hz that the feature extractor expects."""
    return int(checkpoint.extractor_settings().get("sampling_rate", 16_000))


@dataclass(frozen=True)
class Chunking:
    """Lengths in samples, multiples of `frame`: the samples from one frame to the next."""

    frame: int
    length: int
    stride: int  # overlap on each side

    @classmethod
    def of(cls, options: Options, checkpoint: Checkpoint) -> Chunking:
        """The options' lengths. Raises ValueError for a chunk without a frame, or if the strides leave nothing
        of it."""
        rate = sample_rate(options, checkpoint)
        frame = _samples_per_frame(checkpoint)
        length_s = options.chunk_length_s or DEFAULT_CHUNK_S
        stride_s = length_s / 6 if options.stride_length_s is None else options.stride_length_s
        length, stride = (round(s * rate / frame) * frame for s in (length_s, stride_s))
        if not length:
            raise ValueError(
                f"chunk_length_s: expected at least a frame of the model ({frame / rate:g} s), "
                f"found {length_s:g}"
            )
        if 2 * stride >= length:
            raise ValueError(
                f"stride_length_s: expected less than half of chunk_length_s ({length_s:g} s), "
                f"found {stride_s:g}"
            )
        return cls(frame, length, stride)

    def __call__(self, samples: int) -> list[Window]:
        windows: list[Window] = []
        for start in range(0, max(samples, 1), self.length - 2 * self.stride):
            windows.append(Window(start, min(start + self.length, samples)))
            if start + self.length >= samples:
                break
        return windows

    def kept(self, windows: Sequence[Window], number: int) -> slice:
        """The frames of a window without its overlap, by the pipeline's arithmetic."""
        samples = windows[number].stop - windows[number].start
        frames = round(samples / self.frame)
        left = round(self.stride / samples * frames) if number else 0
        if number == len(windows) - 1:
            return slice(left, None)
        return slice(left, frames - round(self.stride / samples * frames))


def _samples_per_frame(checkpoint: Checkpoint) -> int:
    config = checkpoint.json("config.json")
    if config["model_type"] in LOG_MEL:
        hop: int = checkpoint.extractor_settings().get("hop_length", 160)
        return samples_per_frame(config["model_type"], config["encoder_config"], hop)
    if config["model_type"] == "wav2vec2-bert":
        frame = 2 * FBANK_HOP
    else:
        frame = math.prod(config.get("conv_stride") or (5, 2, 2, 2, 2, 2, 2))
    if config.get("add_adapter"):
        frame *= config.get("adapter_stride", 2) ** config.get("num_adapter_layers", 3)
    return frame


def _extractor(options: Options, checkpoint: Checkpoint, device: str) -> Any:
    from transformers import AutoFeatureExtractor

    if checkpoint.json("config.json")["model_type"] == "granite_speech5_ctc":
        return Granite5Features(checkpoint.extractor_settings(), device)
    return compute_on(device, load(AutoFeatureExtractor, checkpoint, options))


@dataclass(frozen=True)
class FramePredictions:
    """The likeliest token of each frame of a window and its log probability, both `(frames,)`."""

    tokens: np.ndarray  # int64
    log_probabilities: np.ndarray  # float32


@dataclass(frozen=True)
class TokenSpan:
    """A token other than the blank, from frame `start` to before frame `stop` of the clip."""

    id: int
    start: int
    stop: int
    log_probability: float  # of its most certain frame


class Model:
    """A loaded CTC model.

    `score` is the geometric mean probability of the tokens, word delimiters included: a token
    counts with its most certain frame (as a token fades in and out, the others prove nothing), and
    blanks do not count. The text of a clip of less than one frame (25 ms) is empty.
    """

    is_generative = False
    translates = False

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        from transformers import AutoModelForCTC, AutoTokenizer

        config = checkpoint.json("config.json")
        self.model_type = str(config["model_type"])
        self.extractor = _extractor(options, checkpoint, device)
        self.tokenizer = load(AutoTokenizer, checkpoint, options)
        self.model = load_model(AutoModelForCTC, checkpoint, options, device)
        self.device, self.dtype = device, self.model.dtype
        if options.target_lang is not None:
            self.tokenizer.set_target_lang(options.target_lang)
            self.model.load_adapter(
                options.target_lang, revision=checkpoint.revision, use_safetensors=True
            )
            self.model.eval()
        default: str | None = getattr(self.tokenizer, "target_lang", None)
        self.language = options.target_lang or default
        self.blank: int = self.tokenizer.pad_token_id
        self.delimiter: int | None = getattr(self.tokenizer, "word_delimiter_token_id", None)

        self.sample_rate = sample_rate(options, checkpoint)
        self.chunks, self.timestamps = Chunking.of(options, checkpoint), options.timestamps
        if self.model_type in LOG_MEL:
            self.encoder: dict[str, Any] = self.model.config.encoder_config.to_dict()
            self.equal_lengths = False
            self.shortest = shortest_of_log_mel(self.model_type, self.encoder, self.extractor)
        else:
            self.equal_lengths = not accepts_padding(self.model, config, device)
            self.shortest = shortest(config)

    def windows(self, clip: Clip) -> list[Window]:
        return self.chunks(len(clip.waveform))

    def padded_s(self, samples: int) -> float:
        return samples / self.sample_rate

    def __call__(
        self, waveforms: Sequence[np.ndarray], group: Hashable = None
    ) -> list[FramePredictions | ClipError]:
        import torch

        predictions: list[FramePredictions | ClipError] = [
            FramePredictions(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in waveforms
        ]
        long = [n for n, waveform in enumerate(waveforms) if len(waveform) >= self.shortest]
        if not long:
            return predictions
        inputs = self.extractor(
            [waveforms[n] for n in long],
            sampling_rate=self.sample_rate,
            return_tensors="pt",
            padding=True,
            return_attention_mask=True,
        ).to(self.device, self.dtype)
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()
            best, tokens = logits.max(-1)
            log_probabilities = (best - logits.logsumexp(-1)).cpu().numpy()
        ids = tokens.cpu().numpy()
        for row, n in enumerate(long):
            frames = self._frames(len(waveforms[n]), ids.shape[1])
            own = FramePredictions(ids[row, :frames], log_probabilities[row, :frames])
            predictions[n] = own if are_finite(own.log_probabilities) else not_finite("logits")
        return predictions

    def _frames(self, samples: int, padded: int) -> int:
        """The frames of a row's `samples`, without those of its padding up to `padded`."""
        config = self.model.config
        if self.equal_lengths:
            return padded
        if self.model_type in LOG_MEL:
            return frames_of(self.model_type, self.encoder, samples, self.extractor)
        if self.model_type == "wav2vec2-bert":
            return -(-((samples - FBANK_FRAME) // FBANK_HOP + 1) // 2)
        return conv_frames(samples, config.conv_kernel, config.conv_stride)

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[FramePredictions]
    ) -> Transcript:
        kept = [self.chunks.kept(windows, number) for number in range(len(windows))]
        places = [
            window.start // self.chunks.frame + np.arange(len(frames.tokens))[own]
            for window, frames, own in zip(windows, outputs, kept, strict=True)
        ]
        ids = np.concatenate([f.tokens[own] for f, own in zip(outputs, kept, strict=True)])
        log_probabilities = np.concatenate(
            [f.log_probabilities[own] for f, own in zip(outputs, kept, strict=True)]
        )
        tokens = token_spans(ids, log_probabilities, np.concatenate(places), self.blank)
        words = self._words(tokens)
        units = {"word": words, "char": [[token] for token in tokens], "none": []}
        seams = [int(place[0]) for place in places if place.size]
        return Transcript(
            text=self.tokenizer.decode(ids, skip_special_tokens=False) if ids.size else "",
            score=geometric_mean(sum(token.log_probability for token in tokens), len(tokens)),
            segments=self._segments(clip, words, seams, units[self.timestamps]),
            language=self.language,
        )

    def _words(self, tokens: Sequence[TokenSpan]) -> list[list[TokenSpan]]:
        """Tokens between word delimiters, or from one piece that begins with ▁ to the next."""
        words: list[list[TokenSpan]] = [[]]
        for token in tokens:
            if self.delimiter is not None and token.id == self.delimiter:
                words.append([])
            elif self.delimiter is None and self._is_beginning(token):
                words.append([token])
            else:
                words[-1].append(token)
        return [word for word in words if word]

    def _is_beginning(self, token: TokenSpan) -> bool:
        piece: str | None = self.tokenizer.convert_ids_to_tokens(token.id)
        return (piece or "").startswith("▁")

    def _segments(
        self,
        clip: Clip,
        words: Sequence[list[TokenSpan]],
        seams: Sequence[int],
        units: Sequence[Sequence[TokenSpan]],
    ) -> list[Segment]:
        """A segment for each window with words: those that begin in it; `seams` are the windows'
        first frames. `units` are the words or characters whose times are wanted.

        A script without spaces is cut at the seam itself.
        """
        max_frames = MAX_WORD_S * self.sample_rate / self.chunks.frame
        by_window: list[list[list[TokenSpan]]] = [[] for _ in seams]
        for word in words:
            is_word = word[-1].stop - word[0].start <= max_frames
            starts = [word[0].start if is_word else token.start for token in word]
            numbers = np.searchsorted(seams, starts, "right") - 1
            for number in np.unique(numbers):
                own = [t for t, n in zip(word, numbers, strict=True) if n == number]
                by_window[number].append(own)
        has_words = [number for number, parts in enumerate(by_window) if parts]
        first_frames = [seams[number] for number in has_words]
        timed: list[list[TimedText]] = [[] for _ in has_words]
        for unit in units if has_words else ():
            place = int(np.searchsorted(first_frames, unit[0].start, "right")) - 1
            timed[max(place, 0)].append(self._timed(unit))
        edges_s = [seam * self.chunks.frame / self.sample_rate for seam in seams]
        edges_s.append(len(clip.waveform) / self.sample_rate)
        return [
            Segment(
                start_s=round(edges_s[number], 3),
                end_s=round(edges_s[number + 1], 3),
                text=" ".join(self._text(part) for part in by_window[number]),
                score=_score([token for part in by_window[number] for token in part]),
                words=own,
                window=number,
                language=self.language,
            )
            for number, own in zip(has_words, timed, strict=True)
        ]

    def _timed(self, tokens: Sequence[TokenSpan]) -> TimedText:
        return TimedText(
            start_s=round(tokens[0].start * self.chunks.frame / self.sample_rate, 3),
            end_s=round(tokens[-1].stop * self.chunks.frame / self.sample_rate, 3),
            text=self._text(tokens),
            score=_score(tokens),
        )

    def _text(self, tokens: Sequence[TokenSpan]) -> str:
        if len(tokens) == 1 and tokens[0].id == self.delimiter:
            return " "  # decode would strip it
        text: str = self.tokenizer.decode(
            [token.id for token in tokens], skip_special_tokens=False, group_tokens=False
        )
        return text


def token_spans(
    ids: np.ndarray, log_probabilities: np.ndarray, places: np.ndarray, blank: int
) -> list[TokenSpan]:
    """Runs of equal tokens, each as one, without blanks; all arrays `(frames,)`."""
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: ids.size])
    stops = [*starts[1:], len(ids)]
    return [
        TokenSpan(
            int(ids[start]),
            int(places[start]),
            int(places[stop - 1]) + 1,
            float(log_probabilities[start:stop].max()),
        )
        for start, stop in zip(starts, stops[: starts.size], strict=True)
        if ids[start] != blank
    ]


def _score(tokens: Sequence[TokenSpan]) -> float:
    return score_of([token.log_probability for token in tokens])
