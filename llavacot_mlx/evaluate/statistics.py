"""Confidence intervals of a score, and of the difference of two scores on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000  # draws of the bootstrap
_Z = 1.96  # normal quantile of a 95% interval
_CHUNK = 500  # draws at a time, which bounds the memory


def wilson(hits: float, count: int) -> tuple[float, float]:
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


@dataclass(frozen=True)
class ClusterSums:
    """A score as a mean of ratios, each a sum over clusters divided by a sum over clusters.

    Questions about one picture stand or fall together, so a bootstrap draws clusters of them, and
    computes the score of each draw anew.
    """

    hits: np.ndarray
    """(clusters, ratios)."""
    counts: np.ndarray
    """(clusters, ratios)."""

    def score(self) -> float:
        """The score, from 0 to 1; NaN without a question."""
        return float(_mean_of_ratios(self.hits.sum(0), self.counts.sum(0)))

    def interval(self) -> tuple[float, float]:
        """The 95% interval of the score.

        Where all clusters agree, a bootstrap cannot vary, and Wilson's interval takes its place.
        """
        if np.ptp(_safe_ratio(self.hits, self.counts), axis=0).max(initial=0) == 0:
            return wilson(self.score() * len(self.hits), len(self.hits))
        low, high = np.nanquantile(_draws([self])[0], [0.025, 0.975])
        return float(low), float(high)


def paired_interval(first: ClusterSums, second: ClusterSums) -> tuple[float, float]:
    """The 95% interval of `first` minus `second`, whose clusters are the same in the same order."""
    drawn = _draws([first, second])
    low, high = np.nanquantile(drawn[0] - drawn[1], [0.025, 0.975])
    return float(low), float(high)


def _draws(scores: Sequence[ClusterSums]) -> list[np.ndarray]:
    """The scores of every draw of clusters, the same clusters for all of `scores`."""
    clusters = len(scores[0].hits)
    rng = np.random.default_rng(0)
    found: list[list[np.ndarray]] = [[] for _ in scores]
    for _ in range(RESAMPLES // _CHUNK):
        drawn = rng.integers(clusters, size=(_CHUNK, clusters))
        drawn += clusters * np.arange(_CHUNK)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=_CHUNK * clusters)
        weights = weights.reshape(_CHUNK, clusters).astype(float)
        for each, values in zip(scores, found, strict=True):
            values.append(_mean_of_ratios(weights @ each.hits, weights @ each.counts))
    return [np.concatenate(values) for values in found]


def _mean_of_ratios(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(hits / counts).mean(-1)


def _safe_ratio(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
