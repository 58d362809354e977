"""The two activation functions, each as one fused kernel where the device has a compiler for it."""

from __future__ import annotations

import math

import mlx.core as mx

from llavacot_mlx.model.kernels import kernels


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


_fused_silu = mx.compile(_silu, shapeless=True)
_fused_gelu = mx.compile(_gelu, shapeless=True)


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    return _fused_silu(x) if kernels().compiled_activations else _silu(x)


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x), with the exact normal distribution function and not its tanh approximation."""
    return _fused_gelu(x) if kernels().compiled_activations else _gelu(x)
