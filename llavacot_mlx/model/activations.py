"""The two activation functions, as fast as each device computes them.

Where the device has a compiler for it, each is one fused kernel. On an x86 CPU, MLX's `sigmoid`
takes four times as long as its `power`, and its `erf` eight times, so there both are written with
powers of two.
"""

from __future__ import annotations

import math

import mlx.core as mx

from llavacot_mlx.model.kernels import kernels

_LOG2_E = math.log2(math.e)
_MAX_EXPONENT = 60.0
"""The square of 2**60 still is a float32, so that no gradient overflows; x / 2**60 is nothing."""
# Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26: erf(z) is
# 1 - (a1 t + ... + a5 t^5) exp(-z²) with t = 1 / (1 + p z), for z >= 0; its error is below 1.5e-7.
_ERF_P = 0.3275911
_ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


_fused_silu = mx.compile(_silu, shapeless=True)
_fused_gelu = mx.compile(_gelu, shapeless=True)


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    if kernels().compiled_activations:
        return _fused_silu(x)
    wide = x.astype(mx.float32)
    power = mx.power(2.0, mx.minimum(wide * -_LOG2_E, _MAX_EXPONENT))
    return (wide / (1 + power)).astype(x.dtype)


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x), with the exact normal distribution function and not its tanh approximation."""
    if kernels().compiled_activations:
        return _fused_gelu(x)
    wide = x.astype(mx.float32)
    z = mx.abs(wide) / math.sqrt(2)
    t = 1 / (1 + _ERF_P * z)
    *others, last = _ERF_A
    series = last * t
    for coefficient in reversed(others):
        series = (coefficient + series) * t
    tail = series * mx.power(2.0, z * z * -_LOG2_E) / 2  # Φ(-|x|)
    return (wide * mx.where(wide > 0, 1 - tail, tail)).astype(x.dtype)
