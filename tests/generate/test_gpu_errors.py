"""What the errors of Metal and of MLX's allocator mean, in the words in which they come."""

from __future__ import annotations

import pytest

from llavacot_mlx.cli.gpu_advice import Work, gpu_line
from llavacot_mlx.generate.gpu_errors import GPUError, gpu_error

_COMMAND_BUFFER = "[METAL] Command buffer execution failed: "
TEXTS = {
    f"{_COMMAND_BUFFER}Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)": GPUError.MEMORY,
    f"{_COMMAND_BUFFER}Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)": GPUError.INTERACTIVITY,
    f"{_COMMAND_BUFFER}Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)": GPUError.TIMEOUT,
    f"{_COMMAND_BUFFER}Discarded (victim of GPU error/recovery) "
    "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)": GPUError.VICTIM,
    f"{_COMMAND_BUFFER}Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)": GPUError.VICTIM,
    "[metal::malloc] Resource limit (499000) exceeded.": GPUError.RESOURCES,
    "[metal::malloc] Attempting to allocate 41 bytes which is greater than the maximum allowed "
    "buffer size of 40 bytes.": GPUError.MEMORY,
    "[malloc] Unable to allocate 4096 bytes.": GPUError.MEMORY,
    "std::bad_alloc": GPUError.MEMORY,
}


@pytest.mark.parametrize(("text", "meaning"), TEXTS.items())
def test_each_text_means_one_thing(text: str, meaning: GPUError) -> None:
    """`Resource limit (499000)` was told as out of memory, the other three as bugs of ours."""
    assert gpu_error(RuntimeError(text)) is meaning


def test_lack_of_memory_in_python_is_the_same() -> None:
    assert gpu_error(MemoryError()) is GPUError.MEMORY


@pytest.mark.parametrize(
    "error", [RuntimeError("[matmul] shapes"), ValueError("malloc"), KeyError("out of memory")]
)
def test_other_errors_are_not_the_gpus(error: Exception) -> None:
    assert gpu_error(error) is None
    assert gpu_line(error, Work.ANSWER) is None


@pytest.mark.parametrize("work", Work)
@pytest.mark.parametrize("meaning", GPUError)
def test_each_has_advice_for_each_work(meaning: GPUError, work: Work) -> None:
    text = next(text for text, means in TEXTS.items() if means is meaning)
    line = gpu_line(RuntimeError(text), work)
    assert line is not None
    assert line.startswith(f"{meaning.value}; ")
    assert "\n" not in line
    if work is Work.TRAIN and meaning is not GPUError.VICTIM:
        assert "--batch-size" in line
        assert "--candidates" not in line
