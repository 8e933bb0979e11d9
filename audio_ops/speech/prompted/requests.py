"""Windows and options -> the inputs of a prompted recogniser's `generate`.

The processor is called for each window alone, as on the model's page, and the batch is padded here: the
features of some processors (Qwen3-ASR) depend on the padding behind a clip's end, and some
(MOSS) pad nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_ops.speech.options import Options
from audio_ops.speech.prompted.kinds import Kind

if TYPE_CHECKING:
    import torch

TEXT = ("input_ids", "attention_mask")  # of a language model: padded on the left


@dataclass(frozen=True)
class Request:
    """Makes the processor's inputs for one window, as on the model's page."""

    processor: Any
    kind: Kind
    options: Options
    sample_rate: int

    def __call__(self, waveform: np.ndarray, prompt: str | None) -> dict[str, torch.Tensor]:
        asked = self._asked(prompt)
        if self.kind.request == "chat":
            inputs = self._chat(waveform, prompt or self.kind.default_prompt or "")
        elif self.kind.request == "mistral":
            inputs = self.processor.apply_transcription_request(
                audio=waveform,
                model_id=self.options.model,
                sampling_rate=self.sample_rate,
                format=["WAV"],
                **asked,
            )
        elif self.kind.request == "call":
            inputs = self.processor(
                audio=waveform, sampling_rate=self.sample_rate, return_tensors="pt", **asked
            )
        else:
            inputs = self.processor.apply_transcription_request(
                audio=waveform,
                processor_kwargs={"sampling_rate": self.sample_rate, "return_tensors": "pt"},
                **asked,
            )
        inputs.pop("audio_chunk_index", None)  # Cohere's: no window is so long that it cuts it
        return dict(inputs)

    def _chat(self, waveform: np.ndarray, prompt: str) -> Any:
        """A chat's only turn: the sound, and what to do with it."""
        tokenizer = self.processor.tokenizer
        turn = {"role": "user", "content": f"{self.processor.audio_token}{prompt}"}
        text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        return self.processor(text=text, audio=[waveform], return_tensors="pt")

    def _asked(self, prompt: str | None) -> dict[str, Any]:
        """The request's arguments besides the sound."""
        asked: dict[str, Any] = {}
        if self.options.language is not None:
            asked["language"] = self.options.language
        if self.options.punctuation is not None:
            asked["punctuation"] = self.options.punctuation
        if prompt:
            asked["prompt"] = prompt
        if "target_language" in self.kind.options:
            asked["source_language"] = asked.pop("language", self.kind.default_language)
            asked["target_language"] = self.options.target_language
        return asked


def collate(
    each: Sequence[dict[str, torch.Tensor]], pad_token: int, has_encoder: bool
) -> dict[str, torch.Tensor]:
    """One batch of all inputs. Sound is padded with zeros at its end, behind its mask.

    has_encoder: the attention mask is that of the sound, and prompts are of one length.
    """
    import torch
    from torch.nn.functional import pad

    batch = {}
    for key in each[0]:
        tensors = [inputs[key] for inputs in each]
        is_text = key in TEXT and not has_encoder
        sizes = [max(size) for size in zip(*(t.shape[1:] for t in tensors), strict=True)]
        fill = pad_token if key == "input_ids" else 0
        padded = []
        for tensor in tensors:
            missing = [full - own for full, own in zip(sizes, tensor.shape[1:], strict=True)]
            sides = [(n, 0) if is_text else (0, n) for n in reversed(missing)]
            padded.append(pad(tensor, [n for side in sides for n in side], value=fill))
        batch[key] = torch.cat(padded)
    return batch
