"""Scaled dot-product attention whose memory stays bounded on every device."""

from __future__ import annotations

import math
from typing import Literal

import mlx.core as mx

from llavacot_mlx.model.kernels import kernels
from llavacot_mlx.model.quantized_kv import KV, QuantizedKV, attention_scores, weighted_sum


def attend_to_all(queries: mx.array, keys: KV, values: KV) -> mx.array:
    """Like `attend` without a mask, and also for quantized K/V."""
    if not isinstance(keys, QuantizedKV):
        assert not isinstance(values, QuantizedKV)
        return attend(queries, keys, values)
    kv_heads, columns, head_dim = keys.shape[1:]
    grouped = (queries * head_dim**-0.5).reshape(1, kv_heads, -1, head_dim)
    num_queries = grouped.shape[2]
    size = max(1, kernels().attention_scores_bytes // (4 * kv_heads * columns))
    blocks = []
    for start in range(0, num_queries, size):
        block = grouped[:, :, start : start + size]
        weights = mx.softmax(attention_scores(block, keys), axis=-1, precise=True)
        blocks.append(weighted_sum(weights, values))
        if start + size < num_queries:
            mx.eval(blocks[-1])  # otherwise every block's scores would be in memory at once
    return mx.concatenate(blocks, axis=2).reshape(queries.shape)


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    mask: Literal["causal"] | None = None,
) -> mx.array:
    """softmax(q kᵀ / √head_dim) v, with groups of query heads sharing a K/V head.

    `queries` is (batch, heads, n, head_dim), `keys` and `values` (batch, kv heads, m, head_dim),
    and the result is like `queries`. With "causal", query i sees the keys up to m - n + i.

    Without a fused kernel (`Kernels.fused_attention`) the queries are taken in blocks, so that
    memory stays bounded.
    """
    scale = queries.shape[-1] ** -0.5
    batch, heads, num_queries, head_dim = queries.shape
    kv_heads, columns = keys.shape[1], keys.shape[2]
    if kernels().fused_attention:
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=mask if num_queries > 1 else None
        )
    if heads > kv_heads and (mask is None or num_queries == 1):
        # Heads that share a K/V head become rows of one product, which reads the keys once.
        grouped = queries.reshape(batch, kv_heads, -1, head_dim)
        return attend(grouped, keys, values).reshape(queries.shape)
    blocks = []
    size = max(1, kernels().attention_scores_bytes // (4 * batch * heads * columns))
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        block = queries[:, :, start:stop]
        if mask == "causal" and num_queries > 1:
            # No query of the block sees keys after its last query's position.
            seen = columns - num_queries + stop
            blocks.append(
                mx.fast.scaled_dot_product_attention(
                    block, keys[:, :, :seen], values[:, :, :seen], scale=scale, mask=mask
                )
            )
        else:
            blocks.append(_attend_to_all(block, keys, values, scale))
        if stop < num_queries:
            # Without this, MLX would allocate every block's scores before the first is used.
            mx.eval(blocks[-1])
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)


def _attend_to_all(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Attention without a mask, for the CPU, with as many query heads as K/V heads.

    Nearly all its time goes into exponentials, and MLX's `exp` takes twice as long as its `power`
    on an x86 CPU, so the softmax is written to the base 2.
    """
    scores = (queries * (scale * math.log2(math.e))) @ keys.swapaxes(-1, -2)
    scores = scores.astype(mx.float32)
    weights = mx.power(2.0, scores - mx.max(scores, axis=-1, keepdims=True))
    total = mx.sum(weights, axis=-1, keepdims=True)
    return ((weights.astype(values.dtype) @ values) / total).astype(values.dtype)


def softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis, computed in float32; the result has the scores' type."""
    if kernels().fused_attention:
        return mx.softmax(scores, axis=-1, precise=True)
    # To the base 2, for the reason that `_attend_to_all` gives.
    wide = scores.astype(mx.float32)
    powers = mx.power(2.0, (wide - mx.max(wide, axis=-1, keepdims=True)) * math.log2(math.e))
    return (powers / mx.sum(powers, axis=-1, keepdims=True)).astype(scores.dtype)
