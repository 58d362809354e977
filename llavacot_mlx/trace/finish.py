"""Why an answer ended where it did."""

from __future__ import annotations

import enum


class Finish(enum.StrEnum):
    """Why an answer, or a candidate of a search, ended where it did."""

    STOP = "stop"
    """The model ended it."""
    LENGTH = "length"
    """It reached a limit on tokens: `max_tokens`, that of a plan's step, or the model's context."""
    REPETITION = "repetition"
    """It went round in a circle, see `generate/repetition.py`."""
    INTERRUPTED = "interrupted"
    """It was stopped from outside; of a search, the best path so far is the answer."""
