"""Quantized keys and values, which attention reads without dequantizing them as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.errors import UserError


@dataclass(frozen=True)
class QuantizedKV:
    """K or V, (1, kv heads, tokens, head_dim), quantized in groups that share a scale and a bias.

    This is MLX's affine quantization along head_dim. The groups are 64 wide, or 32 where 64 does
    not divide head_dim.
    """

    packed: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int

    @classmethod
    def of(cls, array: mx.array, bits: int) -> QuantizedKV:
        """Quantizes an array. Raises UserError if neither 64 nor 32 divides head_dim."""
        group_size = _group_size(array.shape[-1])
        return cls(*mx.quantize(array, group_size, bits), bits, group_size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, heads, tokens, groups = self.scales.shape
        return batch, heads, tokens, groups * self.group_size

    @property
    def dtype(self) -> mx.Dtype:
        return self.scales.dtype

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.biases.nbytes

    def tokens(self, first: int, last: int) -> QuantizedKV:
        """Returns the K/V of tokens `first` to `last` (exclusive)."""
        packed, scales, biases = (
            array[..., first:last, :] for array in (self.packed, self.scales, self.biases)
        )
        return QuantizedKV(packed, scales, biases, self.bits, self.group_size)

    def dequantized(self) -> mx.array:
        return mx.dequantize(self.packed, self.scales, self.biases, self.group_size, self.bits)


KV = mx.array | QuantizedKV


def _group_size(head_dim: int) -> int:
    size = next((size for size in (64, 32) if head_dim % size == 0), None)
    if size is None:
        raise UserError(
            f"K/V cannot be quantized: this model's heads are {head_dim} wide, and 32 does not "
            "divide that"
        )
    return size


def kv_bytes(elements: int, head_dim: int, dtype: mx.Dtype, bits: int | None) -> int:
    """Returns the bytes of K or V with `elements` elements, in `bits` or in `dtype`."""
    if bits is None:
        return elements * dtype.size
    return elements * bits // 8 + 2 * dtype.size * elements // _group_size(head_dim)


def concatenate_tokens(parts: list[KV]) -> KV:
    """Concatenates the parts along their tokens. Either all are quantized or none is."""
    if len(parts) == 1:
        return parts[0]
    packed = [part for part in parts if isinstance(part, QuantizedKV)]
    plain = [part for part in parts if not isinstance(part, QuantizedKV)]
    assert not packed or not plain
    if plain:
        return mx.concatenate(plain, axis=2)
    return QuantizedKV(
        mx.concatenate([part.packed for part in packed], axis=2),
        mx.concatenate([part.scales for part in packed], axis=2),
        mx.concatenate([part.biases for part in packed], axis=2),
        packed[0].bits,
        packed[0].group_size,
    )


def slice_tokens(kv: KV, first: int, last: int) -> KV:
    """Returns the K/V of tokens `first` to `last` (exclusive)."""
    return kv.tokens(first, last) if isinstance(kv, QuantizedKV) else kv[..., first:last, :]


def kv_arrays(kv: KV) -> tuple[mx.array, ...]:
    return (kv.packed, kv.scales, kv.biases) if isinstance(kv, QuantizedKV) else (kv,)


def dequantized(kv: KV) -> mx.array:
    return kv.dequantized() if isinstance(kv, QuantizedKV) else kv


def attention_scores(queries: mx.array, keys: KV) -> mx.array:
    """Products of queries (1, kv heads, n, head_dim) with all keys: (1, kv heads, n, tokens)."""
    if isinstance(keys, QuantizedKV):
        return _product(queries, keys, transpose=True)
    return queries @ keys.swapaxes(-1, -2)


def weighted_sum(weights: mx.array, values: KV) -> mx.array:
    """Weighted sums of values: weights (1, kv heads, n, tokens) → (1, kv heads, n, head_dim)."""
    if isinstance(values, QuantizedKV):
        return _product(weights, values, transpose=False)
    return weights @ values


def _product(x: mx.array, kv: QuantizedKV, *, transpose: bool) -> mx.array:
    return mx.quantized_matmul(
        x,
        kv.packed,
        kv.scales,
        kv.biases,
        transpose=transpose,
        group_size=kv.group_size,
        bits=kv.bits,
    )
