"""The device's memory, and the stream on which generation runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import mlx.core as mx


@cache
def _generation_stream() -> mx.ThreadLocalStream:
    return mx.new_thread_local_stream(mx.default_device())


def on_generation_stream() -> AbstractContextManager[object]:
    """Runs the block on a stream of its own, beside whatever else the process computes."""
    return mx.stream(_generation_stream())


@contextmanager
def wired_memory() -> Iterator[None]:
    """Keeps the weights resident on a Mac while the block runs.

    macOS pages GPU memory out between steps unless it is wired. The limit is raised to the
    recommended working set, and restored afterwards. Devices that recommend none are left alone.
    """
    recommended = _recommended_bytes()
    if recommended is None:
        yield
        return
    before = mx.set_wired_limit(recommended)
    try:
        yield
    finally:
        with on_generation_stream():
            mx.synchronize()  # the limit must not change under a running computation
        mx.set_wired_limit(before)


def available_memory() -> tuple[int, str]:
    """Returns the bytes that a model may use, and their name: a Mac's working set, or all
    memory."""
    recommended = _recommended_bytes()
    if recommended is not None:
        return recommended, "recommended working set"
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "memory"


def _recommended_bytes() -> int | None:
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return None if recommended is None else int(recommended)
