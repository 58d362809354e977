"""Attention with a gradient that is computed in blocks, so that scores are never kept.

MLX's own attention keeps the scores of all heads for the backward pass: 105 MB a layer for 8 heads,
512 tokens and a picture of four tiles, and gigabytes in the 11B. Here, as in FlashAttention (arXiv
2205.14135, algorithm 4), a row's log-sum-exp is kept and its weights are computed again.
"""

from __future__ import annotations

import math

import mlx.core as mx

from llavacot_mlx.model.kernels import kernels

_LOG2_E = math.log2(math.e)


def attend(queries: mx.array, keys: mx.array, values: mx.array, causal: bool) -> mx.array:
    """softmax(q kᵀ / √head_dim) v, with groups of query heads sharing a K/V head.

    `queries` is (rows, heads, n, head_dim), `keys` and `values` (rows, kv heads, m, head_dim); the
    result is like `queries`. With `causal`, query i sees the keys 0 to i; otherwise all.
    """
    rows, heads, n, head_dim = queries.shape
    kv_heads, m = keys.shape[1:3]
    held = kernels().training_scores_bytes
    size = max(1, held // (4 * rows * heads * m))
    blocks = [(start, min(start + size, n)) for start in range(0, n, size)]
    # Heads that share a K/V head become rows of one product, which reads the keys once.
    grouped = queries.reshape(rows, kv_heads, heads // kv_heads, n, head_dim)
    attended, _ = _in_blocks(blocks, causal)(grouped, keys, values)
    return attended.reshape(queries.shape)


def _in_blocks(blocks: list[tuple[int, int]], causal: bool):  # type: ignore[no-untyped-def]
    """Attention of (rows, kv heads, group, n, head_dim) that takes these queries at a time.

    Returns what is attended and, in base 2, each query's log-sum-exp.
    """

    @mx.custom_function
    def forward(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        attended, logs = [], []
        for start, stop in blocks:
            seen = stop if causal else keys.shape[2]
            scores = _scores(queries, keys, start, stop, causal)
            highest = mx.max(scores, axis=-1, keepdims=True)
            weights = mx.power(2.0, scores - highest)
            total = mx.sum(weights, axis=-1, keepdims=True)
            block = (weights.astype(values.dtype) @ values[:, :, :seen]) / total
            shape = (*queries.shape[:3], stop - start, -1)
            attended.append(block.astype(values.dtype).reshape(shape))
            logs.append((highest + mx.log2(total)).reshape(shape))
        return mx.concatenate(attended, axis=3), mx.concatenate(logs, axis=3)

    @forward.vjp
    def backward(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, mx.array, mx.array]:
        queries, keys, values = primals
        slopes = cotangents[0]
        attended, logs = outputs
        scale = queries.shape[-1] ** -0.5
        shares = mx.sum((slopes * attended).astype(mx.float32), axis=-1, keepdims=True)
        of_queries: list[mx.array] = []
        of_keys = of_values = mx.array(0.0)
        # The last block sees the most keys, so what it gives has room for the others.
        for start, stop in reversed(blocks):
            seen = stop if causal else keys.shape[2]
            weights = mx.power(
                2.0, _scores(queries, keys, start, stop, causal) - _block(logs, start, stop)
            )
            slope = _block(slopes, start, stop)
            change = slope @ values[:, :, :seen].swapaxes(-1, -2)
            change = (weights * (change - _block(shares, start, stop))).astype(keys.dtype)
            weights = weights.astype(values.dtype)
            block = (scale * (change @ keys[:, :, :seen])).reshape(
                *queries.shape[:3], stop - start, -1
            )
            of_queries.insert(0, block)
            one_query = _block(queries, start, stop)
            if stop == blocks[-1][1]:
                of_values = weights.swapaxes(-1, -2) @ slope
                of_keys = change.swapaxes(-1, -2) @ one_query
            elif seen == keys.shape[2]:
                of_values = mx.addmm(of_values, weights.swapaxes(-1, -2), slope)
                of_keys = mx.addmm(of_keys, change.swapaxes(-1, -2), one_query)
            else:
                of_values = of_values.at[:, :, :seen].add(weights.swapaxes(-1, -2) @ slope)
                of_keys = of_keys.at[:, :, :seen].add(change.swapaxes(-1, -2) @ one_query)
        return mx.concatenate(of_queries, axis=3), scale * of_keys, of_values

    return forward


def _block(array: mx.array, start: int, stop: int) -> mx.array:
    """Queries `start` to `stop` of a group of heads, one after the other as rows."""
    block = array[:, :, :, start:stop]
    return block.reshape(*block.shape[:2], -1, block.shape[-1])


def _scores(queries: mx.array, keys: mx.array, start: int, stop: int, causal: bool) -> mx.array:
    """Scores of a block of queries in float32, in base 2, whose power MLX computes quicker."""
    seen = stop if causal else keys.shape[2]
    block = _block(queries, start, stop) * (queries.shape[-1] ** -0.5 * _LOG2_E)
    scores = (block @ keys[:, :, :seen].swapaxes(-1, -2)).astype(mx.float32)
    if not causal:
        return scores
    after = mx.arange(seen) > mx.arange(start, stop)[:, None]
    apart = scores.reshape(*scores.shape[:2], -1, stop - start, seen)
    return mx.where(after, -mx.inf, apart).reshape(scores.shape)
