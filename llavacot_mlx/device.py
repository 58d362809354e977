"""What a large model needs of the device while it generates, and nothing on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import mlx.core as mx


@cache
def _generation_stream() -> mx.ThreadLocalStream:
    return mx.new_thread_local_stream(mx.default_device())


def on_generation_stream() -> AbstractContextManager[object]:
    """Runs what is inside on a stream of its own, beside whatever else the process computes."""
    return mx.stream(_generation_stream())


@contextmanager
def wired_memory() -> Iterator[None]:
    """Keeps the weights resident on a Mac while the block runs.

    macOS pages memory of the GPU out between steps unless it is wired; the limit goes up to the
    recommended working set and back to what it was. Devices that recommend none are left alone.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended is None:
        yield
        return
    before = mx.set_wired_limit(int(recommended))
    try:
        yield
    finally:
        with on_generation_stream():
            mx.synchronize()  # the limit must not change under a running computation
        mx.set_wired_limit(before)
