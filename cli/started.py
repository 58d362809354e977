"""When the command started; imported before anything that takes time."""

from __future__ import annotations

import time

_STARTED = time.perf_counter()


def seconds_since_start() -> float:
    """Returns how long the person has waited for this command, but for Python's own start."""
    return time.perf_counter() - _STARTED
