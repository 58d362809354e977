"""The next token as a function of logits and a key: no state, no global random numbers."""

from __future__ import annotations

import hashlib

import mlx.core as mx

from .plans import Sampling


def token_key(seed: int, node: str, position: int) -> mx.array:
    """The key of the random number that chooses token `position` of candidate `node`.

    It depends on nothing else, so a candidate's text is the same whatever is decoded beside it.
    """
    digest = hashlib.blake2b(f"{seed}/{node}/{position}".encode(), digest_size=8).digest()
    return mx.random.key(int.from_bytes(digest, "big"))


def sample(logits: mx.array, sampling: Sampling, key: mx.array) -> mx.array:
    """One id for each row of `logits` (rows, vocabulary): (rows,).

    `key` is used only when the temperature is above 0.
    """
    if sampling.temperature == 0:
        return mx.argmax(logits, axis=-1)
    # Probabilities in float32: in bfloat16 the sums over a large vocabulary would be off.
    logits = logits.astype(mx.float32)
    # With the largest at 0, nothing overflows; below 1e-6 the likeliest token is certain anyway.
    logits = (logits - mx.max(logits, axis=-1, keepdims=True)) / max(sampling.temperature, 1e-6)
    if sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    return mx.random.categorical(logits, key=key)


def _nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Leaves the likeliest tokens whose probabilities reach `top_p`, the one that crosses it too.

    Nucleus sampling, Holtzman et al. 2020 (arXiv 1904.09751), section 3.1.
    """
    order = mx.argsort(-logits, axis=-1)
    ordered = mx.take_along_axis(mx.softmax(logits, axis=-1), order, axis=-1)
    before = mx.cumsum(ordered, axis=-1) - ordered  # mass of the likelier tokens
    kept = mx.put_along_axis(mx.zeros_like(before), order, mx.where(before < top_p, 1.0, 0.0), -1)
    return mx.where(kept > 0, logits, -mx.inf)
