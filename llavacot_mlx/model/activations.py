"""The two activations, fused where fusing needs no compiler at run time.

On the Linux CPU, `mx.compile` calls the C++ compiler for every fused kernel, which costs seconds
before the first token, so there the plain expressions run.
"""

from __future__ import annotations

import math

import mlx.core as mx


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


_fused_silu = mx.compile(_silu, shapeless=True)
_fused_gelu = mx.compile(_gelu, shapeless=True)


def _on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    return _fused_silu(x) if _on_gpu() else _silu(x)


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x), with the exact normal distribution function and not its tanh approximation."""
    return _fused_gelu(x) if _on_gpu() else _gelu(x)
