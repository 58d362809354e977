"""Detects a path that only repeats itself."""

from __future__ import annotations

import numpy as np

_LONGEST_PERIOD = 512
_SHORTEST_STRETCH = 512
_LEAST_TIMES = 3


class RepetitionDetector:
    """Says whether the last tokens of a path are the same few again and again.

    The last tokens must be an exact cycle: of at most 512 tokens, for at least 512 tokens, and at
    least three times. Lists and tables seldom are exact for that long, since a number or a word
    changes from row to row; a model that has lost its way writes the same tokens to the limit.
    """

    def __init__(self) -> None:
        self.repeating = False
        """Whether the path ends in such a cycle."""
        periods = np.arange(1, _LONGEST_PERIOD + 1)
        # In a stretch of n, a cycle of p tokens has n - p that equal the one p before.
        self._wanted = np.maximum(_SHORTEST_STRETCH, _LEAST_TIMES * periods) - periods
        self._equal = np.zeros(_LONGEST_PERIOD, dtype=np.int64)  # per period: how many in a row
        self._recent = np.full(2 * _LONGEST_PERIOD, -1, dtype=np.int64)  # a ring, written twice
        self._place = 0

    def push(self, token_id: int) -> None:
        """Adds the next token of the path."""
        recent = self._recent[self._place : self._place + _LONGEST_PERIOD]  # oldest first
        self._equal += 1
        self._equal *= recent[::-1] == token_id
        self.repeating = bool((self._equal >= self._wanted).any())
        self._recent[[self._place, self._place + _LONGEST_PERIOD]] = token_id
        self._place = (self._place + 1) % _LONGEST_PERIOD
