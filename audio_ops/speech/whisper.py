"""Whisper, any size and language, in transformers' format.

Windows of at most 30 s, cut in pauses, are independent of each other: a window has its own
language, and none is told what was said before it (which is what makes Whisper's loops contagious).

The texts are those of transformers' pipeline on the same checkpoint, with two differences that
are meant. The task's token is always part of the prompt; the pipeline leaves it out where neither
language nor task is given. And with timestamps the sound is followed to its own end, as OpenAI's
code does, not to the end of the 30 s of padding, where there is nothing but text to be invented.

Whisper hears 30 s, however short the sound is. With `window: guarded` short windows get a shorter
encoder instead: twice as fast, for the encoder is where the time goes. Now and then it makes
Whisper loop or break off, which shows in the text's compression, in its probability or in its
length; such windows are heard again in full. Under 15 s it loops on every second clip.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.errors import ClipError
from audio_ops.inference.checkpoint import Checkpoint, load, load_model
from audio_ops.inference.finite import are_finite, finite_rows, not_finite
from audio_ops.signal.segment import cut_at_quiet
from audio_ops.speech.evidence import compression_ratio
from audio_ops.speech.options import MAX_COMPRESSION_RATIO, MIN_SCORE, Options
from audio_ops.speech.seq2seq import Chosen
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

MODEL_TYPES = ("whisper",)
TIMESTAMPS = ("none", "segment", "word")
OPTIONS = ("language", "translate", "window", "num_beams", "max_new_tokens", "generate")
TOKEN_S = 0.02  # a timestamp token's step, and a position of the encoder's output
LEAST_FRAMES = 10  # 0.1 s of sound: no second look at a rest below that
PIPELINE_NEW_TOKENS = 256  # the pipeline's own limit where a checkpoint sets none
SHORT_CONTEXTS_S = (15.0, 20.0, 25.0)  # what the encoder hears of a short window, at least
SILENCE = 1e-10  # the least power of a mel band
MARGIN_S = 5.0  # of silence behind the sound
TOKENS, TOKENS_PER_S = 16, 8.0  # nobody says more: what does is a loop
LEAST_ROWS = 4  # fewer go on together: to go on without some costs as much as a few steps


def check(options: Options, checkpoint: Checkpoint) -> None:
    """ValueError if this Whisper cannot do what is asked."""
    config, generation = checkpoint.json("config.json"), checkpoint.json("generation_config.json")
    languages = [token.strip("<|>") for token in generation.get("lang_to_id") or {}]
    # OpenAI's own rule: the English-only vocabulary is one token shorter.
    if not generation.get("is_multilingual", config.get("vocab_size", 0) >= 51865):
        if options.language not in (None, "en"):
            raise ValueError(
                f"language: expected en or none, as this Whisper hears only English, "
                f"found {options.language!r}"
            )
        if options.translate:
            raise ValueError(
                "translate: expected false, as this Whisper hears only English, found true"
            )
    elif options.language is not None or options.translate:
        if not languages or not generation.get("task_to_id"):
            raise ValueError(
                f"{'language' if options.language else 'translate'}: expected a checkpoint whose "
                f"generation_config.json has lang_to_id and task_to_id, found none in "
                f"{checkpoint.name} (take the file from the checkpoint it was trained from)"
            )
        if options.language not in (None, *languages):
            raise ValueError(
                f"language: expected one of {', '.join(sorted(languages))}, "
                f"found {options.language!r}"
            )
    if options.window == "guarded" and (
        options.timestamps != "none" or options.num_beams > 1 or options.generate.get("do_sample")
    ):
        raise ValueError(
            "window: expected full beside timestamps, num_beams or do_sample, for which short "
            "windows have not been shown to hold, found 'guarded'"
        )
    needs = {
        "segment": ["no_timestamps_token_id"],
        "word": ["no_timestamps_token_id", "alignment_heads"],
    }
    for key in needs.get(options.timestamps, []):
        if generation.get(key) is None:
            raise ValueError(
                f"timestamps: expected none, as generation_config.json in {checkpoint.name} has no "
                f"{key}, found {options.timestamps!r}"
            )
    room = config.get("max_target_positions", 448) - 4  # the prompt takes up to 4
    if options.max_new_tokens is not None and options.max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens: expected at most {room}, all that this Whisper's decoder holds beside "
            f"its prompt, found {options.max_new_tokens}"
        )


def sample_rate(options: Options, checkpoint: Checkpoint) -> int:
    """16 kHz for every Whisper so far; read from the checkpoint all the same."""
    rate: int = checkpoint.extractor_settings().get("sampling_rate", 16_000)
    return rate


class Model:
    """A loaded Whisper."""

    is_generative = True
    equal_lengths = False  # every window is padded to 30 s of silence, which the model knows

    def __init__(self, options: Options, checkpoint: Checkpoint, device: str):
        import torch
        from transformers import (
            AutoTokenizer,
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
        )

        self.extractor = load(WhisperFeatureExtractor, checkpoint, options)
        self.tokenizer = load(AutoTokenizer, checkpoint, options)
        # Only eager attention shows its weights, from which the words' times are read.
        attention = {"attn_implementation": "eager"} if options.timestamps == "word" else {}
        self.model = load_model(
            WhisperForConditionalGeneration, checkpoint, options, device, **attention
        )
        self.log_mel = LogMel(self.extractor, device)
        self.generating = threading.Lock() if device != "cpu" else nullcontext()
        self.sample_rate: int = self.extractor.sampling_rate
        self.timestamps = options.timestamps
        self.guarded = options.window == "guarded"

        config = self.model.generation_config
        self.end: int = _first(config.eos_token_id)
        no_timestamps = getattr(config, "no_timestamps_token_id", None)
        self.first_timestamp: int = (no_timestamps or self.model.config.vocab_size) + 1
        self.special = set(self.tokenizer.all_special_ids)
        self.languages: dict[str, int] = {
            token.strip("<|>"): number
            for token, number in (getattr(config, "lang_to_id", None) or {}).items()
        }
        multilingual = getattr(config, "is_multilingual", self.model.config.vocab_size >= 51865)
        self.language: str | None = options.language or self._settled_language()
        if not multilingual:
            self.languages, self.language = {}, "en"
        tasks: dict[str, int] = getattr(config, "task_to_id", None) or {}
        self.start: int = config.decoder_start_token_id
        self.after_language: list[int] = []
        if multilingual and tasks:
            self.after_language += [tasks["translate" if options.translate else "transcribe"]]
        elif multilingual:  # a checkpoint from before lang_to_id: its fixed prompt
            self.after_language += [number for _, number in self._forced() if number is not None]
        if no_timestamps is not None and options.timestamps == "none":
            self.after_language = [n for n in self.after_language if n != no_timestamps]
            self.after_language += [no_timestamps]
        self.no_speech: int | None = no_timestamps - 1 if no_timestamps is not None else None

        prompt = 1 + bool(self.languages) + len(self.after_language)
        asked = options.max_new_tokens or config.max_new_tokens or config.max_length
        room = self.model.config.max_target_positions - prompt
        for name, value in options.generate.items():
            setattr(config, name, value)
        self.unsaid, self.unsaid_first = (
            torch.tensor(tokens or [], dtype=torch.long, device=device)
            for tokens in (config.suppress_tokens, config.begin_suppress_tokens)
        )
        config.update(
            suppress_tokens=None,  # `_Unsaid` sees to them
            begin_suppress_tokens=None,
            num_beams=options.num_beams,
            max_new_tokens=min(asked or PIPELINE_NEW_TOKENS, room),
            max_length=None,
            forced_decoder_ids=None,
            return_dict_in_generate=True,
            output_scores=options.num_beams > 1,  # of greedy search every step's would be kept
            output_attentions=options.timestamps == "word",
        )
        self.samples_tokens = bool(config.do_sample)
        self.is_greedy = options.num_beams == 1 and not config.do_sample
        # Not where settings count from where generate begins.
        self.drops = self.is_greedy and not any(
            getattr(config, name, None)
            for name in ("min_new_tokens", "exponential_decay_length_penalty", "output_attentions")
        )
        self.length_penalty: float = 1.0 if config.length_penalty is None else config.length_penalty

    def _forced(self) -> list[list[int | None]]:
        config = self.model.generation_config
        return (
            getattr(config, "forced_decoder_ids", None)
            or getattr(self.model.config, "forced_decoder_ids", None)
            or []
        )

    def _settled_language(self) -> str | None:
        """The language that a fine-tuned checkpoint is fixed to, if it is."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = getattr(self.model.generation_config, "language", None)
        if name:
            name = name.lower().strip("<|>")
            return TO_LANGUAGE_CODE.get(name, name)
        forced = {number for _, number in self._forced()}
        return next((code for code, number in self.languages.items() if number in forced), None)

    def windows(self, clip: Clip) -> list[Window]:
        length = len(clip.waveform)
        cuts = cut_at_quiet(
            length, self.sample_rate, self.extractor.chunk_length, clip.speech, clip.waveform
        )
        return [Window(start, stop, self.padded_s(stop - start)) for start, stop in cuts]

    def padded_s(self, samples: int) -> float:
        """What the encoder hears of a window of so many samples, in seconds."""
        whole_s = float(self.extractor.chunk_length)
        needed_s = samples / self.sample_rate + MARGIN_S
        short_s = (context for context in SHORT_CONTEXTS_S if needed_s <= context < whole_s)
        return next(short_s, whole_s) if self.guarded else whole_s

    def join(
        self, clip: Clip, windows: Sequence[Window], outputs: Sequence[WindowTranscript]
    ) -> Transcript:
        return join_windows(windows, outputs, self.sample_rate)

    def __call__(
        self, waveforms: Sequence[np.ndarray], group: Hashable = None
    ) -> list[WindowTranscript | ClipError]:
        """Hear windows that share a context of `group` seconds (see `padded_s`).

        On a GPU one call at a time: a step of the decoder is a hundred small kernels, which two
        threads launch more slowly than one.
        """
        with self.generating:
            return self._said_in(waveforms, group)

    def _said_in(
        self, waveforms: Sequence[np.ndarray], group: Hashable
    ) -> list[WindowTranscript | ClipError]:
        import torch

        whole_s = float(self.extractor.chunk_length)
        if not self.samples_tokens:
            context_s = whole_s if group is None else float(group)  # type: ignore[arg-type]
            with torch.inference_mode():
                heard = self._heard(waveforms, context_s)
                again = [n for n, said in enumerate(heard) if context_s < whole_s and _bad(said)]
                # In batches that take no more memory than the one before.
                size = max(1, int(len(waveforms) * context_s / whole_s))
                for rows in (again[at : at + size] for at in range(0, len(again), size)):
                    full = self._heard([waveforms[n] for n in rows], whole_s)
                    for n, said in zip(rows, full, strict=True):
                        heard[n] = (
                            replace(said, redone=True)
                            if isinstance(said, WindowTranscript)
                            else said
                        )
            return heard
        # Drawn tokens would depend on the neighbours in the batch: each window alone, with a seed
        # from its own sound.
        heard = []
        for waveform in waveforms:
            with torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(zlib.crc32(waveform.tobytes()))
                heard += self._heard([waveform], whole_s)
        return heard

    def _heard(
        self, waveforms: Sequence[np.ndarray], context_s: float
    ) -> list[WindowTranscript | ClipError]:
        """What each window says, padded to `context_s` seconds.

        With timestamps Whisper may stop before the sound does, at the end of a sentence: then it
        hears the rest again, from its last timestamp on, until it is through.
        """
        import torch
        from torch.nn.functional import pad

        samples = round(context_s * self.sample_rate)
        features = self.log_mel(waveforms, samples).to(self.model.dtype)
        whole = features.shape[-1]
        frames = [-(-len(waveform) // self.extractor.hop_length) for waveform in waveforms]
        first = self._encoded(features)
        finite, languages, no_speech, cache = self._language_and_silence(first)
        if not all(finite):  # the others again without these, which would say nonsense to the limit
            good = [waveform for waveform, fine in zip(waveforms, finite, strict=True) if fine]
            others = iter(self._heard(good, context_s) if good else ())
            return [next(others) if fine else not_finite("encoder states") for fine in finite]

        heard = [
            _Growing(min(count, whole), len(waveform) / self.sample_rate)
            for count, waveform in zip(frames, waveforms, strict=True)
        ]
        rows = list(range(len(waveforms)))
        states: torch.Tensor | None = first
        while rows:
            if states is None:
                rest = [features[row, :, heard[row].seek :] for row in rows]
                states = self._encoded(
                    torch.stack([pad(part, (0, whole - part.shape[-1])) for part in rest])
                )
            prompts = [self._prompt(languages[row]) for row in rows]
            left = [heard[row].frames - heard[row].seek for row in rows]
            limit: int = self.model.generation_config.max_new_tokens
            is_short = context_s < self.extractor.chunk_length
            if is_short:
                limit = min(limit, _most_tokens(max(left)))
            said = self._generated(states, prompts, left, limit, cache if states is first else None)
            if is_short:  # what says more is heard again in full, whatever its neighbours' limit
                for spoken, own in zip(said, left, strict=True):
                    spoken.ended &= len(spoken.tokens) < _most_tokens(own)
            for row, spoken in zip(rows, said, strict=True):
                self._grow(heard[row], spoken, languages[row])
            rows = [
                row
                for row in rows
                if heard[row].frames - heard[row].seek >= LEAST_FRAMES
                and are_finite(heard[row].log_probabilities)
            ]
            states = None
        return [
            WindowTranscript(
                text=self._text(growing.tokens),
                log_probability=sum(growing.log_probabilities),
                tokens=len(growing.log_probabilities),
                segments=growing.segments,
                words=growing.words,
                language=language,
                no_speech=silence,
                redone=False if self.guarded else None,
                complete=growing.complete,
            )
            if are_finite(growing.log_probabilities)
            else not_finite("token probabilities")
            for growing, language, silence in zip(heard, languages, no_speech, strict=True)
        ]

    def _encoded(self, features: torch.Tensor) -> torch.Tensor:
        """Log-mel features `(batch, mels, frames)` -> hidden states `(batch, frames / 2, width)`.

        `WhisperEncoder.forward`, which takes no less than 3000 frames (30 s). One by one on the
        CPU: a batch falls out of the caches (0.75 s a window instead of 0.54).
        """
        import torch
        from torch.nn.functional import gelu

        encoder = self.model.model.encoder

        def encoded(part: torch.Tensor) -> torch.Tensor:
            states = gelu(encoder.conv2(gelu(encoder.conv1(part)))).permute(0, 2, 1)
            states = states + encoder.embed_positions.weight[: states.shape[1]]
            for layer in encoder.layers:
                states = layer(states, None)
            hidden: torch.Tensor = encoder.layer_norm(states)
            return hidden

        at_once = features.shape[0] if features.is_cuda else 1
        return torch.cat([encoded(part) for part in features.split(at_once)])

    def _prompt(self, language: str | None) -> list[int]:
        spoken = [self.languages[language]] if language in self.languages else []
        return [self.start, *spoken, *self.after_language]

    def _language_and_silence(
        self, states: torch.Tensor
    ) -> tuple[list[bool], list[str | None], list[float | None], Any]:
        """Whether each window's numbers are finite so far, its language, and Whisper's own
        probability that nobody speaks in it.

        The last two are read, as in OpenAI's code, from the first thing that the decoder says.
        Behind them is a cache of what its layers make of the sound, with which `generate` goes on,
        or None.
        """
        import torch
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        count = states.shape[0]
        if self.no_speech is None and (self.language or not self.languages):
            return finite_rows(states), [self.language] * count, [None] * count, None
        start = torch.full((count, 1), self.start, device=states.device)
        goes_on = self.model.generation_config.num_beams == 1 and self.timestamps != "word"
        first = self.model(encoder_outputs=(states,), decoder_input_ids=start, use_cache=goes_on)
        cache = None
        if goes_on:  # what was said so far is no part of it: generate begins with the whole prompt
            cache = EncoderDecoderCache(DynamicCache(), first.past_key_values.cross_attention_cache)
        logits = first.logits[:, 0].float()
        finite = finite_rows(logits.logsumexp(1, keepdim=True))  # a token may be ruled out by -Inf
        silence: list[float | None] = [None] * count
        if self.no_speech is not None:
            silence = logits.softmax(-1)[:, self.no_speech].tolist()
        if self.language or not self.languages:
            return finite, [self.language] * count, silence, cache
        codes = list(self.languages)
        best = logits[:, list(self.languages.values())].argmax(-1).tolist()
        return finite, [codes[index] for index in best], silence, cache

    def _generated(
        self,
        states: torch.Tensor,
        prompts: list[list[int]],
        frames: list[int],
        limit: int,
        cache: Any,
    ) -> list[_Spoken]:
        """Continue each prompt by `limit` tokens at most; `frames` are the 10 ms frames of sound in
        each window."""
        if self.timestamps != "word" or not self.is_greedy:
            return self._with_fewer_and_fewer(
                states, prompts, frames, limit, cache, len(prompts[0])
            )
        # The times want the attention of all steps. So what has not ended after as many tokens as
        # anybody says in that time, which is a loop, is heard again without the rest.
        bound = min(limit, _most_tokens(max(frames)))
        spoken, _ = self._said(states, prompts, frames, bound, None, len(prompts[0]))
        late = [row for row, said in enumerate(spoken) if not said.ended and bound < limit]
        if late:
            rest = [prompts[row] for row in late], [frames[row] for row in late]
            again, _ = self._said(states[late], *rest, limit, None, len(prompts[0]))
            for row, said in zip(late, again, strict=True):
                spoken[row] = said
        return spoken

    def _with_fewer_and_fewer(
        self,
        states: torch.Tensor,
        prompts: list[list[int]],
        frames: list[int],
        limit: int,
        cache: Any,
        begin: int,
    ) -> list[_Spoken]:
        """The same. A batch runs until its last row has ended, and one that loops goes on to the
        limit: so once half of the rows have ended, the others go on from there without them.

        `prompts` hold what was said so far, from `begin` on.
        """
        import torch

        spoken, cache = self._said(states, prompts, frames, limit, cache, begin)
        late = [row for row, said in enumerate(spoken) if not said.ended]
        left = limit - len(spoken[late[0]].tokens) if late and self.drops else 0
        if left:
            cache.batch_select_indices(torch.tensor(late, device=states.device))
            rest = self._with_fewer_and_fewer(
                states[late],
                [prompts[row] + spoken[row].tokens for row in late],
                [frames[row] for row in late],
                left,
                cache,
                begin,
            )
            for row, more in zip(late, rest, strict=True):
                spoken[row] = spoken[row].followed_by(more)
        return spoken

    def _said(
        self,
        states: torch.Tensor,
        prompts: list[list[int]],
        frames: list[int],
        limit: int,
        cache: Any,
        begin: int,
    ) -> tuple[list[_Spoken], Any]:
        """The same in one go, perhaps until half of the rows have ended; and the cache with which the
        others go on."""
        import torch
        from transformers import (
            GenerationMixin,
            LogitsProcessorList,
            StoppingCriteriaList,
            WhisperTimeStampLogitsProcessor,
        )
        from transformers.modeling_outputs import BaseModelOutput

        chosen = Chosen(self.model.generation_config)
        processors = LogitsProcessorList([_Unsaid(begin, self.unsaid, self.unsaid_first)])
        if self.timestamps != "none":
            processors.append(
                WhisperTimeStampLogitsProcessor(self.model.generation_config, begin_index=begin)
            )
        beams = self.model.generation_config.num_beams > 1
        if not beams:
            processors.append(chosen)
        so_far = torch.tensor(prompts, device=states.device)
        goes_on = so_far.shape[1] > begin  # then the cache has all but the last token
        # GenerationMixin's, not Whisper's own around it: that one runs the encoder again to detect
        # the language, and copies the key-value cache to the host for every window.
        output: Any = GenerationMixin.generate(
            self.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=so_far,
            decoder_attention_mask=torch.ones_like(so_far) if goes_on else None,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList(
                [_Half(self.end, so_far.shape[1])] if self.drops else []
            ),
            max_new_tokens=limit,
            past_key_values=cache,
        )
        sequences = output.sequences[:, so_far.shape[1] :].tolist()
        log_probabilities = None if beams else chosen.log_probabilities(output.sequences, None)
        spoken = []
        for row, sequence in enumerate(sequences):
            ended = self.end in sequence
            length = sequence.index(self.end) + 1 if ended else len(sequence)
            tokens = sequence[: length - ended]
            if log_probabilities is not None:
                each = log_probabilities[row][:length]
            else:  # beam search scores the whole: sum / length ** length_penalty
                whole = output.sequences_scores[row].item() * length**self.length_penalty
                each = [whole / length] * length if length else [math.nan]  # all beams were NaN
            times = None
            if self.timestamps == "word" and are_finite(each):
                times = self._token_times(output, row, begin, length, frames[row])
            spoken.append(_Spoken(tokens, each, times, ended))
        return spoken, output.past_key_values

    def _token_times(
        self, output: Any, row: int, begin: int, length: int, frames: int
    ) -> list[float]:
        """When each generated token ends, in seconds: transformers' own alignment, of one row alone.

        In a batch it would take the padding behind a row's end for tokens, and so give times that
        hang on the neighbours.
        """
        import torch
        from transformers.generation import (
            GenerateBeamEncoderDecoderOutput,
            GenerateEncoderDecoderOutput,
        )

        beams = self.model.generation_config.num_beams
        rows = slice(row * beams, (row + 1) * beams)
        alone: dict[str, Any] = {
            "sequences": output.sequences[row : row + 1, : begin + length],
            "cross_attentions": tuple(
                tuple(layer[rows] for layer in step) for step in output.cross_attentions[:length]
            ),
        }
        kind: Any = GenerateEncoderDecoderOutput
        if beams > 1:
            kind = GenerateBeamEncoderDecoderOutput
            picks = output.beam_indices[row : row + 1, :length]
            alone["beam_indices"] = torch.where(picks < 0, picks, picks - row * beams)
        if frames < 2 or length < 2:
            return [0.0] * length
        times = self.model._extract_token_timestamps(
            kind(**alone),
            self.model.generation_config.alignment_heads,
            num_frames=[frames],
            num_input_ids=begin,
        )
        return times[0, begin:].tolist()

    def _grow(self, growing: _Growing, spoken: _Spoken, language: str | None) -> None:
        """Add what was said from `growing.seek` on, and move on to where it stopped.

        Segments end at timestamps. What is behind the last of several segments is dropped and
        heard again from there on, as in OpenAI's code: it may have been cut off.
        """
        tokens, moved = spoken.tokens, growing.frames - growing.seek
        timed = self.timestamps != "none"
        stamped = [timed and token >= self.first_timestamp for token in tokens]
        pairs = [i for i in range(1, len(tokens)) if stamped[i - 1] and stamped[i]]
        if pairs and stamped[-2:] != [False, True]:
            stop_frames = 2 * (tokens[pairs[-1] - 1] - self.first_timestamp)
            if 0 < stop_frames < moved:
                tokens, moved = tokens[: pairs[-1] + 1], stop_frames
        start, begin_s = 0, growing.offset_s
        for index in [*(i for i in range(len(tokens)) if stamped[i]), len(tokens)]:
            end_s = growing.length_s
            if index < len(tokens):
                at_s = growing.offset_s + (tokens[index] - self.first_timestamp) * TOKEN_S
                end_s = min(max(round(at_s, 2), begin_s), end_s)
            numbers = [n for n in range(start, index) if self._is_text(tokens[n])]
            if numbers:
                text = self._text([tokens[n] for n in numbers])
                score = spoken.score(numbers)
                growing.segments.append(
                    TimedText(start_s=begin_s, end_s=end_s, text=text, score=score)
                )
                growing.words += self._words(growing, spoken, numbers, language)
            start, begin_s = index + 1, end_s
        growing.tokens += [token for token in tokens if self._is_text(token)]
        whole = len(tokens) == len(spoken.tokens)
        growing.log_probabilities += spoken.log_probabilities[: None if whole else len(tokens)]
        growing.seek += moved
        growing.complete = growing.complete and spoken.ended

    def _words(
        self, growing: _Growing, spoken: _Spoken, numbers: list[int], language: str | None
    ) -> list[TimedText]:
        """The words that the tokens at `numbers` make, if their times are known."""
        if spoken.times is None:
            return []
        from transformers.models.whisper.tokenization_whisper import (
            LANGUAGES,
            _combine_tokens_into_words,
        )

        def at(time_s: float) -> float:
            return min(round(time_s + growing.offset_s, 2), growing.length_s)

        tokens = [spoken.tokens[n] for n in numbers]
        texts, _, members = _combine_tokens_into_words(
            self.tokenizer, tokens, LANGUAGES.get(language or "en", "english")
        )
        words = []
        for text, indices in zip(texts, members, strict=True):
            first, last = numbers[indices[0]], numbers[indices[-1]]
            words.append(
                TimedText(
                    start_s=at(spoken.times[first - 1] if first else 0.0),
                    end_s=at(spoken.times[last]),
                    text=text,
                    score=spoken.score([numbers[i] for i in indices]),
                )
            )
        return words

    def _is_text(self, token: int) -> bool:
        return token < self.first_timestamp and token not in self.special

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))


