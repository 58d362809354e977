"""The activations of the CPU are those of their formulas, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx.model.activations import gelu, silu
from llavacot_mlx.model.kernels import CPU, use

FORMULAS: dict[str, tuple[Callable[[mx.array], mx.array], Callable[[mx.array], mx.array]]] = {
    "silu": (silu, lambda x: x * mx.sigmoid(x)),
    "gelu": (gelu, lambda x: x * (1 + mx.erf(x / 2**0.5)) / 2),
}
EVERYWHERE = mx.concatenate(
    [mx.linspace(-12, 12, 4801), mx.array([-1e9, -300.0, -88.0, 0.0, 88.0, 300.0, 1e9])]
)


@pytest.mark.parametrize("name", FORMULAS)
def test_values(name: str) -> None:
    ours, formula = FORMULAS[name]
    with use(CPU):
        values = np.array(ours(EVERYWHERE))
    np.testing.assert_allclose(values, np.array(formula(EVERYWHERE)), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients(name: str) -> None:
    """Finite everywhere, also where a power would overflow, and at 0."""
    ours, formula = FORMULAS[name]
    with use(CPU):
        gradients = np.array(mx.grad(lambda x: ours(x).sum())(EVERYWHERE))
    expected = np.array(mx.grad(lambda x: formula(x).sum())(EVERYWHERE))
    np.testing.assert_allclose(gradients, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_16_bits_lose_no_more_than_their_last(name: str, dtype: mx.Dtype) -> None:
    ours, formula = FORMULAS[name]
    x = mx.linspace(-12, 12, 997).astype(dtype)
    with use(CPU):
        result = ours(x)
    assert result.dtype == dtype
    values = np.array(result.astype(mx.float32))
    expected = np.array(formula(x.astype(mx.float32)))
    np.testing.assert_allclose(values, expected, rtol=2**-8, atol=1e-5)
