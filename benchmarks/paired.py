"""Confidence intervals of a fraction, and of the difference of two on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000  # draws of the bootstrap
_Z = 1.96  # normal quantile of a 95% interval


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a fraction of `count` > 0 independent questions."""
    share = hits / count
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Difference:
    """The advantage of one way to answer over another, as a fraction of the same questions."""

    value: float
    low: float
    """The 95% interval, from a bootstrap over questions."""
    high: float
    wins: int
    """Questions that only the first got right."""
    losses: int
    """Questions that only the second got right."""
    p: float
    """McNemar's exact two-sided test of wins against losses."""


def difference(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """`first` minus `second`, which answer the same questions in the same order."""
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} answers cannot be paired with {len(second)}")
    signs = np.array(first, dtype=float) - np.array(second, dtype=float)
    # A question is a win, a loss or a draw, so drawing questions is drawing these three.
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    count = len(signs)
    chances = [wins / count, losses / count, 1 - (wins + losses) / count]
    drawn = np.random.default_rng(0).multinomial(count, chances, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / count, [0.025, 0.975])
    return Difference(
        float(signs.mean()), float(low), float(high), wins, losses, mcnemar(wins, losses)
    )


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p: the probability that a fair coin is at least as one-sided."""
    flips, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(flips, heads) for heads in range(fewer + 1)) / 2**flips
    return min(1.0, 2 * tail)
