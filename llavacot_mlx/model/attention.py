"""Scaled dot-product attention whose memory stays bounded on every device."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

_SCORES_BYTES = 16 * 2**20
"""Attention scores held at once where no fused kernel keeps them out of memory."""


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    mask: Literal["causal"] | None = None,
) -> mx.array:
    """softmax(q kᵀ / √head_dim) v, with groups of query heads sharing a K/V head.

    `queries` is (1, heads, n, head_dim), `keys` and `values` (1, kv heads, m, head_dim); the result
    is like `queries`. With "causal", query i sees the keys up to m - n + i.

    On a GPU, MLX's kernel is fused. On the CPU it would hold the scores of all heads at once (2.6
    GB for a picture of four tiles), so there the queries are taken in blocks.
    """
    scale = queries.shape[-1] ** -0.5
    _, heads, rows, _ = queries.shape
    columns = keys.shape[2]
    block = max(1, _SCORES_BYTES // (4 * heads * columns))
    if rows <= block or mx.default_device().type != mx.DeviceType.cpu:
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=mask if rows > 1 else None
        )
    blocks = []
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        # A block's last query sees keys up to its own position, so those after it can be left out.
        seen = columns - rows + stop if mask == "causal" else columns
        blocks.append(
            mx.fast.scaled_dot_product_attention(
                queries[:, :, start:stop],
                keys[:, :, :seen],
                values[:, :, :seen],
                scale=scale,
                mask=mask,
            )
        )
        # Without this, MLX would allocate every block's scores before the first is used.
        mx.eval(blocks[-1])
    return mx.concatenate(blocks, axis=2)
