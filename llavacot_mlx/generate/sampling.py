"""Samples the next token from logits and a key, without state or global random numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import mlx.core as mx

from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.kernels import kernels

_SORTED = 1024
"""Maximum number of weights that the CPU sorts; of more, it first selects the relevant part."""


def token_keys(seed: int, nodes: Sequence[str], position: int) -> mx.array:
    """Returns the random keys for token `position` of some candidates: (nodes, 2).

    A key depends only on its own node, so a candidate's text is the same whatever is decoded beside
    it.
    """
    return row_keys([(seed, node, position) for node in nodes])


def row_keys(rows: Sequence[tuple[int, str, int]]) -> mx.array:
    """Returns the random keys of rows of different seeds at different positions: (rows, 2).

    A row is a seed, a candidate's node and the position of its token.
    """
    names = (f"{seed}/{node}/{position}" for seed, node, position in rows)
    return mx.array([_words(name) for name in names], dtype=mx.uint32)


def sample(logits: mx.array, sampling: Sampling, keys: mx.array) -> mx.array:
    """Samples one id for each row of `logits` (batch, vocabulary): (batch,).

    Each row draws with its own row of `keys` (batch, 2), so its token does not depend on the
    others. The keys are only used when the temperature is above 0.
    """
    if sampling.temperature == 0:
        return mx.argmax(logits, axis=-1)
    # Below 1e-6 the most likely token is certain anyway, and dividing by less could overflow.
    weights = _weights(logits, max(sampling.temperature, 1e-6))
    if sampling.top_p < 1:
        weights = _nucleus(weights, sampling.top_p)
    # Inverse transform sampling: `ends` is the cumulative distribution, times the total weight.
    ends = mx.cumsum(weights, axis=-1)
    return mx.sum(ends <= mx.vmap(_uniform)(keys) * ends[:, -1:], axis=-1)


def log_probabilities(logits: mx.array, token_ids: mx.array) -> mx.array:
    """Log-probability of one token per row of `logits` (batch, vocabulary), untempered:
    (batch,)."""
    largest = mx.max(logits, axis=-1).astype(mx.float32)
    chosen = mx.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0].astype(mx.float32)
    return chosen - largest - mx.log(mx.sum(_weights(logits, 1.0), axis=-1))


def _words(name: str) -> tuple[int, int]:
    """Splits a 64-bit hash into a key, as MLX does with a seed."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")


def _uniform(key: mx.array) -> mx.array:
    """Draws from 0 to 1 - 2**-24, (1,): times a float32, it never rounds up to that float32."""
    return mx.random.uniform(shape=(1,), key=key)


def _weights(logits: mx.array, temperature: float) -> mx.array:
    """Returns unnormalized probabilities in float32, of which the largest is 1.

    In bfloat16 the sums over a large vocabulary would be inaccurate. The base is 2, because MLX's
    `exp` takes twice as long as its `power` on an x86 CPU.
    """
    logits = logits.astype(mx.float32)
    logits = logits - mx.max(logits, axis=-1, keepdims=True)
    return mx.power(2.0, logits * (math.log2(math.e) / temperature))


def _nucleus(weights: mx.array, top_p: float) -> mx.array:
    """Zeroes all but the most likely tokens, whose weights reach `top_p` of the total.

    The token that crosses the border is kept; of equal weights at the border, the first ones. This
    is nucleus sampling, Holtzman et al. 2020 (arXiv 1904.09751), section 3.1.
    """
    missing = top_p * mx.sum(weights, axis=-1, keepdims=True)
    part, before = weights, mx.zeros(missing.shape, dtype=mx.int32)
    if kernels().partial_sort:
        part, before, missing = _around_the_border(weights, missing)
    ordered = -mx.sort(-part, axis=-1)
    likelier = mx.cumsum(ordered, axis=-1) - ordered
    reaching = mx.sum(likelier < missing, axis=-1, keepdims=True)
    border = mx.take_along_axis(ordered, reaching - 1, axis=-1)
    above, equal = weights > border, weights == border
    equals = before + reaching - mx.sum(above, axis=-1, keepdims=True)
    kept = above | (equal & (mx.cumsum(equal.astype(mx.int32), axis=-1) <= equals))
    return mx.where(kept, weights, 0.0)


def _around_the_border(weights: mx.array, missing: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Selects the part of each row in which the sorted weights reach `missing` (batch, 1).

    Returns at most `_SORTED` weights, the number of weights that are larger than all of those, and
    what is missing after them. MLX sorts a row of 128256 in 20 ms on an x86 CPU; each round here
    halves the candidates, in a tenth of that.
    """
    size = weights.shape[-1]
    halvings = max(0, math.ceil(math.log2(size / _SORTED)))
    blank = -size % 2**halvings
    part = mx.pad(weights, [(0, 0), (0, blank)]) if blank else weights
    before = mx.zeros(missing.shape, dtype=mx.int32)
    for _ in range(halvings):
        half = part.shape[-1] // 2
        parted = mx.partition(part, half, axis=-1)
        smaller, larger = parted[:, :half], parted[:, half:]
        mass = mx.sum(larger, axis=-1, keepdims=True)
        enough = mass >= missing
        part = mx.where(enough, larger, smaller)
        before = mx.where(enough, before, before + half)
        missing = mx.where(enough, missing, missing - mass)
    return part, before, missing
