"""Rotary position embeddings; a forward pass computes their cosines and sines once."""

from __future__ import annotations

import mlx.core as mx

from llavacot_mlx.model.kernels import kernels


class Rotation:
    """The rotation of queries and keys at the positions of one forward pass.

    Where no fused kernel runs, all layers share the cosines and sines (`Kernels.fused_rope`).
    """

    def __init__(self, wavelengths: mx.array, offset: int | mx.array, tokens: int) -> None:
        """`wavelengths` is (head_dim / 2,); `offset` is the first position, or (batch,) of them."""
        self._wavelengths, self._offset = wavelengths, offset
        self._fused = kernels().fused_rope
        if not self._fused:
            first = mx.array(offset).reshape(-1, 1, 1, 1)
            angles = (first + mx.arange(tokens)[:, None]) / wavelengths  # (batch, 1, tokens, half)
            cosines, sines = mx.cos(angles), mx.sin(angles)
            self._cosines = mx.concatenate([cosines, cosines], axis=-1)
            self._sines = mx.concatenate([-sines, sines], axis=-1)

    def __call__(self, x: mx.array) -> mx.array:
        """Rotates (batch, heads, tokens, head_dim): the first half of a head against the second."""
        if self._fused:
            return mx.fast.rope(
                x,
                x.shape[-1],
                traditional=False,
                base=None,
                scale=1.0,
                offset=self._offset,
                freqs=self._wavelengths,
            )
        half = x.shape[-1] // 2
        swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        return x * self._cosines.astype(x.dtype) + swapped * self._sines.astype(x.dtype)
