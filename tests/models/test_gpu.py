"""GPU errors are told apart by their messages, and batches are bounded by memory and by int32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import tiny_classifier

from audio_ops.errors import ClipError
from audio_ops.inference import gpu
from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.inference.runner import Failures, default_batch_s
from audio_ops.inference.torch_compat import largest_tensor
from audio_ops.tasks import TaskModel, load_task

# As the libraries word them: torch's c10/cuda, ATen/cuda/Exceptions.h, ATen/native/cudnn, and HIP's.
MESSAGES: list[tuple[Callable[[str], Exception], str, str | None]] = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 MiB.", "memory"),
    (torch.AcceleratorError, "CUDA error: out of memory", "memory"),
    (torch.AcceleratorError, "HIP error: out of memory", "memory"),
    (MemoryError, "", "memory"),
    (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory", "memory"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "memory"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling", "memory"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "memory"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "memory"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "memory"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", "memory"),
    (RuntimeError, "GET was unable to find an engine to execute this computation", "memory"),
    (RuntimeError, "cuFFT error: CUFFT_ALLOC_FAILED", "memory"),
    (RuntimeError, "HIPBLAS_STATUS_ALLOC_FAILED", "memory"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling", "lost context"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "lost context"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_MAPPING_ERROR", "lost context"),
    (RuntimeError, "cuFFT error: CUFFT_EXEC_FAILED", "lost context"),
    (RuntimeError, "CUDA error: device-side assert triggered", "lost context"),
    (torch.AcceleratorError, "CUDA error: an illegal memory access", "lost context"),
    (torch.AcceleratorError, "CUDA error: unspecified launch failure", "lost context"),
    (torch.AcceleratorError, "CUDA error: uncorrectable ECC error encountered", "lost context"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx`", None),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`", None),
    (RuntimeError, "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)", None),
    (RuntimeError, "probability tensor contains either `inf`, `nan` or element < 0", None),
    (ValueError, "CUDA error: out of memory", None),
    (KeyError, "labels", None),
]


@pytest.mark.parametrize(("kind", "message", "expected"), MESSAGES, ids=[m[1] for m in MESSAGES])
def test_errors_are_told_apart(
    kind: Callable[[str], Exception], message: str, expected: str | None
) -> None:
    error = kind(message)
    assert gpu.failure(error) == expected
    if expected == "lost context":
        with pytest.raises(type(error)):
            Failures().clip_error(error)
    else:
        found = Failures().clip_error(error)
        assert isinstance(found, ClipError)
        assert found.kind == ("out_of_memory" if expected == "memory" else "model")


def test_the_largest_tensor_is_seen_wherever_it_is_made() -> None:
    layer, sound = torch.nn.Linear(10, 300), torch.zeros(7, 10)
    with largest_tensor() as largest, torch.inference_mode():
        torch.split(layer(sound), 100, dim=1)
    assert largest.elements == 7 * 300


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    folder: Path = tiny_classifier(tmp_path_factory.mktemp("models") / "wav2vec2", "wav2vec2")
    task = load_task("audio-classification")
    options = task.Options(task="audio-classification", model=str(folder))
    model: TaskModel = task.Model(options, find_checkpoint(str(folder)), "cpu")
    return model


def test_a_models_cost_grows_with_its_sound_and_not_with_the_probe(wav2vec2: TaskModel) -> None:
    cost = gpu.measure(wav2vec2, "cpu")
    channels, stride = 16, 5  # of the first convolution at 16 kHz
    expected = max(channels * 16_000 / stride, 16_000)
    assert cost.elements == pytest.approx(expected, rel=0.05) and cost.bytes == 0


@pytest.mark.parametrize(
    ("cost", "free", "expected"),
    [
        (gpu.Cost(1.64e6, 0), 0.0, gpu.MAX_ELEMENTS / 1.64e6),
        (gpu.Cost(1.0, 16 << 20), 10 << 30, gpu.FREE_SHARE * 640),
        (gpu.Cost(0, 0), 10 << 30, float("inf")),
        (gpu.Cost(1.0, 1.0), -5.0, 0.0),
    ],
)
def test_a_batch_is_bounded_by_int32_and_by_memory(
    cost: gpu.Cost, free: float, expected: float
) -> None:
    assert gpu.limit_s(cost, free) == pytest.approx(expected)


def test_without_a_gpu_to_measure_on_there_is_no_bound_and_a_word_in_the_log(
    wav2vec2: TaskModel, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        assert default_batch_s(wav2vec2, "cuda") <= 256 * 30.0
        return
    assert gpu.batch_limit_s(wav2vec2, "cuda") == float("inf")
    assert "Traceback" in capfd.readouterr().err
