"""Products with quantized weights: the same for many rows as for each, and nothing is kept."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from llavacot_mlx.model.linear import Linear, QuantizedLinear, plain_weight

MODES = [("affine", 32, 4), ("affine", 64, 8), ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]
MANY = 40  # rows


def quantized(mode: str, group_size: int, bits: int, bias: bool = False) -> QuantizedLinear:
    mx.random.seed(0)
    layer = nn.Sequential(Linear(128, 64, bias))
    nn.quantize(layer, group_size, bits, mode=mode)
    (made,) = layer.layers
    assert isinstance(made, QuantizedLinear)
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("mode", "group_size", "bits"), MODES)
def test_many_rows_are_multiplied_as_each_is(
    mode: str, group_size: int, bits: int, bias: bool
) -> None:
    layer = quantized(mode, group_size, bits, bias)
    x = mx.random.normal((2, MANY // 2, 128))
    whole = layer(x)
    assert (whole.shape, whole.dtype) == ((2, MANY // 2, 64), mx.float32)
    each = mx.stack([layer(row) for row in x.reshape(MANY, 1, 128)])
    assert np.allclose(np.array(whole).reshape(MANY, 64), np.array(each)[:, 0], atol=1e-4)


@pytest.mark.parametrize(("mode", "group_size", "bits"), MODES)
def test_the_gradient_in_many_rows_is_that_of_the_plain_weight(
    mode: str, group_size: int, bits: int
) -> None:
    layer = quantized(mode, group_size, bits)
    x, slopes = mx.random.normal((MANY, 128)), mx.random.normal((MANY, 64))
    _, (gradient,) = mx.vjp(layer, [x], [slopes])
    wanted = np.array(slopes) @ np.array(plain_weight(layer).astype(mx.float32))
    assert np.allclose(np.array(gradient), wanted, atol=1e-4)


def test_the_backward_pass_keeps_no_dequantized_weights() -> None:
    size, depth = 512, 40
    layers = nn.Sequential(*(Linear(size, size) for _ in range(depth)))
    nn.quantize(layers, 64, 4)
    x = mx.random.normal((MANY, size))
    mx.eval(layers.parameters(), x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(lambda x: layers(x).sum())(x))
    # All of them would be 42 MB; MLX works at most ten operations ahead.
    assert mx.get_peak_memory() - before < depth * size * size * 4 / 2


def test_inputs_are_not_quantized() -> None:
    with pytest.raises(ValueError, match="inputs are not quantized"):
        Linear(64, 64).to_quantized(16, 4, "nvfp4", quantize_input=True)
