"""Attention whose gradient is computed in blocks, so that the scores are never kept.

MLX's own attention keeps the scores of all heads for the backward pass: 105 MB per layer for 8
heads, 512 tokens and an image of four tiles, and gigabytes in the 11B model. Here, as in
FlashAttention (arXiv 2205.14135, algorithm 4), only the log-sum-exp of each query is kept, and the
attention weights are computed again.
"""

from __future__ import annotations

import math

import mlx.core as mx

from llavacot_mlx.model.kernels import kernels

_LOG2_E = math.log2(math.e)


def attend(queries: mx.array, keys: mx.array, values: mx.array, causal: bool) -> mx.array:
    """softmax(q kᵀ / √head_dim) v, with groups of query heads sharing a K/V head.

    `queries` is (batch, heads, n, head_dim), `keys` and `values` (batch, kv heads, m, head_dim),
    and the result has the shape of `queries`. With `causal`, query i attends to keys 0 to i;
    otherwise to all.
    """
    batch, heads, n, head_dim = queries.shape
    kv_heads, m = keys.shape[1:3]
    held = kernels().training_scores_bytes
    size = max(1, held // (4 * batch * heads * m))
    blocks = [(start, min(start + size, n)) for start in range(0, n, size)]
    # Query heads that share a K/V head share one matrix product, which reads the keys once.
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads, n, head_dim)
    output, _ = _blocked_attention(blocks, causal)(grouped, keys, values)
    return output.reshape(queries.shape)


def _blocked_attention(blocks: list[tuple[int, int]], causal: bool):  # type: ignore[no-untyped-def]
    """Attention on queries of shape (batch, kv heads, group, n, head_dim), block by block.

    The function returns the attention output and the log-sum-exp of each query, in base 2.
    """

    @mx.custom_function
    def forward(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        output, lse = [], []
        for start, stop in blocks:
            visible = stop if causal else keys.shape[2]
            scores = _scores(queries, keys, start, stop, causal)
            highest = mx.max(scores, axis=-1, keepdims=True)
            weights = mx.power(2.0, scores - highest)
            total = mx.sum(weights, axis=-1, keepdims=True)
            block = (weights.astype(values.dtype) @ values[:, :, :visible]) / total
            shape = (*queries.shape[:3], stop - start, -1)
            output.append(block.astype(values.dtype).reshape(shape))
            lse.append((highest + mx.log2(total)).reshape(shape))
        return mx.concatenate(output, axis=3), mx.concatenate(lse, axis=3)

    @forward.vjp
    def backward(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, mx.array, mx.array]:
        queries, keys, values = primals
        grad = cotangents[0]
        output, lse = outputs
        scale = queries.shape[-1] ** -0.5
        delta = mx.sum((grad * output).astype(mx.float32), axis=-1, keepdims=True)
        query_grads: list[mx.array] = []
        key_grad = value_grad = mx.array(0.0)
        # The last block attends to the most keys, so its gradients have room for the others.
        for start, stop in reversed(blocks):
            visible = stop if causal else keys.shape[2]
            weights = mx.power(
                2.0, _scores(queries, keys, start, stop, causal) - _block(lse, start, stop)
            )
            block_grad = _block(grad, start, stop)
            score_grad = block_grad @ values[:, :, :visible].swapaxes(-1, -2)
            score_grad = (weights * (score_grad - _block(delta, start, stop))).astype(keys.dtype)
            weights = weights.astype(values.dtype)
            block = (scale * (score_grad @ keys[:, :, :visible])).reshape(
                *queries.shape[:3], stop - start, -1
            )
            query_grads.insert(0, block)
            block_queries = _block(queries, start, stop)
            if stop == blocks[-1][1]:
                value_grad = weights.swapaxes(-1, -2) @ block_grad
                key_grad = score_grad.swapaxes(-1, -2) @ block_queries
            elif visible == keys.shape[2]:
                value_grad = mx.addmm(value_grad, weights.swapaxes(-1, -2), block_grad)
                key_grad = mx.addmm(key_grad, score_grad.swapaxes(-1, -2), block_queries)
            else:
                value_grad = value_grad.at[:, :, :visible].add(
                    weights.swapaxes(-1, -2) @ block_grad
                )
                key_grad = key_grad.at[:, :, :visible].add(
                    score_grad.swapaxes(-1, -2) @ block_queries
                )
        return mx.concatenate(query_grads, axis=3), scale * key_grad, value_grad

    return forward


def _block(array: mx.array, start: int, stop: int) -> mx.array:
    """Queries `start` to `stop`, with those of a group of heads joined into one axis."""
    block = array[:, :, :, start:stop]
    return block.reshape(*block.shape[:2], -1, block.shape[-1])


def _scores(queries: mx.array, keys: mx.array, start: int, stop: int, causal: bool) -> mx.array:
    """Scores of a block of queries, in float32 and in base 2, whose powers MLX computes faster."""
    visible = stop if causal else keys.shape[2]
    block = _block(queries, start, stop) * (queries.shape[-1] ** -0.5 * _LOG2_E)
    scores = (block @ keys[:, :, :visible].swapaxes(-1, -2)).astype(mx.float32)
    if not causal:
        return scores
    after = mx.arange(visible) > mx.arange(start, stop)[:, None]
    apart = scores.reshape(*scores.shape[:2], -1, stop - start, visible)
    return mx.where(after, -mx.inf, apart).reshape(scores.shape)