class LogMel:
    """`WhisperFeatureExtractor` in torch from end to end.

    The original goes through numpy and back, on a GPU for ten times as long as it computes.
    """

    def __init__(self, extractor: Any, device: str):
        import torch

        self.extractor, self.device = extractor, device
        self.filters = torch.from_numpy(extractor.mel_filters).to(device, torch.float32)
        self.window = torch.hann_window(extractor.n_fft, device=device)

    def __call__(self, waveforms: Sequence[np.ndarray], samples: int) -> torch.Tensor:
        """Float32 `(batch, mels, frames)` of waveforms that are padded to so many samples."""
        import torch
        from torch.nn.functional import pad

        hop, width = self.extractor.hop_length, self.extractor.n_fft
        # Behind the longest of them all frames are alike: nothing of the padding is transformed.
        longest = max(map(len, waveforms))
        frames = min(samples // hop, -(-(longest + width) // hop))
        sound = torch.zeros(len(waveforms), frames * hop, device=self.device)
        for row, waveform in zip(sound, waveforms, strict=True):
            row[: len(waveform)] = torch.tensor(waveform)
        spectrum = torch.stft(sound, width, hop, window=self.window, return_complex=True)[..., :-1]
        power = torch.view_as_real(spectrum).square().sum(-1)
        log = (self.filters.T @ power).clamp(min=SILENCE).log10()
        log = pad(log, (0, samples // hop - frames), value=math.log10(SILENCE))
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


@dataclass(frozen=True)
class _Half:
    """Stops a batch once half of its rows have said `end` behind their first `length` tokens."""

    end: int
    length: int

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        ended = (input_ids[:, self.length :] == self.end).any(1)
        half = 2 * ended.sum() >= len(ended)
        return half.expand(len(ended)) if len(ended) >= LEAST_ROWS else ended


@dataclass(frozen=True)
class _Unsaid:
    """Keeps tokens from being said at all, or as the first behind `begin` tokens of prompt.

    transformers' processors look for them in the whole vocabulary anew, by sorting, at each step.
    """

    begin: int
    never: torch.Tensor  # int64 (tokens,)
    not_first: torch.Tensor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == self.begin:
            scores = scores.index_fill(1, self.not_first, -math.inf)
        return scores.index_fill(1, self.never, -math.inf)


@dataclass
class _Spoken:
    """One row of what was generated: tokens without end-of-text, log probabilities with it."""

    tokens: list[int]
    log_probabilities: list[float]
    times: list[float] | None  # when each token ends, in seconds
    ended: bool = True  # and was not cut off

    def followed_by(self, more: _Spoken) -> _Spoken:
        """This and, from where it was cut off, that."""
        log_probabilities = self.log_probabilities + more.log_probabilities
        return _Spoken(self.tokens + more.tokens, log_probabilities, None, more.ended)

    def score(self, numbers: Sequence[int]) -> float:
        total = sum(self.log_probabilities[n] for n in numbers)
        return geometric_mean(total, len(numbers)) or 0.0


@dataclass
class _Growing:
    """What was heard so far in a window of `length_s` seconds, `frames` frames of 10 ms."""

    frames: int
    length_s: float
    seek: int = 0  # frames heard
    complete: bool = True  # Whisper came to an end of itself
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    segments: list[TimedText] = field(default_factory=list)
    words: list[TimedText] = field(default_factory=list)

    @property
    def offset_s(self) -> float:
        return self.seek * TOKEN_S / 2


def _first(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids


def _most_tokens(frames: int) -> int:
    """That anybody says in so many 10 ms frames, with the end of text."""
    return TOKENS + int(TOKENS_PER_S * frames / 100)


def _bad(heard: WindowTranscript | ClipError) -> bool:
    """Whether a short context may have spoilt this text."""
    if isinstance(heard, ClipError):
        return True
    score = geometric_mean(heard.log_probability, heard.tokens)
    return (
        not heard.complete
        or compression_ratio(heard.text) > MAX_COMPRESSION_RATIO
        or (score is not None and score < MIN_SCORE)
    )
