"""What a RuntimeError of the GPU means: one table of the texts that MLX and Metal raise.

The texts are those of Metal's command buffers, which MLX repeats, and of MLX's own allocator.
"""

from __future__ import annotations

import enum


class GPUError(enum.Enum):
    """Why the GPU did not do its work; the value says it to a person."""

    RESOURCES = "the GPU holds more arrays at once than Metal allows"
    INTERACTIVITY = "macOS stopped the GPU's work, because it kept the screen from being drawn"
    TIMEOUT = "macOS stopped the GPU's work, because one piece of it took too long"
    VICTIM = "macOS stopped the GPU's work, because that of another program failed"
    MEMORY = "out of memory"


# The first text that an error contains decides: a limit on the number of resources is reported by
# the allocator, too, but is not about bytes.
_TEXTS = {
    "resource limit": GPUError.RESOURCES,
    "impacting interactivity": GPUError.INTERACTIVITY,
    "impactinginteractivity": GPUError.INTERACTIVITY,
    "caused gpu timeout": GPUError.TIMEOUT,
    "callbackerrortimeout": GPUError.TIMEOUT,
    "innocent victim": GPUError.VICTIM,
    "innocentvictim": GPUError.VICTIM,
    "submissionsignored": GPUError.VICTIM,
    "insufficient memory": GPUError.MEMORY,
    "outofmemory": GPUError.MEMORY,
    "out of memory": GPUError.MEMORY,
    "maximum allowed buffer size": GPUError.MEMORY,
    "unable to allocate": GPUError.MEMORY,
    "malloc": GPUError.MEMORY,
    "bad_alloc": GPUError.MEMORY,
}


def gpu_error(error: BaseException) -> GPUError | None:
    """What an exception says about the GPU; None where it says nothing about it."""
    if isinstance(error, MemoryError):
        return GPUError.MEMORY
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    return next((meaning for known, meaning in _TEXTS.items() if known in text), None)
